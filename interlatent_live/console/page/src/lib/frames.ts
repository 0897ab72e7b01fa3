// One drawing loop for the whole page. What must move with every frame is called with every frame;
// what is dear to draw takes turns within a budget, so that many charts make each other slower and
// never the page.

type Draw = (now: number) => void;

/** Of the 16.7 ms between two frames; the rest is the browser's own. */
const BUDGET_MS = 5;

const draws = new Set<Draw>();
const jobs: (() => void)[] = [];
let next = 0;
let asked = 0;

function turn(now: number): void {
  asked = draws.size + jobs.length > 0 ? requestAnimationFrame(turn) : 0;
  const began = performance.now();
  for (const draw of draws) draw(now);
  for (let tried = 0; tried < jobs.length && performance.now() - began < BUDGET_MS; tried++) {
    next %= jobs.length;
    jobs[next++]!();
  }
}

function ask(): void {
  if (asked === 0) asked = requestAnimationFrame(turn);
}

/** Call `draw` before every displayed frame; the answer ends that. */
export function everyFrame(draw: Draw): () => void {
  draws.add(draw);
  ask();
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

/** Call `job` again and again, when its turn comes and time is left; the answer ends that. */
export function inTurn(job: () => void): () => void {
  jobs.push(job);
  ask();
  return () => {
    const at = jobs.indexOf(job);
    if (at >= 0) jobs.splice(at, 1);
  };
}
