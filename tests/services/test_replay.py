"""Recordings through services of their own, as the command does it."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from interlatent_live.cli.replay import _pace, _seconds
from interlatent_live.config import resolve
from interlatent_live.errors import UserError
from interlatent_live.pipeline.correlator import CorrelatorCore
from interlatent_live.queries.client import StatisticsClient
from interlatent_live.recordings import RecordingWriter
from interlatent_live.recordings.origins import SETTINGS, settings_text, with_recorded
from interlatent_live.recordings.playing import Playing, recording_files
from interlatent_live.services.replay import ReplaySystem, replay_settings
from interlatent_live.statistics.config import CorrelatorConfig
from interlatent_live.wire.codec import encode_features, encode_hello
from tests.support.planted_stream import HOOK, LEAN, TRANSCODER, episodes, manifest

START_NS = 1_700_000_000_000_000_000
EPISODES = 60


@pytest.fixture
def recording(tmp_path):
    resolved = resolve(flags={"explainer.null_draws": 99}, environment={})
    facts = {SETTINGS: settings_text(resolved.settings)}
    path = tmp_path / "interlatent-20231114T221320Z-1.mcap"
    with RecordingWriter(path, provenance=facts) as writer:
        hello = encode_hello(manifest(), transcoders={HOOK: TRANSCODER})
        writer.write(hello, time_ns=START_NS)
        for number, batch in enumerate(episodes(EPISODES, start_ns=START_NS)):
            writer.write(encode_features(batch), time_ns=START_NS + number * 1_200_000_000)
    return path


def test_the_settings_of_the_recording_hold_where_nobody_chose_others(recording):
    plain = resolve(environment={})
    text = settings_text(resolve(flags={"explainer.null_draws": 99}, environment={}).settings)
    assert with_recorded(plain, {SETTINGS: text}).explainer.null_draws == 99
    chosen = resolve(flags={"explainer.null_draws": 499}, environment={})
    assert with_recorded(chosen, {SETTINGS: text}).explainer.null_draws == 499
    assert with_recorded(plain, {SETTINGS: "no JSON"}) == plain.settings


def test_a_recording_comes_to_the_statistics_of_its_rows(recording, tmp_path):
    core = CorrelatorCore(CorrelatorConfig(), clock=lambda: 1)
    core.hello(manifest())
    for batch in episodes(EPISODES, start_ns=START_NS):
        core.features(batch)
    files = recording_files([recording])
    settings = with_recorded(resolve(environment={}), {SETTINGS: "{}"})
    with ReplaySystem(replay_settings(settings, files, tmp_path / "state")) as system:
        counts = system.play(Playing(files).messages(), speed=None)
        assert counts.rows == EPISODES * 120
        assert counts.lost == counts.declared == 0
        assert system.settle(120)
        (status,) = system.state.agents.agents
        assert (status.agent, status.steps_sent) == ("walker", EPISODES * 120)
        (claims,) = system.state.claims.values()
        (lean,) = [one for one in claims.claims if f"/{LEAN}@" in one["address"]]
        assert lean["verdict"] in {"verified", "pending"}
        with StatisticsClient(system.settings.endpoints.correlator_queries) as client:
            columns = client.columns(run="run", hook_point=HOOK)
    stream = core.find("run", HOOK)
    assert stream is not None
    table = stream.correlator.table()
    for name in ("r", "lo", "hi", "mean_on", "mean_off"):
        np.testing.assert_allclose(columns[name], getattr(table, name).ravel(), atol=1e-9)


def test_the_command_ends_with_a_summary_and_leaves_nothing_behind(recording):
    done = subprocess.run(
        [sys.executable, "-m", "interlatent_live", "replay", str(recording)],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "http://127.0.0.1:" in done.stdout
    assert f"{EPISODES * 120:,} rows of 1 runs" in done.stdout
    assert f"run at {HOOK}:" in done.stdout


def test_ctrl_c_ends_it_cleanly(recording):
    command = [sys.executable, "-m", "interlatent_live", "replay", str(recording), "--speed", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    assert "look at" in process.stdout.readline()
    time.sleep(1.0)
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_how_long_a_recording_is_stands_in_its_index(recording, tmp_path):
    assert _seconds([recording]) == pytest.approx((EPISODES - 1) * 1.2)
    cut_off = tmp_path / "cut.mcap"
    cut_off.write_bytes(recording.read_bytes()[:-200])
    assert _seconds([recording, cut_off]) is None


def test_a_speed_is_a_number_or_max():
    assert _pace("max") is None
    assert _pace("10") == 10.0
    with pytest.raises(UserError, match="--speed fast"):
        _pace("fast")
