"""The feed as a Rerun recording: into a file, or into a viewer that runs.

A viewer of the feed like any other, in a process of its own: it can slow nobody, misses what it is
too slow for, and counts it. Two timelines: ``step`` is the row number within the agent's boot,
``time`` the agent's wall clock. Entities, by agent run and copy:

    RUN/env-0/metrics/NAME            every step's metrics
    RUN/env-0/features/HOOK/INDEX     activations of the chosen features, 0 where off
    RUN/env-0/narration               what the narrator says
    RUN/env-0/picture                 pictures of the environment, where the agent sends some
    RUN/fvu/HOOK                      unexplained share of the variance, as the encoder sees it
    RUN/claims/HOOK, RUN/alerts       verdicts that change, alerts that fire and end

Chosen are the features whose claims hold, then those that are on most often, up to a limit per hook
point: a recording with every feature of a wide dictionary would be of no use to anybody.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import urlsplit

import numpy as np

from interlatent_live.errors import UserError
from interlatent_live.feed.documents import (
    AgentsDocument,
    AlertsDocument,
    ClaimsDocument,
    NarrationDocument,
    ProfilesDocument,
)
from interlatent_live.feed.state import FeedState
from interlatent_live.stream import FeatureAddress, FeatureBatch

if TYPE_CHECKING:
    from types import TracebackType

    import rerun
    from numpy.typing import NDArray

    from interlatent_live.feed.client import FeedEvent
    from interlatent_live.stream import SparseCodes
    from interlatent_live.wire.messages import Picture

FEATURES: Final = 16
"""Features of a hook point that are logged, unless it is said otherwise."""
MOST_RUNS: Final = 64
"""Runs whose newest facts are remembered; the one heard of longest ago goes."""
MOST_COPIES: Final = 16
"""Copies of one agent that are logged; the first ones."""
FLUSH_WITHIN_S: Final = 5.0
VERIFIED: Final = "verified"
FIRING: Final = "firing"


def open_stream(target: str) -> rerun.RecordingStream:
    """A Rerun stream into a new file, or to a viewer.

    Args:
        target: a path that ends in ``.rrd``, or a viewer's address such as
            ``rerun+http://127.0.0.1:9876/proxy``.

    Raises:
        UserError: when the extra is missing, the file is there already or cannot be written, or
            the target is neither.
    """
    try:
        import rerun as rr  # noqa: PLC0415 - an extra, and large
    except ImportError as error:
        raise UserError(
            "--rerun needs the extra rerun: run pip install 'interlatent-live[rerun]'"
        ) from error
    stream = rr.RecordingStream("interlatent-live")
    if target.endswith(".rrd"):
        file = Path(target)
        if file.exists():
            raise UserError(f"{file} is there already; name another file, or remove it")
        if not file.parent.is_dir():
            raise UserError(f"{file} can't be written: there is no folder {file.parent}")
        stream.save(file)
        return stream
    parts = urlsplit(target)
    if parts.scheme in {"rerun+http", "rerun+https"} and parts.hostname and parts.path == "/proxy":
        stream.connect_grpc(target)
        return stream
    raise UserError(
        f"--rerun {target}: give a file that ends in .rrd, or a viewer's address such as "
        "rerun+http://127.0.0.1:9876/proxy"
    )


@dataclass(slots=True)
class _Run:
    """What is known of a run."""

    boots: set[str] = field(default_factory=set)
    at: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Newest row number and wall clock, by copy."""
    held: dict[str, list[int]] = field(default_factory=dict)
    """Features whose claims hold, by hook point."""
    often: dict[str, list[int]] = field(default_factory=dict)
    """Features by how often they are on, by hook point."""
    chosen: dict[str, list[int]] = field(default_factory=dict)
    labels: dict[tuple[str, int], str] = field(default_factory=dict)
    verdicts: dict[str, str] = field(default_factory=dict)
    firing: dict[tuple[str, str], str] = field(default_factory=dict)
    """What alerts say that fire, by hook point and rule."""

    def choose(self, hook: str, limit: int) -> None:
        """Features whose claims hold first; who was chosen stays where there is room."""
        wanted = (self.held, self.chosen, self.often)
        every = dict.fromkeys(index for of in wanted for index in of.get(hook, ()))
        self.chosen[hook] = list(every)[:limit]


