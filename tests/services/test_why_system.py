"""Why this action? Through every service, of a real policy with its transcoder.

Whatever is frozen on the way, the agent steps as before and whoever asks is told in a sentence.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import interlatent_live
from interlatent_live import attach
from interlatent_live.agent.shadow import ShadowOptions
from interlatent_live.client import ConsoleClient, ConsoleError
from interlatent_live.console.secrets import load_token, request_key, state_folder
from interlatent_live.environments.metric_packs import StepMetrics, metric_pack_for
from interlatent_live.transcoders.acting import acting_policy
from tests.support.system import System

pytestmark = pytest.mark.slow

DATA = Path(interlatent_live.__file__).parent / "data"
HOOK = "hidden.1"
COPIES = 3
HZ = 100.0


class Cart:
    """The shipped CartPole policy in a thread; it remembers what it saw and how long steps took."""

    def __init__(self, settings, name, **shadow):
        self.seen: dict[tuple[int, int, int], np.ndarray] = {}
        self.micros: list[float] = []
        self.policy = acting_policy("cartpole")
        self._settings, self._name = settings, name
        self._shadow = None
        if shadow:
            self._shadow = ShadowOptions(
                transcoders={HOOK: DATA / "transcoders" / "cartpole" / HOOK},
                sample_every=4,
                explainer=settings.endpoints.explainer_requests,
                key=request_key(load_token(state_folder(settings))),
                nice=1,  # the lowest priority starves where many tests run
                **shadow,
            )
        self.tap = None
        self._begun, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._act)

    def __enter__(self):
        self._thread.start()
        assert self._begun.wait(60)
        return self

    def __exit__(self, *error):
        self._ended.set()
        self._thread.join()

    def _act(self):
        policy = self.policy
        measure = StepMetrics(metric_pack_for("CartPole-v1"), policy.output_kind)
        envs = SyncVectorEnv(
            [lambda: gymnasium.make("CartPole-v1", max_episode_steps=60)] * COPIES,
            autoreset_mode=AutoresetMode.SAME_STEP,
        )
        obs, _ = envs.reset(seed=5)
        t, episode = np.zeros(COPIES, np.int64), np.zeros(COPIES, np.int64)
        with attach(
            policy.module,
            [HOOK],
            metrics=measure.specs,
            endpoint=self._settings.endpoints.agents,
            agent=self._name,
            env=envs,
            environment="CartPole-v1",
            actions=("push left", "push right"),
            shadow=self._shadow,
        ) as tap:
            self.tap = tap
            self._begun.set()
            while not self._ended.wait(1 / HZ):
                for copy in range(COPIES):
                    self.seen[copy, int(episode[copy]), int(t[copy])] = obs[copy].copy()
                began = time.perf_counter()
                with torch.no_grad():
                    outputs = policy.module(torch.from_numpy(obs.copy()))
                took = time.perf_counter() - began
                actions = policy.actions(outputs)
                following, rewards, terminated, truncated, _ = envs.step(actions)
                rows = measure.rows(obs, t, actions, rewards, outputs.numpy())
                began = time.perf_counter()
                tap.complete(rows, terminated, truncated)
                self.micros.append((took + time.perf_counter() - began) * 1e6)
                ended = terminated | truncated
                episode += ended
                t = np.where(ended, 0, t + 1)
                obs = following
        envs.close()


@pytest.fixture(scope="module")
def system():
    recording = DATA / "recordings" / "cartpole.mcap"
    with System(**{"explainer.calibration": str(recording)}) as running:
        yield running


@pytest.fixture(scope="module")
def cart(system):
    with Cart(system.settings, "cart", period_s=0.5) as one:
        yield one


@pytest.fixture
def console(system):
    with ConsoleClient.of(system.settings) as one:
        yield one


def asked(console, agent, within_s=120.0, **question):
    """The account, once the shadow's process has imported torch and heard of the policy."""
    until = time.monotonic() + within_s
    while True:
        try:
            return console.why(agent, **question)
        except ConsoleError as error:
            if error.why not in {"unknown", "busy", "rate"} or time.monotonic() > until:
                raise
        time.sleep(1.1)


