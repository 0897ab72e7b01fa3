"""What the console answers, as values.

Fields that a newer console adds are ignored, so that an older client goes on reading. Times are
wall clock in ns since the epoch.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Run(msgspec.Struct, frozen=True):
    """One run of an agent that the console has seen."""

    run_id: str
    agent: str
    environment: str
    policy_hash: str
    boot_id: str
    first_seen_ns: int
    last_seen_ns: int
    ended: bool
    steps_received: int
    document: dict[str, Any]
    """The agent's newest status as the feed shows it."""

    @property
    def control_hz(self) -> float | None:
        """Steps a second that the agent acts at; ``None`` when it did not say."""
        found: float | None = self.document.get("control_hz")
        return found

    @property
    def hook_points(self) -> tuple[str, ...]:
        """Names of its hook points."""
        return tuple(one["name"] for one in self.document.get("hook_points", ()))


class Recent(msgspec.Struct, frozen=True):
    """What the newest rows say of a claim; older rows count less, half after ``half_life_rows``."""

    balanced_accuracy: float | None
    balanced_accuracy_lo: float | None
    balanced_accuracy_hi: float | None
    precision: float | None
    half_life_rows: float
    effective_rows: float
    effective_units: float


class SecondOpinion(msgspec.Struct, frozen=True):
    """How well a language model tells on from off, told a claim's words alone."""

    judge: str
    balanced_accuracy: float | None
    balanced_accuracy_lo: float | None
    balanced_accuracy_hi: float | None
    reason: str | None
    steps: int
    answers: int
    failed: int


class Cost(msgspec.Struct, frozen=True):
    """What a language model's part in a claim has cost: words and second opinions."""

    requests: int
    input_tokens: int
    output_tokens: int
    dollars: float
    opinion_requests: int
    """Of the requests, those for second opinions."""
    opinion_dollars: float


class ClaimText(msgspec.Struct, frozen=True):
    """What is said of a feature, and what the stream says of that."""

    label: str
    description: str
    predicate: str | None
    verdict: str
    reason: str
    writer: str
    version: int
    created_ns: int
    balanced_accuracy: float | None = None
    balanced_accuracy_lo: float | None = None
    balanced_accuracy_hi: float | None = None
    precision: float | None = None
    recall: float | None = None
    p_adjusted: float | None = None
    bouts: int = 0
    episodes_heldout: int = 0
    density: float | None = None
    eligible: bool = False
    best_rule: str | None = None
    best_rule_balanced_accuracy: float | None = None
    loses_to_its_rule: bool = False
    clauses: list[dict[str, str]] = []
    recent: Recent | None = None
    second_opinion: SecondOpinion | None = None
    cost: Cost | None = None
    """Of all versions; None where no model was asked."""
    challenger: ClaimText | None = None
    """Another claim about the same feature that is being checked beside this one."""


class Claim(msgspec.Struct, frozen=True, rename={"text": "document"}):
    """A claim about one feature of one run as it was last published."""

    id: str
    run_id: str
    hook_point: str
    feature: int
    address: str
    version: int
    verdict: str
    updated_ns: int
    text: ClaimText


class Version(msgspec.Struct, frozen=True):
    """One text that a claim had."""

    version: int
    created_ns: int
    label: str
    description: str
    predicate: str | None
    writer: str
    prompt_hash: str


class VerdictPassed(msgspec.Struct, frozen=True):
    """One verdict on one version of a claim."""

    version: int
    at_ns: int
    verdict: str
    reason: str
    balanced_accuracy: float | None = None


class Correction(msgspec.Struct, frozen=True):
    """A person's word on a version of a claim; ``verdict`` is the one that it had then."""

    id: str
    claim_id: str
    kind: str
    person: str
    at_ns: int
    note: str
    label: str
    version: int
    verdict: str


class History(msgspec.Struct, frozen=True):
    """All that was ever said of a claim, oldest first."""

    claim: Claim
    versions: list[Version]
    verdicts: list[VerdictPassed]
    corrections: list[Correction]


