import io
import json
import shutil
import zipfile

import gymnasium
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from interlatent_live.environments.arcade import MSPACMAN_PIXELS
from interlatent_live.environments.driving import HIGHWAY_FAST
from interlatent_live.errors import CorruptFileError, MismatchError, UserError
from interlatent_live.policies.files import (
    DESCRIPTION,
    LICENCE,
    WEIGHTS,
    built_in_policies,
    load_policy,
    save_policy,
)
from interlatent_live.policies.rollout import episode_returns
from interlatent_live.policies.spec import Output

NEEDS = {"LunarLander-v3": "Box2D", "HalfCheetah-v5": "mujoco", "Walker2d-v5": "mujoco"}
NEEDS["Humanoid-v5"] = "mujoco"
NEEDS[MSPACMAN_PIXELS] = "cv2"
NEEDS[HIGHWAY_FAST] = "highway_env"


@pytest.fixture
def folder(tmp_path):
    loaded = load_policy("cartpole")
    save_policy(
        tmp_path / "p",
        loaded.module,
        name="p",
        environment=loaded.environment,
        provenance=loaded.provenance,
        licence_text="terms",
    )
    return tmp_path / "p"


def test_the_demo_and_the_tests_find_their_policies():
    names = {"cartpole", "lunarlander-ppo", "lunarlander-dqn", "halfcheetah-sac"}
    assert names | {"walker2d", "humanoid"} <= set(built_in_policies())


@pytest.mark.parametrize("name", built_in_policies())
def test_recorded_returns_are_reproduced(name):
    loaded = load_policy(name)
    pytest.importorskip(NEEDS.get(loaded.environment, "gymnasium"))
    first = loaded.provenance.first_seed
    recorded = loaded.provenance.returns
    if not recorded:
        pytest.skip(f"the source of {name} gives no single returns")
    env = gymnasium.make(loaded.environment)
    sampled = loaded.module.spec.output is Output.SOFTMAX
    if sampled or NEEDS.get(loaded.environment) == "mujoco":
        # Contacts and draws are chaotic: a last bit that another CPU rounds differently moves the
        # return, so only its kind can be asked for.
        (back,) = episode_returns(loaded.module, env, [first], np.random.default_rng(first))
        assert min(recorded) - np.std(recorded) <= back <= max(recorded) + np.std(recorded)
    else:
        returns = episode_returns(loaded.module, env, range(first, first + 3))
        assert returns == pytest.approx(list(recorded[:3]), rel=0.02)
    env.close()


def test_the_demo_policy_solves_its_task_and_says_how_it_was_made():
    provenance = load_policy("cartpole").provenance
    assert np.mean(provenance.returns) >= 475
    assert len(provenance.returns) == 100
    assert provenance.source.startswith("interlatent-live policies train CartPole-v1 --seed")


@pytest.mark.parametrize("name", built_in_policies())
def test_every_policy_carries_its_licence(name):
    from importlib import resources  # noqa: PLC0415 - only this test reads the raw files

    root = resources.files("interlatent_live.data") / "policies" / name
    text = (root / LICENCE).read_text(encoding="utf-8")
    licence = load_policy(name).provenance.licence
    words = {
        "MIT": "Permission is hereby granted",
        "Apache-2.0": "Apache License",
        "BSD-3-Clause": "Redistribution and use",
    }
    assert words[licence] in text


def test_saving_and_loading_is_the_identity(folder):
    a, b = load_policy("cartpole"), load_policy(folder)
    assert a.policy_hash == b.policy_hash
    assert a.module.spec == b.module.spec
    assert a.provenance == b.provenance


def test_normalisation_survives_the_round_trip(tmp_path):
    a = load_policy("walker2d")
    assert a.module.spec.obs_mean is not None
    save_policy(
        tmp_path,
        a.module,
        name="w",
        environment=a.environment,
        provenance=a.provenance,
        licence_text="",
    )
    b = load_policy(tmp_path)
    assert b.module.spec == a.module.spec
    assert b.policy_hash == a.policy_hash


def test_another_policy_is_never_overwritten(folder):
    other = load_policy("cartpole-sb3-ppo")
    with pytest.raises(UserError, match="already holds another policy"):
        save_policy(
            folder,
            other.module,
            name="x",
            environment="",
            provenance=other.provenance,
            licence_text="",
        )


def test_altered_weights_are_refused_by_hash(folder):
    state = load_file(folder / WEIGHTS)
    state["head.bias"] = state["head.bias"] + 1
    save_file(state, folder / WEIGHTS)
    with pytest.raises(MismatchError, match=r"hash to sha256:.* is about sha256:"):
        load_policy(folder)


