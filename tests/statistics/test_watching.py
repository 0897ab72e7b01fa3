import numpy as np
import pytest

from interlatent_live.errors import UserError
from interlatent_live.pipeline.correlator import CorrelatorCore
from interlatent_live.statistics.config import CorrelatorConfig
from interlatent_live.statistics.conformal import novelty
from interlatent_live.statistics.slices import compile_slices, parse_slices
from interlatent_live.statistics.snapshot import load_state, save_state
from interlatent_live.statistics.snapshot_folder import SnapshotFolder
from interlatent_live.statistics.watching import StreamWatch, WatchConfig
from interlatent_live.stream import Controller
from tests.support.planted_stream import HOOK, episodes, manifest

WATCH = WatchConfig(
    reference_panes=32,
    panes_to_false_alarm=200,
    rate=0.1,
    block_steps=60,
    conformal=("novelty", "metric:speed"),
)


def core(clock=lambda: 7):
    return CorrelatorCore(CorrelatorConfig(pane_steps=60), clock=clock, watch=WATCH)


def changed(count, start):
    """Episodes of 120 steps; from ``start`` on the features change places and a metric moves."""
    for batch in episodes(count):
        if batch.steps.episode[0] >= start:
            batch.steps.metrics[:, 1] += 30.0
            codes = batch.codes[HOOK]
            counts = np.diff(codes.indptr)
            alone = np.repeat(counts == 1, counts)
            codes.index[alone] = 1 - codes.index[alone]
        yield batch


def run(batches, one=None):
    one = one or core()
    one.hello(manifest())
    for batch in batches:
        one.features(batch)
    return one


def test_drift_and_conformal_alarms_see_a_change_and_stay_quiet_without_one():
    still = run(episodes(60)).find("", "").watch
    assert still.alarms == {}
    moved = run(changed(80, 40)).find("", "")
    assert any(name.startswith(("density:", "r:")) for name in moved.watch.alarms)
    first = min(alarm.pane for alarm in moved.watch.alarms.values())
    assert first + 8 >= 80  # panes of 60 rows, 8 of them before the monitors began
    moved.watch.settle()
    assert all(score.firing for score in moved.watch.scores)
    assert all(score.alarm.alarms >= 70 for score in moved.watch.scores)


def test_steered_rows_raise_no_alarm():
    batches = list(changed(80, 40))
    for batch in batches[40:]:
        batch.steps.controller[:] = Controller.HUMAN
    stream = run(batches).find("", "")
    stream.watch.settle()
    assert stream.watch.alarms == {}
    assert not any(score.firing for score in stream.watch.scores)
    assert stream.correlator.counts.steered == 40 * 120


def verdicts(watch):
    """What must be equal exactly: counts, verdicts, the times of looks."""
    watch.settle()
    return {
        "scores": [(s.name, s.alarm.units, s.alarm.alarms, s.firing) for s in watch.scores],
        "drift": [(alarm.name, alarm.pane, alarm.since) for alarm in watch.alarms.values()],
        "looks": [
            (look.number, look.at_episodes, [(one.feature, one.metric) for one in look.found])
            for look in watch.log.looks
        ],
    }


@pytest.mark.parametrize("crash", [3, 20, 30, 55, 75])
def test_a_restored_stream_goes_on_as_if_nothing_had_happened(tmp_path, crash):
    batches = list(changed(80, 40))
    whole = run(batches).find("", "")
    broken = run(batches[:crash])
    path = tmp_path / "state.safetensors"
    save_state(broken.save(broken.find("", "")), path)
    after = core()
    after.restore(load_state(path))
    run(batches[max(crash - 2, 0) :], after)  # with an overlap, which is ignored
    stream = after.find("", "")
    assert stream.missing == 0
    assert verdicts(stream.watch) == verdicts(whole.watch)
    np.testing.assert_allclose(stream.correlator.table().r, whole.correlator.table().r, rtol=1e-9)
    assert stream.correlator.counts.rows == whole.correlator.counts.rows


def test_snapshots_are_thinned_by_count_and_day(tmp_path):
    day = 86_400 * 10**9
    now = [10 * day]
    one = run(episodes(2), core(clock=lambda: now[0]))
    folder = SnapshotFolder(tmp_path, keep=3, clock=lambda: now[0])
    for _ in range(12):
        folder.save(one.save(one.find("", "")))
        now[0] += day // 4
    kept = [item.saved_ns / day for item in folder.items()]
    assert kept == [12.75, 12.5, 12.25, 11.75, 10.75]
    transcoder = one.find("", "").transcoder
    assert folder.find("yesterday", transcoder, HOOK).saved_ns == 11.75 * day
    with pytest.raises(UserError, match="no snapshot called 'x'"):
        folder.find("x", transcoder, HOOK)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lean > 1", "NAME: PREDICATE"),
        ("terminated: lean > 1", "another name"),
        ("a: lean >", "predicate is wrong"),
        ("a: delta(lean) > 1", "looks back"),
    ],
)
def test_slices_that_cannot_be_are_refused(text, words):
    with pytest.raises(UserError, match=words):
        parse_slices([text])


def test_a_slice_of_other_metrics_is_left_out_with_its_reason():
    found = compile_slices(parse_slices(["a: lean > 1 rad", "b: mass > 3"]), manifest().metrics)
    assert [spec.name for spec in found.specs] == ["a"]
    assert "mass" in found.refused["b"]


def test_what_is_usual_does_not_depend_on_how_rows_were_batched():
    specs = manifest().metrics
    rows = np.random.default_rng(0).normal(1e7, 1.0, size=(300, len(specs)))
    rows[3, 0] = np.nan
    rows[0, 1] = np.inf
    scores = []
    for size in (1, 7, 300):
        watch = StreamWatch(WATCH, specs)
        for start in range(0, 300, size):
            watch._usual.learn(rows[start : start + size])
        scores.append(watch._usual.score(rows))
    assert np.array_equal(scores[0], scores[1], equal_nan=True)
    assert np.array_equal(scores[0], scores[2], equal_nan=True)
    columns = watch._usual.columns
    seen = np.where(np.isfinite(rows), rows, np.nan)[:, columns]
    expected = novelty(seen, np.nanmean(seen, axis=0), np.nanstd(seen, axis=0, ddof=1))
    np.testing.assert_allclose(scores[0], expected, rtol=1e-6)
