"""Questions to the statistics and their answers: the types that hold both sides to the protocol.

Every question names a run and a hook point; an empty one means the newest run, and the only hook
point. Lists come in pages: ``limit`` items, and a ``next_cursor`` that belongs to its question.
What is undefined is ``None``, and ``reasons`` (by field) or ``reason`` says why.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from interlatent_live.feed.documents import AlertsDocument, DriftStatus
from interlatent_live.statistics.association import MetricAssociation

VERSION: Final = 1
MAX_LIMIT: Final = 1000
NOW: Final = "now"
"""In a comparison: the statistics as they are, not a snapshot."""

Name = Annotated[str, Meta(max_length=256)]
Limit = Annotated[int, Meta(ge=1, le=MAX_LIMIT)]
Cursor = Annotated[str, Meta(max_length=1024)]
Index = Annotated[int, Meta(ge=0, lt=2**31)]
Share = Annotated[float, Meta(ge=0, le=1)]
Level = Annotated[float, Meta(gt=0, lt=1)]


# ---------------------------------------------------------------------------------- questions


class Question(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="ask"
):
    """Something to ask; the subclass says what."""


class Runs(Question, frozen=True, kw_only=True, tag="runs"):
    """Every run the correlator knows, newest first."""

    limit: Limit = 50
    cursor: Cursor | None = None


class About(Question, frozen=True, kw_only=True):
    """A question about one hook point of one run."""

    run: Name = ""
    hook_point: Name = ""


class HookPoints(Question, frozen=True, kw_only=True, tag="hook_points"):
    """The hook points of a run."""

    run: Name = ""
    limit: Limit = 50
    cursor: Cursor | None = None


class Features(About, frozen=True, kw_only=True, tag="features"):
    """Features, one item each; with ``metric`` also how each goes with it."""

    window: Name = "all"
    metric: Name | None = None
    min_density: Share = 0.0
    max_density: Share = 1.0
    min_episodes: Annotated[int, Meta(ge=0)] = 0
    live: bool = False
    """Only features on in ≥ 0.1 % of rows and in ≥ 3 episodes."""
    sort: Name = "density"
    """``feature``, ``density``, ``mean_activation``, ``episodes``, ``abs_r`` or ``auroc``."""
    descending: bool = True
    limit: Limit = 50
    cursor: Cursor | None = None


class Pairs(About, frozen=True, kw_only=True, tag="pairs"):
    """Feature × metric pairs, filtered and sorted."""

    window: Name = "all"
    metric: Name | None = None
    features: Annotated[tuple[Index, ...], Meta(max_length=10_000)] | None = None
    min_density: Share = 0.0
    max_density: Share = 1.0
    min_abs_r: Share = 0.0
    excludes_zero: bool = False
    """Only pairs whose interval of r lies clear of 0."""
    sort: Name = "abs_r"
    """``feature``, ``density``, ``r``, ``abs_r``, ``effect_size``, ``auroc`` or ``n_eff``."""
    descending: bool = True
    limit: Limit = 50
    cursor: Cursor | None = None


class Profile(About, frozen=True, kw_only=True, tag="profile"):
    """All that is known of one feature."""

    feature: Index
    window: Name = "all"
    partial: bool = True
    """Also partial associations, whose bootstrap takes a few milliseconds."""


class MetricView(About, frozen=True, kw_only=True, tag="metric"):
    """One metric: what came in, and the features that go with it most."""

    metric: Name
    window: Name = "all"
    by: Name = "r"
    """``r``, ``effect_size`` or ``auroc``."""
    limit: Limit = 20


class Screening(About, frozen=True, kw_only=True, tag="screening"):
    """Benjamini–Hochberg over the shown intervals: a list to look at, not a result."""

    window: Name = "all"
    level: Level = 0.1
    limit: Limit = 50
    cursor: Cursor | None = None


class Discoveries(About, frozen=True, kw_only=True, tag="discoveries"):
    """Pairs found under a false discovery rate that holds over the whole run."""

    procedure: Name = "e-bh"
    """``e-bh`` (any time), or ``by`` (at declared looks, which are recorded)."""
    level: Level = 0.05
    """For e-BH; the looks keep their own 5 %."""
    limit: Limit = 50
    cursor: Cursor | None = None


class Alerts(Question, frozen=True, kw_only=True, tag="alerts"):
    """Alert rules, drift and conformal alarms of a run."""

    run: Name = ""


class Slices(About, frozen=True, kw_only=True, tag="slices"):
    """Windows and slices that can be asked for, with their rows."""


class Snapshots(Question, frozen=True, kw_only=True, tag="snapshots"):
    """Saved states that a comparison can name, newest first."""

    run: Name = ""
    """Empty: of every run."""
    limit: Limit = 50
    cursor: Cursor | None = None


class Compare(About, frozen=True, kw_only=True, tag="compare"):
    """What changed between two states of the same features, the clearest changes first.

    A state is ``now``, the id of a snapshot, or ``yesterday``: the newest snapshot of the same
    transcoder that is at least a day old.
    """

    before: Name
    after: Name = NOW
    window: Name = "all"
    after_window: Name | None = None
    """Another window for ``after``; two slices of one state can be compared so."""
    limit: Limit = 50
    cursor: Cursor | None = None


class Table(About, frozen=True, kw_only=True, tag="table"):
    """All numbers of consecutive features as raw columns: what an export is made of."""

    window: Name = "all"
    first: Index = 0
    count: Annotated[int, Meta(ge=1, le=65_536)] = 4096


class Exemplars(Question, frozen=True, kw_only=True, tag="exemplars"):
    """Which rows of a run are exemplars of some feature: those whose pictures are worth keeping."""

    run: Name = ""


AnyQuestion = (
    Runs
    | HookPoints
    | Features
    | Pairs
    | Profile
    | MetricView
    | Screening
    | Discoveries
    | Alerts
    | Slices
    | Snapshots
    | Compare
    | Table
    | Exemplars
)


# ------------------------------------------------------------------------------------ answers


class Answer(msgspec.Struct, frozen=True, kw_only=True, tag_field="answer"):
    """Something known; the subclass says what."""


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer rests on: which features, how many rows, since when."""

    run_id: str
    agent: str
    hook_point: str
    transcoder: str
    n_features: int
    rows: int
    """Rows in the default statistics."""
    left_out: dict[str, int]
    """Rows that are not, by reason: steered, no_activation, bad_activations, duplicates."""
    missing: int
    """Rows that came between a snapshot and a restart and that nobody has."""
    processed_seq: int
    first_ns: int | None
    """Agent's time of the first row."""
    newest_ns: int | None
    ended: bool


