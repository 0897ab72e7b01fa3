"""A fixed bank of states: two versions of a policy can only be compared on the same ones.

Each version visits states of its own, so a difference between their recordings mixes what changed
in the policy with where it went. The bank is made once, from disturbed episodes, saved with its
hash, and given to every version.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from interlatent_live.errors import CorruptFileError

if TYPE_CHECKING:
    from pathlib import Path

    import gymnasium
    from numpy.typing import NDArray

STATES: Final = "bank.safetensors"
DESCRIPTION: Final = "bank.json"


@dataclass(frozen=True, slots=True, eq=False)
class StateBank:
    """Observations of an environment, and the episode each is from."""

    environment: str
    obs: NDArray[np.float32]
    """[n, d]."""
    episode: NDArray[np.uint32]
    """[n]."""

    @property
    def hash(self) -> str:
        """``"sha256:…"`` of environment, observations and episodes."""
        digest = hashlib.sha256(f"{self.environment}:{self.obs.shape}".encode())
        digest.update(self.obs.astype("<f4").tobytes())
        digest.update(self.episode.astype("<u4").tobytes())
        return "sha256:" + digest.hexdigest()


class Acts(Protocol):
    """Whatever acts."""

    def act(self, obs: NDArray[Any], rng: np.random.Generator | None = None) -> NDArray[Any]:
        """Actions for observations [n, …]."""
        ...


def make_bank(
    policy: Acts,
    env: gymnasium.Env[object, object],
    environment: str,
    *,
    rows: int,
    seed: int,
    epsilon: float = 0.1,
) -> StateBank:
    """Observations of whole episodes with some random actions, until there are ``rows``.

    The random actions (probability ``epsilon`` per step) take it to states beside the policy's own
    path, where versions differ first.
    """
    rng = np.random.default_rng([seed, 0x62616E6B])
    env.action_space.seed(seed)
    observed: list[NDArray[np.float32]] = []
    episodes: list[int] = []
    number = 0
    while len(observed) < rows:
        obs, _ = env.reset(seed=seed + number)
        done = False
        while not done:
            array = np.asarray(obs, np.float32)
            observed.append(array)
            episodes.append(number)
            explore = rng.random() < epsilon
            action = env.action_space.sample() if explore else policy.act(array[None], rng)[0]
            obs, _, terminated, truncated, _ = env.step(action)
            done = terminated or truncated
        number += 1
    return StateBank(environment, np.stack(observed)[:rows], np.array(episodes, np.uint32)[:rows])


def save_bank(folder: Path, bank: StateBank) -> None:
    """Write a bank's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"obs": bank.obs, "episode": bank.episode}, folder / STATES)
    text = json.dumps({"environment": bank.environment, "hash": bank.hash}, indent=1) + "\n"
    (folder / DESCRIPTION).write_text(text, encoding="utf-8")


def load_bank(folder: Path) -> StateBank:
    """Read a bank's folder.

    Raises:
        CorruptFileError: when it is missing, damaged or not what its hash says.
    """
    try:
        data = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        tensors = load_file(folder / STATES)
        bank = StateBank(str(data["environment"]), tensors["obs"], tensors["episode"])
        stated = data["hash"]
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(f"{folder} holds no intact bank of states: {error}") from error
    if bank.obs.ndim != 2 or bank.episode.shape != bank.obs.shape[:1] or bank.hash != stated:
        raise CorruptFileError(f"the states in {folder} are not those its hash names")
    return bank
