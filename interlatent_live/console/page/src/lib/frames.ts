// One drawing loop for the whole page: whatever draws is called once per displayed frame, if it must.

type Draw = (now: number) => void;

const draws = new Set<Draw>();
let asked = 0;

function turn(now: number): void {
  asked = draws.size > 0 ? requestAnimationFrame(turn) : 0;
  for (const draw of draws) draw(now);
}

/** Call `draw` before every displayed frame; the answer ends that. */
export function everyFrame(draw: Draw): () => void {
  draws.add(draw);
  if (asked === 0) asked = requestAnimationFrame(turn);
  return () => draws.delete(draw);
}

/** Like `everyFrame`, at most `hz` times a second. */
export function atMost(hz: number, draw: Draw): () => void {
  let due = 0;
  return everyFrame((now) => {
    if (now < due) return;
    due = now + 1000 / hz - 4;
    draw(now);
  });
}