class RerunSink:
    """Feed events into a Rerun stream; a context manager that flushes it at its end.

    Args:
        stream: open, such as :func:`open_stream` gives; ended with this.
        features: most features of a hook point that are logged.
    """

    def __init__(self, stream: rerun.RecordingStream, features: int = FEATURES) -> None:
        import rerun as rr  # noqa: PLC0415 - an extra, and large

        self.state = FeedState()
        self._rr = rr
        self._stream = stream
        self._limit = features
        self._runs: OrderedDict[str, _Run] = OrderedDict()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._stream.flush(timeout_sec=FLUSH_WITHIN_S)
        finally:
            self._stream.disconnect()

    def take(self, event: FeedEvent) -> None:
        """Log whatever a feed client received."""
        self.state.take(event)
        match event.value:
            case FeatureBatch() as batch:
                self._steps(batch)
            case AgentsDocument() as agents:
                self._agents(agents)
            case ProfilesDocument() as profiles:
                order = sorted(profiles.features, key=lambda one: -one.density)
                run = self._run(profiles.run_id)
                run.often[profiles.hook_point] = [one.index for one in order]
                run.choose(profiles.hook_point, self._limit)
            case ClaimsDocument() as claims:
                self._claims(claims)
            case NarrationDocument() as narration:
                self._narration(narration)
            case AlertsDocument() as alerts:
                self._alerts(alerts)
            case _:
                return

    def picture(self, picture: Picture) -> None:
        """Log a picture of an environment, at the step that it shows."""
        found = [run_id for run_id, run in self._runs.items() if picture.boot_id in run.boots]
        if not found or picture.env >= MOST_COPIES:
            return
        self._set_time(picture.seq, picture.sent_ns)
        jpeg = self._rr.EncodedImage(contents=picture.jpeg, media_type="image/jpeg")
        self._stream.log(_path(found[0], picture.env, "picture"), jpeg)

    def _run(self, run_id: str) -> _Run:
        run = self._runs.setdefault(run_id, _Run())
        self._runs.move_to_end(run_id)
        if len(self._runs) > MOST_RUNS:
            self._runs.popitem(last=False)
        return run

    # -- steps -------------------------------------------------------------------------------------

    def _steps(self, batch: FeatureBatch) -> None:
        steps, run_id = batch.steps, batch.run_id
        run = self._run(run_id)
        run.boots.add(batch.boot_id)
        names = self.state.metric_names(run_id)
        for env in np.unique(steps.env).tolist():
            if env >= MOST_COPIES:
                continue
            rows = np.flatnonzero(steps.env == env)
            seq = steps.first_seq + rows
            run.at[env] = (int(seq[-1]), int(steps.time_ns[rows[-1]]))
            for column, name in enumerate(names):
                values = steps.metrics[rows, column]
                there = np.isfinite(values)
                path = _path(run_id, env, "metrics", name)
                self._scalars(path, seq[there], steps.time_ns[rows][there], values[there])
            for hook_point, codes in batch.codes.items():
                for index in run.chosen.get(hook_point, ()):
                    path = _path(run_id, env, "features", hook_point, str(index))
                    values = activations(codes, index)[rows]
                    self._scalars(path, seq, steps.time_ns[rows], values)

    def _scalars(
        self,
        path: list[object],
        seq: NDArray[np.integer[Any]],
        time_ns: NDArray[np.int64],
        values: NDArray[np.floating[Any]],
    ) -> None:
        rr = self._rr
        if len(values):
            self._stream.send_columns(
                rr.new_entity_path(path),
                [
                    rr.TimeColumn("step", sequence=seq),
                    rr.TimeColumn("time", timestamp=time_ns.astype("datetime64[ns]")),
                ],
                rr.Scalars.columns(scalars=values.astype(np.float64)),
            )

    # -- documents ---------------------------------------------------------------------------------

    def _agents(self, document: AgentsDocument) -> None:
        for agent in document.agents:
            self._run(agent.run_id).boots.add(agent.boot_id)
            for hook in agent.hook_points:
                if hook.fvu is not None:
                    self._now(agent.run_id, 0, agent.last_step_ns)
                    path: list[object] = [agent.run_id, "fvu", hook.name]
                    self._stream.log(path, self._rr.Scalars(hook.fvu))

    def _claims(self, document: ClaimsDocument) -> None:
        run, hook, rr = self._run(document.run_id), document.hook_point, self._rr
        run.held[hook] = []
        self._now(document.run_id, 0, document.published_ns)
        for claim in document.claims:
            address, verdict = claim["address"], claim["verdict"]
            if verdict == VERIFIED:
                index = FeatureAddress.parse(address).index
                run.held[hook].append(index)
                self._label(document.run_id, hook, index, claim["label"])
            if run.verdicts.get(address) != verdict:
                run.verdicts[address] = verdict
                said = f"{verdict}: {address.partition('@')[0]} — {claim['label']}"
                accuracy = claim["balanced_accuracy"]
                if accuracy is not None:
                    said += f" (balanced accuracy {accuracy:.2f})"
                entry = rr.TextLog(said, level=rr.TextLogLevel.INFO)
                self._stream.log([document.run_id, "claims", hook], entry)
        run.choose(hook, self._limit)

    def _label(self, run_id: str, hook: str, index: int, label: str) -> None:
        """Have the viewer show a feature by its claim's label."""
        run = self._run(run_id)
        if run.labels.get((hook, index)) == label:
            return
        run.labels[hook, index] = label
        for env in run.at:
            path = _path(run_id, env, "features", hook, str(index))
            self._stream.log(path, self._rr.SeriesLines(names=label), static=True)

    def _narration(self, document: NarrationDocument) -> None:
        if document.env >= MOST_COPIES:
            return
        self._now(document.run_id, document.env, document.published_ns)
        text = " ".join(line.text for line in document.lines)
        entry = self._rr.TextLog(text, level=self._rr.TextLogLevel.INFO)
        self._stream.log(_path(document.run_id, document.env, "narration"), entry)

    def _alerts(self, document: AlertsDocument) -> None:
        run, levels = self._run(document.run_id), self._rr.TextLogLevel
        before = run.firing
        run.firing = {
            (one.hook_point, one.rule): one.summary
            for one in document.alerts
            if one.phase == FIRING
        }
        said = [
            (f"firing: {rule} at {hook} — {summary}", levels.WARN)
            for (hook, rule), summary in run.firing.items()
            if (hook, rule) not in before
        ]
        ended = before.keys() - run.firing.keys()
        said += [(f"ended: {rule} at {hook}", levels.INFO) for hook, rule in sorted(ended)]
        self._now(document.run_id, 0, document.published_ns)
        for text, level in said:
            self._stream.log([document.run_id, "alerts"], self._rr.TextLog(text, level=level))

    def _now(self, run_id: str, env: int, time_ns: int) -> None:
        """What is logged next belongs to the newest step of a copy, and to this time."""
        self._set_time(self._run(run_id).at.get(env, (0, 0))[0], time_ns)

    def _set_time(self, seq: int, time_ns: int) -> None:
        self._stream.set_time("step", sequence=seq)
        self._stream.set_time("time", timestamp=np.datetime64(time_ns, "ns"))


def activations(codes: SparseCodes, index: int) -> NDArray[np.float32]:
    """One feature's activation in every row, [n]; 0 where it is off."""
    found = np.zeros(len(codes), np.float32)
    at = np.flatnonzero(codes.index == index)
    found[np.searchsorted(codes.indptr, at, side="right") - 1] = codes.value[at]
    return found


def _path(run_id: str, env: int, *parts: str) -> list[object]:
    return [run_id, f"env-{env}", *parts]
