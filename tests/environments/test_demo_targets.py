import pytest

from interlatent_live.environments.demo_targets import DEMO_TARGETS, demo_target
from interlatent_live.environments.disturbance import disturbed
from interlatent_live.errors import UserError
from interlatent_live.policies.files import load_policy


@pytest.mark.parametrize("target", DEMO_TARGETS.values(), ids=lambda target: target.environment)
def test_a_target_fits_its_policy_and_environment(target):
    gymnasium = pytest.importorskip("gymnasium")
    loaded = load_policy(target.policy)
    assert loaded.environment == target.environment
    assert set(target.hook_points) <= set(loaded.module.spec.hook_points())
    env = disturbed(gymnasium.make(target.environment), target.disturbance)
    obs, _ = env.reset(seed=target.live_seed)
    assert env.action_space.contains(loaded.module.act(obs[None])[0])
    env.close()


@pytest.mark.parametrize("target", DEMO_TARGETS.values(), ids=lambda target: target.environment)
def test_training_calibration_and_live_seeds_never_meet(target):
    seeds = (target.training_seed, target.calibration_seed, target.live_seed)
    ranges = [set(range(seed, seed + 10_000)) for seed in seeds]
    assert not ranges[0] & ranges[1]
    assert not ranges[0] & ranges[2]
    assert not ranges[1] & ranges[2]


def test_an_unknown_target_is_refused():
    with pytest.raises(UserError, match="no target 'Acrobot-v1'"):
        demo_target("Acrobot-v1")
