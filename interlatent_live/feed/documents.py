"""The documents services publish for viewers: typed, versioned by schema name, JSON-ready.

A document travels as the payload of a wire message of kind ``document`` under a topic. Services
publish whole snapshots, not differences, so a viewer that missed one is right again with the next.
Undefined numbers are ``None`` with a reason elsewhere in the document, never NaN.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

SCHEMA = "interlatent-live/1"


class Topic(StrEnum):
    """What a viewer can subscribe to; the value is the subscription prefix on the XPUB socket."""

    AGENTS = "agents"
    PROFILES = "profiles"
    CLAIMS = "claims"
    NARRATION = "narration"
    ALERTS = "alerts"
    COSTS = "costs"
    FEATURES = "features"
    """Not documents but ``features`` wire messages, one per batch."""


class Percentiles(msgspec.Struct, frozen=True):
    """Median and 99th percentile in milliseconds; ``None`` before the first observation."""

    p50: float | None
    p99: float | None


class HookPointStatus(msgspec.Struct, frozen=True):
    """How well one transcoder does on the live stream."""

    name: str
    transcoder: str
    n_features: int
    fvu: float | None
    """Fraction of variance unexplained on live steps whose y was sampled."""
    fvu_affine: float | None
    fvu_steps: int
    feature_names: dict[str, str] = {}
    """By feature, names of those that have one by construction: attached probes."""


class AgentStatus(msgspec.Struct, frozen=True):
    """One run as the encoder sees it. Steps add up: sent = encoded + declared + undeclared + path.

    ``dropped_declared`` is what the sender says it lost, by reason; ``gaps_undeclared`` is what is
    missing from the sequence and that nobody declared.
    """

    agent: str
    run_id: str
    boot_id: str
    environment: str
    policy_hash: str
    env_count: int
    control_hz: float | None
    actions: list[str]
    metrics: list[dict[str, str]]
    hook_points: list[HookPointStatus]
    steps_received: int
    steps_encoded: int
    dropped_declared: dict[str, int]
    gaps_undeclared: int
    duplicates: int
    steps_per_second: float
    step_to_feature_ms: Percentiles
    last_step_ns: int
    ended: bool
    steps_sent: int | None = None
    """The sender's own count, known once it said goodbye."""


class AgentsDocument(msgspec.Struct, frozen=True):
    """Topic ``agents``: the runs the encoder has seen since it started, in order of connecting.

    Where there are more than fit a document, :func:`agents_that_fit` says which are left out;
    ``service`` says how many there are.
    """

    agents: list[AgentStatus]
    service: dict[str, Any]
    """The encoder's buffers: bytes and steps queued per consumer, drops per consumer, refusals."""
    published_ns: int


class MetricAssociation(msgspec.Struct, frozen=True):
    """How one feature goes with one metric in one window."""

    name: str
    r: float | None
    lo: float | None
    hi: float | None
    n: int
    n_eff: float | None
    window: str
    mean_on: float | None = None
    mean_off: float | None = None
    effect_size: float | None = None
    reason: str | None = None
    """Why a number is undefined."""


class FeatureProfileDocument(msgspec.Struct, frozen=True):
    """What the statistics know of one feature now."""

    address: str
    index: int
    density: float
    n: int
    bouts: int
    episodes: int
    metrics: list[MetricAssociation]


class ProfilesDocument(msgspec.Struct, frozen=True):
    """Topic ``profiles``: the live features of one (run, hook point).

    With all metrics, or as :func:`profiles_that_fit` says where they are many.
    """

    run_id: str
    boot_id: str
    hook_point: str
    transcoder: str
    processed_seq: int
    steps: int
    features: list[FeatureProfileDocument]
    published_ns: int
    lost: dict[str, int]
    """Steps this correlator missed: declared by the encoder, or undeclared gaps."""