class RunItem(msgspec.Struct, frozen=True, kw_only=True):
    """One run."""

    run_id: str
    agent: str
    environment: str
    policy_hash: str
    boots: int
    rows: int
    ended: bool
    hook_points: list[str]
    metrics: list[MetricItem]


class MetricItem(msgspec.Struct, frozen=True, kw_only=True):
    """One metric that an agent declared."""

    name: str
    unit: str
    role: str
    description: str = ""


class RunsAnswer(Answer, frozen=True, kw_only=True, tag="runs"):
    """A page of runs."""

    items: list[RunItem]
    next_cursor: str | None
    matched: int


class HookPointItem(msgspec.Struct, frozen=True, kw_only=True):
    """One hook point with its statistics."""

    source: Source
    live_features: int
    episodes: int | None
    windows: list[str]
    bytes: int


class HookPointsAnswer(Answer, frozen=True, kw_only=True, tag="hook_points"):
    """A page of hook points."""

    items: list[HookPointItem]
    next_cursor: str | None
    matched: int


class FeatureItem(msgspec.Struct, frozen=True, kw_only=True):
    """One feature in a list."""

    address: str
    feature: int
    density: float | None
    mean_activation: float | None
    episodes: int | None
    bouts: int | None
    strongest: MetricAssociation | None
    """The asked metric, or the one with the largest |r|; ``None`` where no r is defined."""
    reason: str | None = None


class FeaturesAnswer(Answer, frozen=True, kw_only=True, tag="features"):
    """A page of features."""

    source: Source
    window: str
    items: list[FeatureItem]
    next_cursor: str | None
    matched: int


class PairItem(msgspec.Struct, frozen=True, kw_only=True):
    """One pair in a list."""

    address: str
    feature: int
    density: float | None
    association: MetricAssociation


