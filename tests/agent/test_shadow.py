from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from interlatent_live import attach
from interlatent_live.agent import shadow_thread
from interlatent_live.agent.shadow import ShadowOptions
from interlatent_live.agent.shadow_link import report_of
from interlatent_live.errors import MismatchError, UserError
from interlatent_live.policies.hashing import policy_hash
from interlatent_live.transcoders.config import Architecture, TranscoderConfig
from interlatent_live.transcoders.native import LoadedTranscoder, Provenance
from interlatent_live.transcoders.transcoder import Transcoder
from tests.support.shadow_policies import (
    WIDTH,
    Normalised,
    NumpyNoise,
    OddTensor,
    Recurrent,
    Stochastic,
)

FEATURES = 6


@pytest.fixture(autouse=True)
def a_thread_that_takes_all_the_time_it_needs(monkeypatch):
    monkeypatch.setattr(shadow_thread, "DUTY", 0.99)


def made(kind):
    torch.manual_seed(11)
    return kind()


def transcoder(policy, name="body"):
    random = torch.Generator().manual_seed(0)
    tensors = {
        "W_enc": torch.randn(4, FEATURES, generator=random),
        "b_enc": torch.zeros(FEATURES),
        "W_dec": torch.randn(FEATURES, WIDTH, generator=random),
        "b_dec": torch.zeros(WIDTH),
    }
    config = TranscoderConfig(
        architecture=Architecture.RELU, d_in=4, d_out=WIDTH, n_features=FEATURES, l1=1.0
    )
    return LoadedTranscoder(
        Transcoder.from_tensors(config, tensors),
        Provenance(policy_hash=policy_hash(policy), hook_point=name),
        None,
    )


def act(policy, steps, tap=None, halfway=lambda: None):
    """Actions of a seeded run, and the shared generators' states afterwards."""
    torch.manual_seed(3)
    random = np.random.default_rng(5)
    actions = []
    with torch.no_grad():
        for step in range(steps):
            if step == steps // 2:
                halfway()
            policy(torch.from_numpy(random.normal(size=(2, 4)).astype(np.float32)))
            actions.append(policy.action.clone())
            if tap is not None:
                ended = np.array([step % 10 == 9] * 2)
                tap.step(np.zeros((2, 1)), terminated=ended, truncated=np.zeros(2, bool))
    return torch.stack(actions), torch.get_rng_state()


def watched(policy, found=None, **options):
    # On a busy machine the lowest priority would get no time at all to import torch in.
    numbers = {
        "sample_every": 2,
        "period_s": 0.001,
        "controls": 10,
        "steps": 16,
        "nice": 1,
    } | options
    return attach(
        policy,
        ["body"],
        metrics=["m"],
        endpoint=None,
        env_count=2,
        autoreset="next_step",
        actions=("left", "stay", "right"),
        shadow=ShadowOptions(transcoders={"body": found or transcoder(policy)}, **numbers),
        strict=True,
    )


def act_until_measured(policy, tap):
    """The process is there some seconds after the first forward, and samples from then on."""
    wait_for(lambda: act(policy, 10, tap) and tap.shadow.reports())


def wait_for(what, within_s=200.0):
    until = time.monotonic() + within_s
    while not (found := what()):
        assert time.monotonic() < until, "it did not come in time"
        time.sleep(0.02)
    return found


KINDS = [Stochastic, Recurrent, Normalised, NumpyNoise]


@pytest.mark.parametrize("kind", KINDS)
def test_the_action_sequence_is_the_same_to_the_bit_beside_a_shadow_in_a_process(kind):
    np.random.seed(1)  # noqa: NPY002 - what NumpyNoise draws from
    expected, state = act(made(kind), 600)
    policy = made(kind)
    np.random.seed(1)  # noqa: NPY002 - likewise
    with watched(policy) as tap:
        shadow = tap.shadow
        # The second half acts while it measures.
        got, after = act(policy, 600, tap, lambda: wait_for(shadow.reports))
        assert (shadow.off, shadow.faults, shadow.in_thread_because) == ("", 0, "")
        assert shadow.left_out == 0
        pid = shadow.pid
        assert os.getpriority(os.PRIO_PROCESS, pid) == 1
    assert torch.equal(got, expected)
    assert torch.equal(after, state)
    assert not any(t.name == "interlatent-shadow" for t in threading.enumerate())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("kind", KINDS[:3])
def test_the_action_sequence_is_the_same_to_the_bit_beside_a_shadow_on_a_thread(kind):
    expected, state = act(made(kind), 600)
    policy = made(kind)
    with watched(policy, process=False) as tap:
        got, after = act(policy, 600, tap)
        assert tap.shadow.measure_next()
        assert tap.shadow.reports()
        assert (tap.shadow.off, tap.shadow.faults) == ("", 0)
        assert tap.shadow.in_thread_because == "it was asked for"
    assert torch.equal(got, expected)
    assert torch.equal(after, state)
    assert not any(t.name == "interlatent-shadow" for t in threading.enumerate())


