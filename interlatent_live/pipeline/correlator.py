"""The correlator service without its sockets: one rolling correlator per (run, hook point)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from interlatent_live.config import human_bytes
from interlatent_live.errors import UserError
from interlatent_live.feed.documents import (
    FeatureProfileDocument,
    MetricAssociation,
    ProfilesDocument,
    profiles_that_fit,
)
from interlatent_live.statistics.config import ALL, CorrelatorConfig
from interlatent_live.statistics.correlator import Correlator, CorrelatorState
from interlatent_live.statistics.memory import memory_bytes
from interlatent_live.statistics.slices import CompiledSlices, SliceText, compile_slices
from interlatent_live.statistics.watching import StreamWatch, WatchConfig
from interlatent_live.stream import FeatureAddress, Manifest
from interlatent_live.wire.limits import DEFAULT_LIMITS
from interlatent_live.wire.slices import slice_features

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from interlatent_live.statistics.profile import ProfileTable
    from interlatent_live.stream import FeatureBatch

SCHEMA: Final = 1
PROFILES_BYTES: Final = DEFAULT_LIMITS.document_bytes * 7 // 8
"""Of the features in a document; the rest is for what else it says."""
SILENT_NS: Final = 3600 * 10**9
"""A stream without rows for so long is taken to have been saved whole."""
_WATCH: Final = "watch/"


@dataclass(slots=True)
class Stream:
    """One (run, hook point): the statistics under its newest transcoder."""

    run: Run
    hook_point: str
    correlator: Correlator
    watch: StreamWatch
    slices: CompiledSlices
    transcoder: str
    boot_id: str
    full_bytes: int
    """What its tables take when full."""
    next_seq: int = 0
    """One more than the newest row taken in, in the numbers of its boot."""
    encoded_ns: int = 0
    """When its newest rows became features, by the encoder's clock."""
    catching_up: bool = False
    """Restored or replayed, and no row has come over the wire since."""
    missing: int = 0
    """Rows that came before the restart, are in no snapshot and in no recording."""
    changed: bool = True
    first_ns: int | None = None
    """Agent's time of the first row."""
    newest_ns: int | None = None
    saved_rows: int = -1
    """Rows at the newest snapshot, −1 before the first."""
    saved_looks: int = 0
    """Declared looks that the newest snapshot has."""
    save_now: bool = False
    """Something happened that a restart must not forget."""

    def __post_init__(self) -> None:
        self.watch.attach(self.correlator)
        self.saved_looks = len(self.watch.log.looks)

    @property
    def urgent(self) -> bool:
        """Whether a snapshot is due at once: an alert changed, or a look was made."""
        return self.save_now or len(self.watch.log.looks) > self.saved_looks


