from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlatent_live.errors import UserError
from interlatent_live.statistics.rules import (
    AlertRule,
    AlertState,
    Condition,
    Phase,
    alertmanager_alerts,
    prometheus_rules,
    webhook_payload,
)

S = 1_000_000_000
RULE = AlertRule(
    "fvu_high",
    (Condition.parse("fvu > 0.1 clear 0.08"),),
    for_s=2,
    keep_s=3,
    severity="critical",
    summary="reconstruction is off",
    labels={"team": "robots"},
)


def run(rule, values, step_s=1):
    state = AlertState(rule, "run-1")
    phases = []
    for i, value in enumerate(values):
        state.step(i * step_s * S, {"fvu": value})
        phases.append(str(state.phase))
    return phases


def test_fires_only_after_its_duration_and_clears_with_hysteresis():
    values = [0.05, 0.2, 0.2, 0.2, 0.09, 0.09, 0.05, 0.05, 0.05, 0.05]
    assert run(RULE, values) == [
        "inactive", "pending", "pending", "firing", "firing", "firing", "firing", "firing",
        "firing", "inactive",
    ]  # fmt: skip


def test_a_gap_in_the_condition_starts_the_duration_anew():
    assert run(RULE, [0.2, 0.05, 0.2, 0.2, 0.2])[-2:] == ["pending", "firing"]


def test_unknown_values_neither_start_nor_end_an_alert():
    assert set(run(RULE, [None, None, float("nan")])) == {"inactive"}
    assert run(RULE, [0.2, 0.2, 0.2, None, None, None, None, None])[-1] == "firing"


def test_all_conditions_and_the_predicate_must_hold():
    rule = AlertRule(
        "both",
        (Condition("a", ">", 1.0), Condition("b", "<=", 2.0)),
        predicate=lambda values: None if "c" not in values else values["c"] > 0,
    )
    assert rule.holds({"a": 2.0, "b": 2.0, "c": 1.0}) is True
    assert rule.holds({"a": 2.0, "b": 3.0, "c": 1.0}) is False
    assert rule.holds({"a": 2.0, "b": 2.0, "c": None}) is None
    assert rule.holds({"a": 0.0, "b": None, "c": None}) is False


def test_transitions_carry_what_receivers_need():
    state = AlertState(RULE, "run-1")
    fired = None
    for i in range(4):
        fired = state.step(i * S, {"fvu": 0.3}) or fired
    assert fired is not None
    assert fired.phase is Phase.FIRING
    assert fired.started_ns == 0
    body = webhook_payload(fired)
    assert (body["alert"], body["status"], body["values"]) == ("fvu_high", "firing", {"fvu": 0.3})
    assert fired.notable
    resolved = None
    for i in range(4, 9):
        resolved = state.step(i * S, {"fvu": 0.0}) or resolved
    assert resolved is not None
    assert resolved.resolved
    item = alertmanager_alerts(resolved)[0]
    assert item["labels"] == {
        "alertname": "fvu_high", "severity": "critical", "run": "run-1", "team": "robots",
    }  # fmt: skip
    assert item["startsAt"] < item["endsAt"]


def test_state_survives_a_snapshot():
    state = AlertState(RULE, "run-1")
    state.step(0, {"fvu": 0.3})
    other = AlertState(RULE, "run-1")
    other.load(state.to_dict())
    change = other.step(2 * S, {"fvu": 0.3})
    assert change is not None
    assert change.phase is Phase.FIRING


def test_prometheus_rules_say_the_same():
    text = prometheus_rules((RULE,))
    assert "alert: fvu_high" in text
    assert "> 0.1" in text
    assert "for: 2s" in text
    with pytest.raises(UserError, match="predicate"):
        prometheus_rules((AlertRule("p", predicate=lambda _: True),))


@pytest.mark.parametrize("text", ["fvu", "fvu > x", "fvu ! 3", "fvu > 0.1 clear", "a b > 1"])
def test_bad_conditions_are_refused(text):
    with pytest.raises(UserError):
        Condition.parse(text)


def test_bad_rules_are_refused():
    with pytest.raises(UserError, match="clear value"):
        Condition("x", ">", 1.0, clear=2.0)
    with pytest.raises(UserError, match="letters"):
        AlertRule("bad name", (Condition("x", ">", 1.0),))
    with pytest.raises(UserError, match="no condition"):
        AlertRule("empty")


@given(st.lists(st.one_of(st.none(), st.floats(0, 0.3)), max_size=60))
def test_firing_always_follows_a_full_duration_above_the_threshold(values):
    state = AlertState(RULE)
    for i, value in enumerate(values):
        change = state.step(i * S, {"fvu": value})
        if change is not None and change.phase is Phase.FIRING:
            recent = [v for v in values[i - 2 : i + 1] if v is not None]
            assert all(v > 0.1 for v in recent)
            assert i * S - change.started_ns >= 2 * S
