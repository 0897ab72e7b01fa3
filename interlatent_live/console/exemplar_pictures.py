"""Pictures of the moments that the statistics chose, in bounded bytes, for the feature's card.

A picture comes at its moment, but whether the moment is an exemplar is known only when its episode
has ended. So pictures wait, oldest out first, and now and then the correlator is asked which rows
are exemplars by now: the nearest picture of the same copy and episode within a few steps is kept
for each. Nobody waits for any of it: pictures come by the way of the newest one (a low rate, first
to be dropped), and asking has a thread of its own. Pictures are never looked into.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Final, Self

import msgspec
import numpy as np
from fastapi import APIRouter, HTTPException, Query, Response

from interlatent_live.errors import UserError
from interlatent_live.queries.messages import Exemplars, ExemplarsAnswer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from interlatent_live.queries.client import StatisticsClient

NEAR_STEPS: Final = 12
"""A picture further from a moment shows another moment."""
MOST_BOOTS: Final = 64
ASK_EVERY_S: Final = 5.0
MOST_ASKED: Final = 64
CHOSEN_SHARE: Final = 0.75
"""Of the bytes, for pictures of exemplars; the rest is left to those that wait to be chosen."""
Key = tuple[int, int]
"""Copy, and number of the row that a picture was made at, in the numbers of its boot."""


@dataclass(frozen=True, slots=True)
class Near:
    """The picture of a moment."""

    boot_id: str
    key: Key
    steps: int
    """How many steps after the picture the moment is; negative: before it."""


@dataclass(slots=True)
class _Boot:
    run_id: str
    pictures: OrderedDict[Key, bytes] = field(default_factory=OrderedDict)
    """Oldest first."""
    size: int = 0
    wanted: set[Key] = field(default_factory=set)


class ExemplarPictures:
    """See the module's text; safe to use from several threads.

    Args:
        most_bytes: of all pictures; each boot of an agent has an equal share.
    """

    def __init__(self, most_bytes: int) -> None:
        self.dropped = 0
        """Pictures of exemplars for which there was no room."""
        self._most_bytes = most_bytes
        self._boots: OrderedDict[str, _Boot] = OrderedDict()
        self._near: dict[str, dict[int, Near]] = {}
        """By run, by the row's number in the run."""
        self._news: set[str] = set()
        self._lock = threading.Lock()

    @property
    def held(self) -> int:
        """Bytes of the pictures that are kept now."""
        with self._lock:
            return sum(one.size for one in self._boots.values())

    def offer(self, run_id: str, boot_id: str, env: int, seq: int, jpeg: bytes) -> None:
        """A picture of a copy that was made before the row ``seq``."""
        with self._lock:
            boot = self._boots.get(boot_id)
            if boot is None:
                boot = self._boots[boot_id] = _Boot(run_id)
                while len(self._boots) > MOST_BOOTS:
                    self._forget(next(iter(self._boots)))
                for one in self._boots.values():
                    self._make_room(one)
            self._boots.move_to_end(boot_id)
            boot.size += len(jpeg) - len(boot.pictures.pop((env, seq), b""))
            boot.pictures[env, seq] = jpeg
            self._make_room(boot)
            self._news.add(run_id)

    def news(self) -> tuple[str, ...]:
        """Runs of which pictures came since this was last asked."""
        with self._lock:
            runs, self._news = tuple(self._news), set()
        return runs

    def ask_again(self, run_id: str) -> None:
        """Nobody answered about this run."""
        with self._lock:
            self._news.add(run_id)

    def choose(self, answer: ExemplarsAnswer, rows: Mapping[str, NDArray[np.integer[Any]]]) -> None:
        """Keep a picture for each of these rows that has one nearby, before all other pictures."""
        with self._lock:
            found: dict[int, Near] = {}
            bases = sorted((base, boot_id) for boot_id, base in answer.boots.items())
            ends = [base for base, _ in bases[1:]] + [2**62]
            for (base, boot_id), end in zip(bases, ends, strict=True):
                boot = self._boots.get(boot_id)
                if boot is None or boot.run_id != answer.run_id:
                    continue
                low, high = np.searchsorted(rows["position"], [base, end])
                part = {name: column[low:high] for name, column in rows.items()}
                here = _nearest(boot, boot_id, part, base, max(1, answer.copies))
                boot.wanted = {near.key for near in here.values()}
                found |= here
            self._near[answer.run_id] = found

    def find(self, run_id: str, position: int) -> tuple[Near, bytes] | None:
        """The picture of a row, if there is one near it."""
        with self._lock:
            near = self._near.get(run_id, {}).get(position)
            boot = None if near is None else self._boots.get(near.boot_id)
            jpeg = None if near is None or boot is None else boot.pictures.get(near.key)
            return None if near is None or jpeg is None else (near, jpeg)

    def _make_room(self, boot: _Boot) -> None:
        """The oldest go: of those that nobody chose, unless the chosen ones leave them no room."""
        share = self._most_bytes // len(self._boots)
        if boot.size <= share:
            return
        chosen = sum(len(boot.pictures.get(key, b"")) for key in boot.wanted)
        for key in list(boot.pictures):
            full = chosen > share * CHOSEN_SHARE
            if (key in boot.wanted) != full:
                continue
            size = len(boot.pictures.pop(key))
            boot.size -= size
            if full:
                chosen -= size
                self.dropped += 1
            if boot.size <= share:
                return
        self._make_room(boot)

    def _forget(self, boot_id: str) -> None:
        gone = self._boots.pop(boot_id)
        self.dropped += len(gone.wanted & gone.pictures.keys())
        if all(one.run_id != gone.run_id for one in self._boots.values()):
            self._near.pop(gone.run_id, None)


