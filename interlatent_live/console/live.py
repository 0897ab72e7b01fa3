"""The newest steps for pages: a bounded ring, and what one page is shown of it.

A page cannot draw thousands of steps a second, nor need it. It gets at most a given number of
*points* per word; a point stands for consecutive steps of one agent copy: the metrics of the last
of them, and for every feature the largest activation among them, so that a short spike is thinned
out never. The ring is shared; each page has a place in it, and a page that is too slow loses the
oldest steps and is told how many.
"""

from __future__ import annotations

import re
import secrets
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from interlatent_live.stream import FeatureBatch, SparseCodes

MOST_HISTORY: Final = 3600
"""Points that a page is shown at once when it comes, or comes back."""
_PLACE: Final = re.compile(
    r"(?P<epoch>[0-9a-f]{8})-(?P<number>\d{1,18})-(?P<rows>\d{1,18})", re.ASCII
)
_STEP_BYTES: Final = 32
"""Of the columns of one step beside its metrics and features, for the ring's account."""


@dataclass(frozen=True, slots=True)
class View:
    """What one page looks at."""

    run_id: str
    hook_point: str
    env: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Points:
    """Columns of P points of one view, with M metrics; all steps are of one boot and transcoder."""

    boot_id: str
    transcoder: str
    n_features: int
    time_ms: NDArray[np.float64]
    """[P] the agent's clock at the point's last step, ms since the epoch."""
    episode: NDArray[np.uint32]
    """[P]"""
    t: NDArray[np.uint32]
    """[P] step within the episode."""
    steps: NDArray[np.uint32]
    """[P] steps that the point stands for."""
    controller: NDArray[np.uint32]
    """[P] the highest :class:`~interlatent_live.stream.Controller` among them."""
    flags: NDArray[np.uint32]
    """[P] every :class:`~interlatent_live.stream.StepFlag` among them."""
    metrics: NDArray[np.float32]
    """[P, M]"""
    indptr: NDArray[np.uint32]
    """[P + 1]"""
    index: NDArray[np.uint32]
    """[nnz] ascending within a point."""
    value: NDArray[np.float32]
    """[nnz] > 0."""

    def __len__(self) -> int:
        return len(self.t)


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    number: int
    batch: FeatureBatch
    size: int
    rows_before: int
    """Steps of this run that came before, over all its copies."""


class LiveHub:
    """The ring. Safe to use from several threads; taking in never waits for a page.

    Args:
        most_bytes: of the arrays kept.
    """

    def __init__(self, most_bytes: int = 32 * 2**20) -> None:
        self.epoch = secrets.token_hex(4)
        self._most_bytes = most_bytes
        self._ring: deque[_Entry] = deque()
        self._bytes = 0
        self._last = 0
        self._rows: dict[str, int] = {}
        self._pages = 0
        self._closed = False
        self._lock = threading.Lock()

    @property
    def watched(self) -> bool:
        """Whether any page looks; without one nothing need be taken in."""
        return self._pages > 0

    @property
    def closed(self) -> bool:
        """Whether the console is ending."""
        return self._closed

    def close(self) -> None:
        """Tell the pages that no more comes."""
        self._closed = True

    def take(self, batch: FeatureBatch) -> None:
        """Keep a batch, and let go of the oldest ones beyond the limit."""
        size = bytes_of(batch)
        with self._lock:
            before = self._rows.pop(batch.run_id, 0)
            self._rows[batch.run_id] = before + len(batch.steps)
            self._last += 1
            self._ring.append(_Entry(self._last, batch, size, before))
            self._bytes += size
            while self._bytes > self._most_bytes:
                self._bytes -= self._ring.popleft().size
            if len(self._rows) > 4096:
                # The run that was heard longest ago; its count begins anew should it come back.
                del self._rows[next(iter(self._rows))]

    def join(self, view: View, after: str = "") -> LivePlace:
        """A page's place: from the beginning of the ring, or behind the place named ``after``."""
        match = _PLACE.fullmatch(after)
        with self._lock:
            self._pages += 1
        if match is None or match["epoch"] != self.epoch:
            return LivePlace(self, view, 0, None)
        return LivePlace(self, view, min(int(match["number"]), self._last), int(match["rows"]))

    def leave(self) -> None:
        """One page fewer."""
        with self._lock:
            self._pages -= 1

    def behind(self, number: int, run_id: str) -> tuple[list[_Entry], int]:
        """Entries of a run that came after entry ``number``, and the newest number of all."""
        with self._lock:
            found = [
                one for one in self._ring if one.number > number and one.batch.run_id == run_id
            ]
            return found, self._last


