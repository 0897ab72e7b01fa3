"""What the page asks of a folder of recordings: which there are, steps, words, pictures, moments.

Every answer is bounded in points, bytes and time, and says how far it went, so that whoever asks
can ask on from there. Times are seconds since the first message of the recording, on the clock of
whoever recorded; an agent's own clock is shifted by a constant for each boot, taken at its first
rows.

A name is looked up among the files that are there, never put together to a path.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from interlatent_live.console.folders import plain_files
from interlatent_live.console.live import Points, View, bytes_of, kind_of, thin
from interlatent_live.console.moments import Found, Query, Seeker
from interlatent_live.console.point_messages import encode_points
from interlatent_live.errors import CorruptFileError, UserError
from interlatent_live.feed.documents import Topic
from interlatent_live.recordings.seeking import SeekableRecording
from interlatent_live.wire.messages import Document, FeaturesMessage, Picture
from interlatent_live.wire.slices import slice_features

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from interlatent_live.stream import FeatureBatch, Manifest

SUFFIX: Final = ".mcap"
MOST_FILES: Final = 500
MOST_OPEN: Final = 64
MOST_POINTS: Final = 7200
MOST_NARRATED: Final = 400
NARRATED_BEFORE: Final = 20
"""Narrated intervals from before the asked time."""
MOST_CHANGES: Final = 2000
ROUND_BYTES: Final = 8 * 2**20
"""Steps are thinned when so many bytes of them have come."""
WORK_S: Final = 2.0
"""Time after which an answer is given as far as it goes."""
SLACK_NS: Final = 2_000_000_000
"""Rows wait so long at most between their agent's clock and the recorder's chunk."""
_FEATURES: Final = "features/"
_PICTURE: Final = "frame/"
LEAD_S: Final = 5.0
SECOND_NS: Final = 1_000_000_000


class NotThereError(UserError):
    """A recording, or a stream in it, that is not there."""


@dataclass(slots=True)
class _Open:
    recording: SeekableRecording
    signature: tuple[int, int, int]
    offsets: dict[str, int] = field(default_factory=dict)
    """By boot: recorder's clock − agent's clock, ns."""
    problem: str = ""


class RecordedFolder:
    """The recordings of one folder. Not thread-safe.

    Args:
        folder: of the files; it need not exist yet.
        work_s: time that one answer may take, roughly.
    """

    def __init__(self, folder: Path, work_s: float = WORK_S) -> None:
        self._folder = folder
        self._work_s = work_s
        self._open: OrderedDict[str, _Open] = OrderedDict()

    # -- which there are ---------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Plain files of the folder itself, newest first."""
        return plain_files(self._folder, SUFFIX, MOST_FILES)

    def listing(self) -> dict[str, Any]:
        """Every recording; those not gone through within the time say so."""
        until = time.monotonic() + self._work_s
        items = []
        for name in self.names():
            left = until - time.monotonic()
            items.append(self._listed(name, left))
        return {"folder": self._folder.name, "items": items}

    def described(self, name: str) -> dict[str, Any]:
        """One recording with its streams.

        Raises:
            NotThereError: when there is none of this name.
            CorruptFileError: when it cannot be read at all.
        """
        return self._listed(name, self._work_s) | {"streams": self._streams(name)}

    def _listed(self, name: str, within_s: float) -> dict[str, Any]:
        size = modified = None
        try:
            state = (self._folder / name).stat()
            size, modified = state.st_size, state.st_mtime_ns
            one = self._get(name, max(0.0, within_s))
        except (OSError, UserError) as error:
            return {
                "name": name, "size": size, "modified_ns": modified, "read": True,
                "complete": False, "began_ns": None, "seconds": None, "agents": [],
                "problem": str(error),
            }  # fmt: skip
        recording = one.recording
        first, last = recording.first_ns, recording.last_ns
        agents = {
            (info.manifest.agent, info.manifest.environment)
            for info in recording.streams.values()
            if info.manifest is not None
        }
        return {
            "name": name,
            "size": size,
            "modified_ns": modified,
            "read": recording.indexed,
            "complete": recording.complete,
            "began_ns": first,
            "seconds": None if first is None or last is None else (last - first) / SECOND_NS,
            "agents": [{"agent": a, "environment": e} for a, e in sorted(agents)],
            "problem": one.problem,
        }

    def _streams(self, name: str) -> list[dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        recording = self._get(name).recording
        for info in recording.streams.values():
            manifest = info.manifest
            if manifest is None:
                continue
            # Boots of one run are one line of it.
            found[manifest.run_id] = {
                "agent": manifest.agent,
                "run_id": manifest.run_id,
                "boot_id": manifest.boot_id,
                "environment": manifest.environment,
                "env_count": manifest.env_count,
                "actions": list(manifest.actions),
                "metrics": [
                    {"name": one.name, "unit": one.unit, "role": one.role.value}
                    for one in manifest.metrics
                ],
                "hook_points": [
                    {"name": one.name, "transcoder": info.transcoders.get(one.name, "")}
                    for one in manifest.hook_points
                ],
                "pictures": _PICTURE + manifest.boot_id in recording.topics,
            }
        return list(found.values())

    def _get(self, name: str, within_s: float | None = None) -> _Open:
        """A recording, gone through as far as it has grown.

        Raises:
            NotThereError: when there is none of this name.
            CorruptFileError: when it is no recording.
        """
        path = self._folder / name
        if name not in self.names():
            raise NotThereError(f"there is no recording {name[:100]!r} in the console's folder")
        state = path.stat()
        signature = (state.st_ino, state.st_size, state.st_mtime_ns)
        one = self._open.get(name)
        if one is None or one.signature[0] != signature[0] or signature[1] < one.signature[1]:
            one = _Open(SeekableRecording(path), (signature[0], 0, 0))
            self._open[name] = one
        self._open.move_to_end(name)
        while len(self._open) > MOST_OPEN:
            self._open.popitem(last=False)
        if one.signature != signature or not one.recording.indexed:
            one.problem = ""
            try:
                one.recording.index(float("inf") if within_s is None else within_s)
            except CorruptFileError as error:
                if not one.recording.places:
                    raise
                one.problem = str(error)  # what comes before can be read
                one.recording.indexed = True
            one.signature = signature
        return one

    # -- steps -------------------------------------------------------------------------------------

    def steps(
        self, name: str, view: View, from_s: float, to_s: float, most_points: int
    ) -> tuple[dict[str, Any], list[bytes]]:
        """Points of one copy between two times, thinned as the live ones are.

        Returns:
            How far it went (``until``, seconds) and what each of the messages of points is of; and
            these, as :func:`~interlatent_live.console.point_messages.encode_points` makes them.

        Raises:
            NotThereError: when there is no such recording or run.
            CorruptFileError: when it is damaged there.
        """
        one = self._get(name)
        begun = _begun(one)
        most_points = max(1, min(most_points, MOST_POINTS))
        out: list[Points] = []
        waiting: list[FeatureBatch] = []
        at = from_s
        until = time.monotonic() + self._work_s

        def settle(end_s: float) -> None:
            nonlocal at
            if waiting:
                share = (end_s - at) / max(1e-9, to_s - from_s)
                found = thin(waiting, view, max(1, round(most_points * share)))
                out.extend(() if found is None else (found,))
                waiting.clear()
            at = end_s

        size, reached = 0, to_s
        for batch in self._rows(one, view.run_id, from_s, to_s):
            if view.hook_point not in batch.codes:
                continue
            if waiting and kind_of(waiting[-1], view) != kind_of(batch, view):
                settle((int(batch.steps.time_ns[0]) - begun) / SECOND_NS)
                size = 0
            waiting.append(batch)
            size += bytes_of(batch)
            if size > ROUND_BYTES:
                settle(min(to_s, (int(batch.steps.time_ns[-1]) - begun) / SECOND_NS))
                size = 0
            if time.monotonic() > until:
                reached = min(to_s, _behind(batch, begun))
                break
        settle(reached)
        blocks = [encode_points(points, 0) for points in out]
        head = {
            "until": reached,
            "began_ns": begun,
            "blocks": [
                {
                    "bytes": len(block),
                    "boot_id": points.boot_id,
                    "transcoder": points.transcoder,
                    "n_features": points.n_features,
                    "metrics": points.metrics.shape[1],
                }
                for block, points in zip(blocks, out, strict=True)
            ],
        }
        return head, blocks

    def _rows(self, one: _Open, run_id: str, from_s: float, to_s: float) -> Iterator[FeatureBatch]:
        """Batches of a run on the recorder's clock, cut to the time."""
        recording, begun = one.recording, _begun(one)
        boots = self._boots(one, run_id)
        first, last = (begun + int(at * SECOND_NS) for at in (from_s, to_s))
        for recorded in recording.between(first - SLACK_NS, last + SLACK_NS, _of(boots)):
            message = recorded.message
            if not isinstance(message, FeaturesMessage):
                continue
            batch = _shifted(message.batch, self._offset(one, message.batch.boot_id))
            rows = np.flatnonzero((batch.steps.time_ns >= first) & (batch.steps.time_ns < last))
            if len(rows) == 0:
                continue
            low, high = int(rows[0]), int(rows[-1]) + 1
            if high - low < len(batch.steps):
                batch = slice_features(batch, low, high - low)
            yield batch

    def _offset(self, one: _Open, boot_id: str) -> int:
        if boot_id not in one.offsets:
            first = next(
                one.recording.between(0, 2**63 - 1, lambda topic: topic == _FEATURES + boot_id)
            )
            batch = first.message.batch  # type: ignore[union-attr] # the topic says what it is
            one.offsets[boot_id] = first.time_ns - int(batch.steps.time_ns[-1])
        return one.offsets[boot_id]

    def _boots(self, one: _Open, run_id: str) -> dict[str, Manifest]:
        found = {
            boot: info.manifest
            for boot, info in one.recording.streams.items()
            if info.manifest is not None and (run_id in ("", info.manifest.run_id))
        }
        if not found:
            raise NotThereError(f"the recording has no run {run_id[:100]!r}")
        return found

    # -- words -------------------------------------------------------------------------------------

    def words(
        self, name: str, run_id: str, hook_point: str, from_s: float, to_s: float
    ) -> dict[str, Any]:
        """Claims as they were at ``from_s`` and what changed until ``to_s``; what was narrated.

        Raises:
            NotThereError: when there is no such recording.
            CorruptFileError: when it is damaged there.
        """
        one = self._get(name)
        begun = _begun(one)
        first, last = (begun + int(at * SECOND_NS) for at in (from_s, to_s))
        narration = []
        for at_ns, payload in self._documents(one, Topic.NARRATION, run_id, last):
            narration.append({"at": (at_ns - begun) / SECOND_NS, "value": payload})
            if len(narration) >= (MOST_NARRATED if at_ns >= first else NARRATED_BEFORE):
                break
        claims = []
        for at_ns, payload in self._documents(one, Topic.CLAIMS, run_id, last):
            if payload.get("hook_point") == hook_point:
                claims.append(((at_ns - begun) / SECOND_NS, payload))
                if at_ns <= first:
                    break
        return {"claims": _changes(reversed(claims)), "narration": narration}

    def _documents(
        self, one: _Open, topic: Topic, run_id: str, last_ns: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Documents on a run until then, newest first, as far as the time goes."""
        until = time.monotonic() + self._work_s / 2
        for recorded in one.recording.before(last_ns, lambda name: name == f"document/{topic}"):
            message = recorded.message
            if isinstance(message, Document) and message.payload.get("run_id") == run_id:
                yield recorded.time_ns, dict(message.payload)
            if time.monotonic() > until:
                return

    def picture(self, name: str, run_id: str, env: int, at_s: float) -> tuple[float, bytes] | None:
        """The newest picture of a copy until then, with its time; None where there is none.

        Raises:
            NotThereError: when there is no such recording or run.
            CorruptFileError: when it is damaged there.
        """
        one = self._get(name)
        begun = _begun(one)
        topics = {_PICTURE + boot for boot in self._boots(one, run_id)}
        last = begun + int(at_s * SECOND_NS)
        until = time.monotonic() + self._work_s / 2
        for recorded in one.recording.before(last, topics.__contains__):
            message = recorded.message
            if isinstance(message, Picture) and message.env == env:
                return (recorded.time_ns - begun) / SECOND_NS, bytes(message.jpeg)
            if time.monotonic() > until:
                break
        return None

    # -- moments -----------------------------------------------------------------------------------

    def moments(self, name: str, query: Query, from_s: float, limit: int) -> dict[str, Any]:
        """Moments like the asked one, from ``from_s`` on, as far as the time goes.

        Raises:
            NotThereError: when there is no such recording or run.
            PredicateError: when the predicate is none.
            CorruptFileError: when it is damaged there.
        """
        one = self._get(name)
        begun, last = _begun(one), one.recording.last_ns or 0
        end_s = (last - begun) / SECOND_NS + 1e-3
        seekers = {
            boot: Seeker(query, manifest)
            for boot, manifest in self._boots(one, query.run_id).items()
        }
        found: list[Found] = []
        until = time.monotonic() + self._work_s
        reached = end_s
        rows = 0
        # What began before was told before: it is read again so that its end is not taken for one.
        early = max(0.0, from_s - LEAD_S)
        for batch in self._rows(one, query.run_id, early, end_s):
            found += seekers[batch.boot_id].take(batch)
            rows += len(batch.steps)
            behind = _behind(batch, begun)
            if behind > from_s and (time.monotonic() > until or len(found) >= limit):
                reached = behind
                break
        for seeker in seekers.values():
            found += seeker.finish(early=reached < end_s)
        fresh = begun + int(from_s * SECOND_NS)
        found = sorted(
            (moment for moment in found if moment.time_ns >= fresh),
            key=lambda moment: moment.time_ns,
        )
        cut = found[:limit]
        if len(found) > limit:
            reached = min(reached, (found[limit].time_ns - begun) / SECOND_NS)
        return {
            "items": [
                msgspec.to_builtins(moment) | {"at": (moment.time_ns - begun) / SECOND_NS}
                for moment in cut
            ],
            "until": reached,
            "done": reached >= end_s,
            "steps": rows,
        }


def _begun(one: _Open) -> int:
    first = one.recording.first_ns
    if first is None:
        raise NotThereError(f"the recording {one.recording.path.name} has no messages yet")
    return first


def _behind(batch: FeatureBatch, begun: int) -> float:
    """A time, in seconds, behind the rows of a batch: where whoever goes on asks on from."""
    return (int(batch.steps.time_ns.max()) + 1000 - begun) / SECOND_NS


def _of(boots: dict[str, Manifest]) -> Callable[[str], bool]:
    topics = {_FEATURES + boot for boot in boots}
    return topics.__contains__


def _shifted(batch: FeatureBatch, offset: int) -> FeatureBatch:
    return replace(batch, steps=replace(batch.steps, time_ns=batch.steps.time_ns + offset))


def _changes(documents: Iterable[tuple[float, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Claims of documents, oldest first, each where it came to say something else."""
    known: dict[Any, tuple[Any, ...]] = {}
    out: list[dict[str, Any]] = []
    for at, payload in documents:
        for claim in payload.get("claims", ()):
            mark = _mark(claim)
            if known.get(claim.get("address")) != mark and len(out) < MOST_CHANGES:
                known[claim.get("address")] = mark
                out.append({"at": at, "claim": claim})
    return out


def _mark(claim: dict[str, Any]) -> tuple[Any, ...]:
    """What of a claim makes it another one to a reader."""
    return tuple(claim.get(name) for name in ("version", "verdict", "label", "predicate", "reason"))
