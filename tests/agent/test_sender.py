"""The sender over real sockets: nothing is lost silently, and nothing reaches the policy."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import torch
import zmq
from gymnasium.vector import SyncVectorEnv

from interlatent_live import Tap, attach
from interlatent_live.errors import UserError
from interlatent_live.stream import HookPointSpec

from .conftest import CounterEnv, act
from .service import Service, until

HOOKS = (HookPointSpec("h", 3, 2),)
UNUSED = "tcp://127.0.0.1:9"


def publish(tap, count, start=0, pause=0.0):
    for i in range(start, start + count):
        tap.publish({"i": i}, {"h": [i, i, i]}, {"h": [i, i]}, terminated=i % 10 == 9)
        if pause:
            time.sleep(pause)


def make(endpoint, **options):
    return Tap(["i"], hook_points=HOOKS, endpoint=endpoint, y_every=1, strict=True, **options)


def balanced(stats):
    link = stats.link
    assert link.sent == link.acknowledged + sum(link.lost.values()) + link.in_flight
    assert stats.steps == stats.waiting + link.sent
    return True


def test_every_step_arrives_whole_and_in_order():
    with Service() as service:
        tap = make(service.endpoint)
        publish(tap, 500, pause=0.0002)
        tap.close()
        stats = tap.stats()
        boot = tap.boot_id
        assert until(lambda: boot in service.goodbyes)
    assert service.column("seq").tolist() == list(range(500))
    assert service.column("metrics")[:, 0].tolist() == list(range(500))
    assert service.column("x:h")[:, 2].tolist() == list(range(500))
    assert service.column("y:h")[:, 0].tolist() == list(range(500))
    assert service.column("t").tolist() == [i % 10 for i in range(500)]
    assert service.column("episode").tolist() == [i // 10 for i in range(500)]
    assert service.manifests[boot] == tap.manifest
    assert balanced(stats)
    assert (stats.link.acknowledged, stats.link.lost, stats.waiting) == (500, {}, 0)
    assert service.goodbyes[boot].acknowledged == 500


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 0), ("float16", 1e-3), ("bfloat16", 1e-2)]
)
def test_activations_travel_in_the_chosen_dtype(dtype, tolerance):
    with Service() as service:
        with make(service.endpoint, dtype=dtype) as tap:
            tap.publish({"i": 0.1}, {"h": [0.1, 2.5, -3.3]}, {"h": [1e-3, 7]})
        assert until(lambda: len(service.delivered) > 0)
    x = service.column("x:h")[0].astype(np.float64)
    np.testing.assert_allclose(
        x, np.array([0.1, 2.5, -3.3], np.float32).astype(float), rtol=tolerance
    )
    assert service.column("metrics")[0, 0] == 0.1
    assert x.dtype == np.float64


@pytest.mark.parametrize("sockets", ["hooks", "vector"])
def test_alignment_holds_over_the_wire(policy, sockets):
    n = 1 if sockets == "hooks" else 3
    env = CounterEnv(5) if n == 1 else SyncVectorEnv([lambda: CounterEnv(5) for _ in range(n)])
    with Service() as service:
        with attach(
            policy, ["first"], env=env, endpoint=service.endpoint, y_every=3, strict=True
        ) as tap:
            env = tap.wrap(env)
            obs, _ = env.reset()
            for _ in range(100):
                obs, _, terminated, truncated, _ = env.step(act(policy, obs))
                if n == 1 and (terminated or truncated):
                    obs, _ = env.reset()
        total = tap.stats().steps
        assert until(lambda: len(service.column("seq")) == total)
    number = 1000.0 * service.column("episode") + service.column("t")
    names = [m.name for m in tap.metrics.specs]
    metrics = service.column("metrics")
    assert np.array_equal(metrics[:, names.index("obs_0")], number)
    assert np.array_equal(metrics[:, names.index("reward")], 2 * number + 0.5)
    assert np.array_equal(service.column("x:first")[:, 0], number)
    for message in service.delivered:
        steps, seen = message.batch.steps, message.batch.activations["first"]
        rows = seen.y_rows.astype(int)
        assert np.array_equal(seen.y[:, 1], (1000.0 * steps.episode + steps.t)[rows])


def test_without_a_service_steps_are_declared_and_the_agent_goes_on():
    tap = make(UNUSED, max_steps=64, max_age_s=0.2)
    publish(tap, 1000)
    assert until(lambda: tap.stats().link.sent >= 900)
    publish(tap, 50, 1000)
    assert until(lambda: tap.stats().link.lost.get("no_peer", 0) >= 50)
    started = time.monotonic()
    tap.close()
    assert time.monotonic() - started < 1.5
    stats = tap.stats()
    assert balanced(stats)
    assert stats.steps == 1050
    assert sum(stats.link.lost.values()) == 1050
    assert stats.link.lost["overrun"] > 0
    assert stats.faults == 0


def test_a_service_that_comes_later_gets_what_is_fresh():
    with Service() as early:
        endpoint = early.endpoint
    tap = make(endpoint, max_age_s=30.0, max_steps=256)
    publish(tap, 600)
    with Service(endpoint) as service:
        assert until(lambda: tap.stats().link.state == "open")
        publish(tap, 50, 600)
        tap.close()
        stats = tap.stats()
        seq = service.column("seq")
        counts = service.hub.counts(tap.boot_id)
    assert balanced(stats)
    assert stats.link.acknowledged == len(seq)
    assert seq[-1] == 649
    assert np.all(np.diff(seq) == 1)
    assert stats.link.lost == {"overrun": 650 - len(seq)}
    assert counts.undeclared == 0


def test_a_frozen_service_costs_declared_steps_and_is_found_again():
    with Service(peer_timeout=60.0) as service:
        tap = make(service.endpoint, max_age_s=0.3)
        publish(tap, 50, pause=0.001)
        assert until(lambda: tap.stats().link.acknowledged == 50)
        service.frozen.set()
        durations = []
        for i in range(50, 550):
            started = time.perf_counter()
            publish(tap, 1, i)
            durations.append(time.perf_counter() - started)
            time.sleep(0.011)  # together longer than a peer may be silent
        assert np.median(durations) < 0.001
        service.frozen.clear()
        assert until(lambda: tap.stats().link.state == "open", 15)
        publish(tap, 100, 550, pause=0.001)
        tap.close()
        stats = tap.stats()
        assert until(lambda: tap.boot_id in service.goodbyes)
        counts = service.hub.counts(tap.boot_id)
        seq = service.column("seq")
    assert balanced(stats)
    assert stats.link.lost
    assert counts.undeclared == 0
    assert stats.link.acknowledged <= len(seq)
    assert set(range(550, 650)) <= set(seq.tolist())
    assert len(set(seq.tolist())) == len(seq)


def test_without_credit_steps_wait_and_age():
    with Service(window_steps=64, window_bytes=2**20) as service:
        service.processing = False
        tap = make(service.endpoint, max_age_s=0.2)
        publish(tap, 300, pause=0.0005)
        assert until(lambda: tap.stats().link.lost.get("no_credit", 0) > 0)
        tap.close(0.5)
        stats = tap.stats()
    assert balanced(stats)
    assert len(service.column("seq")) <= 64
    assert stats.steps == 300


def test_a_refusal_is_said_once_and_the_agent_goes_on(caplog):
    with (
        Service(refuse="no transcoder for sha256:aa; known are sha256:bb") as service,
        caplog.at_level(logging.WARNING),
    ):
        tap = make(service.endpoint)
        publish(tap, 10)
        assert until(lambda: tap.stats().link.state == "refused")
        publish(tap, 10, 10)
        tap.close()
    assert "no transcoder for sha256:aa" in tap.stats().link.last_error
    assert len([r for r in caplog.records if "refused" in r.getMessage()]) == 1
    assert tap.stats().faults == 0


def test_garbage_from_the_service_is_ignored():
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    tap = make(f"tcp://127.0.0.1:{port}")
    publish(tap, 10)
    peer, *_ = router.recv_multipart()
    for frames in ([b""], [b"\xff" * 50], [b"\x80"], [os.urandom(100), b"x", b"y"]):
        router.send_multipart([peer, *frames])
    publish(tap, 10, 10)
    assert until(lambda: tap.stats().link.last_error != "")
    tap.close(0.2)
    assert tap.stats().faults == 0
    assert balanced(tap.stats())
    router.close(0)
    context.term()


def test_a_restarted_service_declares_what_was_in_flight():
    first = Service()
    endpoint = first.endpoint
    tap = make(endpoint, max_age_s=30.0)
    publish(tap, 100, pause=0.001)
    assert until(lambda: tap.stats().link.acknowledged > 50)
    first.processing = False
    publish(tap, 50, 100, pause=0.001)
    first.close()
    with Service(endpoint) as second:
        publish(tap, 50, 150, pause=0.001)
        assert until(lambda: second.hellos and tap.stats().link.state == "open", 15)
        publish(tap, 50, 200, pause=0.001)
        tap.close()
        stats = tap.stats()
        counts = second.hub.counts(tap.boot_id)
        assert set(range(200, 250)) <= set(second.column("seq").tolist())
    assert balanced(stats)
    assert stats.link.lost.get("peer_lost", 0) > 0
    assert counts.undeclared == 0
    assert stats.link.acknowledged + sum(stats.link.lost.values()) == 250


def test_more_copies_than_a_message_may_have_rows():
    n = 100
    with Service(max_rows=32) as service:
        tap = Tap(
            ["i"],
            endpoint=service.endpoint,
            env_count=n,
            autoreset="same_step",
            strict=True,
            y_every=1,
        )
        for i in range(20):
            block = np.arange(n) + 1000 * i
            tap.publish({"i": block}, {"h": block[:, None]}, {"h": block[:, None]})
            time.sleep(0.002)
        tap.close()
        assert tap.stats().link.acknowledged + sum(tap.stats().link.lost.values()) == 20 * n
    late = service.column("seq") >= n  # the first block was read before the receiver had spoken
    assert max(len(m.batch.steps) for m in service.delivered[4:]) <= 32
    assert np.array_equal(service.column("x:h")[:, 0], service.column("metrics")[:, 0])
    assert late.any()


@pytest.mark.parametrize("options", [{"agent": "evil\nname"}, {"environment": "\u202e"}])
def test_names_that_do_not_fit_the_wire_are_refused_at_once(options):
    with pytest.raises(UserError):
        make(UNUSED, **options)


def test_an_address_that_is_none_is_refused_at_once():
    with pytest.raises(UserError, match="nowhere"):
        make("nowhere")


def test_a_forked_child_stays_inert(policy):
    with Service() as service:
        tap = attach(policy, ["first"], ["i"], endpoint=service.endpoint, strict=True, y_every=1)
        act(policy, [[1.0]])
        tap.step({"i": 0})
        assert until(lambda: tap.stats().link.acknowledged == 1)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # forking beside threads is the point
            child = os.fork()
        if child == 0:
            try:
                act(policy, [[2.0]])
                tap.step({"i": 99})
                tap.close()
                os._exit(0 if tap.stats().steps == 1 else 1)
            finally:
                os._exit(2)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        act(policy, [[3.0]])
        tap.step({"i": 1})
        tap.close()
        assert service.column("metrics")[:, 0].tolist() == [0, 1]
        assert tap.stats().link.acknowledged == 2


def test_publishing_imports_no_torch():
    code = (
        "import sys; from interlatent_live import Tap; "
        "tap = Tap(['a'], endpoint='tcp://127.0.0.1:9', strict=True); "
        "tap.publish([1.0], {'h': [1, 2]}, {'h': [3]}); tap.close(0.1); "
        "assert tap.stats().steps == 1, tap.stats(); "
        "assert 'torch' not in sys.modules and 'gymnasium' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_learning_in_between_is_never_a_step(policy):
    """The rule holds with the sender on: optimiser, minibatch and step interleave."""
    optimiser = torch.optim.SGD(policy.parameters(), lr=0.0)
    env = CounterEnv(5)
    with Service() as service:
        with attach(
            policy,
            ["first"],
            env=env,
            endpoint=service.endpoint,
            y_every=1,
            strict=True,
            learning=True,
        ) as tap:
            env = tap.wrap(env)
            obs, _ = env.reset()
            for _ in range(50):
                obs, _, terminated, truncated, _ = env.step(act(policy, obs))
                policy(torch.randn(1, 1)).sum().backward()
                optimiser.step()
                if terminated or truncated:
                    obs, _ = env.reset()
        assert until(lambda: len(service.column("seq")) == 50)
    number = 1000.0 * service.column("episode") + service.column("t")
    assert np.array_equal(service.column("x:first")[:, 0], number)
