"""The tap on a CUDA policy: the right numbers, and no synchronisation in the policy's thread."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402  only where there is torch

from interlatent_live import attach  # noqa: E402  likewise

pytestmark = pytest.mark.gpu


class Policy(nn.Module):
    """The second layer's output is overwritten in place right after its hook ran."""

    def __init__(self, width=256):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)

    def forward(self, obs):
        hidden = self.second(torch.tanh(self.first(obs)))
        hidden.mul_(0.0)
        return hidden


def tapped(policy, n=1, **options):
    env = {} if n == 1 else {"env_count": n, "autoreset": "same_step"}
    options = {"endpoint": None, "y_every": 1, "strict": True} | options
    return attach(policy, ["first", "second"], ["i"], **env, **options)


def drain(tap):
    torch.cuda.synchronize()
    batches = []
    while (batch := tap.take()) is not None:
        batches.append(batch)
    return batches


def rows(batches, hook, which):
    return np.concatenate([getattr(b.activations[hook], which) for b in batches])


@pytest.mark.parametrize("n", [1, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_what_the_modules_saw(n, dtype):
    policy = Policy().to("cuda", dtype)
    obs = torch.randn(200, n, 256, device="cuda").to(dtype)
    with tapped(policy, n) as tap, torch.no_grad():
        for i in range(200):
            policy(obs[i])
            tap.step({"i": np.full(n, i) if n > 1 else i})
        batches = drain(tap)
        hidden = policy.first(obs)
        out = policy.second(torch.tanh(hidden))
    assert rows(batches, "first", "x").shape == (200 * n, 256)
    assert np.array_equal(rows(batches, "first", "x"), obs.float().cpu().reshape(-1, 256).numpy())
    # One product per step and one over all steps may round differently.
    tolerance = 1e-4 if dtype is torch.float32 else 3e-2
    for hook, expected in (("first", hidden), ("second", out)):
        np.testing.assert_allclose(
            rows(batches, hook, "y"),
            expected.float().cpu().reshape(-1, 256).numpy(),
            atol=tolerance,
        )
    assert np.concatenate([b.steps.metrics[:, 0] for b in batches])[::n].tolist() == list(
        range(200)
    )


def test_the_policys_thread_never_waits_for_the_device():
    policy = Policy().cuda()
    obs = torch.randn(64, 1, 256, device="cuda")
    with tapped(policy, y_every=2, max_steps=128) as tap, torch.no_grad():
        for i in range(20):
            policy(obs[i])
            tap.step({"i": i})
        before = torch.cuda.memory_allocated()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for i in range(3000):
                policy(obs[i % 64])
                tap.step({"i": i})
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.cuda.memory_allocated() == before
        # A slow device: the steps go on while their copies are still under way.
        torch.cuda._sleep(200_000_000)
        policy(obs[0])
        tap.step({"i": -1})
        assert tap.take() is not None or tap.stats().steps == 3021
        batches = drain(tap)
    assert tap.stats().faults == 0
    last = batches[-1]
    assert last.steps.metrics[-1, 0] == -1
    assert np.array_equal(last.activations["first"].x[-1], obs[0, 0].cpu().numpy())


def test_a_row_is_not_taken_before_its_copy_landed():
    policy = Policy().cuda()
    obs = torch.ones(1, 256, device="cuda")
    with tapped(policy) as tap, torch.no_grad():
        policy(obs)
        tap.step({"i": 0})
        drain(tap)
        torch.cuda._sleep(400_000_000)
        policy(obs * 2)
        tap.step({"i": 1})
        assert tap.take() is None
        (batch,) = drain(tap)
    assert np.array_equal(batch.activations["first"].x, np.full((1, 256), 2.0, np.float32))


def test_outputs_are_bit_identical_with_the_tap_on():
    obs = torch.randn(100, 4, 256, device="cuda")

    def rollout(watched):
        torch.manual_seed(1)
        policy = nn.Sequential(
            nn.Linear(256, 64), nn.BatchNorm1d(64), nn.Dropout(0.2), nn.Linear(64, 4)
        ).cuda()
        tap = None
        if watched:
            tap = attach(policy, ["0", "3"], endpoint=None, env_count=4, autoreset="same_step")
        outputs = []
        with torch.no_grad():
            for row in obs:
                outputs.append(policy(row))
                if tap:
                    tap.step()
        if tap:
            tap.close()
        return torch.stack(outputs)

    assert torch.equal(rollout(watched=False), rollout(watched=True))


def test_a_subset_of_copies():
    policy = Policy().cuda()
    obs = torch.randn(50, 8, 256, device="cuda")
    with tapped(policy, 8, envs=(6, 2)) as tap, torch.no_grad():
        for i in range(50):
            policy(obs[i])
            tap.step({"i": np.arange(8) + 100 * i})
        batches = drain(tap)
    x = rows(batches, "first", "x").reshape(50, 2, 256)
    assert np.array_equal(x, obs[:, [6, 2]].cpu().numpy())
    assert np.concatenate([b.steps.env for b in batches])[:2].tolist() == [6, 2]


def test_forwards_of_a_graph_capture_are_not_taken():
    policy = Policy().cuda()
    static = torch.zeros(1, 256, device="cuda")
    with tapped(policy) as tap, torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                policy(static)
        torch.cuda.current_stream().wait_stream(side)
        tap.step({"i": 0})
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            policy(static)
        graph.replay()
        tap.step({"i": 1})
        batches = drain(tap)
    flags = np.concatenate([b.steps.flags for b in batches])
    assert flags.tolist() == [0, 4]
    assert tap.stats().refused_forwards["first"]["capture"] >= 1


def test_the_pinned_ring_streams_over_the_wire():
    policy = Policy().cuda()
    with (
        tapped(policy, endpoint="tcp://127.0.0.1:9", max_age_s=0.1) as tap,
        torch.no_grad(),
    ):
        for i in range(500):
            policy(torch.ones(1, 256, device="cuda"))
            tap.step({"i": i})
    assert tap.stats().faults == 0
    assert sum(tap.stats().link.lost.values()) == 500