def test_the_effect_of_a_feature_is_the_one_that_was_planted():
    policy = made(Normalised).eval()
    with torch.no_grad():
        # Feature 0 writes to unit 0 alone, which pushes to the right and nowhere else.
        policy.norm.weight[0] = 1.0
        policy.norm.bias.fill_(5.0)
        policy.head.weight[:, 0] = torch.tensor([0.0, 0.0, 6.0])
        found = transcoder(policy)
        found.transcoder.W_dec[0] = 0.0
        found.transcoder.W_dec[0, 0] = 1.0
    numbers = {"sample_every": 1, "controls": 100, "steps": 48}
    with watched(policy, found, **numbers) as tap:
        (measured,) = wait_for(
            lambda: (
                act(policy, 50, tap) and [one for one in tap.shadow.reports() if one.feature == 0]
            )
        )
    with watched(policy, found, process=False, period_s=60.0, **numbers) as tap:
        act(policy, 200, tap)
        by_thread = {one.feature: one for one in (tap.shadow.measure_next() for _ in range(6))}[0]
    left, _, right = measured.effects
    assert right.effect.low > 0 > left.effect.high
    assert right.controls == 100
    assert set(right.percentile) == {
        "isotropic",
        "activation covariance",
        "other features",
        "same feature when off",
        "constant bias",
    }
    assert right.percentile["isotropic"].value >= 95
    assert measured.episodes >= 3
    # The two saw other steps of the same run, so only their intervals can agree.
    on_thread = by_thread.effects[2].effect
    assert on_thread.low < right.effect.high
    assert right.effect.low < on_thread.high
    sent = report_of(measured, tap.run_id, ("left", "stay", "right"))
    assert [one.action for one in sent.effects] == ["left", "stay", "right"]


def test_a_policy_that_draws_from_numpys_shared_generator_has_no_shadow_on_a_thread():
    policy = made(NumpyNoise)
    np.random.seed(1)  # noqa: NPY002 - what it draws from
    expected, _ = act(policy, 40)
    policy = made(NumpyNoise)
    np.random.seed(1)  # noqa: NPY002 - likewise
    with watched(policy, process=False) as tap:
        got, _ = act(policy, 40, tap)
        assert "NumPy" in tap.shadow.off
        assert tap.shadow.reports() == ()
    assert torch.equal(got, expected)


def test_a_policy_that_no_other_process_can_rebuild_is_measured_on_a_thread_which_says_why(caplog):
    class Local(Stochastic):
        """Nobody can import it."""

    policy = made(Local)
    with watched(policy) as tap:
        assert "Local" in tap.shadow.in_thread_because
        assert "for a hundredth of its time" in caplog.text
        act(policy, 60, tap)
        assert tap.shadow.measure_next()


@pytest.mark.parametrize("process", [True, False])
def test_other_weights_end_the_shadow_because_no_transcoder_is_theirs(process):
    policy = made(Stochastic)
    with watched(policy, process=process) as tap:
        act_until_measured(policy, tap)
        with torch.no_grad():
            policy.head.weight += 0.1
        act(policy, 8, tap)
        wait_for(lambda: "weights changed" in tap.shadow.off)


@pytest.mark.parametrize("process", [True, False])
def test_weights_that_were_written_anew_without_a_change_go_on_being_measured(process):
    policy = made(Stochastic)
    with watched(policy, process=process) as tap:
        act_until_measured(policy, tap)
        with torch.no_grad():
            policy.head.weight += 0.0
        before = sum(one.steps for one in tap.shadow.reports())
        act(policy, 40, tap)
        wait_for(lambda: sum(one.steps for one in tap.shadow.reports()) > before)
        assert tap.shadow.off == ""


def test_what_cannot_go_into_shared_memory_ends_the_shadow_with_a_reason():
    policy = made(Stochastic)
    with watched(policy, sample_every=1) as tap:
        with torch.no_grad():
            policy(OddTensor(torch.zeros(2, 4)))
        wait_for(lambda: "OddTensor" in tap.shadow.off)
    assert tap.shadow.faults == 0


AGENT = """
import sys, time
import torch
from tests.agent.test_shadow import act_until_measured, made, watched
from tests.support.shadow_policies import Stochastic

policy = made(Stochastic)
tap = watched(policy)
act_until_measured(policy, tap)
print(tap.shadow.pid, flush=True)
time.sleep(300)
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_its_process_ends_with_the_agent_however_that_ends(end):
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", AGENT]
    with subprocess.Popen(
        command,
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    ) as agent:
        try:
            pid = int(agent.stdout.readline())
            os.killpg(agent.pid, end)  # as the terminal does it
            _, errors = agent.communicate(timeout=30)
        finally:
            agent.kill()
    assert errors.count(b"Traceback") == (end == signal.SIGINT), "the agent's own, if any"

    def gone():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"

    wait_for(gone, 10)


def test_what_cannot_be_measured_is_refused_at_once():
    policy, other = made(Stochastic), made(Recurrent)
    with pytest.raises(MismatchError):
        attach(
            policy,
            ["body"],
            metrics=["m"],
            endpoint=None,
            shadow=ShadowOptions(transcoders={"body": transcoder(other)}),
        )
    with pytest.raises(UserError, match="not among the hook points"):
        attach(
            policy,
            ["body"],
            metrics=["m"],
            endpoint=None,
            shadow=ShadowOptions(transcoders={"head": transcoder(policy, "head")}),
        )
    assert ShadowOptions(transcoders={}).nice == 19
    with pytest.raises(UserError, match="sample_every is 0"):
        ShadowOptions(transcoders={}, sample_every=0)
