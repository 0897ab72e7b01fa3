"""The rule search, for all features of a hook point at once and fast enough to repeat for a null.

A tree of depth ≤ 3 is grown for every feature over binned terms. The rows of the metrics are kept
twice: as bin codes, to count a feature's few on-rows by ``bincount``, and as bit sets "term ≤
edge", to count all rows of any node by AND and population count. So a search over 200 features
costs tens of milliseconds, and a null that repeats it a thousand times is affordable. The split
criterion is the class-weighted Gini impurity (Breiman et al., *Classification and Regression
Trees*, 1984, §4.4) with both classes weighing the same, because features are rare.

A permuted pairing of features with metrics is a map from feature rows to metric rows; codes and bit
sets belong to the metrics and stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from interlatent_live.explanations.predicates import Delta, Lag, Metric, Term, Window, term_values
from interlatent_live.explanations.predicates import Reduction as _Reduction
from interlatent_live.stream import Role

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from interlatent_live.explanations.evidence import Evidence
    from interlatent_live.stream import MetricSpec

BINS: Final = 32
LEAVES: Final = 8
_INNER: Final = 7
# Edges are denser in the tails: a feature on in 0.5 % of the steps has its threshold there.
_QUANTILES: Final = np.array(
    [0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.14, 0.18, 0.23, 0.28, 0.34, 0.4, 0.46]
)
QUANTILES: Final = np.concatenate([_QUANTILES, [0.5], 1 - _QUANTILES[::-1]])


@dataclass(frozen=True, slots=True)
class TermFamilies:
    """Which terms the search may use for each metric of the role; clock metrics stay out of rules.

    A feedforward policy that sees the whole state needs no lags; a recurrent one does.
    """

    delta: bool = True
    lags: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)
    means: tuple[int, ...] = ()
    role: Role = Role.STATE

    def terms(self, specs: Sequence[MetricSpec]) -> tuple[Term, ...]:
        """All candidate terms, the plain metrics first."""
        names = [spec.name for spec in specs if spec.role is self.role]
        found: list[Term] = [Metric(name) for name in names]
        if self.delta:
            found += [Delta(name) for name in names]
        found += [Lag(name, steps) for steps in self.lags for name in names]
        found += [Window(_Reduction.MEAN, name, steps) for steps in self.means for name in names]
        return tuple(found)


PLAIN_TERMS: Final = TermFamilies(delta=False, lags=())
CLOCK_TERMS: Final = TermFamilies(delta=False, lags=(), role=Role.CLOCK)


@dataclass(frozen=True, slots=True, eq=False)
class Binned:
    """Terms of some metric rows, binned; D terms, N rows, W = ⌈N / 64⌉ words."""

    terms: tuple[Term, ...]
    edges: NDArray[np.float64]
    """[D, BINS − 1] ascending; code ≤ k ⇔ value ≤ edges[k]."""
    codes: NDArray[np.uint8]
    """[D, N]; an undefined value has code 0."""
    below: NDArray[np.uint64]
    """[D, BINS − 1, W] bit sets of rows with code ≤ k."""
    row: NDArray[np.int64]
    """[N] the evidence's row that each binned row stands for."""
    n_source: int
    """Rows of the evidence."""

    @property
    def n_rows(self) -> int:
        """N."""
        return len(self.row)


@dataclass(frozen=True, slots=True, eq=False)
class OnRows:
    """Where each of F features is on, in binned rows of the metrics they are paired with."""

    feature: NDArray[np.int64]
    """[nnz] number of the feature among those searched, ascending."""
    position: NDArray[np.int64]
    """[nnz] binned row."""
    count: int
    """F."""
    used: NDArray[np.uint64]
    """[W] bit set of binned rows that a scored feature row is paired with."""
    n_used: int


@dataclass(frozen=True, slots=True, eq=False)
class Trees:
    """F trees of depth 3 in heap order: node i has children 2i + 1 (≤ edge) and 2i + 2 (> edge)."""

    term: NDArray[np.int64]
    """[F, 7] index of the term."""
    edge: NDArray[np.int64]
    """[F, 7] index of the edge; BINS − 1 marks a node that does not split (all rows go left)."""


