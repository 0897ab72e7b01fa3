"""Hooks on every kind of policy: they copy the right numbers, change none, say why they cannot."""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from interlatent_live import attach
from interlatent_live.agent.acting import Gate
from interlatent_live.agent.hooks import known_widths
from interlatent_live.errors import UserError
from interlatent_live.policies.hashing import policy_hash


def tapped(policy, hooks, **options):
    return attach(policy, hooks, endpoint=None, **({"y_every": 1, "strict": True} | options))


def drain(tap):
    batches = []
    while (batch := tap.take()) is not None:
        batches.append(batch)
    return batches


def columns(tap, hook):
    """x, y of all rows."""
    batches = drain(tap)
    x = np.concatenate([b.activations[hook].x for b in batches])
    return x, np.concatenate([b.activations[hook].y for b in batches])


def mlp(d_in=6, d=5, d_out=3):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(d_in, d), nn.ReLU(), nn.Linear(d, d), nn.Tanh(), nn.Linear(d, d_out)
    )


@pytest.mark.parametrize("n", [1, 4])
def test_a_span_has_the_input_of_its_first_and_the_output_of_its_last_module(n):
    policy = mlp()
    env = {} if n == 1 else {"env_count": n, "autoreset": "same_step"}
    xs, ys = [], []
    with tapped(policy, ["0..1", "2..3", "2"], **env) as tap, torch.no_grad():
        assert [(p.d_in, p.d_out) for p in tap.points.values()] == [(6, 5), (5, 5), (5, 5)]
        for _ in range(5):
            obs = torch.randn(n, 6)
            policy(obs)
            xs.append(policy[:2](obs).numpy())
            ys.append(policy[:4](obs).numpy())
            tap.step(np.zeros((n, 0)))
        x, y = columns(tap, "2..3")
    np.testing.assert_array_equal(x, np.concatenate(xs))
    np.testing.assert_array_equal(y, np.concatenate(ys))


def test_a_spans_ends_are_modules_that_can_be_read():
    policy = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 3))
    with pytest.raises(UserError, match="works in place"):
        tapped(policy, ["0..1"])
    with pytest.raises(UserError, match="no module '7'"):
        tapped(mlp(), ["2..7"])


def test_a_span_never_pairs_the_input_of_one_thread_with_the_output_of_another():
    policy = mlp()
    inside, go_on = threading.Event(), threading.Event()

    class Slow(nn.Module):
        def forward(self, x):
            if threading.current_thread() is not threading.main_thread():
                inside.set()
                go_on.wait(5)
            return x

    policy = nn.Sequential(*list(policy)[:3], Slow(), *list(policy)[3:])
    with tapped(policy, ["2..4"]) as tap, torch.no_grad():
        obs = torch.randn(1, 6)
        policy(obs)
        tap.step([])
        other = threading.Thread(target=policy, args=(torch.randn(1, 6),))
        other.start()
        assert inside.wait(5)
        policy(obs)
        go_on.set()
        other.join()
        tap.step([])
        x, y = columns(tap, "2..4")
    np.testing.assert_array_equal(x[1:], policy[:2](obs).detach().numpy())
    np.testing.assert_array_equal(y[1:], policy[:5](obs).detach().numpy())


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_x_and_y_are_what_the_module_saw(n, dtype):
    policy = mlp().to(dtype)
    env = {} if n == 1 else {"env_count": n, "autoreset": "same_step"}
    xs, ys = [], []
    with tapped(policy, ["2", "3"], **env) as tap, torch.no_grad():
        for _ in range(5):
            obs = torch.randn(n, 6).to(dtype)
            policy(obs)
            xs.append(policy[:2](obs).float().numpy())
            ys.append(policy[:3](obs).float().numpy())
            policy(obs)
            tap.step(terminated=np.zeros(n, bool))
        batches = drain(tap)
    x = np.concatenate([b.activations["2"].x for b in batches])
    y = np.concatenate([b.activations["2"].y for b in batches])
    assert x.dtype == np.float32
    assert np.array_equal(x, np.concatenate(xs))
    assert np.array_equal(y, np.concatenate(ys))
    assert np.array_equal(np.concatenate([b.activations["3"].x for b in batches]), y)


