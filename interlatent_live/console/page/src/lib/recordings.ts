// What the console says of recordings (interlatent_live/console/recorded.py).

import { ask, PREFIX, RefusedError } from "./api";
import type { Claim, MetricInfo, NarrationDocument } from "./documents";
import { decodePoints, type Points } from "./points";

export interface Recorded {
  name: string;
  size: number | null;
  modified_ns: number | null;
  /** Whether the console has gone through it; otherwise it does so as it is asked again. */
  read: boolean;
  complete: boolean;
  began_ns: number | null;
  seconds: number | null;
  agents: { agent: string; environment: string }[];
  problem: string;
}

export interface RecordedStream {
  agent: string;
  run_id: string;
  environment: string;
  env_count: number;
  actions: string[];
  metrics: MetricInfo[];
  hook_points: { name: string; transcoder: string }[];
  pictures: boolean;
}

export interface Described extends Recorded {
  streams: RecordedStream[];
}

export interface Words {
  /** Claims, each where it came to say something else, oldest first. */
  claims: { at: number; claim: Claim }[];
  /** Newest first. */
  narration: { at: number; value: NarrationDocument }[];
}

export interface Moment {
  agent: string;
  run_id: string;
  env: number;
  episode: number;
  t: number;
  steps: number;
  at: number;
  peak: number | null;
  goes_on: boolean;
}

export interface MomentsAnswer {
  items: Moment[];
  until: number;
  done: boolean;
  steps: number;
}

export interface Steps {
  /** How far the answer goes, in seconds. */
  until: number;
  beganMs: number;
  blocks: Points[];
}

export function path(name: string, what = ""): string {
  return `/recordings/${encodeURIComponent(name)}${what === "" ? "" : `/${what}`}`;
}

/** Points of one copy between two times: an answer of several messages of points. */
export async function steps(
  name: string,
  query: Record<string, string | number>,
  signal: AbortSignal,
): Promise<Steps> {
  const search = new URLSearchParams(Object.entries(query).map(([key, one]) => [key, String(one)]));
  const answer = await fetch(`${PREFIX}${path(name, "steps")}?${search}`, { signal });
  if (!answer.ok) {
    const said = (await answer.json().catch(() => ({}))) as { detail?: string };
    throw new RefusedError(said.detail ?? `the console answered ${answer.status}`, answer.status);
  }
  const buffer = await answer.arrayBuffer();
  const length = new DataView(buffer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length))) as {
    until: number;
    began_ns: number;
    blocks: { bytes: number }[];
  };
  let at = 4 + length;
  const blocks = head.blocks.map(({ bytes }) => decodePoints(buffer.slice(at, (at += bytes))));
  return { until: head.until, beganMs: head.began_ns / 1e6, blocks };
}

export const listing = (signal: AbortSignal) => ask<{ folder: string | null; items: Recorded[] }>("/recordings", {}, signal);

/** Minutes and seconds, with tenths. */
export function clockOf(seconds: number): string {
  const minutes = Math.floor(seconds / 60);
  const rest = (seconds - 60 * minutes).toFixed(1).padStart(4, "0");
  return minutes < 60
    ? `${minutes}:${rest}`
    : `${Math.floor(minutes / 60)}:${String(minutes % 60).padStart(2, "0")}:${rest}`;
}