def test_a_decision_adds_up_and_is_the_one_that_was_taken(cart, console):
    copies = set()
    for copy in (0, 1, 2, 1):
        found = asked(console, "cart", env=copy)
        copies.add(found.env)
        assert found.run_id == cart.tap.run_id
        assert 0 <= found.age_s < 30
        # What the agent saw and its policy said at that very step.
        seen = cart.seen[found.env, found.episode, found.t]
        with torch.no_grad():
            scores = cart.policy.module(torch.from_numpy(seen[None]))[0].double()
        best = int(scores.argmax())
        assert found.chosen == ("push left", "push right")[best]
        assert found.value == pytest.approx(float(scores[best] - scores[1 - best]), abs=1e-4)
        assert found.residual < 1e-4
        for level in found.levels:
            assert sum(term.contribution for term in level) == pytest.approx(found.value, abs=1e-4)
        angle = next(term for term in found.levels[-1] if term.label == "pole_angle")
        assert angle.unit == "rad"
        assert angle.value == pytest.approx(float(seen[2]), abs=1e-5)
        assert any(term.kind == "error" for term in found.levels[0])
        # Behind the last hidden layer the head is linear: ablation measures what the terms say.
        assert found.ablations
        for one in found.ablations:
            assert one.measured == pytest.approx(one.contribution, abs=1e-4)
        again = asked(console, "cart", env=copy, episode=found.episode, t=found.t)
        assert (again.time_ns, again.value) == (found.time_ns, pytest.approx(found.value))
    assert copies == {0, 1, 2}
    assert cart.tap.shadow.faults == 0
    with pytest.raises(ConsoleError, match="is not held: every 4th forward") as refused:
        asked(console, "cart", episode=10**6, t=0)
    assert (refused.value.status, refused.value.why) == (409, "refused")


def test_features_come_with_their_verified_claims(cart, console, system):
    def with_claims(_):
        found = asked(console, "cart")
        return [t for t in found.levels[0] if t.claim is not None]

    term, *_ = system.wait(with_claims, timeout_s=120.0)
    claim = console.claim(term.claim.id)
    assert (claim.run_id, claim.verdict) == (cart.tap.run_id, "verified")
    assert term.claim.predicate == claim.text.predicate


def stopped(cart, pid, ask):
    """What whoever asks is told while a process is frozen; the agent steps as it did before."""
    first = len(cart.micros)
    time.sleep(3.0)
    before = cart.micros[first:]
    os.kill(pid, signal.SIGSTOP)
    try:
        first = len(cart.micros)
        began = time.monotonic()
        with pytest.raises(ConsoleError) as refused:
            ask()
        took = time.monotonic() - began
        during = cart.micros[first:]
    finally:
        os.kill(pid, signal.SIGCONT)
    # As many steps as before, that took no longer, as far as a busy machine lets one say so.
    assert len(during) / took > 0.5 * len(before) / 3.0
    assert np.median(during) < 2 * np.median(before) + 500
    return refused.value, took


def test_a_frozen_shadow_is_told_of_and_the_agent_goes_on(cart, console):
    asked(console, "cart")
    told, took = stopped(cart, cart.tap.shadow.pid, lambda: console.why("cart"))
    assert (told.status, told.why) == (504, "silent")
    assert "the shadow's process did not answer within 5 s" in str(told)
    assert took < 9
    asked(console, "cart")


def test_an_explainer_that_hangs_is_told_of_and_the_agent_goes_on(cart, console, system):
    asked(console, "cart")
    told, took = stopped(cart, system.pid("explainer"), lambda: console.why("cart"))
    assert (told.status, told.why) == (504, "silent")
    assert "the explainer, which passes the question on" in str(told)
    assert took < 12
    # One that was killed is brought back, and hears of the shadow within seconds.
    system.kill("explainer")
    assert asked(console, "cart").residual < 1e-4


def test_whoever_cannot_say_why_says_so(console, system):
    settings = system.settings
    with pytest.raises(ConsoleError, match=r"no shadow of 'nobody'.*ShadowOptions") as refused:
        console.why("nobody")
    assert (refused.value.status, refused.value.why) == (404, "unknown")
    with (
        Cart(settings, "threaded", process=False),
        pytest.raises(ConsoleError, match=r"a thread of the agent \(it was asked for\)") as refused,
    ):
        asked(console, "threaded")
    assert (refused.value.status, refused.value.why) == (409, "cannot")
