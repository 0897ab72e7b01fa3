// A recording played into the same history that a live view draws: a window of points around the
// playhead, asked for in pieces, and the words that had been said until then.

import { RefusedError, ask } from "./api";
import type { Claim, NarrationDocument } from "./documents";
import { KEPT } from "./live.svelte";
import { History, type Points } from "./points";
import { path, steps, type Words } from "./recordings";

/** Seconds before the playhead that are drawn, and that are loaded ahead of it. */
const SPAN_S = 60;
/** The next piece is asked for when less than this is left. */
const AHEAD_S = 25;

interface View {
  file: string;
  run: string;
  hookPoint: string;
  env: number;
}

export class Replay {
  /** Replaced at every jump. */
  history = $state.raw<History | null>(null);
  /** The playhead, in seconds since the recording began. */
  at = $state(0);
  playing = $state(false);
  speed = $state(1);
  loading = $state(false);
  error = $state("");
  /** Steps that one drawn point stands for. */
  thinning = $state(1);

  private words = $state.raw<Words>({ claims: [], narration: [] });
  private blocks: Points[] = [];
  /** The next row to be shown: its block, and its row in it. */
  private block = 0;
  private row = 0;
  private from = 0;
  private until = 0;
  private beganMs = 0;
  private asked: AbortController | null = null;
  private timer = 0;
  /** Words change a few times a second at most, the playhead with every frame. */
  private readonly heard = $derived(Math.floor(this.at * 4) / 4);

  readonly claims: readonly Claim[] = $derived.by(() => {
    const newest = new Map<string, Claim>();
    for (const one of this.words.claims) if (one.at <= this.heard) newest.set(one.claim.address, one.claim);
    return [...newest.values()];
  });

  readonly told: readonly NarrationDocument[] = $derived(
    this.words.narration
      .filter((one) => one.at <= this.heard && one.value.env === this.view.env)
      .map((one) => one.value),
  );

  constructor(
    private readonly view: View,
    readonly seconds: number,
    at: number,
  ) {
    this.seek(at);
  }

  close(): void {
    window.clearTimeout(this.timer);
    this.asked?.abort();
  }

  /** Jump; what is not loaded is asked for, a moment later where jumps come close together. */
  seek(at: number): void {
    this.at = Math.max(0, Math.min(this.seconds, at));
    if (this.beganMs > 0 && this.at >= this.from + Math.min(this.from, 10) && this.at < this.until) {
      this.redraw();
      return;
    }
    window.clearTimeout(this.timer);
    this.timer = window.setTimeout(() => void this.load(), this.beganMs > 0 ? 120 : 0);
  }

  /** One point back or on; stands still then. */
  nudge(way: 1 | -1): void {
    this.playing = false;
    const shown = this.history;
    if (way > 0) {
      const next = this.blocks[this.block]?.time[this.row];
      if (next !== undefined) this.seek((next - this.beganMs) / 1000 + 1e-4);
    } else if (shown !== null && shown.total > 1) {
      const before = shown.time[(shown.total - 2) % shown.size]!;
      this.seek((before - this.beganMs) / 1000 + 1e-4);
    }
  }

  /** So many seconds of the wall have passed. */
  pass(seconds: number): void {
    if (!this.playing) return;
    // Where points are still on their way the playhead waits for them.
    this.at = Math.min(this.until, this.at + seconds * this.speed);
    this.show();
    if (this.at >= this.seconds) this.playing = false;
    else if (!this.loading && this.until < this.seconds && this.until - this.at < AHEAD_S * Math.max(1, this.speed / 2)) {
      void this.more();
    }
  }

  /** From nothing, around the playhead. */
  private async load(): Promise<void> {
    this.asked?.abort();
    const ended = (this.asked = new AbortController());
    const from = Math.max(0, this.at - SPAN_S);
    this.blocks = [];
    this.from = this.until = from;
    await this.fetch(from, Math.min(this.seconds + 1e-3, this.at + SPAN_S), ended, true);
  }

  /** The piece behind what there is. */
  private async more(): Promise<void> {
    const ended = (this.asked ??= new AbortController());
    await this.fetch(this.until, Math.min(this.seconds + 1e-3, this.until + SPAN_S), ended, false);
  }

  private async fetch(from: number, to: number, ended: AbortController, anew: boolean): Promise<void> {
    this.loading = true;
    this.error = "";
    const { file, run, hookPoint, env } = this.view;
    const about = { run_id: run, hook_point: hookPoint };
    try {
      const words = ask<Words>(path(file, "words"), { ...about, from_s: from, to_s: to }, ended.signal);
      words.catch(() => undefined); // told below, with whatever else goes wrong
      let reached = from;
      while (reached < to) {
        const points = Math.max(1, Math.round((KEPT * (to - reached)) / SPAN_S));
        const found = await steps(file, { ...about, env, from_s: reached, to_s: to, points }, ended.signal);
        if (ended.signal.aborted) return;
        this.beganMs = found.beganMs;
        this.blocks = [...this.blocks, ...found.blocks.filter((one) => one.count > 0)];
        this.until = reached = Math.max(found.until, reached + 1e-3);
        if (anew && (reached > this.at || reached >= to)) this.redraw();
      }
      this.until = Math.max(this.until, to);
      this.take(await words);
      this.forget();
    } catch (error) {
      if (ended.signal.aborted) return;
      this.error = error instanceof RefusedError || error instanceof Error ? error.message : String(error);
      this.playing = false;
    } finally {
      if (!ended.signal.aborted) this.loading = false;
    }
  }

  private take(next: Words): void {
    const times = new Set(this.words.narration.map((one) => one.at));
    this.words = {
      claims: [...this.words.claims, ...next.claims].toSorted((a, b) => a.at - b.at),
      narration: [...next.narration.filter((one) => !times.has(one.at)), ...this.words.narration].toSorted((a, b) => b.at - a.at),
    };
  }

  /** Let go of points that lie far behind, and of words of elsewhere. */
  private forget(): void {
    const old = this.at - 3 * SPAN_S;
    while (this.block > 1 && this.last(this.blocks[0]!) < old) {
      this.from = Math.max(this.from, this.last(this.blocks[0]!));
      this.blocks.shift();
      this.block -= 1;
    }
    if (this.words.narration.length > 800) this.words = { ...this.words, narration: this.words.narration.slice(0, 400) };
  }

  private last(points: Points): number {
    return (points.time[points.count - 1]! - this.beganMs) / 1000;
  }

  /** The history anew, up to the playhead. */
  private redraw(): void {
    const metrics = this.blocks[0]?.metrics;
    this.history = metrics === undefined ? null : new History(KEPT, metrics);
    this.block = this.row = 0;
    this.show();
  }

  /** Take in the points until the playhead. */
  private show(): void {
    const end = this.beganMs + this.at * 1000;
    for (; this.block < this.blocks.length; this.block += 1, this.row = 0) {
      const points = this.blocks[this.block]!;
      if (this.history?.metrics.length !== points.metrics) this.history = new History(KEPT, points.metrics);
      let to = this.row;
      while (to < points.count && points.time[to]! <= end) to += 1;
      if (to > this.row) {
        this.history.take(points, this.row, to);
        this.thinning = points.steps[to - 1]!;
      }
      this.row = to;
      if (to < points.count) return;
    }
    this.row = 0;
  }
}
