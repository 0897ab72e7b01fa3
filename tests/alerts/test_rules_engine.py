from types import SimpleNamespace

from interlatent_live.alerts.rulefile import parse_rules
from interlatent_live.alerts.rules_engine import RulesEngine
from interlatent_live.statistics.rules import Phase, alertmanager_alerts
from tests.support.planted_stream import HOOK, episodes, manifest

RULES = parse_rules('[[rule]]\nname = "high"\nwhen = ["mean:reward > 0.5"]\n', "rules.toml")


def stream():
    specs = manifest().metrics
    return SimpleNamespace(
        run=SimpleNamespace(manifest=manifest()),
        hook_point=HOOK,
        watch=None,
        correlator=SimpleNamespace(specs=specs),
    )


def rows(engine, batches):
    one = stream()
    return [change for batch in batches for change in engine.rows(one, batch)]


def restarted(engine):
    other = RulesEngine(RULES, 1.0)
    other.load(stream(), engine.state(stream()))
    return other


def firing():
    engine = RulesEngine(RULES, 1.0)
    batches = list(episodes(20))
    (change,) = rows(engine, batches[:10])
    assert change.phase is Phase.FIRING
    return engine, batches


def test_a_restart_does_not_fire_anew_what_still_holds():
    engine, batches = firing()
    other = restarted(engine)
    assert rows(other, batches[10:]) == []
    (status,) = other.statuses("run")
    assert status.phase == "firing"
    assert status.since_ns == engine.statuses("run")[0].since_ns


def test_what_cleared_while_the_service_was_down_is_resolved():
    engine, batches = firing()
    for batch in batches[10:]:
        batch.steps.metrics[:, 2] = 0.0
    (change,) = rows(restarted(engine), batches[10:])
    assert change.resolved


def test_what_fires_is_told_again_under_the_same_labels():
    engine, _ = firing()
    (again,) = engine.firing({"run"})
    (item,) = alertmanager_alerts(again)
    assert item["labels"]["hook_point"] == HOOK
    assert "endsAt" not in item
    assert engine.firing({"another"}) == []


def test_a_stream_without_rows_has_no_state():
    engine = RulesEngine(RULES, 1.0)
    assert engine.state(stream()) == {}
    engine.load(stream(), {})
    assert engine.statuses("run") == []
