"""The correlator service without its sockets: one rolling correlator per (run, hook point)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from interlatent_live.config import human_bytes
from interlatent_live.errors import UserError
from interlatent_live.feed.documents import (
    FeatureProfileDocument,
    MetricAssociation,
    ProfilesDocument,
)
from interlatent_live.statistics.config import ALL, CorrelatorConfig
from interlatent_live.statistics.correlator import Correlator
from interlatent_live.statistics.memory import memory_bytes
from interlatent_live.stream import FeatureAddress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from interlatent_live.statistics.profile import ProfileTable
    from interlatent_live.stream import FeatureBatch, Manifest, SparseCodes


@dataclass(slots=True)
class _Stream:
    """One (run, hook point): the statistics under its newest transcoder."""

    correlator: Correlator
    transcoder: str
    boot_id: str
    full_bytes: int
    """What its tables take when full."""
    changed: bool = True


@dataclass(slots=True)
class _Run:
    manifest: Manifest
    bases: dict[str, int] = field(default_factory=dict)
    """Global row number of each boot's row 0."""
    next_seq: int = 0
    """One more than the newest row taken in, in the newest boot's numbers."""
    rows: int = 0
    ended: bool = False


class CorrelatorCore:
    """Manifests and feature batches in, profiles out.

    Args:
        config: windows, depth and bounds of every correlator.
        clock: wall clock in ns since the epoch.
        max_runs: runs kept; the oldest ended one is forgotten for a new one.
        limit_bytes: bound on all tables, by what their configuration says they take when full;
            ended runs are forgotten for a new one, and a stream that still has no room is refused.
    """

    def __init__(
        self,
        config: CorrelatorConfig,
        *,
        clock: Callable[[], int],
        max_runs: int = 256,
        limit_bytes: int = 512 * 1024 * 1024,
    ) -> None:
        self._limit_bytes = limit_bytes
        self.config = config
        self._clock = clock
        self._max_runs = max_runs
        self._runs: dict[str, _Run] = {}
        self._streams: dict[tuple[str, str], _Stream] = {}

    def hello(self, manifest: Manifest) -> None:
        """A run begins, or an agent process of it was restarted."""
        run = self._runs.get(manifest.run_id)
        if run is None:
            if len(self._runs) >= self._max_runs:
                self._forget_one()
            run = self._runs[manifest.run_id] = _Run(manifest)
        elif run.manifest.metrics != manifest.metrics:
            self._drop_streams(manifest.run_id)
        run.manifest = manifest
        run.ended = False
        if manifest.boot_id not in run.bases:
            run.bases[manifest.boot_id] = run.rows
            run.next_seq = 0

    def features(self, batch: FeatureBatch) -> None:
        """Take in one batch of rows.

        Raises:
            UserError: when the run was never announced.
        """
        run = self._runs.get(batch.run_id)
        if run is None or batch.boot_id not in run.bases:
            raise UserError(f"features of run {batch.run_id} arrived before its manifest")
        base = run.bases[batch.boot_id]
        for hook_point, codes in batch.codes.items():
            stream = self._stream(run, batch, hook_point, codes)
            stream.correlator.update(batch.steps, codes, base=base)
            stream.changed = True
        end = batch.steps.first_seq + len(batch.steps)
        run.next_seq = max(run.next_seq, end)
        run.rows = max(run.rows, base + end)

    def goodbye(self, run_id: str) -> None:
        """The run ended; its statistics stay."""
        run = self._runs.get(run_id)
        if run is not None:
            run.ended = True
            for (owner, _), stream in self._streams.items():
                if owner == run_id:
                    stream.correlator.finish()
                    stream.changed = True

    def correlator(self, run_id: str, hook_point: str) -> Correlator:
        """The statistics of one (run, hook point), for queries.

        Raises:
            UserError: when there are none.
        """
        stream = self._streams.get((run_id, hook_point))
        if stream is None:
            known = ", ".join(f"{run} {hook}" for run, hook in self._streams) or "none yet"
            raise UserError(
                f"there are no statistics of run {run_id!r} at {hook_point!r} (there are: {known})"
            )
        return stream.correlator

    def documents(
        self, lost: dict[str, int], *, everything: bool = False
    ) -> Iterator[ProfilesDocument]:
        """Profiles of the live features of every stream that changed since it was last asked for.

        One at a time, since each costs milliseconds; runs that have ended come first, for theirs
        are final.
        """
        due = [
            (key, stream) for key, stream in self._streams.items() if stream.changed or everything
        ]
        due.sort(key=lambda item: not self._runs[item[0][0]].ended)
        for (run_id, hook_point), stream in due:
            stream.changed = False
            yield self._document(self._runs[run_id], hook_point, stream, lost)

    @property
    def nbytes(self) -> int:
        """Bytes of all tables."""
        return sum(stream.correlator.nbytes for stream in self._streams.values())

    def _stream(
        self, run: _Run, batch: FeatureBatch, hook_point: str, codes: SparseCodes
    ) -> _Stream:
        key = (batch.run_id, hook_point)
        transcoder = batch.transcoders[hook_point]
        stream = self._streams.get(key)
        if stream is None or stream.transcoder != transcoder:
            # Another transcoder has other features: nothing of the old statistics applies to them.
            size = memory_bytes(
                self.config,
                codes.n_features,
                len(run.manifest.metrics),
                envs=run.manifest.env_count,
            )
            self._make_room(key, size)
            correlator = Correlator(run.manifest.metrics, codes.n_features, self.config)
            stream = self._streams[key] = _Stream(correlator, transcoder, batch.boot_id, size)
        stream.boot_id = batch.boot_id
        return stream

    def _make_room(self, key: tuple[str, str], size: int) -> None:
        """Forget ended runs until ``size`` bytes fit.

        Raises:
            UserError: when they do not fit even then.
        """
        self._streams.pop(key, None)

        def used() -> int:
            return sum(stream.full_bytes for stream in self._streams.values())

        ended = [run_id for run_id, run in self._runs.items() if run.ended and run_id != key[0]]
        while used() + size > self._limit_bytes and ended:
            self._drop_streams(ended.pop(0))
        if used() + size > self._limit_bytes:
            raise UserError(
                f"the statistics of {key[1]!r} of run {key[0]} would take {human_bytes(size)} "
                f"beside {human_bytes(used())} in use; raise limits.statistics_bytes "
                f"({human_bytes(self._limit_bytes)}) or set correlator.depth to core"
            )

    def _document(
        self, run: _Run, hook_point: str, stream: _Stream, lost: dict[str, int]
    ) -> ProfilesDocument:
        correlator = stream.correlator
        live = correlator.live()
        return ProfilesDocument(
            run_id=run.manifest.run_id,
            boot_id=stream.boot_id,
            hook_point=hook_point,
            transcoder=stream.transcoder,
            processed_seq=run.next_seq,
            steps=correlator.counts.rows,
            features=_profiles(correlator.table(live, window=ALL), hook_point, stream.transcoder),
            published_ns=self._clock(),
            lost=lost,
        )

    def _forget_one(self) -> None:
        ended = [run_id for run_id, run in self._runs.items() if run.ended]
        run_id = ended[0] if ended else next(iter(self._runs))
        del self._runs[run_id]
        self._drop_streams(run_id)

    def _drop_streams(self, run_id: str) -> None:
        for key in [key for key in self._streams if key[0] == run_id]:
            del self._streams[key]


