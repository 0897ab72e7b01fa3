import json

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from interlatent_live.cli.main import app
from interlatent_live.environments.metric_packs import OutputKind
from interlatent_live.errors import CorruptFileError, UserError
from interlatent_live.policies.files import load_policy
from interlatent_live.policies.hashing import policy_hash, state_hash
from interlatent_live.policies.torchscript import rebuild_torchscript
from interlatent_live.transcoders.acting import acting_policy

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


class Functional(nn.Module):
    """As many people write it: activations are functions."""

    def __init__(self, function, end=None):
        super().__init__()
        self.l1, self.l2, self.mu = nn.Linear(4, 16), nn.Linear(16, 8), nn.Linear(8, 2)
        self.function, self.end = function, end

    def forward(self, x):
        y = self.mu(self.function(self.l2(self.function(self.l1(x)))))
        return y if self.end is None else self.end(y)


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ELU(), nn.Dropout(0.5))
        self.head = nn.Linear(8, 3, bias=False)

    def forward(self, x):
        return self.head(self.body(x))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x):
        return x + self.a(x)


class Scaled(Residual):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones(4) * 2)

    def forward(self, x):
        return self.a(x * self.scale)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.memory, self.head = nn.LSTM(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.memory(x[None])[0][0])


def saved(path, module, *, script=False):
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    module.eval()
    made = torch.jit.script(module) if script else torch.jit.trace(module, torch.zeros(2, 4))
    torch.jit.save(made, str(path))
    return module


def sequential():
    return nn.Sequential(
        nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2)
    )


@pytest.mark.parametrize("script", [False, True], ids=["traced", "scripted"])
@pytest.mark.parametrize("network", [sequential, Nested])
def test_a_chain_of_modules_is_rebuilt_to_the_bit_and_can_be_hooked(tmp_path, network, script):
    original = saved(tmp_path / "p.pt", network(), script=script)
    again = rebuild_torchscript(tmp_path / "p.pt")
    x = torch.randn(50, 4)
    assert torch.equal(again(x), original(x))
    assert policy_hash(again) == policy_hash(original)
    seen = []
    name = next(n for n, m in again.named_modules() if isinstance(m, (nn.Tanh, nn.ELU)))
    again.get_submodule(name).register_forward_hook(lambda _m, _a, out: seen.append(out))
    again(x)
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("function", "end"),
    [(torch.tanh, None), (torch.relu, torch.tanh), (nn.functional.silu, None)],
)
def test_activations_that_are_functions_are_found(tmp_path, function, end):
    original = saved(tmp_path / "p.pt", Functional(function, end))
    again = rebuild_torchscript(tmp_path / "p.pt")
    x = torch.randn(50, 4)
    assert torch.equal(again(x), original(x))
    # The original calls functions, which leave nothing to hash: what was rebuilt says more.
    assert state_hash(again.state_dict()) == state_hash(original.state_dict())
    assert policy_hash(again) != policy_hash(original)
    names = [name for name, _ in again.named_children()]
    expected = ["l1", "l1_activation", "l2", "l2_activation", "mu"]
    assert names == (expected if end is None else [*expected, "mu_activation"])


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (Residual, "do not give the script's own outputs"),
        (Scaled, r"tensors of its own \(scale\)"),
        (Recurrent, "its module 'memory' is a LSTM"),
        (lambda: nn.Sequential(nn.Linear(4, 3), nn.ELU(alpha=0.5)), "do not give the script's own"),
        (lambda: nn.Sequential(nn.Tanh()), "do not give the script's own"),
    ],
)
def test_what_is_not_such_a_chain_is_refused_with_a_remedy(tmp_path, network, said):
    module = network()
    saved(tmp_path / "p.pt", module, script=isinstance(module, Recurrent))
    with pytest.raises(UserError, match=said) as refused:
        rebuild_torchscript(tmp_path / "p.pt")
    assert "module:function" in str(refused.value)


def test_files_that_are_no_scripts_are_refused(tmp_path):
    with pytest.raises(UserError, match="there is no TorchScript file"):
        rebuild_torchscript(tmp_path / "none.pt")
    (tmp_path / "p.pt").write_bytes(b"PK\x03\x04 and nothing more")
    with pytest.raises(CorruptFileError, match="no intact TorchScript file"):
        rebuild_torchscript(tmp_path / "p.pt")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "state.pt")
    with pytest.raises(CorruptFileError, match="no intact TorchScript file"):
        rebuild_torchscript(tmp_path / "state.pt")


def test_collect_takes_a_script_of_a_real_policy(tmp_path):
    loaded = load_policy("cartpole").module
    path = tmp_path / "policy.pt"
    torch.jit.save(
        torch.jit.trace(nn.Sequential(*loaded.hidden, loaded.head), torch.zeros(1, 4)), str(path)
    )
    result = CliRunner().invoke(
        app,
        [
            "collect", str(path), "--env", "CartPole-v1", "-p", "1", "--episodes", "4",
            "--max-steps", "50", "--out", str(tmp_path / "data"),
        ],
    )  # fmt: skip
    assert result.exit_code == 0, (result.output, result.exception)
    acting = acting_policy(str(path), environment="CartPole-v1")
    header = json.loads((tmp_path / "data" / "dataset.json").read_text(encoding="utf-8"))
    assert acting.policy_hash in json.dumps(header)
    assert acting.output_kind is OutputKind.LOGITS
    obs = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    assert acting.actions(acting.outputs(obs)).tolist() == loaded.act(obs).tolist()


def test_a_script_does_not_say_its_environment(tmp_path):
    saved(tmp_path / "p.pt", sequential())
    with pytest.raises(UserError, match="give --env"):
        acting_policy(str(tmp_path / "p.pt"))
    acting = acting_policy(str(tmp_path / "p.pt"), environment="Pendulum-v1")
    assert acting.output_kind is OutputKind.CONTINUOUS
    with pytest.raises(UserError, match="cannot make 'Nowhere-v0'"):
        acting_policy(str(tmp_path / "p.pt"), environment="Nowhere-v0")