class LivePlace:
    """One page's place; made by :meth:`LiveHub.join`, used by one thread."""

    def __init__(self, hub: LiveHub, view: View, after: int, rows: int | None) -> None:
        self._hub = hub
        self._view = view
        self._after = after
        self._rows_expected = rows
        self.missed = 0
        """Steps of the run, all copies together, that the page will never get."""

    @property
    def name(self) -> str:
        """What to hand to :meth:`LiveHub.join` to go on from here."""
        return f"{self._hub.epoch}-{self._after}-{self._rows_expected or 0}"

    def next(self, most_points: int) -> list[Points]:
        """What has come since, thinned to at most ``most_points`` points (and one per change).

        A list, since points of two boots or two transcoders are never put together.
        """
        entries, self._after = self._hub.behind(self._after, self._view.run_id)
        for one in entries:
            if self._rows_expected is not None:
                self.missed += max(0, one.rows_before - self._rows_expected)
            self._rows_expected = one.rows_before + len(one.batch.steps)
        groups: list[list[FeatureBatch]] = []
        for one in entries:
            batch = one.batch
            if self._view.hook_point not in batch.codes:
                continue
            if groups and kind_of(groups[-1][0], self._view) == kind_of(batch, self._view):
                groups[-1].append(batch)
            else:
                groups.append([batch])
        rows = sum(len(one.steps) for group in groups for one in group) or 1
        out = []
        for group in groups:
            share = sum(len(one.steps) for one in group) / rows
            points = thin(group, self._view, max(1, round(most_points * share)))
            if points is not None:
                out.append(points)
        return out

    def leave(self) -> None:
        """Give the place back."""
        self._hub.leave()


def kind_of(batch: FeatureBatch, view: View) -> tuple[Any, ...]:
    """What must be the same in batches whose points may be put together."""
    codes = batch.codes[view.hook_point]
    transcoder = batch.transcoders.get(view.hook_point, "")
    return batch.boot_id, transcoder, codes.n_features, batch.steps.metrics.shape[1]


def thin(batches: Sequence[FeatureBatch], view: View, most_points: int) -> Points | None:
    """Points of one copy's steps; ``None`` when there are no steps of it."""
    rows = [np.flatnonzero(one.steps.env == view.env) for one in batches]
    n = sum(len(one) for one in rows)
    if n == 0:
        return None

    def column(name: str) -> NDArray[Any]:
        return np.concatenate(
            [getattr(one.steps, name)[own] for one, own in zip(batches, rows, strict=True)]
        )

    bounds = np.linspace(0, n, min(n, most_points) + 1).round().astype(np.intp)
    starts, lasts = bounds[:-1], bounds[1:] - 1
    first = batches[0]
    indptr, index, value = _largest(
        [(one.codes[view.hook_point], own) for one, own in zip(batches, rows, strict=True)], bounds
    )
    return Points(
        boot_id=first.boot_id,
        transcoder=first.transcoders.get(view.hook_point, ""),
        n_features=first.codes[view.hook_point].n_features,
        time_ms=column("time_ns")[lasts] / 1e6,
        episode=column("episode")[lasts].astype(np.uint32),
        t=column("t")[lasts].astype(np.uint32),
        steps=np.diff(bounds).astype(np.uint32),
        controller=np.maximum.reduceat(column("controller"), starts).astype(np.uint32),
        flags=np.bitwise_or.reduceat(column("flags"), starts).astype(np.uint32),
        metrics=column("metrics")[lasts].astype(np.float32),
        indptr=indptr,
        index=index,
        value=value,
    )


def _largest(
    parts: Sequence[tuple[SparseCodes, NDArray[np.intp]]], bounds: NDArray[np.intp]
) -> tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.float32]]:
    """Per point and feature the largest activation, as compressed sparse rows."""
    points: list[NDArray[np.intp]] = []
    features: list[NDArray[np.uint32]] = []
    values: list[NDArray[np.float32]] = []
    row = 0
    for codes, own in parts:
        ends = codes.indptr.astype(np.intp)
        counts = ends[1:] - ends[:-1]
        wanted = np.full(len(counts), -1, np.intp)
        wanted[own] = np.arange(row, row + len(own))
        row += len(own)
        rows = np.repeat(wanted, counts)
        keep = rows >= 0
        points.append(np.searchsorted(bounds, rows[keep], side="right") - 1)
        features.append(codes.index[keep])
        values.append(codes.value[keep])
    point, feature, value = np.concatenate(points), np.concatenate(features), np.concatenate(values)
    order = np.lexsort((-value, feature, point))
    point, feature, value = point[order], feature[order], value[order]
    new = np.ones(len(point), np.bool_)
    new[1:] = (point[1:] != point[:-1]) | (feature[1:] != feature[:-1])
    sizes = np.bincount(point[new], minlength=len(bounds) - 1)
    indptr = np.concatenate([[0], np.cumsum(sizes)]).astype(np.uint32)
    return indptr, feature[new].astype(np.uint32), value[new].astype(np.float32)


def bytes_of(batch: FeatureBatch) -> int:
    """Bytes of the arrays of a batch, for an account of a buffer."""
    codes = sum(
        one.index.nbytes + one.value.nbytes + one.indptr.nbytes for one in batch.codes.values()
    )
    return codes + batch.steps.metrics.nbytes + _STEP_BYTES * len(batch.steps)
