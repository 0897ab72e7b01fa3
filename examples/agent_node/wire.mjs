// The wire, version 1, as docs/wire.md says: headers, bodies, the sender's ledger and its credit.
// No socket in here: agent.mjs owns that.

import { decode, encode } from "@msgpack/msgpack";

const BYTES = { u1: 1, u2: 2, u4: 4, i8: 8, f4: 4, f8: 8 };
const SETTERS = {
  u1: (view, at, value) => view.setUint8(at, value),
  u2: (view, at, value) => view.setUint16(at, value, true),
  u4: (view, at, value) => view.setUint32(at, value, true),
  i8: (view, at, value) => view.setBigInt64(at, value, true),
  f4: (view, at, value) => view.setFloat32(at, value, true),
  f8: (view, at, value) => view.setFloat64(at, value, true),
};

/** Nanoseconds since 1970. */
export function clock() {
  return BigInt(Math.round((performance.timeOrigin + performance.now()) * 1000)) * 1000n;
}

export function pack(header) {
  return encode(header, { useBigInt64: true });
}

/** A received header as a plain object; 64-bit integers beyond 2^53 stay BigInts. */
export function unpack(frame) {
  const header = decode(frame, { useBigInt64: true });
  if (header === null || typeof header !== "object" || header.v !== 1) {
    throw new Error("not a message of version 1");
  }
  return header;
}

/** Tensors as [name, dtype, shape, values] → the header's list and the body. */
export function body(tensors) {
  let size = 0;
  const places = tensors.map(([, dtype, shape]) => {
    const at = size + ((8 - (size % 8)) % 8);
    size = at + shape.reduce((a, b) => a * b, 1) * BYTES[dtype];
    return at;
  });
  const bytes = new Uint8Array(size);
  const view = new DataView(bytes.buffer);
  tensors.forEach(([, dtype, , values], i) => {
    for (let k = 0; k < values.length; k++) SETTERS[dtype](view, places[i] + k * BYTES[dtype], values[k]);
  });
  return [tensors.map(([name, dtype, shape]) => [name, dtype, shape]), bytes];
}

/** Frames of a hello. */
export function hello(manifest, seq) {
  return [pack({ v: 1, kind: "hello", manifest, seq, sent: clock(), transcoders: {}, lossless: false })];
}

/**
 * Frames of a steps message. A row has env, episode, t, time, controller, flags, metrics [M],
 * x [d_in] and y [d_out] of the one hook point, or y undefined where it is not sent.
 */
export function steps(boot, hook, rows, seq, drops) {
  const n = rows.length;
  const sampled = rows.map((row, i) => (row.y === undefined ? -1 : i)).filter((i) => i >= 0);
  const column = (key) => rows.map((row) => row[key]);
  const [t, bytes] = body([
    ["env", "u2", [n], column("env")],
    ["episode", "u4", [n], column("episode")],
    ["t", "u4", [n], column("t")],
    ["time", "i8", [n], column("time")],
    ["controller", "u1", [n], column("controller")],
    ["flags", "u1", [n], column("flags")],
    ["metrics", "f8", [n, rows[0].metrics.length], rows.flatMap((row) => row.metrics)],
    ["0/x", "f4", [n, hook.d_in], rows.flatMap((row) => row.x)],
    ["0/y", "f4", [sampled.length, hook.d_out], sampled.flatMap((i) => rows[i].y)],
    ["0/rows", "u2", [sampled.length], sampled],
  ]);
  const header = pack({
    v: 1, kind: "steps", boot, n, hooks: [hook.name], t, seq, sent: clock(), drops,
  });
  return [header, bytes];
}

/** The sender's ledger: every row is acknowledged, declared lost, or in flight. */
export class Ledger {
  constructor() {
    this.next = 0;
    this.acked = 0;
    this.lost = {};
    this.flights = []; // [first, end), ascending
    this.unconfirmed = []; // declared drops that no ack has covered
    this.untold = []; // of these, what the peer was not told on this connection
  }

  get inFlight() {
    return this.flights.reduce((sum, [first, end]) => sum + end - first, 0);
  }

  /** Where a receiver without memory of this stream would begin. */
  get unsettled() {
    const firsts = [this.next];
    if (this.flights.length) firsts.push(this.flights[0][0]);
    if (this.unconfirmed.length) firsts.push(this.unconfirmed[0][0]);
    return Math.min(...firsts);
  }

  transmit(rows) {
    this.flights.push([this.next, this.next + rows]);
    this.next += rows;
  }

  declare(rows, reason) {
    this.#lose(this.next, rows, reason);
    this.next += rows;
  }

  /** Every row below `processed` is done with. */
  acknowledge(processed) {
    this.#land(0, processed, (rows) => (this.acked += rows));
    this.unconfirmed = this.unconfirmed.filter(([first, count]) => first + count > processed);
    this.untold = this.untold.filter(([first, count]) => first + count > processed);
  }

  /** Rows in flight in [first, end) are lost. */
  giveUp(first, end, reason) {
    const gone = [];
    this.#land(first, end, (rows, start) => gone.push([start, rows]));
    for (const [start, rows] of gone) this.#lose(start, rows, reason);
    for (const drop of this.unconfirmed) {
      const overlaps = drop[0] < end && first < drop[0] + drop[1];
      if (overlaps && !this.untold.includes(drop)) this.untold.push(drop);
    }
  }

  /** A new connection: say again what was not confirmed. */
  repeat() {
    this.untold = [...this.unconfirmed];
  }

  takeDrops() {
    return this.untold.splice(0, 256);
  }

  statement(kind, boot, credit, offset) {
    return pack({
      v: 1, kind, boot, next: this.next, rows: this.next, acked: this.acked, lost: this.lost,
      in_flight: this.inFlight, drops: this.takeDrops(), used_steps: credit.usedSteps,
      used_bytes: credit.usedBytes, offset, sent: clock(),
    });
  }

  #lose(first, count, reason) {
    this.lost[reason] = (this.lost[reason] ?? 0) + count;
    const drop = [first, count, reason];
    for (const list of [this.unconfirmed, this.untold]) {
      list.push(drop);
      list.sort((a, b) => a[0] - b[0]);
    }
  }

  #land(start, end, landed) {
    const left = [];
    for (const [first, last] of this.flights) {
      const low = Math.max(first, start);
      const high = Math.min(last, end);
      if (low >= high) {
        left.push([first, last]);
        continue;
      }
      landed(high - low, low);
      if (first < low) left.push([first, low]);
      if (high < last) left.push([high, last]);
    }
    this.flights = left;
  }
}

/** What may still be sent on this connection. */
export class Credit {
  constructor() {
    this.reset();
  }

  reset() {
    this.steps = this.bytes = this.usedSteps = this.usedBytes = 0;
  }

  grant(steps, bytes) {
    this.steps = Math.max(this.steps, Number(steps));
    this.bytes = Math.max(this.bytes, Number(bytes));
  }

  allows(steps, bytes) {
    return this.usedSteps + steps <= this.steps && this.usedBytes + bytes <= this.bytes;
  }

  spend(steps, bytes) {
    this.usedSteps += steps;
    this.usedBytes += bytes;
  }
}