class LookRecord(msgspec.Struct, frozen=True, array_like=True):
    """One look of the explainer at its evidence, so that a replay can take it at the same rows."""

    number: int
    """Counts from 0 for each run, hook point and transcoder."""
    kind: str
    """``propose``, ``split``, ``rescore``, ``again`` or ``final``."""
    boot_id: str
    seq: int
    """Rows of this boot below it had been taken in."""
    draws: int
    """Draws of the null that had been searched."""
    at_ns: int
    """What the explainer's clock said."""
    steps: int = 0
    """Length of the blocks, of a ``split``."""


class ClaimsDocument(msgspec.Struct, frozen=True):
    """Topic ``claims``: every claim of one (run, hook point) with scores and verdict."""

    run_id: str
    boot_id: str
    hook_point: str
    transcoder: str
    claims: list[dict[str, Any]]
    counts: dict[str, int]
    null: dict[str, Any]
    """How the null was drawn: kind, draws, unit."""
    writer: str
    processed_seq: int
    final: bool
    published_ns: int
    time_to_first_verified_s: float | None = None
    looks: list[LookRecord] = []
    """The newest looks; of older ones the documents before tell."""


class NarrationLine(msgspec.Struct, frozen=True):
    """One sentence and what it rests on."""

    text: str
    references: list[dict[str, Any]]


class NarrationTrigger(msgspec.Struct, frozen=True):
    """What had the narrator speak before its interval was over."""

    kind: str
    """``alert``, ``intervention``, ``terminated``, ``truncated``, ``began`` or ``stopped``."""
    text: str


class NarrationTruth(msgspec.Struct, frozen=True):
    """How true the cited predicates are, as measured on the rows when the lines were published."""

    cited: int
    """Predicates cited in this document."""
    true: int
    """Of them, those that held, with their feature, in ≥ 80 % of the interval narrated."""
    still: int
    """Of them, those that held at the copy's newest step."""
    rate: float | None
    """Share that was true, of the newest ``of`` citations of this run and hook point."""
    still_rate: float | None
    of: int


class NarrationDocument(msgspec.Struct, frozen=True):
    """Topic ``narration``: what one agent copy is doing over one interval."""

    run_id: str
    agent: str
    env: int
    episode: int
    from_t: int
    to_t: int
    lines: list[NarrationLine]
    published_ns: int
    trigger: NarrationTrigger | None = None
    """None: the interval was over."""
    truth: NarrationTruth | None = None
    """None: in a document of an older version."""


class AlertStatus(msgspec.Struct, frozen=True):
    """One alert rule on one hook point of one run."""

    rule: str
    hook_point: str
    phase: str
    """``inactive``, ``pending`` or ``firing``."""
    severity: str
    summary: str
    since_ns: int | None
    """When its conditions began to hold, in the agent's time."""
    values: dict[str, float | None]
    """What its conditions speak of, newest; ``None`` is unknown."""


class DriftStatus(msgspec.Struct, frozen=True):
    """One monitored number that is no longer what it was."""

    hook_point: str
    name: str
    """Such as ``density:3``, ``activation:3``, ``r:3:speed`` or ``fvu``."""
    pane: int
    since_pane: int
    evidence: float
    bar: float
    reference_mean: float
    recent_mean: float
    false_alarm: str
    """The stated rate, in words."""


class ConformalStatus(msgspec.Struct, frozen=True):
    """One score with an alarm of stated rate."""

    hook_point: str
    score: str
    phase: str
    """``learning``, ``calibrating``, ``quiet`` or ``alarm``."""
    blocks: int
    """Blocks judged."""
    alarms: int
    rate: float
    """Share of blocks in which an alarm would be false."""
    threshold: float | None
    newest: float | None
    reason: str | None = None
    """Why there is no threshold yet."""


class AlertsDocument(msgspec.Struct, frozen=True):
    """Topic ``alerts``: rules that are pending or firing, drift and alarms of one run."""

    run_id: str
    agent: str
    rules: int
    """Rules that watch this run."""
    alerts: list[AlertStatus]
    drift: list[DriftStatus]
    conformal: list[ConformalStatus]
    deliveries: dict[str, dict[str, int]]
    """By receiver: delivered, waiting, failed, dropped."""
    published_ns: int


