"""The whole state of an environment, taken out and put back, to the bit.

MuJoCo: a copy of ``mjData`` (with the warm start of the solver and everything derived, so that the
next step is the same to the bit). ALE: the emulator's own state with its random numbers. What is
written in plain Python: a deep copy of its attributes, as of the wrappers around each kind (time
limits and so on). What lives in a library's memory where nobody can copy it (Box2D) is refused:
half a state is none.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import gymnasium

from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

_NOT_STATE: Final = frozenset(
    {
        "env", "spec", "_spec", "_cached_spec", "metadata", "_metadata", "observation_space",
        "_observation_space", "action_space", "_action_space", "model", "data", "mujoco_renderer",
        "ale", "screen", "clock", "renderer",
    }
)  # fmt: skip
"""Attributes that do not decide what happens next, or are copied in a way of their own."""


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """A moment of an environment; restored as often as one likes, also into another one like it."""

    kind: str
    """``mujoco``, ``ale`` or ``python``."""
    core: Any
    layers: tuple[dict[str, Any], ...] = field(repr=False)
    """Attributes of the wrappers, outermost first, then of the environment itself."""


def take(env: gymnasium.Env[Any, Any]) -> Snapshot:
    """The state of an environment now.

    Raises:
        UserError: when it cannot be copied, saying why.
    """
    inner = env.unwrapped
    kind, core = _core_of(inner)
    return Snapshot(kind, core, tuple(_attributes(layer) for layer in _layers(env)))


def restore(env: gymnasium.Env[Any, Any], snapshot: Snapshot) -> None:
    """Put a state back, as a copy: the snapshot stays good.

    Raises:
        UserError: when the environment is not built like the one that the state is from.
    """
    layers = list(_layers(env))
    inner: Any = env.unwrapped
    if len(layers) != len(snapshot.layers) or _kind_of(inner) != snapshot.kind:
        raise UserError(
            f"a state of another environment cannot be put into {type(inner).__name__}: build both "
            "the same way"
        )
    if snapshot.kind == "mujoco":
        import mujoco  # noqa: PLC0415 - an extra

        mujoco.mj_copyData(inner.data, inner.model, snapshot.core)
    elif snapshot.kind == "ale":
        inner.ale.restoreState(snapshot.core)
    for layer, attributes in zip(layers, snapshot.layers, strict=True):
        vars(layer).update(copy.deepcopy(attributes))


def _layers(env: gymnasium.Env[Any, Any]) -> Iterator[gymnasium.Env[Any, Any]]:
    while isinstance(env, gymnasium.Wrapper):
        yield env
        env = env.env
    yield env


def _kind_of(inner: Any) -> str:
    if type(getattr(inner, "data", None)).__name__ == "MjData":
        return "mujoco"
    return "ale" if hasattr(getattr(inner, "ale", None), "cloneState") else "python"


def _core_of(inner: Any) -> tuple[str, Any]:
    kind = _kind_of(inner)
    if kind == "mujoco":
        return kind, copy.copy(inner.data)
    if kind == "ale":
        return kind, inner.ale.cloneState(include_rng=True)
    return kind, None


def _attributes(layer: gymnasium.Env[Any, Any]) -> dict[str, Any]:
    own = {name: value for name, value in vars(layer).items() if name not in _NOT_STATE}
    try:
        return copy.deepcopy(own)
    except (TypeError, ValueError, RuntimeError, NotImplementedError, AttributeError) as error:
        raise UserError(
            f"the state of {type(layer).__name__} cannot be copied ({error}): branches need "
            "MuJoCo, ALE or an environment written in plain Python"
        ) from error
