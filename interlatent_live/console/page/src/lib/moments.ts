// Pictures of the moments on a feature's card (interlatent_live/console/exemplar_pictures.py).

import { ask, PREFIX } from "./api";

/** Which of these rows of a run have a picture near them, and how many steps before them it is. */
export async function near(run: string, positions: number[], signal: AbortSignal): Promise<ReadonlyMap<number, number>> {
  const { items } = await ask<{ items: { position: number; steps: number }[] }>(
    "/pictures",
    { run_id: run, positions: positions.join(",") },
    signal,
  );
  return new Map(items.map((one) => [one.position, one.steps]));
}

/** Where the picture near a row lies; another one near the same row would be at another address. */
export function pictureOf(run: string, position: number, steps: number): string {
  return `${PREFIX}/pictures/${position}?run_id=${encodeURIComponent(run)}#${steps}`;
}

/** When a picture was taken, seen from its moment, in words. */
export function taken(steps: number): string {
  const count = `${Math.abs(steps)} step${Math.abs(steps) === 1 ? "" : "s"}`;
  return steps === 0 ? "at this step" : `${count} ${steps > 0 ? "before" : "after"} it`;
}
