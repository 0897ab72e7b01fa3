import pytest

from interlatent_live.errors import CorruptFileError, UserError
from interlatent_live.policies.files import load_policy
from interlatent_live.policies.versions import (
    INDEX,
    add_version,
    read_versions,
    snapshot_callback,
)

sb3 = pytest.importorskip("stable_baselines3")


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("versions")
    heard: list[object] = []
    model = sb3.PPO(
        "MlpPolicy",
        "CartPole-v1",
        n_steps=64,
        batch_size=64,
        n_epochs=2,
        seed=0,
        device="cpu",
        policy_kwargs={"net_arch": [16, 8]},
    )
    model.learn(320, callback=snapshot_callback(folder, every_steps=128, on_version=heard.append))
    return folder, model, heard


def test_each_version_of_a_learning_policy_has_its_own_hash(learned):
    folder, _, heard = learned
    versions = read_versions(folder)
    assert len(versions) >= 3
    assert len({version.policy_hash for version in versions}) == len(versions)
    assert [version.steps for version in versions] == sorted(v.steps for v in versions)
    assert versions[0].steps == 0
    assert {version.policy_hash for version in heard} == {v.policy_hash for v in versions}
    for version in versions:
        loaded = load_policy(folder / version.folder)
        assert loaded.policy_hash == version.policy_hash
        assert loaded.environment == "CartPole-v1"


def test_the_last_version_acts_as_the_model_does(learned):
    folder, model, _ = learned
    last = load_policy(folder / read_versions(folder)[-1].folder).module
    env = model.get_env()
    obs = env.reset()
    for _ in range(50):
        action, _ = model.predict(obs, deterministic=True)
        assert last.act(obs).tolist() == action.tolist()
        obs, *_ = env.step(action)


def test_the_same_weights_are_one_version(learned, tmp_path):
    module = load_policy("cartpole").module
    first = add_version(tmp_path, module, steps=5, environment="CartPole-v1", source="test")
    again = add_version(tmp_path, module, steps=9, environment="CartPole-v1", source="test")
    assert again == first
    assert read_versions(tmp_path) == (first,)


def test_a_damaged_index_and_an_impossible_distance_are_refused(tmp_path):
    (tmp_path / INDEX).write_text('[{"steps": 1}]', encoding="utf-8")
    with pytest.raises(CorruptFileError, match="is damaged"):
        read_versions(tmp_path)
    with pytest.raises(UserError, match="at least 1"):
        snapshot_callback(tmp_path, every_steps=0)