class ClaimCost(msgspec.Struct, frozen=True):
    """What a language model's part in one claim has cost so far: words and second opinions."""

    address: str
    requests: int
    input_tokens: int
    output_tokens: int
    dollars: float
    opinion_requests: int = 0
    """Of the requests, those for second opinions."""
    opinion_dollars: float = 0.0


class CostsDocument(msgspec.Struct, frozen=True):
    """Topic ``costs``: what one explainer process has spent on its writer since it started."""

    writer: str
    since_ns: int
    """When that process began to count; names the process among its restarts."""
    requests: int
    input_tokens: int
    output_tokens: int
    dollars: float
    limit_dollars: float
    dollars_per_hour: float | None
    """Over the last hour, or since the start; ``None`` in the first minute."""
    refused: dict[str, int]
    """Requests that were not sent, by reason."""
    claims: list[ClaimCost]
    published_ns: int


DOCUMENTS: dict[Topic, type[msgspec.Struct]] = {
    Topic.AGENTS: AgentsDocument,
    Topic.PROFILES: ProfilesDocument,
    Topic.CLAIMS: ClaimsDocument,
    Topic.NARRATION: NarrationDocument,
    Topic.ALERTS: AlertsDocument,
    Topic.COSTS: CostsDocument,
}


def agents_that_fit(agents: list[AgentStatus], limit_bytes: int) -> list[AgentStatus]:
    """As many agents as ``limit_bytes`` of MessagePack hold, in their order.

    Runs that ended go first, then those that have been silent for longest.
    """
    sizes = [len(msgspec.msgpack.encode(one)) for one in agents]
    if sum(sizes) <= limit_bytes:
        return agents
    wanted = sorted(
        range(len(agents)), key=lambda i: (agents[i].ended, -agents[i].last_step_ns, -i)
    )
    kept = []
    for i in wanted:
        limit_bytes -= sizes[i]
        if limit_bytes < 0:
            break
        kept.append(i)
    return [agents[i] for i in sorted(kept)]


def profiles_that_fit(
    features: list[FeatureProfileDocument], limit_bytes: int
) -> list[FeatureProfileDocument]:
    """Profiles in at most ``limit_bytes`` of MessagePack: each with its strongest associations.

    As many of each feature as fit, by |r|; where one of each is still too much, the features that
    are on most often. Everything there is answers to a query.
    """
    size = len(msgspec.msgpack.encode(features))
    most = max((len(one.metrics) for one in features), default=0)
    while size > limit_bytes and most > 1:
        most = max(1, min(most - 1, most * limit_bytes // size))
        features = [_strongest(one, most) for one in features]
        size = len(msgspec.msgpack.encode(features))
    while size > limit_bytes and features:
        few = min(len(features) - 1, len(features) * limit_bytes // size)
        densest = sorted(range(len(features)), key=lambda i: -features[i].density)[:few]
        features = [features[i] for i in sorted(densest)]
        size = len(msgspec.msgpack.encode(features))
    return features


def _strongest(feature: FeatureProfileDocument, most: int) -> FeatureProfileDocument:
    if len(feature.metrics) <= most:
        return feature
    strength = [-1.0 if one.r is None else abs(one.r) for one in feature.metrics]
    kept = sorted(range(len(strength)), key=lambda i: -strength[i])[:most]
    return msgspec.structs.replace(feature, metrics=[feature.metrics[i] for i in sorted(kept)])


def parse_document(topic: str, payload: dict[str, Any]) -> msgspec.Struct:
    """The typed document of a payload.

    Raises:
        KeyError: for a topic that carries no documents.
        msgspec.ValidationError: for a payload that does not fit the topic's schema.
    """
    return msgspec.convert(payload, DOCUMENTS[Topic(topic)])


def document_payload(document: msgspec.Struct) -> dict[str, Any]:
    """A document as the map that travels."""
    payload: dict[str, Any] = msgspec.to_builtins(document)
    return payload
