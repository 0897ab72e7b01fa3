// What the console says of control, as the page uses it (interlatent_live/control says what each word
// means), and what may be asked of an agent now: in words, where it may not.

import type { AgentStatus } from "./documents";

export type Kind = "steer" | "clamp" | "scale" | "ablate";
export type Operation =
  | "stop" | "hold" | "step" | "resume" | "revert" | "release"
  | "intervene" | "approve" | "refuse" | "escalate";

export interface HookOffer {
  name: string;
  transcoder: string;
  features: number;
  max_norm: number;
}

export interface Active {
  command_id: string;
  actor: string;
  left_ms: number;
  dry_run: boolean;
  changes: string[];
  applied_steps: number;
  largest_norm: number;
}

export interface Question {
  question_id: string;
  rule: string;
  left_ms: number;
  escalated: boolean;
}

export interface AgentState {
  version: number;
  mode: "running" | "held" | "stopped";
  row: number;
  obeyed: boolean;
  latched: boolean;
  hold_left_ms: number | null;
  trouble: string;
  active: Active[];
  question: Question | null;
}

export interface Controlled {
  agent: string;
  run_id: string;
  boot_id: string;
  policy_hash: string;
  safe_action: boolean;
  lease_ms: number;
  max_ttl_ms: number;
  hook_points: HookOffer[];
  silent_ms: number;
  state: AgentState | null;
}

export interface Waiting {
  command_id: string;
  agent: string;
  actor: string;
  operation: string;
  reason: string;
  changes: string[];
  left_ms: number;
}

export interface ControlDocument {
  available: boolean;
  why: string;
  agents: Controlled[];
  waiting: Waiting[];
}

export interface Result {
  command_id: string;
  accepted: boolean;
  reason: string;
  version: number;
  waits_for_second: boolean;
}

export interface Change {
  hook_point: string;
  feature: number;
  kind: Kind;
  value: number;
  max_norm: number;
  condition: string | null;
  while_feature: { feature: number; threshold: number; above: boolean } | null;
}

/** What adds energy: it names the life and the version of the agent that was looked at. */
export const ENERGISING: ReadonlySet<Operation> = new Set(["intervene", "step", "resume", "approve"]);
/** An agent that said nothing for so long is called silent; it speaks four times a second. */
export const SILENT_MS = 2000;

export interface Situation {
  control: ControlDocument | null;
  /** Why nothing is known of control; "" when something is. */
  problem: string;
  signedIn: boolean;
  role: string;
  silentMs: number;
}

/** Why `operation` cannot be asked of `agent` now, in one sentence; "" when it can. */
export function whyNot(
  operation: Operation,
  agent: Controlled | undefined,
  { control, problem, signedIn, role, silentMs }: Situation,
): string {
  if (control === null) return problem || "Asking the console who can be commanded …";
  if (!control.available) return `Control is away: ${control.why || "the console gave no reason"}.`;
  if (agent === undefined) {
    return "This agent takes no commands: it was attached without control, or is gone.";
  }
  if (!signedIn) return "Sign in to command.";
  if (role === "viewer") return "You are signed in as a viewer, who commands nothing: ask an operator.";
  const held = ["stop", "hold", "step", "resume"].includes(operation);
  if (held && !agent.safe_action) {
    return "No safe action is configured for this agent, so it can be neither held nor stopped.";
  }
  const mode = agent.state?.mode;
  if (operation === "hold" && mode === "stopped") return "It is stopped, which is more than held.";
  if (ENERGISING.has(operation)) {
    if (problem !== "") return problem;
    if (agent.state === null) return "The agent has not said yet how it is.";
    if (silentMs > SILENT_MS) {
      return `The agent has said nothing for ${Math.round(silentMs / 1000)} s; only what takes energy out is sent to it.`;
    }
    if (operation === "step" && mode !== "held") return "Only a held agent takes single steps.";
    if (operation === "resume" && mode === "running") return "It acts by its policy already.";
    if (operation === "intervene" && agent.hook_points.length === 0) {
      return "This agent offers no hook point to intervene at.";
    }
    if (operation === "intervene" && mode !== "running") {
      return `The agent is ${mode}: interventions need one that acts.`;
    }
    const escalated = agent.state.question?.escalated;
    if (operation === "approve" && escalated && role !== "admin") {
      return "The question was escalated: an admin must answer it.";
    }
  }
  return "";
}

/** The life of an agent that takes commands for a run of the stream. */
export function controlled(
  control: ControlDocument | null,
  status: Pick<AgentStatus, "agent" | "run_id" | "boot_id"> | undefined,
): Controlled | undefined {
  if (control === null || status === undefined) return undefined;
  const run = control.agents.filter((one) => one.run_id === status.run_id);
  return run.find((one) => one.boot_id === status.boot_id) ?? run[0];
}

/** How an agent is, in a few words; what is in force stands beside them. */
export function inWords(state: AgentState | null, silentMs: number, holdLeftMs: number | null): string {
  if (state === null) return "has not said yet how it is";
  const words =
    state.mode === "running"
      ? "acts by its policy"
      : state.mode === "held"
        ? `holding${holdLeftMs === null ? "" : `, becomes a stop in ${seconds(holdLeftMs)}`}`
        : `stopped, ${state.latched ? "latched on its disk" : "not on its disk yet"}`;
  const still = state.mode === "running" && !state.latched ? "; its disk still says stopped" : "";
  const obeyed = state.obeyed ? "" : "; not obeyed yet";
  const silent = silentMs > SILENT_MS ? `; no word for ${seconds(silentMs)}` : "";
  return `${words}${obeyed}${still}${silent}`;
}

export function seconds(ms: number): string {
  const left = Math.max(0, Math.ceil(ms / 1000));
  return left < 120 ? `${left} s` : `${Math.floor(left / 60)} min ${left % 60} s`;
}

/** Whether a change, as the agent words it (`steer net.0/12 0.8`), is one of this feature. */
export function touches(change: string, hookPoint: string, feature: number): boolean {
  return change.split(" ")[1] === `${hookPoint}/${feature}`;
}