def test_missing_extra_and_misshapen_tensors_are_refused(folder):
    state = load_file(folder / WEIGHTS)
    save_file({**state, "stranger": torch.zeros(1)}, folder / WEIGHTS)
    with pytest.raises(CorruptFileError, match="disagree about stranger"):
        load_policy(folder)
    save_file({**state, "head.bias": torch.zeros(7)}, folder / WEIGHTS)
    with pytest.raises(CorruptFileError, match=r"head.bias as \(7,\)"):
        load_policy(folder)


@pytest.mark.parametrize("damage", ["truncate", "garbage", "no json", "missing", "schema", "sizes"])
def test_damaged_folders_are_refused_with_a_sentence(folder, damage):
    weights, description = folder / WEIGHTS, folder / DESCRIPTION
    if damage == "truncate":
        weights.write_bytes(weights.read_bytes()[:100])
    elif damage == "garbage":
        weights.write_bytes(b"\xff" * 4096)
    elif damage == "no json":
        description.write_text("{", encoding="utf-8")
    elif damage == "missing":
        weights.unlink()
    else:
        data = json.loads(description.read_text(encoding="utf-8"))
        if damage == "schema":
            data["schema"] = 99
        else:
            data["spec"]["layer_sizes"] = ["many"]
        description.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(CorruptFileError, match=str(folder) + r"|description is damaged"):
        load_policy(folder)


def test_what_is_no_policy_says_what_would_be(tmp_path):
    with pytest.raises(UserError, match=r"no policy 'nope'.*cartpole"):
        load_policy("nope")
    script = tmp_path / "p.pt"
    script.write_bytes(b"x")
    with pytest.raises(UserError, match="TorchScript"):
        load_policy(script)
    other = tmp_path / "p.bin"
    other.write_bytes(b"x")
    with pytest.raises(UserError, match="neither a policy folder"):
        load_policy(other)
    with pytest.raises(CorruptFileError, match="cannot be read"):
        load_policy(shutil.copytree(tmp_path, tmp_path / "empty"))


def zip_with(path, state, **data):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("policy.pth", buffer.getvalue())
        archive.writestr("data", json.dumps(data))
    return path


def test_an_sb3_zip_without_unpickling(tmp_path):
    plain = load_policy("cartpole-sb3-ppo").module.state_dict()
    names = {
        "hidden.0.linear": "mlp_extractor.policy_net.0",
        "hidden.1.linear": "mlp_extractor.policy_net.2",
        "head": "action_net",
    }
    state = {
        f"{theirs}.{kind}": plain[f"{ours}.{kind}"]
        for ours, theirs in names.items()
        for kind in ("weight", "bias")
    }
    state["mlp_extractor.value_net.0.weight"] = torch.zeros(64, 4)
    state["mlp_extractor.value_net.0.bias"] = torch.zeros(64)
    path = zip_with(tmp_path / "m.zip", state, action_space={":type:": "Discrete"})
    loaded = load_policy(path)
    assert loaded.policy_hash == load_policy("cartpole-sb3-ppo").policy_hash


def test_stable_baselines3_own_files_act_the_same(tmp_path):
    sb3 = pytest.importorskip("stable_baselines3")
    rng = np.random.default_rng(0)
    cases = [
        (sb3.PPO, "CartPole-v1", {"net_arch": [8], "activation_fn": torch.nn.ReLU}),
        (sb3.DQN, "CartPole-v1", {"net_arch": [8, 5]}),
        (sb3.PPO, "Pendulum-v1", {"net_arch": [8]}),
        (sb3.SAC, "Pendulum-v1", {"net_arch": [8, 8]}),
        (sb3.TD3, "Pendulum-v1", {"net_arch": [8, 8]}),
    ]
    for kind, env_id, kwargs in cases:
        model = kind("MlpPolicy", env_id, policy_kwargs=kwargs, seed=3, device="cpu")
        path = tmp_path / f"{kind.__name__}-{env_id}.zip"
        model.save(path)
        plain = load_policy(path).module
        obs = rng.normal(size=(64, *model.observation_space.shape)).astype(np.float32)
        expected, _ = model.predict(obs, deterministic=True)
        np.testing.assert_allclose(plain.act(obs), expected, rtol=0, atol=1e-5)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("the pickle ran",))


def test_a_hostile_zip_runs_nothing(tmp_path):
    path = zip_with(tmp_path / "bomb.zip", {"w": Bomb()})
    with pytest.raises(CorruptFileError, match="more than plain weights"):
        load_policy(path)


def test_zips_that_are_no_plain_actor_are_refused(tmp_path):
    with pytest.raises(UserError, match="no plain MLP actor"):
        load_policy(zip_with(tmp_path / "cnn.zip", {"cnn.0.weight": torch.zeros(4, 3, 2, 2)}))
    broken = tmp_path / "broken.zip"
    broken.write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(CorruptFileError, match="no intact SB3 zip"):
        load_policy(broken)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme", "hello")
    with pytest.raises(UserError, match="no SB3 zip"):
        load_policy(tmp_path / "other.zip")