@dataclass(slots=True)
class Run:
    """One run, over all boots of its agent."""

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
        max_ended: ended runs kept; beyond it those that ended first are forgotten.
        max_runs: runs kept at all; for a new one an ended one goes, then one that never had rows,
            then the one whose rows ended first.
        limit_bytes: bound on all tables, by what their configuration says they take when full;
            ended runs are forgotten for a new one, and a stream that still has no room is refused.
        watch: what is watched of every hook point.
        slices: user-defined slices, for the runs whose metrics they speak of.
    """

    def __init__(
        self,
        config: CorrelatorConfig,
        *,
        clock: Callable[[], int],
        max_ended: int = 256,
        max_runs: int = 4096,
        limit_bytes: int = 512 * 1024 * 1024,
        watch: WatchConfig | None = None,
        slices: tuple[SliceText, ...] = (),
    ) -> None:
        self._limit_bytes = limit_bytes
        self.watch = watch or WatchConfig()
        self.slices = slices
        self.config = replace(config, drift=self.watch.drift)
        self._clock = clock
        self._max_ended = max_ended
        self._max_runs = max_runs
        self._runs: dict[str, Run] = {}
        self._ended: dict[str, None] = {}
        """Ended runs, in the order in which they ended."""
        self._streams: dict[tuple[str, str], Stream] = {}

    def hello(self, manifest: Manifest) -> None:
        """A run begins, or an agent process of it was restarted."""
        run = self._runs.get(manifest.run_id)
        if run is None:
            if len(self._runs) >= self._max_runs:
                self._forget_one()
            run = self._runs[manifest.run_id] = Run(manifest)
        elif run.manifest.metrics != manifest.metrics:
            self._drop_streams(manifest.run_id)
        run.manifest = manifest
        self._set_ended(manifest.run_id, run, ended=False)
        # The newest run is the last one.
        self._runs[manifest.run_id] = self._runs.pop(manifest.run_id)
        if manifest.boot_id not in run.bases:
            run.bases[manifest.boot_id] = run.rows
            run.next_seq = 0

    def features(
        self, batch: FeatureBatch, *, replayed: bool = False
    ) -> list[tuple[Stream, FeatureBatch]]:
        """Take in one batch of rows; returns what each hook point took of it.

        Args:
            batch: rows in the order of their boot.
            replayed: they come from a recording; what a stream already has of them is passed over.

        Raises:
            UserError: when the run was never announced.
        """
        run = self._runs.get(batch.run_id)
        if run is None or batch.boot_id not in run.bases:
            raise UserError(f"features of run {batch.run_id} arrived before its manifest")
        base = run.bases[batch.boot_id]
        taken: list[tuple[Stream, FeatureBatch]] = []
        for hook_point in batch.codes:
            offset, gap = self._offset(batch, hook_point)
            if offset >= len(batch.steps):
                continue
            part = batch
            if offset:
                part = slice_features(batch, offset, len(batch.steps) - offset)
            known = self._streams.get((batch.run_id, hook_point))
            stream = self._stream(run, part, hook_point)
            if stream is not known:
                stream.catching_up = replayed
            if known is None and replayed:
                gap = part.steps.first_seq
            stream.missing += gap
            stream.catching_up &= replayed
            self._take(stream, part, base)
            taken.append((stream, part))
        if taken:
            end = batch.steps.first_seq + len(batch.steps)
            run.next_seq = max(run.next_seq, end)
            run.rows = max(run.rows, base + end)
        return taken

    def wants(self, batch: FeatureBatch) -> bool:
        """Whether any hook point has not got all rows of a recorded batch."""
        return any(self._offset(batch, name)[0] < len(batch.steps) for name in batch.codes)

    def gap(self, batch: FeatureBatch) -> int:
        """Rows before this batch that a stream which catches up has not got."""
        return max((self._offset(batch, name)[1] for name in batch.codes), default=0)

    def _offset(self, batch: FeatureBatch, hook_point: str) -> tuple[int, int]:
        """Rows of a batch that a stream which catches up has, and rows missing before it."""
        stream = self._streams.get((batch.run_id, hook_point))
        if stream is None or not stream.catching_up:
            return 0, 0
        ahead = batch.steps.first_seq - stream.next_seq
        if batch.boot_id == stream.boot_id:
            return max(0, -ahead), max(0, ahead)
        bases = stream.run.bases
        if batch.boot_id in bases and bases[batch.boot_id] < bases[stream.boot_id]:
            return len(batch.steps), 0
        return 0, 0

    def _take(self, stream: Stream, batch: FeatureBatch, base: int) -> None:
        correlator, steps, codes = stream.correlator, batch.steps, batch.codes[stream.hook_point]
        stream.next_seq = steps.first_seq + len(steps)
        stream.encoded_ns = max(stream.encoded_ns, batch.encoded_ns)
        correlator.update(steps, codes, base=base)
        stream.watch.rows(steps, codes, base)
        if correlator.panes_waiting:
            stream.watch.panes(correlator.drain_panes())
            correlator.monitored = stream.watch.monitored
        if stream.first_ns is None:
            stream.first_ns = int(steps.time_ns[0])
        stream.newest_ns = max(stream.newest_ns or 0, int(steps.time_ns[-1]))
        stream.changed = True

    def goodbye(self, run_id: str) -> None:
        """The run ended; its statistics stay."""
        run = self._runs.get(run_id)
        if run is not None:
            self._set_ended(run_id, run, ended=True)
            for (owner, _), stream in self._streams.items():
                if owner == run_id:
                    stream.correlator.finish()
                    stream.watch.settle()
                    stream.changed = True

    # -- what there is ---------------------------------------------------------------------------

    def runs(self) -> tuple[Run, ...]:
        """Every run, newest first."""
        return tuple(reversed(self._runs.values()))

    def streams(self, run_id: str | None = None) -> tuple[Stream, ...]:
        """The hook points of a run, or of all."""
        return tuple(
            stream
            for (owner, _), stream in self._streams.items()
            if run_id is None or owner == run_id
        )

    def catches_up(self, run_id: str) -> bool:
        """Whether rows of a run must follow those of a snapshot or a recording."""
        streams = self.streams(run_id)
        return not streams or any(stream.catching_up for stream in streams)

    def newest_boot(self, boot_id: str) -> bool:
        """Whether this is the boot that a run said hello with last."""
        return any(run.manifest.boot_id == boot_id for run in self._runs.values())

    def replay_from_ns(self) -> int:
        """Encoder's clock before which no recorded row can be missing; 0: any can.

        What a stream has not got was encoded after its newest row. One that was silent for an hour
        before the newest row of all had nothing left to save; if it woke up since, then after that.
        """
        known = [stream.encoded_ns for stream in self._streams.values()]
        return min((one for one in known if one > max(known) - SILENT_NS), default=0)

    def find_run(self, run_id: str) -> Run:
        """A run; the newest one for an empty name.

        Raises:
            UserError: when there is none.
        """
        if not run_id and self._runs:
            return next(reversed(self._runs.values()))
        run = self._runs.get(run_id)
        if run is None:
            known = ", ".join(self._runs) or "none yet"
            raise UserError(f"there is no run {run_id!r} (there are: {known})")
        return run

    def find(self, run_id: str, hook_point: str) -> Stream:
        """A stream; an empty name means the newest run, and its only hook point.

        Raises:
            UserError: when there is none, or the hook point must be named.
        """
        run = self.find_run(run_id)
        run_id = run.manifest.run_id
        if not hook_point:
            known = [stream.hook_point for stream in self.streams(run_id)]
            if len(known) == 1:
                hook_point = known[0]
            elif known:
                raise UserError(f"name a hook point of the run: {', '.join(known)}")
        self.correlator(run_id, hook_point)
        return self._streams[run_id, hook_point]

    # -- snapshots -------------------------------------------------------------------------------

    def due(self, *, everything: bool = False) -> tuple[Stream, ...]:
        """Streams with rows that no snapshot has; with a recorded event at once."""
        return tuple(
            stream
            for stream in self._streams.values()
            if stream.urgent or (everything and stream.saved_rows != stream.correlator.last_row)
        )

    def save(self, stream: Stream) -> CorrelatorState:
        """A copy of everything needed to go on with a stream; nothing of it is shared."""
        stream.watch.panes(stream.correlator.drain_panes())
        state = stream.correlator.state()
        meta, arrays = stream.watch.state()
        run = stream.run
        stream.saved_rows, stream.save_now = stream.correlator.last_row, False
        stream.saved_looks = len(stream.watch.log.looks)
        about = {
            "schema": SCHEMA,
            "saved_ns": self._clock(),
            "manifest": msgspec.to_builtins(run.manifest),
            "hook_point": stream.hook_point,
            "transcoder": stream.transcoder,
            "boot_id": stream.boot_id,
            "bases": dict(run.bases),
            "next_seq": stream.next_seq,
            "encoded_ns": stream.encoded_ns,
            "rows": run.rows,
            "ended": run.ended,
            "missing": stream.missing,
            "first_ns": stream.first_ns,
            "newest_ns": stream.newest_ns,
            "slices": [asdict(item) for item in self.slices],
        }
        return CorrelatorState(
            {**state.meta, "stream": about, "watch": meta},
            {**state.arrays, **{_WATCH + name: array for name, array in arrays.items()}},
        )

    def table_of(self, state: CorrelatorState, like: Stream, window: str) -> ProfileTable:
        """A window of a saved state, for a comparison with a stream of the same transcoder.

        Raises:
            UserError: when the state has other features, metrics, windows or slices.
        """
        about = state.meta.get("stream", {})
        if about.get("transcoder") != like.transcoder:
            raise UserError("the snapshot has the features of another transcoder")
        specs = like.correlator.specs
        saved = Correlator.restore(state, specs, like.correlator.config)
        return saved.table(None, window)

    def restore(self, state: CorrelatorState) -> Stream:
        """Go on from a snapshot.

        Raises:
            UserError: when it was made under another configuration, or there is no room for it.
        """
        about = state.meta.get("stream")
        if not isinstance(about, dict) or about.get("schema") != SCHEMA:
            raise UserError("it was made by another version")
        try:
            manifest = msgspec.convert(about["manifest"], Manifest)
        except msgspec.ValidationError as error:
            raise UserError(f"its manifest is not understood ({error})") from error
        key = (manifest.run_id, str(about["hook_point"]))
        slices = compile_slices(self.slices, manifest.metrics)
        config = replace(self.config, slices=slices.specs)
        if about["slices"] != [asdict(item) for item in self.slices]:
            raise UserError("it was made with other slices")
        correlator = Correlator.restore(state, manifest.metrics, config)
        watch = StreamWatch(self.watch, manifest.metrics)
        arrays = {
            name.removeprefix(_WATCH): array
            for name, array in state.arrays.items()
            if name.startswith(_WATCH)
        }
        watch.load(state.meta["watch"], arrays)
        correlator.monitored = watch.monitored
        size = memory_bytes(
            config, correlator.n_features, len(manifest.metrics), envs=manifest.env_count
        )
        self._make_room(key, size)
        run = self._runs.get(manifest.run_id)
        if run is None:
            run = self._runs[manifest.run_id] = Run(manifest)
        run.bases |= {str(boot): int(base) for boot, base in about["bases"].items()}
        next_seq = int(about["next_seq"])
        run.next_seq = max(run.next_seq, next_seq)
        run.rows = max(run.rows, int(about["rows"]))
        self._set_ended(manifest.run_id, run, ended=bool(about["ended"]))
        stream = self._streams[key] = Stream(
            run=run,
            hook_point=key[1],
            correlator=correlator,
            watch=watch,
            slices=slices,
            transcoder=str(about["transcoder"]),
            boot_id=str(about["boot_id"]),
            full_bytes=size,
            next_seq=next_seq,
            encoded_ns=int(about.get("encoded_ns", 0)),
            catching_up=True,
            missing=int(about["missing"]),
            first_ns=about["first_ns"],
            newest_ns=about["newest_ns"],
            saved_rows=correlator.last_row,
        )
        return stream

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
        self, lost: Mapping[str, Mapping[str, int]], *, everything: bool = False
    ) -> Iterator[ProfilesDocument]:
        """Profiles of the live features of every stream that changed since it was last asked for.

        ``lost`` has the rows that never came by run and reason. One document at a time, since each
        costs milliseconds; runs that have ended come first, for theirs are final.
        """
        due = [
            (key, stream) for key, stream in self._streams.items() if stream.changed or everything
        ]
        due.sort(key=lambda item: not self._runs[item[0][0]].ended)
        for (run_id, hook_point), stream in due:
            stream.changed = False
            of_run = lost.get(run_id, {})
            yield self._document(self._runs[run_id], hook_point, stream, of_run)

    @property
    def nbytes(self) -> int:
        """Bytes of all tables."""
        return sum(
            stream.correlator.nbytes + stream.watch.nbytes for stream in self._streams.values()
        )

    def _stream(self, run: Run, batch: FeatureBatch, hook_point: str) -> Stream:
        key, codes = (batch.run_id, hook_point), batch.codes[hook_point]
        transcoder = batch.transcoders[hook_point]
        stream = self._streams.get(key)
        if stream is None or stream.transcoder != transcoder:
            # Another transcoder has other features: nothing of the old statistics applies to them.
            metrics = run.manifest.metrics
            slices = compile_slices(self.slices, metrics)
            config = replace(self.config, slices=slices.specs)
            size = memory_bytes(config, codes.n_features, len(metrics), envs=run.manifest.env_count)
            self._make_room(key, size)
            stream = self._streams[key] = Stream(
                run=run,
                hook_point=hook_point,
                correlator=Correlator(metrics, codes.n_features, config),
                watch=StreamWatch(self.watch, metrics),
                slices=slices,
                transcoder=transcoder,
                boot_id=batch.boot_id,
                full_bytes=size,
            )
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

        ended = [run_id for run_id in self._ended if run_id != key[0]]
        while used() + size > self._limit_bytes and ended:
            self._drop_streams(ended.pop(0))
        if used() + size > self._limit_bytes:
            raise UserError(
                f"the statistics of {key[1]!r} of run {key[0]} would take {human_bytes(size)} "
                f"beside {human_bytes(used())} in use; raise limits.statistics_bytes "
                f"({human_bytes(self._limit_bytes)}) or set correlator.depth to core"
            )

    def _document(
        self, run: Run, hook_point: str, stream: Stream, lost: Mapping[str, int]
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
            features=profiles_that_fit(
                _profiles(correlator.table(live, window=ALL), hook_point, stream.transcoder),
                PROFILES_BYTES,
            ),
            published_ns=self._clock(),
            lost=dict(lost),
        )

    def _set_ended(self, run_id: str, run: Run, *, ended: bool) -> None:
        run.ended = ended
        self._ended.pop(run_id, None)
        if ended:
            self._ended[run_id] = None
            while len(self._ended) > self._max_ended:
                self._forget(next(iter(self._ended)))

    def _forget_one(self) -> None:
        """An agent that acts must not go for one that only said hello."""
        if self._ended:
            self._forget(next(iter(self._ended)))
            return
        newest: dict[str, int] = {}
        for (run_id, _), stream in self._streams.items():
            newest[run_id] = max(newest.get(run_id, 0), stream.newest_ns or 0)
        self._forget(min(self._runs, key=lambda run_id: newest.get(run_id, 0)))

    def _forget(self, run_id: str) -> None:
        del self._runs[run_id]
        self._ended.pop(run_id, None)
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
