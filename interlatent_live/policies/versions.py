"""A policy that is still learning: each version gets its own hash, folder and line in an index.

A transcoder belongs to one version. While an agent trains, a Stable-Baselines3 callback snapshots
the actor every so many steps as a plain policy folder, so that any two versions can be compared
(``interlatent-live diff``) and each can have a transcoder of its own. Two snapshots with the same
weights are one version.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from interlatent_live.errors import CorruptFileError, UserError
from interlatent_live.policies.files import Provenance, save_policy
from interlatent_live.policies.hashing import policy_hash
from interlatent_live.policies.sb3_files import policy_from_sb3_state
from interlatent_live.policies.spec import Activation

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from interlatent_live.policies.mlp import MlpPolicy

INDEX: Final = "versions.json"


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a policy that is learning."""

    steps: int
    """Environment steps it had learned from."""
    policy_hash: str
    folder: str
    """Relative to the index."""


def read_versions(folder: Path) -> tuple[Version, ...]:
    """Versions in a folder, oldest first; none when there is no index.

    Raises:
        CorruptFileError: when the index is damaged.
    """
    path = folder / INDEX
    if not path.exists():
        return ()
    try:
        return tuple(Version(**entry) for entry in json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise CorruptFileError(f"{path} is damaged: {error}") from error


def add_version(
    folder: Path, module: MlpPolicy, *, steps: int, environment: str, source: str
) -> Version:
    """Save a version and add it to the index; the same weights again are the same version."""
    versions = read_versions(folder)
    digest = policy_hash(module)
    for known in versions:
        if known.policy_hash == digest:
            return known
    name = f"steps-{steps:010d}-{digest.removeprefix('sha256:')[:8]}"
    provenance = Provenance(
        source=source, licence="unknown", algorithm="Stable-Baselines3", facts={"steps": steps}
    )
    save_policy(
        folder / name,
        module,
        name=name,
        environment=environment,
        provenance=provenance,
        licence_text="The licence of this policy is its owner's to choose.\n",
    )
    version = Version(steps, digest, name)
    text = json.dumps([asdict(item) for item in (*versions, version)], indent=1) + "\n"
    partial = folder / (INDEX + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(folder / INDEX)
    return version


def snapshot_callback(
    folder: Path,
    *,
    every_steps: int,
    on_version: Callable[[Version], None] | None = None,
) -> Any:
    """A Stable-Baselines3 callback that snapshots the actor every ``every_steps`` steps.

    It also does so when training starts and when it ends; ``on_version`` hears of each version (to
    tell a tap its new policy hash, say).

    Raises:
        UserError: when the extra ``[sb3]`` is missing or ``every_steps`` is not positive.
    """
    if every_steps < 1:
        raise UserError(f"every_steps is {every_steps}; snapshots need a distance of at least 1")
    try:
        from stable_baselines3.common.callbacks import BaseCallback  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UserError(
            "snapshots of a learning policy need Stable-Baselines3: "
            "pip install 'interlatent-live[sb3]'"
        ) from error

    class Snapshots(BaseCallback):
        def __init__(self) -> None:
            super().__init__()
            self._last = 0

        def _on_training_start(self) -> None:
            self._last = self.num_timesteps
            self._snapshot()

        def _on_step(self) -> bool:
            if self.num_timesteps - self._last >= every_steps:
                self._last = self.num_timesteps
                self._snapshot()
            return True

        def _on_training_end(self) -> None:
            self._snapshot()

        def _snapshot(self) -> None:
            version = add_version(
                folder,
                _plain_actor(self.model),
                steps=self.num_timesteps,
                environment=_environment(self.training_env),
                source=f"{type(self.model).__name__}, {self.num_timesteps} steps",
            )
            if on_version is not None:
                on_version(version)

    return Snapshots()


def _plain_actor(model: Any) -> MlpPolicy:
    """The actor of an SB3 model as it is now."""
    low, high = getattr(model.action_space, "low", None), getattr(model.action_space, "high", None)
    bounds = None
    if low is not None and high is not None:
        bounds = (tuple(map(float, low)), tuple(map(float, high)))
    return policy_from_sb3_state(
        model.policy.state_dict(), activation=_activation(model.policy), action_bounds=bounds
    )


def _activation(policy: Any) -> Activation | None:
    function = getattr(policy, "activation_fn", None)
    names = {"Tanh": Activation.TANH, "ReLU": Activation.RELU, "ELU": Activation.ELU}
    names["SiLU"] = Activation.SILU
    name = getattr(function, "__name__", "")
    if name and name not in names:
        raise UserError(f"the activation {name} is not one of {', '.join(Activation)}")
    return names.get(name)


def _environment(vec_env: Any) -> str:
    specs = vec_env.get_attr("spec")
    return str(specs[0].id) if specs and specs[0] is not None else ""
