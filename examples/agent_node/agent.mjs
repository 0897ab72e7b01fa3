// A pendulum that a small network holds up, streamed to interlatent-live.
//
//   npm ci && node agent.mjs --endpoint tcp://127.0.0.1:28410 --steps 5000
//
// With keys: --key pendulum.key --server service.pub (see docs/wire.md, Security).

import { createHash, randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { Dealer } from "zeromq";
import { Credit, Ledger, clock, hello, pack, steps, unpack } from "./wire.mjs";

const { values: options } = parseArgs({
  options: {
    endpoint: { type: "string", default: "tcp://127.0.0.1:28410" },
    agent: { type: "string", default: "pendulum" },
    steps: { type: "string", default: "5000" },
    hz: { type: "string", default: "0" }, // steps a second; 0: as fast as credit allows
    key: { type: "string" },
    server: { type: "string" },
    patience: { type: "string", default: "30" }, // seconds without a receiver before giving up
  },
});

const BATCH = 64;
const WIDTH = 16;
const HOOK = { name: "body.0", d_in: 3, d_out: WIDTH };
const METRICS = [
  ["angle", "rad", "state", "from upright"],
  ["angular_velocity", "rad/s", "state", ""],
  ["torque", "N*m", "action", ""],
  ["reward", "", "outcome", ""],
];

// --- policy and environment -----------------------------------------------------------------

/** Fixed weights from a hash, so that every run has the same policy. */
function weights(name, count) {
  const out = [];
  for (let block = 0; out.length < count; block++) {
    const digest = createHash("sha256").update(`${name} ${block}`).digest();
    for (let i = 0; i < 32; i += 4) out.push(digest.readInt32LE(i) / 2 ** 31);
  }
  return out.slice(0, count);
}

const W1 = weights("w1", HOOK.d_in * WIDTH);
const W2 = weights("w2", WIDTH);
const POLICY = "sha256:" + createHash("sha256")
  .update(Buffer.from(new Float64Array([...W1, ...W2]).buffer)).digest("hex");

function policy(x) {
  const y = Array.from({ length: WIDTH }, (_, j) => x.reduce((sum, v, i) => sum + v * W1[i * WIDTH + j], 0));
  const learned = y.reduce((sum, v, j) => sum + Math.tanh(v) * W2[j], 0);
  // The network disturbs a controller that works, so that there is something to watch.
  return { y, torque: Math.max(-2, Math.min(2, -8 * x[1] - 2 * x[2] + 0.3 * learned)) };
}

class Pendulum {
  episode = -1;
  reset() {
    this.episode += 1;
    this.t = 0;
    this.angle = ((this.episode * 0.37) % 1) - 0.5;
    this.velocity = 0;
  }

  /** One step as a row of the wire: x, y and state metrics before it, action and outcome of it. */
  step() {
    const x = [Math.cos(this.angle), Math.sin(this.angle), this.velocity];
    const { y, torque } = policy(x);
    const state = [this.angle, this.velocity];
    this.velocity += (14.7 * Math.sin(this.angle) + 3 * torque) * 0.05;
    this.angle += this.velocity * 0.05;
    const reward = -(this.angle ** 2) - 0.1 * this.velocity ** 2;
    const terminated = Math.abs(this.angle) > 1.5;
    const truncated = this.t === 199;
    const row = {
      env: 0, episode: this.episode, t: this.t, time: clock(), controller: 0,
      flags: (terminated ? 1 : 0) | (truncated ? 2 : 0),
      metrics: [...state, torque, reward], x, y: this.t % 8 === 0 ? y : undefined,
    };
    this.t += 1;
    if (terminated || truncated) this.reset();
    return row;
  }
}

// --- the connection -------------------------------------------------------------------------

const BOOT = randomUUID();
const MANIFEST = {
  agent: options.agent, run: BOOT, boot: BOOT, policy: POLICY,
  hooks: [[HOOK.name, HOOK.d_in, HOOK.d_out]], metrics: METRICS, envs: 1,
  hz: Number(options.hz) > 0 ? Number(options.hz) : null,
  environment: "Pendulum", actions: [],
};

/** A value of our key files, which are flat TOML. */
function fromFile(file, key) {
  const line = readFileSync(file, "utf8").match(new RegExp(`^${key} = "(.*)"$`, "m"));
  if (!line) throw new Error(`${file} has no ${key}`);
  return line[1];
}

class Connection {
  ledger = new Ledger();
  credit = new Credit();
  up = false;
  refusal = "";
  offsets = [];
  #socket = null;
  #spoke = 0;
  #heard = 0;
  #stated = 0;

  async open() {
    this.#socket?.close();
    this.up = false;
    this.credit.reset();
    const socket = new Dealer({
      linger: 0, sendHighWaterMark: 256, sendTimeout: 0, sendBufferSize: 2 ** 19,
      heartbeatInterval: 200, heartbeatTimeout: 600, heartbeatTimeToLive: 600,
      ...(options.key && {
        curvePublicKey: fromFile(options.key, "public"),
        curveSecretKey: fromFile(options.key, "secret"),
        curveServerKey: fromFile(options.server, "public"),
      }),
    });
    socket.connect(options.endpoint);
    this.#socket = socket;
    this.#heard = performance.now();
    this.#listen(socket);
    await this.#send(hello(MANIFEST, this.ledger.unsettled));
  }

  /** Whether the rows went; they did not when there is no peer, credit or room. */
  async sendRows(rows) {
    if (!this.up || !this.credit.allows(rows.length, 20_000)) return false;
    const frames = steps(BOOT, HOOK, rows, this.ledger.next, this.ledger.takeDrops());
    if (!(await this.#send(frames))) {
      this.ledger.repeat();
      return false;
    }
    this.credit.spend(rows.length, frames[0].length + frames[1].length);
    this.ledger.transmit(rows.length);
    return true;
  }

  /** Heartbeats, statements, and a new connection when the peer is silent. */
  async tick() {
    const now = performance.now();
    if (now - this.#heard > (this.up ? 2000 : 5000)) return this.open();
    if (!this.up) return;
    if (this.ledger.untold.length || now - this.#stated > 1000) {
      this.#stated = now;
      await this.#send([this.ledger.statement("stats", BOOT, this.credit, this.#offset())]);
    } else if (now - this.#spoke > 200) {
      await this.#send([pack({ v: 1, kind: "heartbeat", sent: clock() })]);
    }
  }

  async close() {
    this.ledger.giveUp(0, this.ledger.next, "shutdown");
    if (this.up) await this.#send([this.ledger.statement("bye", BOOT, this.credit, this.#offset())]);
    await new Promise((done) => setTimeout(done, 200));
    this.#socket.close();
    this.#socket = null;
  }

  async #send(frames) {
    try {
      await this.#socket.send(frames);
    } catch (error) {
      if (error.code !== "EAGAIN") throw error;
      return false;
    }
    this.#spoke = performance.now();
    return true;
  }

  async #listen(socket) {
    try {
      for await (const [frame] of socket) {
        if (socket !== this.#socket) return;
        this.#heard = performance.now();
        await this.#hear(unpack(frame));
      }
    } catch (error) {
      // A socket that was closed ends its loop with an error.
      if (socket === this.#socket) throw error;
    }
  }

  async #hear(message) {
    if (message.kind === "welcome") {
      this.credit.grant(message.credit_steps, message.credit_bytes);
      for (const [first, count] of message.missing ?? []) {
        this.ledger.giveUp(Number(first), Number(first) + Number(count), "missing");
      }
      this.ledger.giveUp(Number(message.received), this.ledger.next, "peer_lost");
      this.ledger.repeat();
      this.up = true;
    } else if (message.kind === "ack") {
      this.credit.grant(message.credit_steps, message.credit_bytes);
      this.#sample(message);
      for (const stream of message.streams.filter((one) => one.boot === BOOT)) {
        for (const [first, count] of stream.missing ?? []) {
          this.ledger.giveUp(Number(first), Number(first) + Number(count), "missing");
        }
        this.ledger.acknowledge(Number(stream.processed));
      }
    } else if (message.kind === "refuse") {
      this.refusal = `${message.reason}: ${message.message}`;
      if (message.reason === "hello") await this.open();
    }
  }

  #sample({ echo, echo_at, sent }) {
    const [t0, t1, t2, t3] = [BigInt(echo), BigInt(echo_at), BigInt(sent), clock()];
    if (t0 === 0n || t3 < t0) return;
    this.offsets.push({ offset: (t1 - t0 + (t2 - t3)) / 2n, trip: t3 - t0 - (t2 - t1) });
    if (this.offsets.length > 16) this.offsets.shift();
  }

  #offset() {
    if (!this.offsets.length) return null;
    return this.offsets.reduce((best, one) => (one.trip < best.trip ? one : best)).offset;
  }
}

