"""The correlator service without its sockets: one rolling correlator per (run, hook point)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from interlatent_live.errors import UserError
from interlatent_live.feed.documents import (
    FeatureProfileDocument,
    MetricAssociation,
    ProfilesDocument,
)
from interlatent_live.statistics.config import ALL, CorrelatorConfig
from interlatent_live.statistics.correlator import Correlator
from interlatent_live.stream import FeatureAddress

if TYPE_CHECKING:
    from collections.abc import Callable

    from interlatent_live.statistics.profile import FeatureProfile
    from interlatent_live.stream import FeatureBatch, Manifest, SparseCodes


@dataclass(slots=True)
class _Stream:
    """One (run, hook point): the statistics under its newest transcoder."""

    correlator: Correlator
    transcoder: str
    boot_id: str
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
    """

    def __init__(
        self, config: CorrelatorConfig, *, clock: Callable[[], int], max_runs: int = 16
    ) -> None:
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
    ) -> list[ProfilesDocument]:
        """Profiles of the live features of every stream that changed since the last call."""
        found: list[ProfilesDocument] = []
        for (run_id, hook_point), stream in self._streams.items():
            if not (stream.changed or everything):
                continue
            stream.changed = False
            found.append(self._document(self._runs[run_id], hook_point, stream, lost))
        return found

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
            correlator = Correlator(run.manifest.metrics, codes.n_features, self.config)
            stream = self._streams[key] = _Stream(correlator, transcoder, batch.boot_id)
        stream.boot_id = batch.boot_id
        return stream

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
            features=[
                _profile_document(profile, hook_point, stream.transcoder)
                for profile in correlator.profiles(live, window=ALL)
            ],
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


def _profile_document(
    profile: FeatureProfile, hook_point: str, transcoder: str
) -> FeatureProfileDocument:
    return FeatureProfileDocument(
        address=str(FeatureAddress(hook_point, profile.feature, transcoder)),
        index=profile.feature,
        density=profile.density or 0.0,
        n=int(profile.n),
        bouts=profile.bouts or 0,
        episodes=profile.episodes or 0,
        metrics=[
            MetricAssociation(
                name=metric.name,
                r=metric.r,
                lo=metric.lo,
                hi=metric.hi,
                n=int(metric.n),
                n_eff=metric.n_eff,
                window=metric.window,
                mean_on=metric.mean_on,
                mean_off=metric.mean_off,
                effect_size=metric.effect_size,
                reason=metric.null,
            )
            for metric in profile.metrics
        ],
    )