class PairsAnswer(Answer, frozen=True, kw_only=True, tag="pairs"):
    """A page of pairs."""

    source: Source
    window: str
    items: list[PairItem]
    next_cursor: str | None
    matched: int


class LagItem(msgspec.Struct, frozen=True, kw_only=True):
    """Lead and lag of a feature with one metric; a positive lag: the feature leads."""

    metric: str
    lags: list[int]
    r: list[float | None]
    pairs: list[float]
    peak: int | None
    peak_r: float | None
    reasons: dict[str, str]


class PartialItem(msgspec.Struct, frozen=True, kw_only=True):
    """Association with one state metric, the others held."""

    metric: str
    beta: float | None
    lo: float | None
    hi: float | None
    vif: float | None
    reasons: dict[str, str]


class PartialAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Partial associations with their settings."""

    ridge: float
    condition_number: float | None
    episodes: int
    metrics: list[PartialItem]


class PartnerItem(msgspec.Struct, frozen=True, kw_only=True):
    """A feature that fires together with the asked one."""

    feature: int
    together: int
    jaccard: float
    lift: float | None


class EventItem(msgspec.Struct, frozen=True, kw_only=True):
    """How a feature fires on the way to an event."""

    event: str
    fires: list[float | None]
    """P(on | h steps before the event), h = 0, 1, …."""
    base: float | None
    follows: list[float | None]
    """P(event within h | on)."""
    event_base: list[float | None]
    auroc: float | None
    auroc_error: float | None
    peak: int | None
    """Steps before the event at which the feature stands out most."""
    reason: str | None = None


class ExemplarItem(msgspec.Struct, frozen=True, kw_only=True):
    """One step to look at."""

    kind: str
    position: int
    env: int
    t: int
    activation: float
    metrics: dict[str, float | None]
    context: list[list[float | None]]
    """Metrics of the steps around it, oldest first, in the order of the run's metrics."""
    quantile: float | None = None
    distance: float | None = None


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """Correlation with one metric, split."""

    metric: str
    within: float | None
    """Within episodes."""
    episodes: float | None
    """Between episodes of one copy."""
    copies: float | None
    """Between agent copies."""


class HistogramItem(msgspec.Struct, frozen=True, kw_only=True):
    """Activations when on, in bars of equal width from 0."""

    edges: list[float]
    """One more than bars."""
    counts: list[float]
    """Not whole where a bin of the sketch lies across an edge."""


class ProfileAnswer(Answer, frozen=True, kw_only=True, tag="profile"):
    """All that the statistics know of one feature."""

    source: Source
    address: str
    feature: int
    window: str
    n: float
    n_on: float
    density: float | None
    mean_activation: float | None
    quantiles: dict[str, float] | None
    """Of the activation when on, by probability."""
    histogram: HistogramItem | None = None
    """Of the activation when on; None where quantiles are undefined, for the same reason."""
    episodes: int | None
    episodes_total: int | None
    share_of_episodes: float | None
    bouts: int | None
    dwell_mean: float | None
    dwell_longest: int | None
    scope: str
    metrics: list[MetricAssociation]
    lags: list[LagItem]
    partial: PartialAnswer | None
    decomposition: list[Parts]
    partners: list[PartnerItem]
    events: list[EventItem]
    exemplars: list[ExemplarItem]
    drift: list[DriftStatus]
    reasons: dict[str, str]


class MetricAnswer(Answer, frozen=True, kw_only=True, tag="metric"):
    """One metric and the features that go with it."""

    source: Source
    metric: MetricItem
    window: str
    n: float
    mean: float | None
    sd: float | None
    absent: int
    """Rows in which it was not known."""
    infinite: int
    by: str
    items: list[PairItem]
    reasons: dict[str, str]


class FindingItem(msgspec.Struct, frozen=True, kw_only=True):
    """One pair on a list."""

    address: str
    feature: int
    metric: str
    r: float | None
    p: float | None = None
    log_e: float | None = None
    look: int | None = None
    """Number of the declared look that found it first."""


class LookItem(msgspec.Struct, frozen=True, kw_only=True):
    """One declared look, a recorded event."""

    number: int
    episodes: int
    at_episodes: int
    level: float
    found: int


