// One view's live points: a socket that comes back by itself, and the history behind the charts.

import { decodePoints, History } from "./points";

export const KEPT = 3600;
const RETRY_MS = [250, 500, 1000, 2000, 4000];

export interface View {
  run: string;
  hookPoint: string;
  env: number;
}

export class Live {
  /** Replaced when another boot, or another number of metrics, begins. */
  history = $state.raw<History | null>(null);
  transcoder = $state("");
  nFeatures = $state(0);
  open = $state(false);
  /** Steps of the run that came too fast for this page, all copies together. */
  missed = $state(0);
  /** Steps that one drawn point stands for, newest. */
  thinning = $state(1);
  /** When the newest point came, by this browser's clock in ms. */
  heard = $state(0);
  error = $state("");

  private socket: WebSocket | null = null;
  private after = "";
  private tries = 0;
  private timer = 0;
  private ended = false;
  private boot = "";

  constructor(private readonly view: View) {
    this.connect();
  }

  close(): void {
    this.ended = true;
    window.clearTimeout(this.timer);
    this.socket?.close();
  }

  private connect(): void {
    const query = new URLSearchParams({
      run_id: this.view.run,
      hook_point: this.view.hookPoint,
      env: String(this.view.env),
      after: this.after,
    });
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const socket = new WebSocket(`${scheme}://${location.host}/api/v1/live?${query}`);
    this.socket = socket;
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      this.open = true;
      this.tries = 0;
    };
    socket.onmessage = (event: MessageEvent<string | ArrayBuffer>) => {
      if (typeof event.data === "string") this.word(event.data);
      else this.points(event.data);
    };
    socket.onclose = () => {
      this.open = false;
      if (this.ended) return;
      const wait = RETRY_MS[Math.min(this.tries++, RETRY_MS.length - 1)];
      this.timer = window.setTimeout(() => this.connect(), wait);
    };
  }

  private word(text: string): void {
    const said = JSON.parse(text) as {
      after?: string;
      stream?: { boot_id: string; transcoder: string; n_features: number; metrics: number };
    };
    if (said.after !== undefined) this.after = said.after;
    if (said.stream === undefined) return;
    const { boot_id, transcoder, n_features, metrics } = said.stream;
    if (this.history?.metrics.length !== metrics || transcoder !== this.transcoder) {
      this.history = new History(KEPT, metrics);
    }
    this.boot = boot_id;
    this.transcoder = transcoder;
    this.nFeatures = n_features;
  }

  private points(buffer: ArrayBuffer): void {
    if (this.history === null || this.boot === "") return;
    try {
      const points = decodePoints(buffer);
      this.history.take(points);
      this.missed = points.missed;
      if (points.count > 0) this.thinning = points.steps[points.count - 1]!;
      this.heard = Date.now();
    } catch (error) {
      this.error = error instanceof Error ? error.message : String(error);
      this.close();
    }
  }
}
