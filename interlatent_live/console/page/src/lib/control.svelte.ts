// The page's hand on the agents: what the console says of them, commands, and the lease that keeps
// this page's interventions alive while it is open.

import { PREFIX, RefusedError } from "./api";
import {
  type Change,
  type ControlDocument,
  controlled,
  type Controlled,
  ENERGISING,
  type Operation,
  type Result,
  whyNot,
} from "./oversight";
import { person } from "./person.svelte";
import { session } from "./session.svelte";

const RETRY_MS = [250, 500, 1000, 2000];
/** A stop that was not delivered is sent again, under the same id, for so long. */
const DELIVER_WITHIN_MS = 60_000;
const DELIVER_AGAIN_MS = 400;
const SAID_FOR_MS = 8000;
const SAID_MOST = 3;
/** A hold becomes a stop after so long; the agent's own limit may be shorter. */
const HOLD_S = 120;
const TTL_S = 10;
/** How long a command waits for a second person. */
const SECOND_MS = 60_000;
const TRIED_MOST = 8;
const LEASE = "interlatent.lease";
const LEASES = "interlatent.leases";

interface Extra {
  reason: string;
  /** How long its effect may last; of a hold, until it becomes a stop. */
  ttlS?: number;
  baseVersion?: number | null;
  changes?: Change[];
  targets?: string[];
  dryRun?: boolean;
  action?: number[];
}

export interface Said {
  id: string;
  /** Of which command; "" where none was sent. */
  command: string;
  text: string;
  bad: boolean;
  until: number;
}

/** An intervention of this page, which lives no longer than its lease is renewed. */
interface Leased {
  agent: string;
  until: number;
  /** Whether the agent has said that it is in force: once it no longer is, its lease needs no care. */
  seen: boolean;
}

export class Control {
  shown = $state.raw<ControlDocument | null>(null);
  /** When it was last heard, by this browser's clock in ms. */
  heard = $state(0);
  problem = $state("");
  /** What became of commands of this page, newest last; each for a few seconds. */
  said = $state.raw<Said[]>([]);
  /** Agents that a stop or hold is on its way to and has not reached. */
  undelivered = $state.raw<ReadonlyMap<string, string>>(new Map());
  /** Agents whose lease this page renews although it changes nothing in them. */
  overseen = $state.raw<ReadonlySet<string>>(new Set());
  /** When this page's lease at an agent was last renewed; and why it could not be. */
  renewed = $state.raw<ReadonlyMap<string, number>>(new Map());
  leaseTrouble = $state("");
  /** This page's interventions, by the id of their command. */
  leased = $state.raw<ReadonlyMap<string, Leased>>(new Map(keptLeases()));

  /** Interventions of this page, newest first: what a comparison can be asked of. */
  tried = $state.raw<{ id: string; agent: string; text: string }[]>([]);

  private tries = 0;
  /** This tab's lease: what was begun here ends when this tab no longer renews it. */
  private readonly lease = keptText(LEASE) ?? crypto.randomUUID();

  constructor() {
    keepText(LEASE, this.lease);
    this.connect();
    void this.renewing();
  }

  private connect(): void {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const socket = new WebSocket(`${scheme}://${location.host}${PREFIX}/control/ws`);
    socket.onmessage = (event: MessageEvent<string>) => {
      this.tries = 0;
      this.problem = "";
      this.shown = JSON.parse(event.data) as ControlDocument;
      this.heard = Date.now();
      this.forgetEnded(this.shown);
    };
    socket.onclose = () => {
      this.problem = "The console cannot be reached; trying again.";
      // It may have been started anew, with this session or without.
      if (this.tries === 1) void person.remember();
      const wait = RETRY_MS[Math.min(this.tries++, RETRY_MS.length - 1)];
      window.setTimeout(() => this.connect(), wait);
    };
  }

  of(status: Parameters<typeof controlled>[1]): Controlled | undefined {
    return controlled(this.shown, status);
  }

  named(agent: string): Controlled | undefined {
    return this.shown?.agents.find((one) => one.agent === agent);
  }

