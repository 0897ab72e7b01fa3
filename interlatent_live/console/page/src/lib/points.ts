// The page's binary socket: reading a message (interlatent_live/console/live_socket.py writes them),
// and the newest minutes of one view in rings of fixed size.

export const VERSION = 1;
const HEAD_BYTES = 32;

export interface Points {
  count: number;
  metrics: number;
  missed: number;
  time: Float64Array;
  episode: Uint32Array;
  t: Uint32Array;
  steps: Uint32Array;
  controller: Uint32Array;
  flags: Uint32Array;
  /** count × metrics, row by row. */
  values: Float32Array;
  indptr: Uint32Array;
  index: Uint32Array;
  activation: Float32Array;
}

export function decodePoints(buffer: ArrayBuffer): Points {
  const head = new Uint32Array(buffer, 0, 8);
  const [version, count, metrics, active, missed] = head as unknown as [
    number,
    number,
    number,
    number,
    number,
  ];
  if (version !== VERSION) {
    throw new Error(`the console speaks version ${version} and this page ${VERSION}; reload it`);
  }
  let at = HEAD_BYTES;
  const f64 = (n: number) => new Float64Array(buffer, (at += 8 * n) - 8 * n, n);
  const u32 = (n: number) => new Uint32Array(buffer, (at += 4 * n) - 4 * n, n);
  const f32 = (n: number) => new Float32Array(buffer, (at += 4 * n) - 4 * n, n);
  return {
    count,
    metrics,
    missed,
    time: f64(count),
    episode: u32(count),
    t: u32(count),
    steps: u32(count),
    controller: u32(count),
    flags: u32(count),
    values: f32(count * metrics),
    indptr: u32(count + 1),
    index: u32(active),
    activation: f32(active),
  };
}

/** The newest `size` points of one view: a ring of columns, so that nothing is moved per message. */
export class History {
  readonly time: Float64Array;
  readonly t: Uint32Array;
  readonly episode: Uint32Array;
  readonly flags: Uint32Array;
  readonly controller: Uint32Array;
  readonly metrics: Float32Array[];
  /** Per point its active features and their activations. */
  readonly features: (Uint32Array | undefined)[];
  readonly activations: (Float32Array | undefined)[];
  /** Points ever taken; the newest is at `(total − 1) % size`. */
  total = 0;
  steps = 0;

  constructor(
    readonly size: number,
    metrics: number,
  ) {
    this.time = new Float64Array(size);
    this.t = new Uint32Array(size);
    this.episode = new Uint32Array(size);
    this.flags = new Uint32Array(size);
    this.controller = new Uint32Array(size);
    this.metrics = Array.from({ length: metrics }, () => new Float32Array(size));
    this.features = new Array<Uint32Array | undefined>(size);
    this.activations = new Array<Float32Array | undefined>(size);
  }

  get length(): number {
    return Math.min(this.total, this.size);
  }

  /** Take points in, or those from row `from` to before row `to` of them. */
  take(points: Points, from = 0, to = points.count): void {
    for (let row = from; row < to; row++) {
      const at = this.total % this.size;
      this.time[at] = points.time[row]!;
      this.t[at] = points.t[row]!;
      this.episode[at] = points.episode[row]!;
      this.flags[at] = points.flags[row]!;
      this.controller[at] = points.controller[row]!;
      for (let m = 0; m < this.metrics.length; m++) {
        this.metrics[m]![at] = points.values[row * points.metrics + m]!;
      }
      const first = points.indptr[row]!;
      const last = points.indptr[row + 1]!;
      this.features[at] = points.index.slice(first, last);
      this.activations[at] = points.activation.slice(first, last);
      this.total += 1;
      this.steps += points.steps[row]!;
    }
  }

  /**
   * The last points of a column as a line of at most `columns` pairs: of each run of points its
   * smallest and its largest, in the order they came, so that no spike is lost that a pixel could
   * show. Runs begin at multiples of their length, so that the line does not flicker as it moves.
   * Times are seconds before the newest point.
   */
  outline(column: Float32Array, columns: number): [Float64Array, Float64Array] {
    const n = this.length;
    const run = Math.max(1, Math.ceil(n / columns));
    const times: number[] = [];
    const values: number[] = [];
    const end = n === 0 ? 0 : this.time[(this.total - 1) % this.size]!;
    let i = this.total - n;
    while (i < this.total) {
      const stop = Math.min(this.total, i - (i % run) + run);
      let low = -1;
      let high = -1;
      for (; i < stop; i++) {
        const value = column[i % this.size]!;
        if (Number.isNaN(value)) continue;
        if (low < 0 || value < column[low]!) low = i % this.size;
        if (high < 0 || value > column[high]!) high = i % this.size;
      }
      if (low < 0) {
        times.push((this.time[(stop - 1) % this.size]! - end) / 1000);
        values.push(NaN);
        continue;
      }
      const first = this.time[low]! <= this.time[high]! ? low : high;
      for (const at of low === high ? [low] : [first, low + high - first]) {
        times.push((this.time[at]! - end) / 1000);
        values.push(column[at]!);
      }
    }
    return [Float64Array.from(times), Float64Array.from(values)];
  }

  /** The newest activation of every feature that is on at point `number`. */
  active(number: number): { feature: number; activation: number }[] {
    if (number < 0 || number < this.total - this.size) return [];
    const at = number % this.size;
    const features = this.features[at];
    const activations = this.activations[at];
    if (features === undefined || activations === undefined) return [];
    return Array.from(features, (feature, i) => ({ feature, activation: activations[i]! }));
  }
}