def edges_of(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """[BINS − 1] quantile edges of one term, ascending, repeated where values repeat."""
    finite = values[np.isfinite(values)]
    if len(finite) == 0:
        return np.zeros(BINS - 1)
    distinct = np.unique(finite)
    if len(distinct) <= BINS - 1:
        middle = (distinct[:-1] + distinct[1:]) / 2
        return np.concatenate([middle, np.full(BINS - 1 - len(middle), distinct[-1])])
    return np.asarray(np.quantile(finite, QUANTILES, method="lower"), np.float64)


def bin_terms(
    evidence: Evidence,
    terms: Sequence[Term],
    *,
    edges: NDArray[np.float64] | None = None,
    max_rows: int | None = None,
) -> Binned:
    """Bin the scored rows of the evidence, every s-th where there are more than ``max_rows``.

    ``edges`` [D, BINS − 1] are taken from another evidence where given, so that trees carry over.
    """
    scored = np.flatnonzero(evidence.scored)
    if max_rows is not None and len(scored) > max_rows:
        scored = scored[np.linspace(0, len(scored) - 1, max_rows).astype(np.int64)]
    columns = evidence.columns()
    words = -(-len(scored) // 64)
    codes = np.zeros((len(terms), len(scored)), np.uint8)
    below = np.zeros((len(terms), BINS - 1, words), np.uint64)
    found = np.zeros((len(terms), BINS - 1)) if edges is None else edges
    thresholds = np.arange(BINS - 1, dtype=np.uint8)
    for index, term in enumerate(terms):
        values = term_values(term, columns)[scored]
        if edges is None:
            found[index] = edges_of(values)
        code = np.searchsorted(found[index], values, side="left")
        code[np.isnan(values)] = 0
        codes[index] = code
        below[index] = pack(codes[index][None, :] <= thresholds[:, None], words)
    return Binned(tuple(terms), found, codes, below, scored, len(evidence))


def pack(rows: NDArray[np.bool_], words: int) -> NDArray[np.uint64]:
    """[..., N] booleans as [..., words] bit sets."""
    packed = np.packbits(rows, axis=-1, bitorder="little")
    out = np.zeros((*rows.shape[:-1], words * 8), np.uint8)
    out[..., : packed.shape[-1]] = packed
    return out.view(np.uint64)


def pair(
    evidence: Evidence,
    features: NDArray[np.int64],
    binned: Binned,
    partner: NDArray[np.int64] | None = None,
) -> OnRows:
    """The on-rows of ``features`` against binned metric rows.

    ``partner`` [n] gives the metric row that each feature row is paired with, −1 for none; None
    pairs each row with itself. It must not pair two feature rows with one metric row.
    """
    place = np.full(binned.n_source, -1, np.int64)
    place[binned.row] = np.arange(binned.n_rows)
    if partner is None:
        target = np.where(evidence.scored, place, -1)
    else:
        target = np.where((partner >= 0) & evidence.scored, place[partner], -1)
    used = np.zeros(binned.n_rows, bool)
    used[target[target >= 0]] = True
    counts = np.diff(evidence.indptr)[features]
    feature = np.repeat(np.arange(len(features)), counts)
    starts = evidence.indptr[features]
    within = np.arange(len(feature)) - np.repeat(np.cumsum(counts) - counts, counts)
    rows = evidence.rows[np.repeat(starts, counts) + within]
    position = target[rows]
    kept = position >= 0
    return OnRows(
        feature[kept],
        position[kept],
        len(features),
        pack(used, -(-binned.n_rows // 64)),
        int(used.sum()),
    )


def grow(binned: Binned, on: OnRows, *, terms_kept: int = 16) -> Trees:
    """Grow one tree of depth 3 per feature.

    Each feature keeps ``terms_kept`` terms: those with the best single interval, but first the best
    of each metric, so that the many lags of one metric do not crowd out another. Its tree is grown
    greedily on those.
    """
    candidates, histogram, totals = _screen(binned, on, min(terms_kept, len(binned.terms)))
    return _Growth(binned, on, candidates, histogram, totals).run()


def complexity_discount(terms: Sequence[Term]) -> NDArray[np.float64]:
    """[D] factor on gains, so that a plain metric wins over its own lag where both do."""
    out = []
    for term in terms:
        match term:
            case Metric():
                out.append(1.0)
            case Delta():
                out.append(0.97)
            case Lag(steps=steps) | Window(steps=steps):
                out.append(0.96 - 0.001 * min(steps, 20))
    return np.array(out)


def _screen(
    binned: Binned, on: OnRows, kept: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Best terms [F, kept], their on-counts [F, kept, BINS], used rows of all terms [D, BINS]."""
    count, terms = on.count, len(binned.terms)
    used = np.unpackbits(on.used.view(np.uint8), bitorder="little")[: binned.n_rows].astype(bool)
    totals = np.empty((terms, BINS), np.int64)
    positives = np.empty((count, terms, BINS), np.int32)
    base = on.feature * BINS
    all_used = on.n_used == binned.n_rows
    for index in range(terms):
        code = binned.codes[index]
        totals[index] = np.bincount(code if all_used else code[used], minlength=BINS)
        histogram = np.bincount(base + code[on.position], minlength=count * BINS)
        positives[:, index] = histogram.reshape(count, BINS)
    size = np.maximum(np.bincount(on.feature, minlength=count), 1)[:, None, None]
    others = np.maximum(on.n_used - size, 1)
    weight = positives / size - (totals[None] - positives) / others
    run = np.cumsum(weight, axis=2)
    lowest = np.minimum.accumulate(np.concatenate([np.zeros((*run.shape[:2], 1)), run], 2), 2)
    highest = np.maximum.accumulate(np.concatenate([np.zeros((*run.shape[:2], 1)), run], 2), 2)
    interval = (run - lowest[..., :-1]).max(2)
    complement = (highest[..., :-1] - run).max(2)
    score = np.maximum(interval, complement) * complexity_discount(binned.terms)
    # First the best term of each metric and the plain metric itself, then the rest by score.
    names = np.array([term.name for term in binned.terms])
    bonus = np.zeros_like(score)
    for name in np.unique(names):
        of_metric = np.flatnonzero(names == name)
        best_of = score[:, of_metric].max(1)
        bonus[np.arange(count), of_metric[np.argmax(score[:, of_metric], axis=1)]] = 1.0
        plain = [int(i) for i in of_metric if isinstance(binned.terms[int(i)], Metric)]
        for chosen in plain:
            bonus[:, chosen] = np.maximum(bonus[:, chosen], 1.0 - score[:, chosen] + 0.99 * best_of)
    score += bonus
    best = np.argsort(-score, axis=1, kind="stable")[:, :kept]
    return best, np.take_along_axis(positives, best[..., None], 1).astype(np.int64), totals


class _Growth:
    """Level-wise growth for all features; one object per search."""

    def __init__(
        self,
        binned: Binned,
        on: OnRows,
        candidates: NDArray[np.int64],
        root: NDArray[np.int64],
        totals: NDArray[np.int64],
    ) -> None:
        self._binned = binned
        self._on = on
        self._candidates = candidates
        self._root_on = np.cumsum(root, axis=2)[..., :-1]
        self._root_all = np.cumsum(totals, axis=1)[candidates][..., :-1]
        self._discount = complexity_discount(binned.terms)[candidates]
        self._size = np.maximum(np.bincount(on.feature, minlength=on.count), 1).astype(np.float64)
        self._others = np.maximum(on.n_used - self._size, 1.0)
        self._trees = Trees(
            np.zeros((on.count, _INNER), np.int64), np.full((on.count, _INNER), BINS - 1, np.int64)
        )
        # Codes of the candidate terms at each on-row: [kept, nnz].
        rows = candidates[on.feature].T
        self._codes = binned.codes[rows, on.position[None, :]].astype(np.int64)

    def run(self) -> Trees:
        count = self._on.count
        words = self._binned.below.shape[2]
        region = np.broadcast_to(self._on.used, (count, words))
        level = [(0, region, self._root_on, self._root_all, self._ends(None), self._all_rows())]
        place = np.zeros(len(self._on.feature), np.int64)
        for deeper in (True, True, False):
            following = []
            for node, region, on_cum, all_cum, on_total, all_total in level:
                slot, edge = self._best(on_cum, all_cum, on_total, all_total)
                self._trees.term[:, node] = self._candidates[np.arange(count), slot]
                self._trees.edge[:, node] = edge
                if not deeper:
                    continue
                inside = place == node
                goes_left = (
                    self._codes[slot[self._on.feature], np.arange(len(place))]
                    <= (edge[self._on.feature])
                )
                place[inside] = np.where(goes_left[inside], 2 * node + 1, 2 * node + 2)
                left = region & self._below(node)
                left_all = self._count_all(left)
                left_on = self._count_on(place == 2 * node + 1)
                left_on_total = self._ends(place == 2 * node + 1)
                left_total = np.bitwise_count(left).sum(1, dtype=np.int64)
                following.append((2 * node + 1, left, left_on, left_all, left_on_total, left_total))
                following.append(
                    (
                        2 * node + 2,
                        region & ~self._below(node),
                        on_cum - left_on,
                        all_cum - left_all,
                        on_total - left_on_total,
                        all_total - left_total,
                    )
                )
            level = following
        return self._trees

    def _all_rows(self) -> NDArray[np.int64]:
        return np.full(self._on.count, self._on.n_used, np.int64)

    def _ends(self, inside: NDArray[np.bool_] | None) -> NDArray[np.int64]:
        feature = self._on.feature if inside is None else self._on.feature[inside]
        return np.bincount(feature, minlength=self._on.count)

    def _below(self, node: int) -> NDArray[np.uint64]:
        """[F, W] rows that go left at the node; all of them where it does not split."""
        edge = self._trees.edge[:, node]
        splits = edge < BINS - 1
        bits = self._binned.below[self._trees.term[:, node], np.minimum(edge, BINS - 2)]
        bits[~splits] = np.uint64(0xFFFFFFFFFFFFFFFF)
        return bits

    def _count_on(self, inside: NDArray[np.bool_]) -> NDArray[np.int64]:
        """[F, kept, BINS − 1] on-rows of the node with code ≤ k."""
        count, kept = self._candidates.shape
        feature = self._on.feature[inside]
        out = np.empty((count, kept, BINS), np.int64)
        for slot in range(kept):
            counts = np.bincount(feature * BINS + self._codes[slot, inside], minlength=count * BINS)
            out[:, slot] = counts.reshape(count, BINS)
        return np.cumsum(out, axis=2)[..., :-1]

    def _count_all(self, region: NDArray[np.uint64]) -> NDArray[np.int64]:
        """[F, kept, BINS − 1] all rows of the node with code ≤ k."""
        count, kept = self._candidates.shape
        out = np.empty((count, kept, BINS - 1), np.int64)
        for feature in range(count):
            # One feature at a time stays in the cache, which is what makes this fast.
            bits = self._binned.below[self._candidates[feature]] & region[feature]
            out[feature] = np.bitwise_count(bits).sum(-1, dtype=np.int32)
        return out

    def _best(
        self,
        on_cum: NDArray[np.int64],
        all_cum: NDArray[np.int64],
        on_total: NDArray[np.int64],
        all_total: NDArray[np.int64],
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Best (candidate, edge) of a node per feature; BINS − 1 where nothing helps."""
        size, others = self._size[:, None, None], self._others[:, None, None]
        left_p = on_cum / size
        left_q = (all_cum - on_cum) / others
        total_p = (on_total / self._size)[:, None, None]
        total_q = ((all_total - on_total) / self._others)[:, None, None]
        gain = _impurity(total_p, total_q) - (
            _impurity(left_p, left_q) + _impurity(total_p - left_p, total_q - left_q)
        )
        gain *= self._discount[..., None]
        flat = gain.reshape(len(gain), -1)
        choice = np.argmax(flat, axis=1)
        best = flat[np.arange(len(flat)), choice]
        slot, edge = np.divmod(choice, BINS - 1)
        return slot, np.where(best > 1e-9, edge, BINS - 1)


def _impurity(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted Gini impurity of a node with on-weight p and off-weight q: p q / (p + q)."""
    return p * q / np.maximum(p + q, 1e-300)


def leaf_counts(
    trees: Trees, binned: Binned, on: OnRows
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """On-rows and all used rows in each leaf: two arrays [F, 8]."""
    positives = np.bincount(
        on.feature * LEAVES + leaf_of_on_rows(trees, binned, on), minlength=on.count * LEAVES
    ).reshape(on.count, LEAVES)
    totals = np.empty((on.count, LEAVES), np.int64)
    for leaf, region in leaf_regions(trees, binned, on):
        totals[:, leaf] = np.bitwise_count(region).sum(1, dtype=np.int64)
    return positives, totals


def leaf_of_on_rows(trees: Trees, binned: Binned, on: OnRows) -> NDArray[np.int64]:
    """[nnz] leaf that each on-row falls into."""
    place = np.zeros(len(on.feature), np.int64)
    for _ in range(3):
        term = trees.term[on.feature, place]
        goes_left = binned.codes[term, on.position] <= trees.edge[on.feature, place]
        place = 2 * place + np.where(goes_left, 1, 2)
    return place - _INNER


def leaf_regions(
    trees: Trees, binned: Binned, on: OnRows
) -> Iterator[tuple[int, NDArray[np.uint64]]]:
    """Each leaf with its used rows, bit sets [F, W]."""
    regions = {0: np.broadcast_to(on.used, (on.count, len(on.used)))}
    for node in range(_INNER):
        edge = trees.edge[:, node]
        bits = binned.below[trees.term[:, node], np.minimum(edge, BINS - 2)]
        bits[edge == BINS - 1] = np.uint64(0xFFFFFFFFFFFFFFFF)
        region = regions.pop(node)
        regions[2 * node + 1] = region & bits
        regions[2 * node + 2] = region & ~bits
    for leaf in range(LEAVES):
        yield leaf, regions.pop(_INNER + leaf)


def worth(
    balanced_accuracy: NDArray[np.float64], precision: NDArray[np.float64], f1: NDArray[np.float64]
) -> NDArray[np.float64]:
    """How good a rule is, as one number to compare rules of one feature by.

    Precision ≥ .5 comes first, then balanced accuracy up to .9, which a verdict asks for; beyond
    that F1, because balanced accuracy hardly notices the false alarms of a rare feature.
    """
    enough = np.where(precision >= 0.5, 10.0, 10.0 * precision)
    return np.asarray(enough + 4 * np.minimum(balanced_accuracy, 0.9) + f1, np.float64)


def choose_leaves(
    proposed: tuple[NDArray[np.int64], NDArray[np.int64]],
    chosen_on: tuple[NDArray[np.int64], NDArray[np.int64]],
    *,
    depths: tuple[int, ...] = (1, 2, 3),
) -> NDArray[np.bool_]:
    """Which leaves say "on", [F, 8]: among ``depths`` and cuts of their leaves ordered by odds.

    ``proposed`` are the leaf counts on A, which order the leaves; ``chosen_on`` those on B, where
    the rule of the greatest :func:`worth` wins, a deeper one only if it is better by .005.
    """
    count = len(proposed[0])
    best_mask = np.zeros((count, LEAVES), bool)
    best_key = np.full(count, -np.inf)
    for depth in depths:
        group = np.repeat(np.arange(2**depth), LEAVES // 2**depth)
        on_a, all_a = (_grouped(x, depth) for x in proposed)
        on_b, all_b = (_grouped(x, depth) for x in chosen_on)
        size = np.maximum(on_a.sum(1, keepdims=True), 1)
        others = np.maximum((all_a - on_a).sum(1, keepdims=True), 1)
        odds = (on_a / size + 1e-9) / ((all_a - on_a) / others + 1e-6)
        odds[all_a == 0] = -1.0
        order = np.argsort(-odds, axis=1, kind="stable")
        rank = np.argsort(order, axis=1, kind="stable")
        for cut in range(1, 2**depth):
            mask = rank < cut
            hit = (on_b * mask).sum(1)
            said = (all_b * mask).sum(1)
            positives = on_b.sum(1)
            negatives = (all_b - on_b).sum(1)
            recall = hit / np.maximum(positives, 1)
            false = (said - hit) / np.maximum(negatives, 1)
            precision = hit / np.maximum(said, 1)
            f1 = 2 * hit / np.maximum(said + positives, 1)
            key = worth((recall + 1 - false) / 2, precision, f1) - 0.005 * depth
            better = key > best_key
            best_key = np.where(better, key, best_key)
            best_mask[better] = mask[better][:, group]
    return best_mask


@dataclass(frozen=True, slots=True, eq=False)
class RuleScores:
    """Balanced accuracy of F rules, with its standard error clustered by unit."""

    balanced_accuracy: NDArray[np.float64]
    """[F]; .5 where a class is missing."""
    error: NDArray[np.float64]
    """[F]; 0 where a class is missing."""


def rule_scores(
    trees: Trees,
    mask: NDArray[np.bool_],
    binned: Binned,
    on: OnRows,
    *,
    unit: NDArray[np.integer],
    n_units: int,
) -> RuleScores:
    """Score F rules (``mask`` [F, 8] leaves of trees); ``unit`` [N] ascends over binned rows.

    The error is the sandwich form of :func:`interlatent_live.explanations.scores`.
    """
    hit_rows = mask[on.feature, leaf_of_on_rows(trees, binned, on)]
    cell = on.feature * n_units + unit[on.position]
    size = on.count * n_units
    positives = np.bincount(cell, minlength=size).reshape(on.count, n_units)
    hits = np.bincount(cell[hit_rows], minlength=size).reshape(on.count, n_units)
    said_bits = np.zeros((on.count, len(on.used)), np.uint64)
    for leaf, region in leaf_regions(trees, binned, on):
        said_bits |= np.where(mask[:, leaf, None], region, np.uint64(0))
    said = _by_unit(said_bits, binned.n_rows, unit, n_units)
    rows = _by_unit(on.used[None], binned.n_rows, unit, n_units)
    negatives = rows - positives
    quiet = negatives - (said - hits)
    total_p = positives.sum(1, keepdims=True)
    total_n = negatives.sum(1, keepdims=True)
    defined = (total_p > 0) & (total_n > 0)
    recall = hits.sum(1, keepdims=True) / np.maximum(total_p, 1)
    specificity = quiet.sum(1, keepdims=True) / np.maximum(total_n, 1)
    influence = 0.5 * (
        (hits - recall * positives) / np.maximum(total_p, 1)
        + (quiet - specificity * negatives) / np.maximum(total_n, 1)
    )
    error = np.sqrt((influence**2).sum(1) * n_units / max(n_units - 1, 1))
    return RuleScores(
        np.where(defined, (recall + specificity) / 2, 0.5)[:, 0],
        np.where(defined[:, 0], error, 0.0),
    )


def _by_unit(
    bits: NDArray[np.uint64], n_rows: int, unit: NDArray[np.integer], n_units: int
) -> NDArray[np.int64]:
    """Rows of bit sets [F, W] in each unit, [F, n_units]."""
    flags = np.unpackbits(bits.view(np.uint8), axis=1, count=n_rows, bitorder="little")
    present, starts = np.unique(unit, return_index=True)
    out = np.zeros((len(bits), n_units), np.int64)
    out[:, present] = np.add.reduceat(flags, starts, axis=1, dtype=np.int32)
    return out


def _grouped(counts: NDArray[np.int64], depth: int) -> NDArray[np.int64]:
    grouped: NDArray[np.int64] = counts.reshape(len(counts), 2**depth, -1).sum(2)
    return grouped
