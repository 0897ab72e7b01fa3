// What the feed last said on every subject. Documents are whole snapshots, so the newest is enough.

import type {
  AgentsDocument,
  AgentStatus,
  AlertsDocument,
  Claim,
  ClaimsDocument,
  CostsDocument,
  NarrationDocument,
} from "./documents";

const NARRATION_KEPT = 200;
const TOPICS = ["agents", "claims", "narration", "alerts", "costs"] as const;

export class Feed {
  agents = $state.raw<AgentStatus[]>([]);
  claims = $state.raw<Record<string, ClaimsDocument>>({});
  narration = $state.raw<NarrationDocument[]>([]);
  alerts = $state.raw<Record<string, AlertsDocument>>({});
  costs = $state.raw<CostsDocument | null>(null);
  /** Whether the console answers. */
  open = $state(false);
  /** When anything was last heard, by this browser's clock in ms. */
  heard = $state(0);
  /** Documents that this page will never get; null when nobody knows how many. */
  missed = $state<number | null>(0);

  constructor() {
    const source = new EventSource(`/api/v1/feed?topics=${TOPICS.join(",")}`);
    source.onopen = () => (this.open = true);
    source.onerror = () => (this.open = false);
    for (const topic of TOPICS) {
      source.addEventListener(topic, (event) => {
        this.heard = Date.now();
        this.take(topic, (JSON.parse(event.data) as { value: unknown }).value);
      });
    }
    source.addEventListener("missed", (event) => {
      const events = (JSON.parse(event.data) as { events: number | null }).events;
      this.missed = events === null || this.missed === null ? null : this.missed + events;
    });
  }

  private take(topic: (typeof TOPICS)[number], value: unknown): void {
    if (topic === "agents") {
      this.agents = (value as AgentsDocument).agents;
    } else if (topic === "claims") {
      const one = value as ClaimsDocument;
      this.claims = { ...this.claims, [subject(one.run_id, one.hook_point)]: one };
    } else if (topic === "narration") {
      this.narration = [value as NarrationDocument, ...this.narration].slice(0, NARRATION_KEPT);
    } else if (topic === "alerts") {
      const one = value as AlertsDocument;
      this.alerts = { ...this.alerts, [one.run_id]: one };
    } else {
      this.costs = value as CostsDocument;
    }
  }

  agent(run: string): AgentStatus | undefined {
    return this.agents.find((one) => one.run_id === run);
  }

  claimsOf(run: string, hookPoint: string): ClaimsDocument | undefined {
    return this.claims[subject(run, hookPoint)];
  }

  claimOf(run: string, hookPoint: string, feature: number): Claim | undefined {
    return this.claimsOf(run, hookPoint)?.claims.find((one) => indexOf(one.address) === feature);
  }

  narrated(run: string, env?: number): NarrationDocument[] {
    return this.narration.filter(
      (one) => one.run_id === run && (env === undefined || one.env === env),
    );
  }
}

function subject(run: string, hookPoint: string): string {
  return `${run} ${hookPoint}`;
}

/** The feature's number in an address `hook_point/index@hash`; −1 for what is no address. */
export function indexOf(address: string): number {
  const found = /\/(\d+)@[^@]*$/.exec(address);
  return found === null ? -1 : Number(found[1]);
}

/** The hook point in an address; "" for what is no address. */
export function hookPointOf(address: string): string {
  const found = /^(.*)\/\d+@[^@]*$/.exec(address);
  return found?.[1] ?? "";
}

/** Seconds between the console's newest word and now. */
export function secondsSince(ms: number, now: number): number {
  return Math.max(0, (now - ms) / 1000);
}
