// Branches as the console tells them (interlatent_live/console/branches.py).

export interface Job {
  running: boolean;
  words: string;
  done: number;
  of: number;
  problem: string;
}

export interface BranchItem {
  name: string;
  problem: string;
  policy: string;
  environment: string;
  words: string;
  lasts: number | null;
  seed: number;
  at: number;
  first_other_action: number | null;
  without: number;
  with: number;
}

export interface Together {
  policy: string;
  words: string;
  moments: number;
  mean: number;
  low: number | null;
  high: number | null;
  reason: string;
}

export interface BranchList {
  items: BranchItem[];
  together: Together[];
  job: Job;
}

export interface Track {
  return: number;
  steps: number;
  ended: string;
  rewards: number[];
  actions: number[][];
  metrics: Record<string, (number | null)[]>;
}

export interface BranchDocument {
  name: string;
  policy: string;
  environment: string;
  intervention: { kind: string; hook_point: string; feature: number; value: number }[];
  lasts: number | null;
  cloned: string;
  seed: number;
  at: number;
  first_other_action: number | null;
  metrics: string[];
  branches: { without: Track; with: Track };
  differences: {
    metric: string;
    first: number | null;
    mean: number | null;
    largest: number | null;
    largest_at: number | null;
  }[];
}