def _profiles(
    table: ProfileTable, hook_point: str, transcoder: str
) -> list[FeatureProfileDocument]:
    """A table as documents, straight from its arrays: there are thousands of numbers."""
    names = [spec.name for spec in table.specs]
    rows = [int(n) for n in table.rows]
    columns = [
        _known(getattr(table, name))
        for name in ("r", "lo", "hi", "n_eff", "mean_on", "mean_off", "effect_size")
    ]
    density, bouts, episodes = table.density.tolist(), table.bouts.tolist(), table.episodes.tolist()
    found = []
    for i, feature in enumerate(table.features.tolist()):
        r, lo, hi, n_eff, mean_on, mean_off, effect = (column[i] for column in columns)
        found.append(
            FeatureProfileDocument(
                address=str(FeatureAddress(hook_point, feature, transcoder)),
                index=feature,
                density=density[i],
                n=int(table.n),
                bouts=max(bouts[i], 0),
                episodes=max(episodes[i], 0),
                metrics=[
                    MetricAssociation(
                        name=name,
                        r=r[m],
                        lo=lo[m],
                        hi=hi[m],
                        n=rows[m],
                        n_eff=n_eff[m],
                        window=table.window,
                        mean_on=mean_on[m],
                        mean_off=mean_off[m],
                        effect_size=effect[m],
                        reason=table.why(i, m) or None if r[m] is None else None,
                    )
                    for m, name in enumerate(names)
                ],
            )
        )
    return found


def _known(column: NDArray[np.float64]) -> list[list[float | None]]:
    """[U, M] as lists, ``None`` where undefined."""
    values: list[list[float | None]] = column.tolist()
    for i, m in zip(*np.nonzero(~np.isfinite(column)), strict=True):
        values[i][m] = None
    return values
