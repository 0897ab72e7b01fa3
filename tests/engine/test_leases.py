from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from interlatent_live.engine.leases import Claim, Leases, Ownership
from interlatent_live.engine.slots import SLOTS, assign, slot_of, slots_text

ALL = slots_text(range(SLOTS))
SHARDS = ("a", "b", "c")


def claim(shard: str, epoch: int, slots: str = ALL, *, ready: bool = True) -> Claim:
    return Claim(shard, epoch, slots, agents="tcp://127.0.0.1:1" if ready else "")


CLAIMS = st.lists(
    st.builds(
        claim,
        st.sampled_from(SHARDS),
        st.integers(0, 20),
        st.frozensets(st.integers(0, 7)).map(slots_text),
        ready=st.booleans(),
    ),
    max_size=40,
)


@given(CLAIMS, st.integers(0, 7))
@settings(max_examples=300)
def test_a_slots_epoch_never_goes_back(claims: list[Claim], slot: int) -> None:
    leases, newest = Leases(), -1
    for one in claims:
        leases.take(one)
        holder = leases.holder(slot)
        assert (-1 if holder is None else holder.epoch) >= newest
        newest = -1 if holder is None else holder.epoch


@given(CLAIMS)
@settings(max_examples=300)
def test_at_most_one_start_of_a_shard_is_taken_for_a_run(claims: list[Claim]) -> None:
    leases = Leases()
    for one in claims:
        leases.take(one)
        for run in ("r1", "r2", "r3"):
            leases.bind(run, 3)
            admitted = {
                (other.shard, other.epoch)
                for other in claims
                if leases.admits(other.shard, other.epoch, run)
            }
            assert len(admitted) <= 1


def test_the_output_of_a_zombie_is_refused() -> None:
    leases = Leases()
    assert leases.take(claim("a", 5))
    assert leases.admits("a", 5, "run")
    assert leases.take(claim("a", 9))
    assert leases.admits("a", 9, "run")
    assert not leases.admits("a", 5, "run")
    # It goes on claiming, since nobody has told it that it is one.
    assert not leases.take(claim("a", 5))
    assert leases.admits("a", 9, "run")


def test_a_start_that_is_announced_fences_the_one_before_and_takes_no_rows_yet() -> None:
    leases = Leases()
    leases.take(claim("a", 5))
    leases.take(claim("a", 9, ready=False))
    assert not leases.take(claim("a", 5))
    holder = leases.holder(0)
    assert holder is not None
    assert holder.epoch == 5  # viewers keep the last state until there is a newer one


def test_a_slot_goes_to_whom_it_was_dealt_last() -> None:
    leases = Leases()
    before = assign(["a", "b"])
    for epoch, (name, slots) in enumerate(before.items()):
        leases.take(claim(name, epoch, slots_text(slots)))
    after = assign(SHARDS)
    leases.take(claim("c", 10, slots_text(after["c"])))
    assert {slot for slot in range(SLOTS) if leases.holder(slot).shard == "c"} == after["c"]
    # The others still claim, at their old epoch, what they had.
    for epoch, (name, slots) in enumerate(before.items()):
        assert leases.take(claim(name, epoch, slots_text(slots)))
    assert {slot for slot in range(SLOTS) if leases.holder(slot).shard == "c"} == after["c"]


def test_runs_of_one_connection_stay_together() -> None:
    leases = Leases()
    home = slot_of("first")
    stray = next(f"run-{i}" for i in range(100) if slot_of(f"run-{i}") != home)
    leases.bind("first", home)
    leases.bind(stray, home)
    assert leases.slot(stray) == home
    assert leases.strays() == {stray: home}
    owner = Ownership(slots_text([home]), dict(leases.strays())).owner()
    assert owner.owns("first")
    assert owner.owns(stray)
    other = Ownership(slots_text([slot_of(stray)]), dict(leases.strays())).owner()
    assert not other.owns(stray)
    leases.bind(stray, slot_of(stray))
    assert leases.strays() == {}