def _nearest(
    boot: _Boot, boot_id: str, rows: Mapping[str, NDArray[Any]], base: int, copies: int
) -> dict[int, Near]:
    """For each row the nearest picture of its copy and episode, by the row's number in the run."""
    found: dict[int, Near] = {}
    for env in {key[0] for key in boot.pictures}:
        made = np.array(sorted(seq for one, seq in boot.pictures if one == env), np.int64)
        mine = np.flatnonzero(rows["env"] == env)
        position, t, after = (rows[name][mine] for name in ("position", "t", "after"))
        seq = position - base
        later = np.searchsorted(made, seq, side="right")
        best = np.full(len(seq), NEAR_STEPS + 1)
        which = np.zeros(len(seq), np.int64)
        for candidate, exists in ((later - 1, later > 0), (later, later < len(made))):
            at = np.clip(candidate, 0, len(made) - 1)
            # A picture shows what the next row of its copy is of.
            steps = (seq - made[at]) // copies
            # Before the step only as far as its episode goes back, after it as far as is known.
            same = np.where(steps >= 0, steps <= t, -steps <= after)
            closer = exists & same & (np.abs(steps) < np.abs(best))
            best[closer], which[closer] = steps[closer], at[closer]
        for i in np.flatnonzero(np.abs(best) <= NEAR_STEPS):
            key = (int(env), int(made[which[i]]))
            found[int(position[i])] = Near(boot_id, key, int(best[i]))
    return found


class Chooser:
    """Asks the correlator which rows are exemplars, on a thread of its own; a context manager.

    Args:
        pictures: whose pictures are chosen.
        statistics: makes a client for one question.
    """

    def __init__(
        self, pictures: ExemplarPictures, statistics: Callable[[], StatisticsClient]
    ) -> None:
        self._pictures, self._statistics = pictures, statistics
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="exemplar-pictures", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join(2.0)

    def _run(self) -> None:
        while not self._stop.wait(ASK_EVERY_S):
            for run_id in self._pictures.news():
                if self._stop.is_set():
                    return
                self._choose(run_id)

    def _choose(self, run_id: str) -> None:
        try:
            with self._statistics() as client:
                answer, rows = client.ask_with_arrays(Exemplars(run=run_id))
        except UserError:
            self._pictures.ask_again(run_id)  # no correlator, or not yet of this run
            return
        if isinstance(answer, ExemplarsAnswer):
            self._pictures.choose(answer, rows)


def router(pictures: ExemplarPictures) -> APIRouter:
    """``GET /pictures`` and ``GET /pictures/{position}``."""
    out = APIRouter(tags=["reading"], default_response_class=Response)

    @out.get("/pictures", summary="Which rows of a run have a picture near them")
    def listing(
        run_id: Annotated[str, Query(max_length=256)],
        positions: Annotated[str, Query(max_length=2048, pattern=r"^\d{1,18}(,\d{1,18})*$")],
    ) -> Response:
        asked = [int(one) for one in positions.split(",")][:MOST_ASKED]
        found = [(one, pictures.find(run_id, one)) for one in asked]
        items = [
            {"position": one, "steps": near[0].steps} for one, near in found if near is not None
        ]
        return Response(msgspec.json.encode({"items": items}), media_type="application/json")

    @out.get("/pictures/{position}", summary="The picture near a row of a run, as JPEG")
    def picture(position: int, run_id: Annotated[str, Query(max_length=256)]) -> Response:
        found = pictures.find(run_id, position)
        if found is None:
            raise HTTPException(404, "there is no picture near this moment")
        near, jpeg = found
        return Response(jpeg, headers={"Steps": str(near.steps)}, media_type="image/jpeg")

    return out
