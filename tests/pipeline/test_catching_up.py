"""Rows from a recording come before those of the wire, and are counted when they are nowhere."""

import dataclasses

import numpy as np
import pytest

from interlatent_live.pipeline.catching_up import LOOK_EVERY_S, WAIT_S, CatchUp
from interlatent_live.pipeline.correlator import CorrelatorCore
from interlatent_live.statistics.config import CorrelatorConfig
from interlatent_live.wire.messages import FeaturesMessage, Hello
from interlatent_live.wire.slices import slice_features
from tests.support.planted_stream import HOOK, episodes, manifest

CONFIG = CorrelatorConfig(pane_steps=64, pass_rows=100)
BATCHES = list(episodes(12, 50))


class Recorded:
    def __init__(self, batches=(), *, complete=False):
        self.complete = complete
        self.messages = [Hello(manifest()), *(FeaturesMessage(batch) for batch in batches)]

    def write(self, batches):
        self.messages += [FeaturesMessage(batch) for batch in batches]

    def read(self):
        while self.messages:
            yield self.messages.pop(0)


class Desk:
    """A correlator that has the first four batches in a snapshot, and its catching up."""

    def __init__(self, recorded, restored=4):
        self.now = 100.0
        self.core = core_of(())
        self.warnings = []
        if restored:
            before = core_of(BATCHES[:restored])
            (stream,) = before.streams()
            self.core.restore(before.save(stream))
        self.catch_up = CatchUp(self.core, self, recorded, lambda: self.now, self.warnings.append)

    def hello(self, manifest):
        self.core.hello(manifest)

    def rows(self, batch, *, replayed):
        taken = self.core.features(batch, replayed=replayed)
        return sum(len(part.steps) for _, part in taken)

    def goodbye(self, boot_id):
        self.core.goodbye("run")

    def live(self, batch):
        """As the service does; whether it was held."""
        if not self.catch_up.holds("boot", batch):
            self.core.features(batch)
            return False
        return True

    def stream(self):
        return self.core.find("run", HOOK)


def core_of(batches):
    core = CorrelatorCore(CONFIG, clock=lambda: 1)
    if batches:
        core.hello(manifest())
    for batch in batches:
        core.features(batch)
    return core


def assert_undisturbed(desk, batches):
    stream, expected = desk.stream(), core_of(batches).find("run", HOOK)
    ours, theirs = stream.correlator.table(), expected.correlator.table()
    assert stream.correlator.counts.rows == expected.correlator.counts.rows
    np.testing.assert_allclose(ours.r, theirs.r, atol=1e-9)
    np.testing.assert_array_equal(ours.bouts, theirs.bouts)
    np.testing.assert_array_equal(ours.quantiles, theirs.quantiles)
    assert stream.correlator.counts.duplicates == 0


@pytest.mark.parametrize("restored", [0, 4])
def test_recorded_rows_are_taken_then_those_of_the_wire(restored):
    desk = Desk(Recorded(BATCHES[:8], complete=True), restored)
    assert desk.catch_up.busy
    for batch in BATCHES[8:10]:
        assert desk.live(batch)
    assert desk.catch_up.turn() == ["boot", "boot"]
    assert not desk.catch_up.busy
    assert not desk.live(BATCHES[10])
    assert desk.catch_up.rows == (8 - restored) * 50
    assert desk.stream().missing == 0
    assert_undisturbed(desk, BATCHES[:11])


def test_rows_that_a_recorder_writes_later_are_waited_for():
    recorded = Recorded(BATCHES[:6])
    desk = Desk(recorded)
    desk.catch_up.turn()
    assert desk.live(BATCHES[8])
    assert desk.live(BATCHES[9])
    assert desk.catch_up.turn() == []
    recorded.write(BATCHES[6:10])
    desk.now += LOOK_EVERY_S
    assert desk.catch_up.turn() == ["boot", "boot"]
    assert desk.stream().missing == 0
    assert not desk.live(BATCHES[10])
    assert_undisturbed(desk, BATCHES[:11])


def test_what_nobody_recorded_is_counted_after_a_while():
    desk = Desk(Recorded([*BATCHES[:5], *BATCHES[6:7]]))
    desk.catch_up.turn()
    assert desk.live(BATCHES[9])
    desk.now += WAIT_S - 0.01
    assert desk.catch_up.turn() == []
    desk.now += 0.3
    assert desk.catch_up.turn() == ["boot"]
    assert desk.stream().missing == 3 * 50
    assert_undisturbed(desk, [*BATCHES[:5], *BATCHES[6:7], BATCHES[9]])


def test_a_batch_that_begins_before_and_ends_behind_is_taken_in_part():
    desk = Desk(Recorded([slice_features(BATCHES[3], 20, 30), *BATCHES[4:6]], complete=True))
    desk.live(slice_features(BATCHES[5], 0, 50))
    desk.live(slice_features(BATCHES[6], 0, 50))
    desk.catch_up.turn()
    assert_undisturbed(desk, BATCHES[:7])
    assert desk.catch_up.rows == 50


def test_a_boot_that_began_meanwhile_goes_on_behind_the_older_one():
    again = [dataclasses.replace(batch, boot_id="again") for batch in episodes(3, 50, seed=5)]
    recorded = Recorded(BATCHES[:6])
    recorded.messages.append(Hello(manifest(boot_id="again")))
    recorded.write(again[:2])
    desk = Desk(recorded)
    assert desk.catch_up.holds("again", manifest(boot_id="again"))
    assert desk.catch_up.holds("again", again[2])
    assert desk.catch_up.turn() == ["again"]
    expected = core_of(BATCHES[:6])
    expected.hello(manifest(boot_id="again"))
    for batch in again:
        expected.features(batch)
    ours, theirs = desk.stream(), expected.find("run", HOOK)
    assert ours.run.bases == theirs.run.bases == {"boot": 0, "again": 300}
    np.testing.assert_allclose(ours.correlator.table().r, theirs.correlator.table().r, atol=1e-9)
    assert (ours.missing, ours.correlator.counts.rows) == (0, 450)


def test_rows_of_nobody_are_said_once():
    recorded = Recorded()
    recorded.messages.clear()
    recorded.write(BATCHES[:3])
    desk = Desk(recorded, restored=0)
    desk.catch_up.turn()
    assert desk.warnings == ["recorded rows not used: nothing says what boot boot is"]
    assert not desk.core.streams()


def test_recordings_are_needed_from_the_oldest_row_that_may_not_be_saved():
    hour = 3600 * 10**9
    core = CorrelatorCore(CONFIG, clock=lambda: 1)
    assert core.replay_from_ns() == 0
    for run_id, encoded_ns in (("old", hour), ("one", 3 * hour), ("two", 3 * hour + 5)):
        core.hello(manifest(run_id=run_id, boot_id=run_id))
        core.features(
            dataclasses.replace(BATCHES[0], run_id=run_id, boot_id=run_id, encoded_ns=encoded_ns)
        )
    assert core.replay_from_ns() == 3 * hour
