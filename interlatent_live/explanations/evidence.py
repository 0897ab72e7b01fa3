"""Row-level evidence: what a claim is proposed from and what it is verified on.

The statistics keep sums; a predicate needs rows. The store keeps the last rows of a stream within a
limit in bytes, and hands out frozen views per hook point: metrics sorted by episode and time, and
for each feature the rows in which it was on. The unit of resampling is the episode, or a block of
it in endless runs, never the step; a unit whose first row is not in the store is not used, so that
"begun after the text was fixed" can be told of every unit.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from interlatent_live.errors import UserError
from interlatent_live.explanations.predicates import Columns, past_of
from interlatent_live.stream import Controller, StepFlag

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from interlatent_live.stream import FeatureBatch, MetricSpec, SparseCodes, Steps

DEFAULT_LIMIT_BYTES: Final = 256 * 2**20


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """Rows of one hook point, sorted by unit and time, with sparse features by column.

    n rows, M metrics, F features, U units; feature f is on in ``rows[indptr[f]:indptr[f + 1]]``.
    """

    hook_point: str
    transcoder_hash: str
    specs: tuple[MetricSpec, ...]
    metrics: NDArray[np.float64]
    """[n, M]; NaN where absent."""
    past: NDArray[np.int64]
    """[n] unbroken rows above within the episode."""
    unit: NDArray[np.int32]
    """[n] number of the resampling unit, 0 … U − 1, ascending."""
    t: NDArray[np.int64]
    """[n] step within the episode."""
    time_ns: NDArray[np.int64]
    """[n] wall clock of the agent."""
    scored: NDArray[np.bool_]
    """[n] the hook point fired and the policy acted: the row may be scored."""
    unit_begun_ns: NDArray[np.int64]
    """[U] wall clock of the unit's first row."""
    unit_begins: NDArray[np.bool_]
    """[U] the unit's true first row is here."""
    unit_key: NDArray[np.int64]
    """[U, 4] boot number, env, episode, block."""
    indptr: NDArray[np.int64]
    """[F + 1]."""
    rows: NDArray[np.int32]
    """[nnz] ascending within a feature; only scored rows."""
    values: NDArray[np.float32]
    """[nnz] activations, > 0."""

    def __len__(self) -> int:
        return len(self.unit)

    @property
    def n_features(self) -> int:
        """F."""
        return len(self.indptr) - 1

    @property
    def n_units(self) -> int:
        """U: episodes, or blocks of endless ones."""
        return len(self.unit_begun_ns)

    def columns(self) -> Columns:
        """The metrics as predicates see them."""
        return Columns(tuple(spec.name for spec in self.specs), self.metrics, self.past)

    def rows_on(self, feature: int) -> NDArray[np.int32]:
        """Rows in which the feature is on, ascending."""
        return self.rows[self.indptr[feature] : self.indptr[feature + 1]]

    def on(self, feature: int) -> NDArray[np.bool_]:
        """[n] whether the feature is on."""
        out = np.zeros(len(self), bool)
        out[self.rows_on(feature)] = True
        return out

    def activation(self, feature: int) -> NDArray[np.float32]:
        """[n] the feature's activation, 0 where it is off."""
        out = np.zeros(len(self), np.float32)
        out[self.rows_on(feature)] = self.values[self.indptr[feature] : self.indptr[feature + 1]]
        return out

    def density(self) -> NDArray[np.float64]:
        """[F] share of scored rows in which each feature is on."""
        return np.diff(self.indptr) / max(int(self.scored.sum()), 1)

    def coverage(self) -> Coverage:
        """Bouts and units per feature, for eligibility."""
        return _coverage(self)

    def select(self, units: NDArray[np.bool_]) -> Evidence:
        """Only the units where ``units`` [U] is true."""
        keep = units[self.unit]
        renumber = np.cumsum(units) - 1
        new_row = np.cumsum(keep) - 1
        entry = keep[self.rows]
        counts = np.concatenate([[0], np.cumsum(entry)])
        return Evidence(
            hook_point=self.hook_point,
            transcoder_hash=self.transcoder_hash,
            specs=self.specs,
            metrics=self.metrics[keep],
            past=self.past[keep],
            unit=renumber[self.unit[keep]].astype(np.int32),
            t=self.t[keep],
            time_ns=self.time_ns[keep],
            scored=self.scored[keep],
            unit_begun_ns=self.unit_begun_ns[units],
            unit_begins=self.unit_begins[units],
            unit_key=self.unit_key[units],
            indptr=counts[self.indptr].astype(np.int64),
            rows=new_row[self.rows[entry]].astype(np.int32),
            values=self.values[entry],
        )

    def begun_after(self, moment_ns: int) -> Evidence:
        """Units whose first row is here and later than ``moment_ns``."""
        return self.select(self.unit_begins & (self.unit_begun_ns > moment_ns))

    def split(self, share: float = 0.5, seed: int = 0) -> tuple[Evidence, Evidence]:
        """Whole units at random into A (``share`` of them, at least one) and B (the rest).

        Raises:
            UserError: with fewer than two units there is nothing to split.
        """
        if self.n_units < 2:
            raise UserError(
                f"the evidence of {self.hook_point} has {self.n_units} episode(s); record at "
                "least 2, so that rules are chosen on other episodes than they are made from"
            )
        chosen = np.zeros(self.n_units, bool)
        count = min(max(round(share * self.n_units), 1), self.n_units - 1)
        chosen[np.random.default_rng(seed).permutation(self.n_units)[:count]] = True
        return self.select(chosen), self.select(~chosen)


