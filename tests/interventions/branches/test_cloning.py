"""A state that is put back has the same future, to the bit; what cannot be copied is refused."""

import gymnasium
import numpy as np
import pytest

from interlatent_live.errors import UserError
from interlatent_live.interventions.branches.cloning import restore, take

KINDS = {
    "CartPole-v1": ("python", {}),
    "Pendulum-v1": ("python", {}),
    "Walker2d-v5": ("mujoco", {}),
    "Humanoid-v5": ("mujoco", {}),
    "ALE/MsPacman-v5": ("ale", {"obs_type": "ram"}),
}


def made(name):
    pytest.importorskip({"mujoco": "mujoco", "ale": "ale_py"}.get(KINDS[name][0], "gymnasium"))
    if KINDS[name][0] == "ale":
        gymnasium.register_envs(__import__("ale_py"))
    return gymnasium.make(name, disable_env_checker=True, **KINDS[name][1])


def future(env, actions):
    out = []
    for action in actions:
        obs, reward, terminated, truncated, _ = env.step(action)
        out.append((np.asarray(obs).tobytes(), float(reward), terminated, truncated))
        if terminated or truncated:
            break
    return out


@pytest.mark.parametrize("name", KINDS)
def test_the_future_is_the_same_again_also_in_another_environment(name):
    env, other = made(name), made(name)
    env.reset(seed=3)
    env.action_space.seed(1)
    for _ in range(5):
        env.step(env.action_space.sample())
    moment = take(env)
    assert moment.kind == KINDS[name][0]
    actions = [env.action_space.sample() for _ in range(40)]
    first = future(env, actions)
    restore(env, moment)
    assert future(env, actions) == first
    other.reset(seed=99)
    for _ in range(2):
        restore(other, moment)
        assert future(other, actions) == first
    env.close()
    other.close()


def test_the_time_limit_goes_back_too():
    env = gymnasium.make("Pendulum-v1", max_episode_steps=10, disable_env_checker=True)
    env.reset(seed=0)
    for _ in range(4):
        env.step(env.action_space.sample())
    moment = take(env)
    for _ in range(2):
        restore(env, moment)
        ends = [env.step(env.action_space.sample())[3] for _ in range(6)]
        assert ends == [False] * 5 + [True]


def test_box2d_is_refused_in_words():
    pytest.importorskip("Box2D")
    env = gymnasium.make("LunarLander-v3", disable_env_checker=True)
    env.reset(seed=0)
    with pytest.raises(UserError, match=r"LunarLander cannot be copied .* need MuJoCo, ALE"):
        take(env)
    env.close()


def test_a_state_does_not_go_into_an_environment_built_otherwise():
    env = made("CartPole-v1")
    env.reset(seed=0)
    moment = take(env)
    bare = env.unwrapped
    with pytest.raises(UserError, match="build both the same way"):
        restore(bare, moment)