def test_unbatched_and_strided_inputs():
    policy = nn.Linear(6, 2)
    with tapped(nn.ModuleDict({"a": policy}), ["a"]) as tap, torch.no_grad():
        wide = torch.randn(6, 12)
        for i in range(6):
            policy(wide[i, ::2])
            tap.step()
        x, y = columns(tap, "a")
    assert np.array_equal(x, wide[:, ::2].numpy())
    assert np.allclose(y, policy(wide[:, ::2]).detach().numpy())


@pytest.mark.parametrize("unused_axis", [0, 1])
def test_a_recurrent_layer_streams_output_or_hidden_state(unused_axis):
    """The tuple of an LSTM, with one time step before or after the batch axis."""
    n = 3
    lstm = nn.LSTM(4, 5, num_layers=2, batch_first=unused_axis == 1)
    policy = nn.ModuleDict({"memory": lstm, "head": nn.Linear(5, 2)})
    state = None
    outputs = []
    with (
        tapped(
            policy, ["memory", "memory:hidden", "head"], env_count=n, autoreset="same_step"
        ) as tap,
        torch.no_grad(),
    ):
        for _ in range(4):
            out, state = lstm(torch.randn(n, 4).unsqueeze(unused_axis), state)
            outputs.append(out.squeeze(unused_axis).numpy().copy())
            policy["head"](out)
            tap.step()
        batches = drain(tap)
    expected = np.concatenate(outputs)
    y = np.concatenate([b.activations["memory"].y for b in batches])
    hidden = np.concatenate([b.activations["memory:hidden"].y for b in batches])
    head = np.concatenate([b.activations["head"].x for b in batches])
    assert np.array_equal(y, expected)
    assert np.array_equal(hidden, expected)
    assert np.array_equal(head, expected)


def test_images_and_keyword_inputs_are_flattened_rows():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 3, 3)

        def forward(self, obs):
            return self.conv(input=obs)

    net = Net()
    obs = torch.randn(2, 2, 5, 5)
    with tapped(net, ["conv"], env_count=2, autoreset="same_step") as tap, torch.no_grad():
        out = net(obs)
        tap.step()
        x, y = columns(tap, "conv")
    assert np.array_equal(x, obs.reshape(2, -1).numpy())
    assert np.array_equal(y, out.reshape(2, -1).numpy())


