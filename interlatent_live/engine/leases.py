"""Who may speak for a run: leases on slots, and the epoch that fences off whoever had one before.

Nobody can make a process that is out of reach stop. So a shard's start has an epoch, larger than
that of every start before it (the engine sees to that), a claim on slots carries it, and whoever
takes a shard's output asks here first: the newest epoch that claimed a slot is the only one whose
output is taken (Kleppmann, 2017, "Designing Data-Intensive Applications", ch. 8, fencing tokens).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta

from interlatent_live.engine.slots import SLOTS, parse_slots, slot_of
from interlatent_live.errors import UserError
from interlatent_live.files import replace_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MOST_RUNS: Final = 65_536
"""Runs whose slot is not their own hash's that are remembered; the oldest go."""

Name = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[a-z0-9_.-]+\Z")]
Address = Annotated[str, Meta(max_length=256)]


class Claim(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A shard's claim on its slots; without addresses it only announces that it is starting."""

    shard: Name
    epoch: Annotated[int, Meta(ge=0)]
    slots: Annotated[str, Meta(max_length=SLOTS // 4)]
    agents: Address = ""
    """Where its encoder takes rows."""
    encoder_feed: Address = ""
    correlator_feed: Address = ""
    queries: Address = ""

    @property
    def ready(self) -> bool:
        """Whether it takes rows."""
        return bool(self.agents)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where it listens, once it is ready."""
        return (self.agents, self.encoder_feed, self.correlator_feed, self.queries)


class Leases:
    """The newest claim on every slot, and the slots of runs."""

    def __init__(self) -> None:
        self._epochs: dict[str, int] = {}
        self._holders: list[Claim | None] = [None] * SLOTS
        self._slots: OrderedDict[str, int] = OrderedDict()

    def take(self, claim: Claim) -> bool:
        """Take in a claim; ``False`` when a later start of its shard has spoken already.

        A slot that a later epoch has claimed, of whichever shard, stays with that one.

        Raises:
            UserError: when its slots are not understood.
        """
        slots = parse_slots(claim.slots)
        if claim.epoch < self._epochs.get(claim.shard, 0):
            return False
        self._epochs[claim.shard] = claim.epoch
        for slot in slots:
            holder = self._holders[slot]
            if claim.ready and (holder is None or holder.epoch <= claim.epoch):
                self._holders[slot] = claim
        return True

    def holder(self, slot: int) -> Claim | None:
        """Who owns a slot."""
        return self._holders[slot]

    def holders(self) -> dict[tuple[str, int], Claim]:
        """Everybody who owns a slot, by shard and epoch."""
        return {(one.shard, one.epoch): one for one in self._holders if one is not None}

    def admits(self, shard: str, epoch: int, run_id: str) -> bool:
        """Whether what this start of a shard says of a run is to be taken."""
        holder = self._holders[self.slot(run_id)]
        return holder is not None and (holder.shard, holder.epoch) == (shard, epoch)

    def slot(self, run_id: str) -> int:
        """A run's slot: its hash's, or that of the connection it shares with another run."""
        return self._slots.get(run_id, slot_of(run_id))

    def bind(self, run_id: str, slot: int) -> None:
        """A run travels with others, and belongs where they do."""
        self._slots.pop(run_id, None)
        if slot != slot_of(run_id):
            self._slots[run_id] = slot
            while len(self._slots) > MOST_RUNS:
                self._slots.popitem(last=False)

    def strays(self) -> Mapping[str, int]:
        """Runs whose slot is not their own hash's."""
        return dict(self._slots)


class Ownership(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a correlator needs to know to restore and replay its own runs and no others."""

    slots: str
    strays: dict[str, int] = {}

    def owner(self) -> Owner:
        """The same, ready to be asked."""
        return Owner(parse_slots(self.slots), self.strays)


class Owner:
    """Answers whether a run is one's own."""

    def __init__(self, slots: frozenset[int], strays: Mapping[str, int]) -> None:
        self._slots = slots
        self._strays = strays

    def owns(self, run_id: str) -> bool:
        """Whether the run's slot is among one's slots."""
        return self._strays.get(run_id, slot_of(run_id)) in self._slots


EVERYTHING: Final = Owner(frozenset(range(SLOTS)), {})
"""Owns every run: the one correlator of a system without shards."""


def read_ownership(path: Path) -> Owner:
    """What :func:`write_ownership` wrote.

    Raises:
        UserError: when there is no such file, or it says something else.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Ownership).owner()
    except (OSError, msgspec.MsgspecError) as error:
        raise UserError(f"{path} does not say which runs are whose: {error}") from error


def write_ownership(path: Path, slots: str, strays: Mapping[str, int]) -> None:
    """Say to a correlator of a shard which runs are its own, whenever it starts."""
    replace_file(path, msgspec.json.encode(Ownership(slots, dict(strays))))
