"""A policy with a memory remembers each episode by itself, and is not changed by being asked."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from interlatent_live.agent.hooks import resolve
from interlatent_live.errors import CorruptFileError, UserError
from interlatent_live.policies.files import Provenance, load_folder, load_policy, save_policy
from interlatent_live.policies.hashing import policy_hash
from interlatent_live.policies.recurrent import (
    EPISODES_KEPT,
    RecurrentPolicy,
    recurrent_from_rsl_rl,
    recurrent_from_script,
)
from interlatent_live.policies.recurrent_spec import RecurrentSpec
from interlatent_live.policies.spec import Activation, Output
from interlatent_live.policies.torchscript import rebuild_torchscript
from interlatent_live.transcoders.capture import Capture

INPUTS, WIDTH, ACTIONS = 5, 6, 2


def made(seed=0):
    torch.manual_seed(seed)
    spec = RecurrentSpec(
        (WIDTH, 4, ACTIONS),
        Activation.ELU,
        Output.LINEAR_CLIP,
        action_low=(-1.0,) * ACTIONS,
        action_high=(1.0,) * ACTIONS,
        memory_inputs=INPUTS,
    )
    return RecurrentPolicy(spec).eval()


def rows(x, episode, step):
    """x [n, INPUTS] as observations with a number between that no memory reads."""
    n = len(x)
    ends = torch.stack([torch.full((n,), 9.0), torch.as_tensor(episode), torch.as_tensor(step)], 1)
    return torch.cat([torch.as_tensor(x), ends.to(torch.float64)], dim=1).to(torch.float64)


@torch.no_grad()
def in_one_go(policy, sequence):
    """Outputs [T, A] of one episode by torch's own recurrence."""
    h, _ = policy.memory(torch.as_tensor(sequence, dtype=torch.float32)[None])
    return policy.layers_from(0)(h[0])


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(2, 12))
def test_episodes_side_by_side_are_each_what_torch_computes_alone(seed, copies, steps):
    rng = np.random.default_rng(seed)
    policy = made(seed % 7)
    x = rng.normal(size=(copies, steps, INPUTS))
    lengths = rng.integers(1, steps + 1, copies)
    names = rng.random(copies)
    outputs = {copy: [] for copy in range(copies)}
    with torch.no_grad():
        for t in range(steps):
            running = rng.permutation(np.flatnonzero(lengths > t))
            if not len(running):
                break
            obs = rows(x[running, t], names[running], np.full(len(running), float(t)))
            for _ in range(rng.integers(1, 4)):  # asked more than once about the same step
                out = policy(obs)
            for row, episode in enumerate(running):
                outputs[episode].append(out[row])
    for episode, length in enumerate(lengths):
        alone = in_one_go(policy, x[episode, :length])
        assert torch.allclose(torch.stack(outputs[episode]), alone, atol=1e-5)


@torch.no_grad()
def test_a_reset_forgets_and_so_does_a_policy_that_joins_late():
    policy, x = made(), np.random.default_rng(0).normal(size=(3, INPUTS))
    at = [rows(x[[t]], [0.5], [float(t)]) for t in range(3)]
    fresh = policy(at[0])
    policy(at[1])
    assert torch.equal(policy(at[0]), fresh)
    joined = copy.deepcopy(policy)
    joined.forget()
    alone = in_one_go(policy, x[2:])
    assert torch.allclose(joined(at[2]), alone, atol=1e-6)
    policy(at[1])
    assert not torch.allclose(policy(at[2]), alone, atol=1e-4)


@torch.no_grad()
def test_memory_is_bounded_and_no_part_of_the_weights():
    policy = made()
    for first in range(0, 2 * EPISODES_KEPT, 1024):
        names = np.arange(first, first + 1024) / 16384
        policy(rows(np.zeros((1024, INPUTS)), names, np.zeros(1024)))
    assert len(policy._kept) == EPISODES_KEPT
    assert not any("kept" in name for name in policy.state_dict())


@torch.no_grad()
def test_hook_points_see_the_memory_and_tails_go_on_from_it():
    policy = made()
    obs = rows(np.random.default_rng(1).normal(size=(4, INPUTS)), np.arange(4) / 8, np.zeros(4))
    points = policy.spec.hook_points()
    assert points == ("memory", "hidden.0", "head")
    assert set(resolve(policy, points)) == set(points)
    with Capture(policy, points) as capture:
        out = policy(obs)
        seen = capture.take()
    x, h = seen["memory"]
    assert torch.equal(x, obs[:, :INPUTS].float())
    assert torch.equal(h, seen["hidden.0"][0])
    for point in points:
        assert torch.equal(policy.tail_from(point)(seen[point][1]), out)


def test_a_folder_gives_the_same_policy_back(tmp_path):
    policy = made()
    provenance = Provenance("here", "MIT")
    saved = save_policy(
        tmp_path, policy, name="p", environment="", provenance=provenance, licence_text=""
    )
    loaded = load_folder(tmp_path)
    assert loaded.policy_hash == saved.policy_hash
    assert loaded.module.spec == policy.spec
    assert isinstance(loaded.module, RecurrentPolicy)


class Exported(nn.Module):
    """As legged_gym's PolicyExporterLSTM: one memory, kept in buffers."""

    def __init__(self, policy, twice):
        super().__init__()
        self.actor = nn.Sequential(policy.hidden[0].linear, nn.ELU(), policy.head)
        self.memory = nn.LSTM(INPUTS, WIDTH)
        self.memory.load_state_dict(policy.memory.state_dict())
        self.twice: int = twice
        self.register_buffer("hidden_state", torch.zeros(1, 1, WIDTH))
        self.register_buffer("cell_state", torch.zeros(1, 1, WIDTH))

    def forward(self, x):
        out, (h, c) = self.memory(x.unsqueeze(0), (self.hidden_state, self.cell_state))
        self.hidden_state[:] = h
        self.cell_state[:] = c
        return self.actor(out.squeeze(0)) * self.twice


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_script_with_a_memory_is_rebuilt_and_can_be_hooked(tmp_path):
    policy, path = made(3), tmp_path / "motion.pt"
    torch.jit.save(torch.jit.script(Exported(policy, 1).eval()), path)
    with pytest.raises(UserError, match="tensors of its own"):
        rebuild_torchscript(path)
    script = torch.jit.load(path)
    with pytest.raises(UserError, match="TorchScript module, on which PyTorch refuses"):
        resolve(script, ["memory"])
    rebuilt = recurrent_from_script(path, bound=1.0)
    assert policy_hash(rebuilt) == policy_hash(policy)
    assert not rebuilt._kept
    torch.jit.save(torch.jit.script(Exported(policy, 2).eval()), path)
    with pytest.raises(UserError, match=r"do not give the script's own outputs \(step 0\)"):
        recurrent_from_script(path, bound=1.0)


def test_tensors_of_another_network_are_refused():
    policy = load_policy("unitree-g1-legs").module
    state = policy.state_dict()
    names = {"hidden.0.linear": "actor.0", "head": "actor.2"}
    tensors = {
        next((name.replace(a, b) for a, b in names.items() if name.startswith(a)), name): tensor
        for name, tensor in state.items()
    }
    again = recurrent_from_rsl_rl(tensors, activation=Activation.ELU, bound=100.0)
    assert all(torch.equal(state[name], tensor) for name, tensor in again.state_dict().items())
    tensors["actor.0.weight"] = tensors["actor.0.weight"][:, :-1]
    with pytest.raises(CorruptFileError, match=r"no recurrent actor of rsl_rl"):
        recurrent_from_rsl_rl(tensors, activation=Activation.ELU, bound=100.0)