class Stochastic(nn.Module):
    """Batch norm in training mode, dropout, a recurrent state, a sampled action."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Tanh())
        self.memory = nn.GRUCell(8, 8)
        self.head = nn.Linear(8, 3)
        self.state: torch.Tensor | None = None

    def forward(self, obs):
        self.state = self.memory(self.body(obs), self.state)
        return torch.distributions.Categorical(logits=self.head(self.state)).sample()


@pytest.mark.parametrize("watched", [False, True])
def test_actions_are_bit_identical_with_the_tap_on(watched):
    def rollout(watch):
        torch.manual_seed(3)
        np.random.seed(3)  # noqa: NPY002  the global generator is what must stay untouched
        policy: Any = Stochastic()
        tap = None
        if watch:
            tap = attach(
                policy,
                ["body.0", "body", "memory", "head"],
                ["a"],
                endpoint=None,
                env_count=4,
                autoreset="next_step",
                strict=True,
            )
        obs = torch.zeros(4, 4)
        actions = []
        with torch.no_grad():
            for _ in range(300):
                action = policy(obs)
                obs = torch.stack([action.float()] * 4, 1) * 0.3 + torch.randn(4, 4) * 0.1
                done = np.random.rand(4) < 0.1  # noqa: NPY002  as above
                if tap:
                    tap.step({"a": action.numpy()}, terminated=done)
                actions.append(action)
        if tap:
            tap.close()
        return torch.stack(actions), obs, policy.body[1].running_mean.clone()

    for plain, other in zip(rollout(watch=False), rollout(watch=watched), strict=True):
        assert torch.equal(plain, other)


def test_attach_touches_nothing_global():
    def state():
        root = logging.getLogger()
        return (
            torch.get_rng_state().tolist(),
            repr(np.random.get_state()),  # noqa: NPY002  the global generator
            random.getstate(),
            torch.get_num_threads(),
            torch.get_num_interop_threads(),
            torch.is_grad_enabled(),
            torch.get_default_dtype(),
            [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)],
            root.level,
            list(root.handlers),
            sys.getswitchinterval(),
            dict(os.environ),
            threading.active_count(),
        )

    policy = mlp()
    before = state()
    tap = tapped(policy, ["0"])
    with torch.no_grad():
        policy(torch.zeros(1, 6))
    tap.step()
    assert state() == before
    tap.close()
    assert state() == before
    assert not policy[0]._forward_hooks


def test_an_unknown_hook_point_names_the_closest():
    with pytest.raises(UserError, match=r"no module 'net\.1'; the closest are 'net\.0'"):
        attach(nn.ModuleDict({"net": nn.ModuleList([nn.Linear(2, 2)])}), ["net.1"], endpoint=None)


@pytest.mark.parametrize(
    ("hooks", "message"),
    [("0", "give a list"), ([], "no hook points"), (["0", "0"], "named twice")],
)
def test_bad_lists_of_hook_points(hooks, message):
    with pytest.raises(UserError, match=message):
        attach(mlp(), hooks, endpoint=None)


def test_what_cannot_be_hooked_is_refused_with_the_reason():
    with pytest.raises(UserError, match=r"not a torch\.nn\.Module"):
        attach(print, ["0"], endpoint=None)
    with pytest.raises(UserError, match="in place"):
        attach(nn.Sequential(nn.Linear(2, 2), nn.ReLU(inplace=True)), ["1"], endpoint=None)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_torchscript_is_refused_with_the_reason():
    scripted = torch.jit.trace(mlp(), torch.zeros(1, 6))
    with pytest.raises(UserError, match="TorchScript"):
        attach(scripted, ["0"], endpoint=None)
    with pytest.raises(UserError, match="TorchScript"):
        attach(nn.ModuleDict({"body": scripted}), ["body"], endpoint=None)


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 5), nn.Tanh())
        self.head = nn.Linear(5, 2)

    def forward(self, obs):
        return self.head(self.body(obs))


def test_a_compiled_part_is_hooked_as_a_whole_and_refused_inside():
    torch.compiler.reset()
    policy = Parts()
    setattr(policy, "body", torch.compile(policy.body, backend="eager"))  # noqa: B010  for mypy
    with pytest.raises(UserError, match="compiled"):
        attach(policy, ["body._orig_mod.0"], endpoint=None)
    obs = torch.randn(3, 1, 6)
    with tapped(policy, ["body", "head"]) as tap, torch.no_grad():
        for row in obs:
            policy(row)
            tap.step()
        batches = drain(tap)
    x = np.concatenate([b.activations["body"].x for b in batches])
    y = np.concatenate([b.activations["body"].y for b in batches])
    assert np.array_equal(x, obs[:, 0].numpy())
    assert np.allclose(y, policy.body(obs[:, 0]).detach().numpy(), atol=1e-6)
    assert np.array_equal(np.concatenate([b.activations["head"].x for b in batches]), y)


def test_a_policy_compiled_in_place_is_refused_inside():
    torch.compiler.reset()
    policy = Parts()
    policy.compile(backend="eager")
    with pytest.raises(UserError, match="compiled"):
        attach(policy, ["body"], endpoint=None)


def test_compiling_after_attach_neither_breaks_the_graph_nor_changes_numbers(caplog):
    """The hook is nothing to the compiler; the silent hook point is reported with the reason."""
    torch.compiler.reset()
    policy = Parts()
    obs = torch.randn(1, 6)
    with torch.no_grad():
        expected = policy(obs)
    with tapped(policy, ["body"], silent_after=5) as tap:
        compiled = torch.compile(policy, backend="eager", fullgraph=True)
        with caplog.at_level(logging.WARNING), torch.no_grad():
            for _ in range(5):
                assert torch.equal(compiled(obs), expected)
                tap.step()
        assert tap.stats().silent == ("body",)
    assert "torch.compile" in caplog.text


def test_a_silent_hook_point_is_reported_by_name_once(caplog):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.actor, self.critic = nn.Linear(3, 2), nn.Linear(3, 1)

        def forward(self, obs):
            return self.actor(obs)

    net = Net()
    with (
        tapped(net, ["actor", "critic"], silent_after=50) as tap,
        caplog.at_level(logging.WARNING),
        torch.no_grad(),
    ):
        for i in range(120):
            net(torch.zeros(1, 3))
            tap.step()
            assert tap.stats().silent == (("critic",) if i >= 49 else ())
        batches = drain(tap)
    records = [r for r in caplog.records if "silent" in r.getMessage()]
    assert len(records) == 1
    assert "'critic'" in records[0].getMessage()
    # Its absence takes nothing away from the other hook point.
    assert all(set(b.activations) == {"actor"} for b in batches)
    assert not np.concatenate([b.steps.flags for b in batches]).any()


@pytest.mark.parametrize(
    ("forward", "word"),
    [
        (lambda policy: policy(torch.zeros(1, 6)), "gradients"),
        (lambda policy: torch.no_grad()(policy)(torch.zeros(7, 6)), "7 instead of 1"),
    ],
)
def test_silence_says_why(forward, word, caplog):
    policy = mlp()
    with tapped(policy, ["0"], silent_after=3) as tap, caplog.at_level(logging.WARNING):
        for _ in range(3):
            forward(policy)
            tap.step()
    assert word in caplog.text


def test_forwards_of_other_threads_are_not_taken():
    policy = mlp()
    with tapped(policy, ["0"]) as tap, torch.no_grad():
        policy(torch.ones(1, 6))
        tap.step()

        def other():
            with torch.no_grad():
                policy(torch.full((1, 6), 9.0))

        policy(torch.full((1, 6), 2.0))
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        tap.step()
        x, _ = columns(tap, "0")
    assert x[:, 0].tolist() == [1.0, 2.0]


def test_a_step_from_a_second_thread_is_refused_until_it_moves(caplog):
    policy = mlp()
    with tapped(policy, ["0"], strict=False) as tap, torch.no_grad():
        policy(torch.ones(1, 6))
        tap.step()

        def other(move):
            if move:
                tap.move_to_this_thread()
            with torch.no_grad():
                policy(torch.full((1, 6), 5.0))
            tap.step()

        for move in (False, True):
            thread = threading.Thread(target=other, args=(move,))
            thread.start()
            thread.join()
        x, _ = columns(tap, "0")
        assert tap.stats().faults == 1
    assert x[:, 0].tolist() == [1.0, 5.0]
    assert "one thread" in caplog.text


def test_a_failure_inside_is_counted_and_said_once(caplog, monkeypatch):
    policy = mlp()
    tap = tapped(policy, ["0"], strict=False)
    monkeypatch.setattr(Gate, "store", lambda *_: 1 / 0)
    with caplog.at_level(logging.ERROR), torch.no_grad():
        for _ in range(5):
            policy(torch.zeros(1, 6))
            tap.step({"nonsense": 1})
    tap.close()
    assert tap.stats().faults >= 5
    assert len([r for r in caplog.records if r.levelno == logging.ERROR]) == 1
    strict = tapped(mlp(), ["0"])
    with pytest.raises(UserError, match="nonsense"):
        strict.step({"nonsense": 1})
    strict.close()


def test_widths_known_from_the_architecture():
    net = nn.ModuleDict(
        {
            "seq": mlp(),
            "lstm": nn.LSTM(4, 5, bidirectional=True),
            "cell": nn.GRUCell(4, 5),
            "norm": nn.LayerNorm(7),
            "alone": nn.Tanh(),
            "conv": nn.Conv2d(1, 1, 1),
        }
    )
    modules = dict(net.named_modules())
    found = {name: known_widths(net, name, modules[name]) for name in modules if name}
    assert found["seq.0"] == (6, 5)
    assert found["seq.1"] == (5, 5)
    assert found["seq.3"] == (5, 5)
    assert found["seq"] == (6, 3)
    assert found["lstm"] == (4, 10)
    assert found["cell"] == (4, 5)
    assert found["norm"] == (7, 7)
    assert found["alone"] == found["conv"] == (None, None)


def test_unknown_widths_wait_for_the_first_forward_without_losing_a_step():
    """Random actions first, then a hook point whose width no architecture tells."""
    policy = nn.ModuleDict({"free": nn.Tanh()})
    with tapped(policy, ["free"], metrics=["i"]) as tap, torch.no_grad():
        for i in range(10):
            if i >= 4:
                policy["free"](torch.full((1, 3), float(i)))
            tap.step({"i": i}, terminated=i == 6)
        batches = drain(tap)
    steps = [s for b in batches for s in b.steps.metrics[:, 0]]
    flags = np.concatenate([b.steps.flags for b in batches])
    assert steps == list(range(10))
    assert ((flags & 4) != 0).tolist() == [i < 4 for i in range(10)]
    assert np.concatenate([b.steps.t for b in batches]).tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1, 2]
    assert tap.manifest.hook_points[0].d_in == 3


def test_a_hook_point_that_never_shows_its_width_is_left_out(caplog):
    policy = nn.ModuleDict({"free": nn.Tanh(), "lin": nn.Linear(2, 2)})
    with (
        tapped(policy, ["free", "lin"], silent_after=6) as tap,
        caplog.at_level(logging.WARNING),
        torch.no_grad(),
    ):
        for _ in range(9):
            policy["lin"](torch.zeros(1, 2))
            tap.step()
        assert [h.name for h in tap.manifest.hook_points] == ["lin"]
        policy["free"](torch.zeros(1, 2))
        tap.step()
        assert sum(len(b.steps) for b in drain(tap)) == 10
    assert "'free'" in caplog.text
    assert tap.stats().refused_forwards["free"] == {"late": 1}


@pytest.mark.parametrize("n", [1, 3])
def test_a_policy_that_changed_is_no_longer_the_one_of_the_manifest(n, caplog):
    policy = mlp()
    env = {} if n == 1 else {"env_count": n, "autoreset": "same_step"}
    obs = torch.zeros(n, 6)
    with tapped(policy, ["0"], **env) as tap, caplog.at_level(logging.WARNING):
        for i in range(6):
            with torch.no_grad():
                policy(obs)
                if i == 3:
                    for weights in policy.parameters():  # as an optimiser's step does
                        weights.mul_(0.9)
            tap.step(terminated=np.zeros(n, bool))
        (batch,) = drain(tap)
        assert tap.changed
        assert tap.policy_hash != policy_hash(policy)
    silent = (batch.steps.flags & 4) != 0
    assert silent.tolist() == [False] * 3 * n + [True] * 3 * n
    assert len([r for r in caplog.records if "weights changed" in r.getMessage()]) == 1


def test_one_changed_layer_is_found_too():
    policy = nn.Sequential(*(nn.Linear(2, 2) for _ in range(20)))
    with tapped(policy, ["0"]) as tap, torch.no_grad():
        policy[7].bias.add_(1.0)
        for _ in range(64):
            policy(torch.zeros(1, 2))
            tap.step()
        assert tap.changed


def test_a_learning_policy_is_bound_to_no_transcoder():
    policy = mlp()
    with tapped(policy, ["0"], learning=True) as tap, torch.no_grad():
        for _ in range(3):
            policy(torch.zeros(1, 6))
            tap.step()
            policy[0].bias.add_(1.0)
        (batch,) = drain(tap)
        assert not tap.changed
    assert tap.policy_hash.startswith("learning-from:sha256:")
    assert not batch.steps.flags.any()