// --- the run --------------------------------------------------------------------------------

const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

async function main() {
  const total = Number(options.steps);
  const period = Number(options.hz) > 0 ? 1000 / Number(options.hz) : 0;
  const pendulum = new Pendulum();
  pendulum.reset();
  const connection = new Connection();
  await connection.open();
  const begun = performance.now();
  const patience = Number(options.patience) * 1000;
  while (!connection.up && performance.now() - begun < patience) {
    await connection.tick();
    await sleep(20);
  }
  let waiting = [];
  const start = performance.now();
  for (let made = 0; made < total; ) {
    await connection.tick();
    while (made < total && waiting.length < BATCH && (!period || performance.now() >= start + made * period)) {
      waiting.push(pendulum.step());
      made += 1;
    }
    if (waiting.length && (await connection.sendRows(waiting))) {
      waiting = [];
      await sleep(0);
    } else if (period && waiting.length === BATCH) {
      // An agent that must act does not wait: what cannot go now is declared.
      connection.ledger.declare(waiting.length, connection.up ? "no_credit" : "no_peer");
      waiting = [];
    } else {
      if (!period && !connection.up && performance.now() - begun > patience) break;
      await sleep(period ? 8 : 1);
    }
  }
  if (waiting.length && !(await connection.sendRows(waiting))) {
    connection.ledger.declare(waiting.length, connection.up ? "no_credit" : "no_peer");
  }
  const deadline = performance.now() + 5000;
  while (connection.up && (connection.ledger.inFlight || connection.ledger.unconfirmed.length) && performance.now() < deadline) {
    await connection.tick();
    await sleep(20);
  }
  await connection.close();
  const { next, acked, lost } = connection.ledger;
  console.log(JSON.stringify({ boot: BOOT, sent: next, acknowledged: acked, lost, refusal: connection.refusal }));
  process.exitCode = acked > 0 ? 0 : 1;
}

await main();