  /** A span that was running out when the console spoke, as it is now. */
  left(ms: number): number {
    return Math.max(0, ms - Math.max(0, session.now - this.heard));
  }

  silentMs(agent: Controlled | undefined): number {
    return agent === undefined ? 0 : agent.silent_ms + Math.max(0, session.now - this.heard);
  }

  whyNot(operation: Operation, agent: Controlled | undefined): string {
    return whyNot(operation, agent, {
      control: this.shown,
      problem: this.problem,
      signedIn: person.signedIn,
      role: person.role,
      silentMs: this.silentMs(agent),
    });
  }

  /** Ask something of an agent. What was refused is said in words, and is the answer, never an error. */
  async command(agent: Controlled, operation: Operation, extra: Extra): Promise<Result> {
    const energy = ENERGISING.has(operation);
    const body = {
      operation,
      reason: extra.reason,
      ttl_s: extra.ttlS ?? TTL_S,
      // What takes energy out is for every life of the agent, whatever its state.
      ...(energy && {
        boot_id: agent.boot_id,
        base_version: extra.baseVersion ?? agent.state?.version ?? null,
      }),
      lease: this.lease,
      changes: extra.changes ?? [],
      targets: extra.targets ?? [],
      dry_run: extra.dryRun ?? false,
      action: extra.action ?? [],
      command_id: crypto.randomUUID(),
    };
    // Under its own id a command has one effect, however often it is sent: what takes energy out is
    // sent until somebody answers.
    const deadline = energy ? 0 : Date.now() + DELIVER_WITHIN_MS;
    const path = `/control/agents/${encodeURIComponent(agent.agent)}/commands`;
    let result: Result;
    for (;;) {
      try {
        result = await person.tell<Result>(path, body);
        break;
      } catch (error) {
        const gone = error instanceof RefusedError && [0, 502, 503, 504].includes(error.status);
        if (!gone || Date.now() > deadline) {
          result = refused(body.command_id, sentence(error));
          break;
        }
        this.mark(agent.agent, `${operation} not delivered yet: ${error.message}; trying again`);
        await new Promise((resume) => window.setTimeout(resume, DELIVER_AGAIN_MS));
      }
    }
    this.mark(agent.agent, "");
    if (operation === "intervene" && (result.accepted || result.waits_for_second)) {
      this.keep(body.command_id, {
        agent: agent.agent,
        until: Date.now() + 1000 * (extra.ttlS ?? 0) + (result.waits_for_second ? SECOND_MS : 0),
        seen: false,
      });
      const text = (extra.changes ?? []).map((one) => `${one.kind} ${one.feature}`).join(", ");
      // A dry run changes nothing that could be compared.
      if (!extra.dryRun) this.tried = [{ id: body.command_id, agent: agent.agent, text }, ...this.tried].slice(0, TRIED_MOST);
    }
    if (operation === "release") this.letGo(agent.agent);
    this.tellOutcome(`${agent.agent}: ${operation}`, result);
    return result;
  }

  /** What a button or a key does at once; a reason that nobody gave says where it came from. */
  async press(agent: Controlled, operation: Operation, reason = "", targets: string[] = []): Promise<Result> {
    const ttlS = operation === "hold" ? HOLD_S : undefined;
    return this.command(agent, operation, {
      reason: reason.trim() || `${operation} on the console's page`,
      targets,
      ...(ttlS !== undefined && { ttlS }),
    });
  }

  async second(commandId: string): Promise<Result> {
    let result: Result;
    try {
      result = await person.tell<Result>(`/control/commands/${encodeURIComponent(commandId)}/second`, {});
    } catch (error) {
      result = refused(commandId, sentence(error));
    }
    this.tellOutcome("second word", result);
    return result;
  }

  /** Renew the lease at an agent for as long as this page is open, or no longer. */
  oversee(agent: string, on: boolean): void {
    const next = new Set(this.overseen);
    if (on) next.add(agent);
    else next.delete(agent);
    this.overseen = next;
  }

