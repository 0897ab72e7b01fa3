from types import SimpleNamespace

from interlatent_live.alerts.rulefile import parse_rules
from interlatent_live.alerts.rules_engine import RulesEngine
from interlatent_live.statistics.rules import Phase, alertmanager_alerts
from interlatent_live.wire.slices import slice_features
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
    one, changes = stream(), []
    for batch in batches:
        for part in engine.parts(batch):
            changes += engine.before(one, part)
            engine.rows(one, part)
    return changes


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


def test_how_rows_were_batched_makes_no_difference():
    batches = list(episodes(12))
    for batch in batches[6:]:
        batch.steps.metrics[:, 2] = 0.0
    small = [
        slice_features(batch, low, min(50, 120 - low))
        for batch in batches
        for low in range(0, 120, 50)
    ]
    ours, theirs = RulesEngine(RULES, 1.0), RulesEngine(RULES, 1.0)
    found = [(one.phase, one.at_ns, one.values) for one in rows(ours, batches)]
    assert found == [(one.phase, one.at_ns, one.values) for one in rows(theirs, small)]
    assert [phase for phase, _, _ in found] == [Phase.FIRING, Phase.INACTIVE]
    assert ours.statuses("run") == theirs.statuses("run")


def test_the_rows_since_the_last_evaluation_survive_a_restart():
    batches = list(episodes(3))
    whole = RulesEngine(RULES, 1.0)
    expected = rows(whole, batches)
    before = RulesEngine(RULES, 1.0)
    found = rows(before, [slice_features(batches[0], 0, 70)])
    after = restarted(before)
    found += rows(after, [slice_features(batches[0], 70, 50), *batches[1:]])
    assert [one.values for one in found] == [one.values for one in expected]


def test_predicates_have_a_duration_a_hysteresis_and_the_units_of_the_run():
    text = """
[[rule]]
name = "leaning"
predicate = "lean > 57.3 deg and not `mean:reward` < 0.5"
clear = "lean < 0 deg"
"""
    engine = RulesEngine(parse_rules(text, "rules.toml"), 1.0)
    batches = list(episodes(4, 100))
    for batch, lean in zip(batches, (1.1, 0.5, -0.1, 0.5), strict=True):
        batch.steps.metrics[:, 0] = lean
    fired, resolved = rows(engine, batches)
    assert fired.phase is Phase.FIRING
    assert fired.values == {"metric:lean": 1.1, "mean:reward": 1.0}
    assert resolved.resolved
    assert resolved.at_ns - fired.at_ns == 2_000_000_000


def test_a_predicate_in_another_unit_than_the_runs_is_unknown_for_ever():
    text = '[[rule]]\nname = "odd"\npredicate = "lean > 3 m/s"\n'
    engine = RulesEngine(parse_rules(text, "rules.toml"), 1.0)
    assert rows(engine, list(episodes(4))) == []
    (status,) = engine.statuses("run")
    assert status.phase == "inactive"


def test_a_stream_without_rows_has_no_state():
    engine = RulesEngine(RULES, 1.0)
    assert engine.state(stream()) == {}
    engine.load(stream(), {})
    assert engine.statuses("run") == []