@dataclass(frozen=True, slots=True, eq=False)
class Coverage:
    """How much there is to judge each of F features by."""

    density: NDArray[np.float64]
    """[F] share of scored rows."""
    bouts: NDArray[np.int64]
    """[F] runs of on-rows."""
    units: NDArray[np.int64]
    """[F] episodes (or blocks) in which the feature was on."""

    def live(self) -> NDArray[np.bool_]:
        """On in ≥ 0.1 % of the rows and in ≥ 3 episodes (docs/definitions: units of evidence)."""
        return (self.density >= 0.001) & (self.units >= 3)

    def eligible(self) -> NDArray[np.bool_]:
        """On in 0.5–50 % of the rows, ≥ 20 bouts in ≥ 6 episodes."""
        return (
            (self.density >= 0.005) & (self.density <= 0.5) & (self.bouts >= 20) & (self.units >= 6)
        )


def _coverage(evidence: Evidence) -> Coverage:
    rows = evidence.rows.astype(np.int64)
    feature = np.repeat(np.arange(evidence.n_features), np.diff(evidence.indptr))
    count = evidence.n_features
    if len(rows) == 0:
        zeros = np.zeros(count, np.int64)
        return Coverage(zeros.astype(np.float64), zeros, zeros)
    continues = np.zeros(len(rows), bool)
    continues[1:] = (
        (feature[1:] == feature[:-1]) & (np.diff(rows) == 1) & (evidence.past[rows[1:]] > 0)
    )
    pairs = np.unique(feature * evidence.n_units + evidence.unit[rows])
    return Coverage(
        evidence.density(),
        np.bincount(feature[~continues], minlength=count),
        np.bincount(pairs // max(evidence.n_units, 1), minlength=count),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Chunk:
    boot: int
    steps: Steps
    codes: dict[str, SparseCodes]
    transcoders: dict[str, str]
    size: int


class EvidenceStore:
    """Bounded rows of one run, from the live stream or from a recording.

    ``block_steps`` cuts episodes into blocks that are resampled on their own; give it for endless
    runs, at least 20 autocorrelation times of the slowest metric. Rows that the policy did not act
    in (human, hold, intervention) keep their metrics for windows but are never scored.
    """

    def __init__(
        self,
        specs: Sequence[MetricSpec],
        *,
        limit_bytes: int = DEFAULT_LIMIT_BYTES,
        block_steps: int | None = None,
    ) -> None:
        self.specs = tuple(specs)
        self.limit_bytes = limit_bytes
        self.forgotten_rows = 0
        self._block = block_steps
        self._chunks: deque[_Chunk] = deque()
        self._boots: dict[str, int] = {}
        self._bytes = 0
        self._rows = 0

    def __len__(self) -> int:
        return self._rows

    def split_every(self, steps: int) -> None:
        """Cut episodes into blocks of so many steps from now on, also those that are here."""
        self._block = steps

    @property
    def used_bytes(self) -> int:
        """Bytes of the rows held now, ≤ ``limit_bytes``."""
        return self._bytes

    def add(self, batch: FeatureBatch) -> None:
        """Append the rows of a batch, forgetting the oldest where the limit asks for it.

        Raises:
            UserError: when the batch has another number of metrics than the store.
        """
        if batch.steps.metrics.shape[1] != len(self.specs):
            raise UserError(
                f"a batch of run {batch.run_id} has {batch.steps.metrics.shape[1]} metrics but its "
                f"manifest names {len(self.specs)}; restart the agent so that both agree"
            )
        boot = self._boots.setdefault(batch.boot_id, len(self._boots))
        codes = dict(batch.codes)
        chunk = _Chunk(boot, batch.steps, codes, dict(batch.transcoders), _size(batch.steps, codes))
        self._chunks.append(chunk)
        self._bytes += chunk.size
        self._rows += len(batch.steps)
        self._forget()

    def limit(self, limit_bytes: int) -> None:
        """Hold at most so many bytes from now on; the oldest rows go at once."""
        self.limit_bytes = limit_bytes
        self._forget()

    def _forget(self) -> None:
        while self._bytes > self.limit_bytes and len(self._chunks) > 1:
            oldest = self._chunks.popleft()
            self._bytes -= oldest.size
            self._rows -= len(oldest.steps)
            self.forgotten_rows += len(oldest.steps)

    def hook_points(self) -> tuple[str, ...]:
        """Hook points seen so far, sorted."""
        return tuple(sorted({name for chunk in self._chunks for name in chunk.codes}))

    def evidence(self, hook_point: str) -> Evidence:
        """A frozen view of all rows of a hook point under its newest transcoder.

        Raises:
            UserError: when the hook point has not been seen.
        """
        chunks = [chunk for chunk in self._chunks if hook_point in chunk.codes]
        if not chunks:
            seen = ", ".join(self.hook_points()) or "none yet"
            raise UserError(f"no features of hook point {hook_point!r} have arrived (seen: {seen})")
        digest = chunks[-1].transcoders.get(hook_point, "")
        chunks = [c for c in chunks if c.transcoders.get(hook_point, "") == digest]
        return _build(chunks, hook_point, digest, self.specs, self._block)


def collect_evidence(
    batches: Iterable[FeatureBatch],
    specs: Sequence[MetricSpec],
    hook_point: str,
    *,
    block_steps: int | None = None,
    limit_bytes: int = DEFAULT_LIMIT_BYTES,
) -> Evidence:
    """Evidence of a whole recording.

    Raises:
        UserError: when the hook point does not appear, or metrics do not fit.
    """
    store = EvidenceStore(specs, limit_bytes=limit_bytes, block_steps=block_steps)
    for batch in batches:
        store.add(batch)
    return store.evidence(hook_point)


def _size(steps: Steps, codes: dict[str, SparseCodes]) -> int:
    columns = (steps.env, steps.episode, steps.t, steps.time_ns, steps.controller, steps.flags)
    total = steps.metrics.nbytes + sum(column.nbytes for column in columns)
    for code in codes.values():
        total += code.indptr.nbytes + code.index.nbytes + code.value.nbytes
        total += code.error.nbytes + code.error_affine.nbytes
    return total


def _build(
    chunks: list[_Chunk],
    hook_point: str,
    digest: str,
    specs: tuple[MetricSpec, ...],
    block: int | None,
) -> Evidence:
    codes = [chunk.codes[hook_point] for chunk in chunks]
    boot = np.concatenate([np.full(len(c.steps), c.boot, np.int64) for c in chunks])
    env = np.concatenate([c.steps.env for c in chunks]).astype(np.int64)
    episode = np.concatenate([c.steps.episode for c in chunks]).astype(np.int64)
    t = np.concatenate([c.steps.t for c in chunks]).astype(np.int64)
    part = t // block if block else np.zeros_like(t)
    order = np.lexsort((t, part, episode, env, boot))
    keys = np.stack([boot, env, episode, part], axis=1)[order]
    t = t[order]
    if len(keys):
        # A reconnecting agent may send a row twice; the second says nothing new.
        fresh = np.ones(len(keys), bool)
        fresh[1:] = (keys[1:] != keys[:-1]).any(1) | (t[1:] != t[:-1])
        order, keys, t = order[fresh], keys[fresh], t[fresh]
    first = np.ones(len(keys), bool)
    first[1:] = (keys[1:] != keys[:-1]).any(1)
    whole = np.ones(len(keys), bool)
    whole[1:] = (keys[1:, :3] != keys[:-1, :3]).any(1)
    time_ns = np.concatenate([c.steps.time_ns for c in chunks])[order]
    flags = np.concatenate([c.steps.flags for c in chunks])[order]
    controller = np.concatenate([c.steps.controller for c in chunks])[order]
    scored = (controller == Controller.POLICY) & ((flags & StepFlag.NO_ACTIVATION) == 0)
    counts = np.concatenate([np.diff(code.indptr.astype(np.int64)) for code in codes])
    row_of = np.full(len(counts), -1, np.int64)
    row_of[order] = np.arange(len(order))
    entry_row = np.repeat(row_of, counts)
    index = np.concatenate([code.index for code in codes]).astype(np.int64)
    value = np.concatenate([code.value for code in codes])
    kept = (entry_row >= 0) & (value > 0)
    kept[kept] = scored[entry_row[kept]]
    entry_row, index, value = entry_row[kept], index[kept], value[kept]
    by_feature = np.lexsort((entry_row, index))
    n_features = max(code.n_features for code in codes)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(index, minlength=n_features))])
    return Evidence(
        hook_point=hook_point,
        transcoder_hash=digest,
        specs=specs,
        metrics=np.concatenate([c.steps.metrics for c in chunks])[order],
        past=past_of(np.cumsum(whole), t),
        unit=(np.cumsum(first) - 1).astype(np.int32),
        t=t,
        time_ns=time_ns,
        scored=scored,
        unit_begun_ns=time_ns[first],
        unit_begins=t[first] == (keys[first, 3] * block if block else 0),
        unit_key=keys[first],
        indptr=indptr.astype(np.int64),
        rows=entry_row[by_feature].astype(np.int32),
        values=value[by_feature],
    )
