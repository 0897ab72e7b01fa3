"""A killed correlator goes on from its snapshot and a recording as if nothing had happened."""

import threading
import time

import numpy as np
import pytest

from interlatent_live.pipeline.correlator import CorrelatorCore
from interlatent_live.queries import StatisticsClient
from interlatent_live.queries import messages as m
from interlatent_live.recordings import RecordingWriter
from interlatent_live.statistics.config import CorrelatorConfig
from interlatent_live.statistics.watching import WatchConfig
from interlatent_live.wire.codec import encode_features, encode_hello
from tests.support.correlator_service import CorrelatorProcess, Feeder
from tests.support.planted_stream import HOOK, episodes, manifest
from tests.support.recorder import Recorder
from tests.support.system import System, Walker, save, transcoder

WATCHED = {
    "correlator.pane_steps": 64,
    "correlator.drift_reference_panes": 16,
    "correlator.conformal_rate": 0.2,
    "correlator.conformal_block_steps": 64,
    "correlator.conformal": ("novelty", "metric:speed"),
}
WATCH = WatchConfig(
    reference_panes=16, rate=0.2, block_steps=64, conformal=("novelty", "metric:speed")
)


def undisturbed(batches):
    core = CorrelatorCore(CorrelatorConfig(pane_steps=64), clock=lambda: 1, watch=WATCH)
    core.hello(manifest())
    for batch in batches:
        core.features(batch)
    return core.find("run", HOOK)


def within(seconds, condition):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)


def saved_rows(client):
    return max((item.rows for item in client.ask(m.Snapshots()).items), default=0)


@pytest.mark.parametrize("recorded", ["everything", "not all"])
def test_killed_in_the_middle_of_the_stream(tmp_path, recorded):
    flags = {
        "correlator.snapshots": str(tmp_path / "snapshots"),
        "correlator.snapshot_every_s": 0.2,
        "correlator.replay": [str(tmp_path)],
        **WATCHED,
    }
    batches = list(episodes(100))
    nowhere = set(range(60, 63)) if recorded == "not all" else set()
    with RecordingWriter(tmp_path / "run.mcap") as writer, CorrelatorProcess(**flags) as one:
        writer.write(encode_hello(manifest()), time_ns=time.time_ns())
        for number, batch in enumerate(batches):
            if number not in nowhere:
                writer.write(encode_features(batch), time_ns=time.time_ns())
        endpoints = one.settings.endpoints
        with (
            Feeder(endpoints.correlator) as feeder,
            StatisticsClient(endpoints.correlator_queries) as client,
        ):
            feeder.send(batches[:40])
            within(20, lambda: saved_rows(client) == 40 * 120)
            for batch in batches[40:60]:  # Some of them arrive, nobody will know which.
                feeder.offer(batch)
                feeder.turn()
            one.kill()
        writer.flush()
        one.start()
        with (
            Feeder(endpoints.correlator) as feeder,
            StatisticsClient(endpoints.correlator_queries) as client,
        ):
            feeder.send(batches[70:])
            (hook,) = client.hook_points().items
            columns = client.columns()
            looks = client.discoveries(procedure="by").looks
            alerts = client.alerts().alerts
            profile = client.profile(0)
        one.stop()
    missing = nowhere
    expected = undisturbed([b for n, b in enumerate(batches) if n not in missing])
    assert hook.source.missing == 120 * len(missing)
    table = expected.correlator.table()
    assert hook.source.rows == int(table.n) == 120 * (100 - len(missing))
    assert hook.source.left_out == dict.fromkeys(hook.source.left_out, 0)
    for name in ("r", "lo", "hi", "mean_on", "mean_off", "effect_size"):
        np.testing.assert_allclose(columns[name], getattr(table, name).ravel(), atol=1e-9)
    np.testing.assert_array_equal(columns["density"][::3], table.density)
    np.testing.assert_array_equal(columns["auroc"], table.auroc.ravel())
    assert profile.quantiles == {
        f"{p:g}": value for p, value in expected.correlator.profile(0).quantiles.items()
    }
    log = expected.watch.log
    assert [(look.at_episodes, look.found) for look in looks] == [
        (look.at_episodes, len(look.found)) for look in log.looks
    ]
    expected.watch.settle()
    assert [(one.phase, one.blocks, one.alarms) for one in alerts.conformal] == [
        (one.phase, one.alarm.units, one.alarm.alarms) for one in expected.watch.scores
    ]
    assert [(one.name, one.pane) for one in alerts.drift] == [
        (one.name, one.pane) for one in expected.watch.alarms.values()
    ]


def test_the_whole_system_loses_nothing_when_the_correlator_dies(tmp_path):
    save(tmp_path / "transcoders", transcoder())
    recordings = tmp_path / "recordings"
    with Recorder(recordings / "run.mcap") as recorder:
        flags = {
            "encoder.transcoders": [str(tmp_path / "transcoders")],
            "encoder.consumers": [recorder.endpoint],
            "correlator.snapshots": str(tmp_path / "snapshots"),
            "correlator.snapshot_every_s": 0.5,
            "correlator.replay": [str(recordings)],
        }
        with System(**flags) as system:
            with system.tap() as tap:
                walker = Walker(tap)
                walker.walk(1500, hz=500)
                before = system.pid("correlator")
                killer = threading.Thread(target=system.kill, args=("correlator",))
                killer.start()
                while killer.is_alive():
                    walker.walk(50, hz=500)
                walker.walk(1000, hz=500)
                run_id = tap.run_id
            assert system.pid("correlator") != before
            found = system.wait(lambda state: everything(state, run_id, walker.steps))
    assert found.steps == walker.steps


def everything(state, run_id, steps):
    known = state.profiles.get((run_id, "net.0"))
    return known if known is not None and known.steps == steps else None
