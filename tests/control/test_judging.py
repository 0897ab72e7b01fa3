"""What the schedules with real processes would notice, on records made up by hand."""

import time

import pytest

from interlatent_live.bench.interventions import schedules
from interlatent_live.bench.interventions.agent_process import SAFE, STEERED, Witnessed
from interlatent_live.bench.interventions.bench import InterventionsReport
from interlatent_live.bench.report import bench_row
from interlatent_live.errors import CorruptFileError

SECOND = 1_000_000_000


class Records:
    """An agent that was steered from 1 s to 2 s after ``began`` and then stopped."""

    def __init__(self):
        self.began = time.monotonic_ns()
        self.offset = time.time_ns() - time.monotonic_ns()
        self.permitted = {"c1": 1 * SECOND}
        self.whole = True
        self.steps = [self.step(0.5), self.step(1.2, STEERED), self.step(2.6, SAFE)]
        self.notes = schedules._Notes(self.began)
        self.notes.stills.append((self.at(2.5), self.at(4.0)))
        self.notes.operator_gone_ns.append(self.at(1.5))

    def at(self, seconds):
        return self.began + int(seconds * SECOND)

    def step(self, seconds, what=0, forward=None):
        begun = self.at(seconds if forward is None else forward)
        return Witnessed(begun, self.at(seconds), self.at(seconds), what)

    def journal(self):
        body = {"command_id": "c1", "operation": "intervene", "accepted": True, "kind": "command"}
        return [{**body, "time_ns": self.at(1.0) + self.offset}]

    def entries(self):
        return [
            {"kind": "permitted", "body": {"command_id": name, "ttl_ns": ttl}}
            for name, ttl in self.permitted.items()
        ]

    def verify(self):
        if not self.whole:
            raise CorruptFileError("entry 3 was altered")
        return 3

    def judged(self):
        return schedules._judge(self, self.steps, self.notes)


@pytest.fixture
def records():
    return Records()


def test_what_kept_its_promises_is_not_blamed(records):
    assert records.judged() == []


def test_a_step_frozen_between_forward_and_gate_is_not_blamed(records):
    records.steps.append(records.step(2.3, STEERED, forward=1.9))
    assert records.judged() == []


@pytest.mark.parametrize("when", [0.5, 2.2])
def test_steering_outside_of_its_lifetime(records, when):
    records.steps.append(records.step(when, STEERED))
    assert records.judged() == ["a step was steered outside of every permitted lifetime"]


def test_steering_past_the_lease(records):
    records.permitted["c1"] = 60 * SECOND
    records.steps.append(records.step(2.4, STEERED))
    assert records.judged() == []
    records.steps.append(records.step(2.9, STEERED))
    assert "longer than a lease" in " ".join(records.judged())


@pytest.mark.parametrize("what", [0, STEERED])
def test_motion_after_a_stop(records, what):
    records.permitted["c1"] = 60 * SECOND
    records.notes.operator_gone_ns.clear()
    records.steps.append(records.step(3.0, what))
    assert records.judged() == ["a stopped or held agent moved"]


def test_energy_without_its_audit_entry(records):
    records.permitted.clear()
    said = " ".join(records.judged())
    assert "intervene took effect without its audit entry" in said
    assert "outside of every permitted lifetime" in said


def test_an_audit_that_does_not_verify(records):
    records.whole = False
    assert records.judged() == ["entry 3 was altered"]


def test_a_broken_promise_fails_the_bench_and_a_slow_click_misses_a_goal():
    def row(case, value):
        return bench_row(
            case, value, "", reference="none", reference_value=1.0, goal="value <= 0"
        )  # fmt: skip

    slow = InterventionsReport("interventions", (row("click to hold, p99 of 9", 1.0),))
    assert not slow.failed
    broken = InterventionsReport("interventions", (row("3 schedules: promises broken", 1.0),))
    assert broken.failed
    empty = InterventionsReport("i", (), happened=(("virtual time", "stop", 3),))
    assert empty.details()[1] == [("virtual time", "stop", "3")]