  say(text: string, bad = false, command = ""): void {
    const now = Date.now();
    const kept = this.said.filter((one) => one.until > now).slice(1 - SAID_MOST);
    this.said = [...kept, { id: crypto.randomUUID(), command, text, bad, until: now + SAID_FOR_MS }];
  }

  private tellOutcome(what: string, result: Result): void {
    const [words, bad] = result.accepted
      ? [`${what} accepted, version ${result.version}`, false]
      : result.waits_for_second
        ? [`${what} waits for a second person: ${result.reason}`, false]
        : [`${what} refused: ${result.reason}`, true];
    this.say(words, bad, result.command_id);
  }

  private mark(agent: string, text: string): void {
    if ((this.undelivered.get(agent) ?? "") === text) return;
    const next = new Map(this.undelivered);
    if (text === "") next.delete(agent);
    else next.set(agent, text);
    this.undelivered = next;
  }

  private keep(commandId: string, leased: Leased): void {
    const now = Date.now();
    this.leased = new Map([
      ...[...this.leased].filter(([, one]) => one.until > now),
      [commandId, leased],
    ]);
    keepLeases(this.leased);
  }

  /** What an agent no longer says is in force needs no lease; who says nothing has ended nothing. */
  private forgetEnded(document: ControlDocument): void {
    if (this.leased.size === 0) return;
    const states = document.agents.filter((one) => one.state !== null);
    const speaks = new Set(states.map((one) => one.agent));
    const active = new Set(states.flatMap((one) => one.state!.active.map((it) => it.command_id)));
    const left = [...this.leased]
      .filter(([id, one]) => active.has(id) || ((!one.seen || !speaks.has(one.agent)) && one.until > Date.now()))
      .map(([id, one]): [string, Leased] => [id, { ...one, seen: one.seen || active.has(id) }]);
    this.leased = new Map(left);
    keepLeases(this.leased);
  }

  private letGo(agent: string): void {
    this.leased = new Map([...this.leased].filter(([, one]) => one.agent !== agent));
    keepLeases(this.leased);
    this.oversee(agent, false);
  }

  /** Renew what this page keeps alive, thrice as often as it would end. */
  private async renewing(): Promise<void> {
    for (;;) {
      const due = this.kept;
      let wait = 1000;
      for (const agent of due) {
        wait = Math.min(wait, (this.named(agent)?.lease_ms ?? 1500) / 3);
        try {
          const result = await person.tell<Result>("/control/lease", { agent, lease: this.lease });
          if (!result.accepted) throw new Error(result.reason);
          this.renewed = new Map([...this.renewed, [agent, Date.now()]]);
          this.leaseTrouble = "";
        } catch (error) {
          this.leaseTrouble = `the lease at ${agent} is not renewed: ${sentence(error)}`;
        }
      }
      if (due.length === 0) this.leaseTrouble = "";
      await new Promise((resume) => window.setTimeout(resume, due.length > 0 ? wait : 250));
    }
  }

  /** Agents whose lease this page renews. */
  get kept(): string[] {
    if (!person.mayCommand) return [];
    const now = session.now;
    const made = [...this.leased.values()].filter((one) => one.until > now).map((one) => one.agent);
    return [...new Set([...made, ...this.overseen])];
  }
}

function refused(command_id: string, reason: string): Result {
  return { command_id, accepted: false, reason, version: 0, waits_for_second: false };
}

export function sentence(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** Kept with the tab, so that a reload goes on with what the same tab began. */
function keptLeases(): [string, Leased][] {
  return JSON.parse(keptText(LEASES) ?? "[]") as [string, Leased][];
}

function keepLeases(leases: ReadonlyMap<string, Leased>): void {
  keepText(LEASES, JSON.stringify([...leases]));
}

function keptText(name: string): string | null {
  try {
    return sessionStorage.getItem(name);
  } catch {
    return null;
  }
}

function keepText(name: string, text: string): void {
  try {
    sessionStorage.setItem(name, text);
  } catch {
    // A browser that keeps nothing ends its interventions with a reload.
  }
}