class MadeClaim(msgspec.Struct, frozen=True):
    """A person's claim that the explainer accepted; later episodes will judge it."""

    id: str
    address: str
    version: int
    predicate: str
    english: str
    verdict: str
    created_ns: int


class Narrated(msgspec.Struct, frozen=True):
    """What one agent copy did over one interval."""

    number: int
    run_id: str
    agent: str
    env: int
    episode: int
    from_t: int
    to_t: int
    published_ns: int
    lines: list[dict[str, Any]]
    trigger: dict[str, Any] | None = None
    """What had the narrator speak: kind and text; None: the interval was over."""
    truth: dict[str, Any] | None = None
    """How many of the cited predicates held, and of the newest ones the share that did."""


class Spent(msgspec.Struct, frozen=True):
    """What one explainer process has spent on its writer."""

    writer: str
    since_ns: int
    requests: int
    dollars: float
    updated_ns: int
    document: dict[str, Any]


class UnusualFeature(msgspec.Struct, frozen=True):
    """A feature that was much more, or much less, active than it usually is."""

    address: str
    label: str
    verdict: str | None
    predicate: str | None
    activity: float
    usual: float
    as_extreme: float
    direction: str
    lead_steps: int | None
    course: list[float]

    @property
    def feature(self) -> int:
        """Its number within the transcoder."""
        return int(self.address.partition("@")[0].rpartition("/")[2])


class PastCase(msgspec.Struct, frozen=True):
    """The end of another episode that looked alike."""

    env: int
    episode: int
    similarity: float
    steps: int


class Incident(msgspec.Struct, frozen=True):
    """What was unusual at the end of one episode, at one hook point."""

    hook_point: str
    env: int
    episode: int
    steps: int
    window_steps: int
    reference_episodes: int
    features: list[UnusualFeature]
    nearest: list[PastCase]


class Incidents(msgspec.Struct, frozen=True):
    """An incident at every hook point that was looked at."""

    run_id: str
    control_hz: float | None
    items: list[Incident]


class WhyClaim(msgspec.Struct, frozen=True):
    """The verified claim of a feature in an account."""

    id: str
    version: int
    label: str
    description: str
    predicate: str | None


class WhyTerm(msgspec.Struct, frozen=True):
    """A term of the sum at one level."""

    name: str
    kind: str
    """``feature``, ``observation``, ``input``, ``baseline``, ``skip``, ``bias``, ``error``,
    ``tail`` or ``others``."""
    contribution: float
    label: str
    hook_point: str = ""
    index: int | None = None
    unit: str = ""
    value: float | None = None
    """Of a number of the observation, in ``unit``."""
    usual: float | None = None
    count: int = 1
    """How many terms this one stands for."""
    claim: WhyClaim | None = None


class WhyEdge(msgspec.Struct, frozen=True):
    """How much of a later term comes from an earlier one; the last target is ``action``."""

    source: str
    target: str
    weight: float


class WhyAblation(msgspec.Struct, frozen=True):
    """What a feature's term says, and what taking the feature out changes."""

    name: str
    contribution: float
    measured: float


class Why(msgspec.Struct, frozen=True):
    """One decision taken apart; each of its levels sums to ``value``, up to ``residual``."""

    agent: str
    run_id: str
    env: int
    episode: int
    t: int
    time_ns: int
    age_s: float
    """When the account was made."""
    sample_every: int
    hook_points: list[str]
    """That are opened, from the observation to the action."""
    label: str
    value: float
    chosen: str
    runner_up: str
    mean: float | None
    """Of a continuous action's component, over the steps that are held."""
    feature_share: float
    verdict: str
    levels: list[list[WhyTerm]]
    """From the action to the observation."""
    edges: list[WhyEdge]
    edges_left_out: int
    ablations: list[WhyAblation]
    rank_agreement: float | None
    residual: float
    note: str
