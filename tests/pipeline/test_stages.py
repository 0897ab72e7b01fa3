from __future__ import annotations

import pytest

from interlatent_live.pipeline.stages import ENCODE, PUBLISH, QUEUE, STAGES, StageTimes


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_each_stage_has_the_time_that_was_spent_in_it(clock):
    stages = StageTimes(clock)

    def encode(transcoder, activations):
        clock.now += 0.002
        return "codes"

    timed = stages.encoding(encode)
    stages.arrived("a")
    clock.now += 0.010
    stages.arrived("b")
    clock.now += 0.005
    assert str(timed("t", "x")) == "codes"
    stages.encoded("a")
    stages.encoded("b")
    with stages.publishing():
        clock.now += 0.001
    found = stages.histograms()
    assert {stage: one.n for stage, one in found.items()} == {QUEUE: 2, ENCODE: 1, PUBLISH: 1}
    assert found[QUEUE].sum_ms == pytest.approx(15 + 5)
    assert found[ENCODE].sum_ms == pytest.approx(2)
    assert found[PUBLISH].sum_ms == pytest.approx(1)


def test_a_failing_stage_is_timed_and_fails(clock):
    stages = StageTimes(clock)

    def encode(transcoder, activations):
        clock.now += 0.5
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        stages.encoding(encode)("t", "x")
    assert stages.histograms()[ENCODE].sum_ms == pytest.approx(500)


def test_features_that_came_encoded_did_not_wait_here(clock):
    stages = StageTimes(clock)
    stages.encoded("elsewhere")
    assert stages.histograms()[QUEUE].n == 0


def test_nothing_is_kept_of_many_messages_but_their_counts(clock):
    stages = StageTimes(clock)
    for number in range(1000):
        stages.arrived(f"agent {number % 7}")
        clock.now += 0.001
        stages.encoded(f"agent {number % 7}")
        with stages.publishing():
            pass
    assert stages.histograms()[QUEUE].n == 1000
    assert stages._arrived == {}
    assert all(not stages._seen[stage] for stage in STAGES)


def test_copies_do_not_grow(clock):
    stages = StageTimes(clock)
    before = stages.histograms()
    with stages.publishing():
        pass
    assert before[PUBLISH].n == 0
    assert stages.histograms()[PUBLISH].n == 1
