// The feed's documents and the API's answers, as the page uses them (interlatent_live/feed/documents.py
// and queries/messages.py say what every field means).

export interface MetricInfo {
  name: string;
  unit: string;
  role: string;
  description?: string;
}

export interface HookPointStatus {
  name: string;
  transcoder: string;
  n_features: number;
  fvu: number | null;
  fvu_affine: number | null;
  fvu_steps: number;
}

export interface AgentStatus {
  agent: string;
  run_id: string;
  boot_id: string;
  environment: string;
  policy_hash: string;
  env_count: number;
  control_hz: number | null;
  actions: string[];
  metrics: MetricInfo[];
  hook_points: HookPointStatus[];
  steps_received: number;
  steps_encoded: number;
  dropped_declared: Record<string, number>;
  gaps_undeclared: number;
  duplicates: number;
  steps_per_second: number;
  step_to_feature_ms: { p50: number | null; p99: number | null };
  last_step_ns: number;
  ended: boolean;
  steps_sent: number | null;
}

export interface AgentsDocument {
  agents: AgentStatus[];
  published_ns: number;
}

export interface Effect {
  action: string;
  value: number | null;
  lo: number | null;
  hi: number | null;
  stands_out: boolean;
  controls: number;
  episodes: number;
}

export interface Claim {
  address: string;
  label: string;
  description: string;
  predicate: string | null;
  verdict: string;
  reason: string;
  balanced_accuracy: number | null;
  balanced_accuracy_lo: number | null;
  balanced_accuracy_hi: number | null;
  precision: number | null;
  recall: number | null;
  p_adjusted: number | null;
  null_draws: number;
  bouts: number;
  episodes_heldout: number;
  best_rule: string | null;
  best_rule_balanced_accuracy: number | null;
  loses_to_its_rule: boolean;
  effects: Effect[];
  clauses: { text: string; support: string }[];
  writer: string;
  version: number;
  /** What the newest rows say of it; null before there are any. */
  recent: {
    balanced_accuracy: number | null;
    balanced_accuracy_lo: number | null;
    balanced_accuracy_hi: number | null;
    precision: number | null;
    half_life_rows: number;
  } | null;
  /** Another claim for the same feature that is being checked beside it. */
  challenger: Claim | null;
}

export interface ClaimsDocument {
  run_id: string;
  hook_point: string;
  transcoder: string;
  claims: Claim[];
  counts: Record<string, number>;
  writer: string;
  published_ns: number;
}

export interface Reference {
  address: string;
  claim_version: number;
  said: string;
  held: number;
  metrics: { name: string; value: number | null; unit: string }[];
}

export interface NarrationDocument {
  run_id: string;
  agent: string;
  env: number;
  episode: number;
  from_t: number;
  to_t: number;
  lines: { text: string; references: Reference[] }[];
  published_ns: number;
  /** What had the narrator speak; null: its interval was over. Absent in older documents. */
  trigger?: { kind: string; text: string } | null;
  /** Of the cited predicates, those that held: in this document, and the share of the newest `of`. */
  truth?: {
    cited: number;
    true: number;
    still: number;
    rate: number | null;
    still_rate: number | null;
    of: number;
  } | null;
}

export interface AlertsDocument {
  run_id: string;
  agent: string;
  rules: number;
  alerts: {
    rule: string;
    hook_point: string;
    phase: string;
    severity: string;
    summary: string;
    since_ns: number | null;
    values: Record<string, number | null>;
  }[];
  drift: {
    hook_point: string;
    name: string;
    reference_mean: number;
    recent_mean: number;
    false_alarm: string;
  }[];
  conformal: {
    hook_point: string;
    score: string;
    phase: string;
    rate: number;
    threshold: number | null;
    newest: number | null;
    reason: string | null;
  }[];
  published_ns: number;
}

export interface CostsDocument {
  writer: string;
  dollars: number;
  limit_dollars: number;
  requests: number;
  dollars_per_hour: number | null;
}

export interface Association {
  name: string;
  unit: string;
  role: string;
  n: number;
  n_eff: number | null;
  r: number | null;
  lo: number | null;
  hi: number | null;
  mean_on: number | null;
  mean_off: number | null;
  effect_size: number | null;
  auroc: number | null;
  reasons: Record<string, string>;
}

export interface FeatureItem {
  address: string;
  feature: number;
  density: number | null;
  mean_activation: number | null;
  episodes: number | null;
  bouts: number | null;
  strongest: Association | null;
}

export interface PairItem {
  address: string;
  feature: number;
  density: number | null;
  association: Association;
}

export interface Exemplar {
  kind: string;
  /** The row's number in the run. */
  position: number;
  env: number;
  t: number;
  activation: number;
  metrics: Record<string, number | null>;
  context: (number | null)[][];
}

export interface Profile {
  source: { run_id: string; hook_point: string; transcoder: string; rows: number; missing: number };
  address: string;
  feature: number;
  density: number | null;
  mean_activation: number | null;
  quantiles: Record<string, number> | null;
  histogram: { edges: number[]; counts: number[] } | null;
  episodes: number | null;
  episodes_total: number | null;
  bouts: number | null;
  dwell_mean: number | null;
  dwell_longest: number | null;
  metrics: Association[];
  lags: {
    metric: string;
    lags: number[];
    r: (number | null)[];
    peak: number | null;
    peak_r: number | null;
  }[];
  partial: {
    metrics: { metric: string; beta: number | null; lo: number | null; hi: number | null }[];
  } | null;
  partners: { feature: number; together: number; jaccard: number; lift: number | null }[];
  events: {
    event: string;
    fires: (number | null)[];
    base: number | null;
    auroc: number | null;
    peak: number | null;
    reason: string | null;
  }[];
  exemplars: Exemplar[];
  reasons: Record<string, string>;
}

export interface HistoryAnswer {
  versions: { version: number; at_ns?: number; predicate?: string; writer?: string }[];
  verdicts: { at_ns: number; version: number; verdict: string; reason: string }[];
  corrections: { at_ns: number; kind: string; person: string; note: string; label: string }[];
}
