from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlatent_live.engine.slots import SLOTS, assign, parse_slots, slot_of, slots_text
from interlatent_live.errors import UserError

NAMES = st.lists(st.text("abcdef0123456789-", min_size=1), min_size=1, max_size=9, unique=True)


@given(NAMES)
def test_every_slot_has_one_owner(names: list[str]) -> None:
    counts = Counter(slot for slots in assign(names).values() for slot in slots)
    assert counts == dict.fromkeys(range(SLOTS), 1)


@given(NAMES, st.randoms())
def test_the_order_of_names_does_not_matter(names: list[str], random: object) -> None:
    assert assign(names) == assign(sorted(names))


@given(NAMES.filter(lambda names: len(names) > 1))
def test_who_comes_takes_and_who_goes_gives_and_nothing_else_moves(names: list[str]) -> None:
    *others, newcomer = names
    before, after = assign(others), assign(names)
    for name in others:
        assert after[name] == before[name] - after[newcomer]


def test_slots_are_dealt_out_evenly() -> None:
    sizes = [len(slots) for slots in assign(f"shard-{i}" for i in range(4)).values()]
    assert sum(sizes) == SLOTS
    assert min(sizes) >= 40  # 64 ± 3.5 binomial standard deviations


def test_runs_spread_over_the_slots_and_stay_there() -> None:
    assert len({slot_of(f"run-{i}") for i in range(5000)}) == SLOTS
    # Recordings and snapshots outlive the process: the hash is part of the format.
    assert [slot_of(name) for name in ("run-1", "run-2", "")] == [112, 190, 46]


@given(st.frozensets(st.integers(0, SLOTS - 1)))
def test_slots_survive_a_command_line(slots: frozenset[int]) -> None:
    assert parse_slots(slots_text(slots)) == slots


@pytest.mark.parametrize("text", ["", "xyz", "0" * 63, "g" * 64, "-" + "0" * 63])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="64 hexadecimal digits"):
        parse_slots(text)


def test_slots_without_a_shard_or_with_twins_are_a_mistake() -> None:
    for names in ([], ["a", "a"]):
        with pytest.raises(ValueError, match="at least one shard"):
            assign(names)