class FindingsAnswer(Answer, frozen=True, kw_only=True, tag="findings"):
    """A page of a list, with what the list is and the rate that it keeps."""

    source: Source
    title: str
    procedure: str
    level: float
    pairs: int
    """Pairs that could be tested."""
    note: str
    items: list[FindingItem]
    looks: list[LookItem]
    next_look: int | None
    next_cursor: str | None
    matched: int


class AlertsAnswer(Answer, frozen=True, kw_only=True, tag="alerts"):
    """The alerts of a run as its viewers see them."""

    alerts: AlertsDocument


class SliceItem(msgspec.Struct, frozen=True, kw_only=True):
    """One window or slice."""

    name: str
    kind: str
    """``cumulative``, ``exponential``, ``sliding``, ``outcome`` or ``predicate``."""
    rows: float
    predicate: str | None = None
    reason: str | None = None
    """Why a slice that was asked for is not kept."""


class SlicesAnswer(Answer, frozen=True, kw_only=True, tag="slices"):
    """What windows there are."""

    source: Source
    items: list[SliceItem]


class SnapshotItem(msgspec.Struct, frozen=True, kw_only=True):
    """One saved state."""

    id: str
    run_id: str
    agent: str
    hook_point: str
    transcoder: str
    rows: int
    saved_ns: int
    bytes: int


class SnapshotsAnswer(Answer, frozen=True, kw_only=True, tag="snapshots"):
    """A page of snapshots."""

    items: list[SnapshotItem]
    next_cursor: str | None
    matched: int


class ChangeItem(msgspec.Struct, frozen=True, kw_only=True):
    """One pair in two states; differences are of Fisher's z."""

    address: str
    feature: int
    metric: str
    r_before: float | None
    r_after: float | None
    z_difference: float | None
    lo: float | None
    hi: float | None
    density_before: float | None
    density_after: float | None
    reason: str | None = None


class CompareAnswer(Answer, frozen=True, kw_only=True, tag="compare"):
    """A page of changes."""

    source: Source
    before: str
    after: str
    rows_before: int
    rows_after: int
    items: list[ChangeItem]
    next_cursor: str | None
    matched: int


class TableAnswer(Answer, frozen=True, kw_only=True, tag="table"):
    """Columns of ``count`` features from ``first`` on; the numbers follow as raw buffers.

    A buffer is [count, metrics] for a pair's number, [count] for a feature's, [metrics] for
    ``rows``; ``reason`` indexes ``reasons``, −1 for none.
    """

    source: Source
    window: str
    first: int
    count: int
    metrics: list[MetricItem]
    reasons: list[str]


class ExemplarsAnswer(Answer, frozen=True, kw_only=True, tag="exemplars"):
    """Columns ``position``, ``env``, ``t`` and ``after`` follow as raw buffers, one row each.

    ``position`` is a row's number in the run and ascends; ``after`` is how many steps of the same
    episode are known to follow, a few at most.
    """

    run_id: str
    copies: int
    boots: dict[str, int]
    """By boot of the agent, the run's number of the boot's row 0."""


AnyAnswer = (
    RunsAnswer
    | HookPointsAnswer
    | FeaturesAnswer
    | PairsAnswer
    | ProfileAnswer
    | MetricAnswer
    | FindingsAnswer
    | AlertsAnswer
    | SlicesAnswer
    | SnapshotsAnswer
    | CompareAnswer
    | TableAnswer
    | ExemplarsAnswer
)


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What travels to the correlator."""

    v: int
    id: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    question: AnyQuestion


TensorSpec = tuple[
    Annotated[str, Meta(max_length=32)],
    Annotated[str, Meta(max_length=4)],
    Annotated[tuple[Annotated[int, Meta(ge=0, le=2**32)], ...], Meta(max_length=2)],
]
"""Name, dtype and shape of one buffer of the body."""


class Reply(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What comes back: an answer, or one sentence that says why there is none."""

    v: int
    id: int
    answer: AnyAnswer | None = None
    error: str | None = None
    refused: str | None = None
    """A word for programs: ``question``, ``busy``, ``unknown``, ``version``."""
    tensors: tuple[TensorSpec, ...] = ()
    took_us: int = 0
    """Time the correlator spent on it."""
