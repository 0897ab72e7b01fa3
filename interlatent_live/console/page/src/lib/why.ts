// One decision taken apart: GET /agents/{agent}/why (docs/api.md says what every field means).

export interface WhyTerm {
  /** Such as `feature:HOOK/INDEX`, `observation:INDEX`, `bias:HOOK` or `tail`. */
  name: string;
  kind: string;
  contribution: number;
  label: string;
  hook_point?: string;
  index?: number;
  unit?: string;
  /** Of a number of the observation, and what it usually is. */
  value?: number;
  usual?: number;
  /** How many lighter terms this one stands for. */
  count?: number;
  claim?: { id: string; version: number; label: string; predicate: string | null };
}

export interface WhyEdge {
  source: string;
  target: string;
  weight: number;
}

export interface Why {
  agent: string;
  run_id: string;
  env: number;
  episode: number;
  t: number;
  age_s: number;
  sample_every: number;
  label: string;
  value: number;
  chosen: string;
  runner_up: string;
  verdict: string;
  /** From the action to the observation; each sums to `value`. */
  levels: WhyTerm[][];
  edges: WhyEdge[];
  edges_left_out: number;
  ablations: { name: string; contribution: number; measured: number }[];
  rank_agreement: number | null;
  residual: number;
  note: string;
}

/** A term's name for people, and what is claimed of it. */
export function words(term: WhyTerm): string {
  if (term.kind === "others") return `${term.count ?? 1} ${term.label}`;
  const said = term.claim ? term.claim.label || term.claim.predicate || "" : "";
  return said === "" ? term.label : `${term.label}: ${said}`;
}

const FEW: Record<string, string> = {
  tail: "after the features",
  bias: "constants",
  error: "left out (error)",
  skip: "skip path",
  baseline: "usual observation",
};

/** The same in the space of a box. */
export function few(term: WhyTerm, letters: number): string {
  const claim = term.claim?.label || term.claim?.predicate || "no verified claim";
  const text = term.kind === "feature" ? `${term.index} ${claim}` : (FEW[term.kind] ?? words(term));
  return text.length > letters ? `${text.slice(0, letters - 1).trimEnd()}…` : text;
}
