"""Stable-Baselines3 files as plain policies, without unpickling anything.

An SB3 zip holds ``data`` (JSON with base64 pickles inside) and ``policy.pth`` (a torch state dict).
SB3's own loader unpickles, and a pickle from a stranger runs their code. Here the actor's linear
maps are taken from the state dict (``weights_only=True``) and what else is needed from the JSON's
readable side: the activation's and the policy class's names, the action bounds as SB3 printed them.
Observation statistics of a ``VecNormalize`` live in a pickle of their own and are not in the zip.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from typing import TYPE_CHECKING, Any, Final

import torch

from interlatent_live.errors import CorruptFileError, UserError
from interlatent_live.policies.files import LoadedPolicy, Provenance
from interlatent_live.policies.hashing import policy_hash
from interlatent_live.policies.mlp import MlpPolicy
from interlatent_live.policies.spec import Activation, Output, PolicySpec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_MAX_BYTES: Final = 1 << 30
"""A state dict above this is refused before it is unpacked: a zip may claim any size."""

_LAYOUTS: Final = (
    # (hidden layers' prefix, head or None where the last of the stack is the head, output, default
    # activation of SB3's policy class)
    ("mlp_extractor.policy_net", "action_net", Activation.TANH),
    ("actor.latent_pi", "actor.mu", Activation.RELU),
    ("latent_pi", "mu", Activation.RELU),
    ("q_net.q_net", None, Activation.RELU),
    ("actor.mu", None, Activation.RELU),
)


def load_sb3_zip(
    path: Path, *, environment: str = "", activation: Activation | None = None
) -> LoadedPolicy:
    """Read the actor of an SB3 zip (PPO, A2C, DQN, SAC, TQC, TD3, DDPG with an MLP policy).

    ``activation`` overrides what the file says or, where it says nothing, SB3's default.

    Raises:
        UserError: when the policy is no plain MLP (images, dictionaries, recurrence).
        CorruptFileError: when the zip or what lies in it is damaged or not what it should be.
    """
    data, state = _read_zip(path)
    module = policy_from_sb3_state(
        state,
        activation=activation or _activation_in(data),
        action_bounds=_action_bounds(data),
        what=str(path),
    )
    provenance = Provenance(source=path.name, licence="unknown", algorithm="Stable-Baselines3")
    return LoadedPolicy(path.stem, module, environment, provenance, policy_hash(module))


def policy_from_sb3_state(
    state: Mapping[str, torch.Tensor],
    *,
    activation: Activation | None = None,
    action_bounds: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    what: str = "this SB3 policy",
) -> MlpPolicy:
    """The actor in an SB3 policy's state dict as an :class:`MlpPolicy`.

    ``action_bounds`` (low, high) mean continuous control; without them the outputs are discrete.

    Raises:
        UserError: when the state dict holds no plain MLP actor.
    """
    for prefix, head, default in _LAYOUTS:
        maps = _linear_maps(state, prefix)
        if not maps:
            continue
        if head is not None:
            if f"{head}.weight" not in state:
                continue
            maps.append((state[f"{head}.weight"], state[f"{head}.bias"]))
        spec = PolicySpec(
            layer_sizes=(maps[0][0].shape[1], *(weight.shape[0] for weight, _ in maps)),
            activation=activation or default,
            output=_output(prefix, action_bounds),
            action_low=None if action_bounds is None else action_bounds[0],
            action_high=None if action_bounds is None else action_bounds[1],
        )
        return mlp_from_maps(spec, maps)
    raise UserError(
        f"{what} has no plain MLP actor (found {', '.join(sorted(state)[:4])}, …): attach to the "
        "policy object in your own process instead"
    )


def mlp_from_maps(spec: PolicySpec, maps: list[tuple[torch.Tensor, torch.Tensor]]) -> MlpPolicy:
    """An :class:`MlpPolicy` from its linear maps in order: weights [out, in] and biases [out].

    Raises:
        CorruptFileError: when the maps' shapes do not follow the spec's sizes.
    """
    module = MlpPolicy(spec)
    names = [f"hidden.{index}.linear" for index in range(spec.hidden_count)] + ["head"]
    own = module.state_dict()
    if len(maps) != len(names):
        raise CorruptFileError(f"{len(maps)} linear maps do not make layers {spec.layer_sizes}")
    for name, (weight, bias) in zip(names, maps, strict=True):
        for key, tensor in ((f"{name}.weight", weight), (f"{name}.bias", bias)):
            if own[key].shape != tensor.shape:
                raise CorruptFileError(
                    f"{key} is {tuple(tensor.shape)} where {tuple(own[key].shape)} is due"
                )
            own[key] = tensor.detach().to(torch.float32)
    module.load_state_dict(own)
    return module.eval()


def _linear_maps(
    state: Mapping[str, torch.Tensor], prefix: str
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The linear maps of a ``Sequential`` named ``prefix``, by ascending index."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.weight")
    found = sorted(int(match[1]) for key in state if (match := pattern.fullmatch(key)))
    maps = []
    for index in found:
        weight = state[f"{prefix}.{index}.weight"]
        bias = state.get(f"{prefix}.{index}.bias")
        if weight.ndim != 2 or bias is None:
            return []
        maps.append((weight, bias))
    return maps


def _output(
    prefix: str, action_bounds: tuple[tuple[float, ...], tuple[float, ...]] | None
) -> Output:
    if action_bounds is None:
        return Output.ARGMAX
    return Output.LINEAR_CLIP if prefix.startswith("mlp_extractor") else Output.TANH_SCALE


def _read_zip(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
            if "policy.pth" not in sizes or "data" not in sizes:
                raise UserError(f"{path} is no SB3 zip: it holds no policy.pth and data")
            if max(sizes["policy.pth"], sizes["data"]) > _MAX_BYTES:
                raise CorruptFileError(f"{path} claims to hold more than {_MAX_BYTES} bytes")
            data = json.loads(archive.read("data"))
            raw = archive.read("policy.pth")
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise CorruptFileError(f"{path} is no intact SB3 zip: {error}") from error
    try:
        state = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception as error:  # hostile bytes raise anything; all of it means this
        reason = str(error).split("\n", maxsplit=1)[0]
        raise CorruptFileError(
            f"policy.pth in {path} holds more than plain weights and was not loaded: {reason}"
        ) from error
    tensors = isinstance(state, dict) and all(torch.is_tensor(value) for value in state.values())
    if not (tensors and isinstance(data, dict)):
        raise CorruptFileError(f"policy.pth in {path} is no state dict")
    return data, state


def _activation_in(data: Mapping[str, Any]) -> Activation | None:
    """The activation that ``policy_kwargs`` names in its readable part, if any."""
    name = str((data.get("policy_kwargs") or {}).get("activation_fn", "")).lower()
    if not name:
        return None
    for activation in Activation:
        if re.search(rf"\.{activation.value}\b", name):
            return activation
    raise UserError(f"the activation {name} is not one of {', '.join(Activation)}")


def _action_bounds(data: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    space = data.get("action_space") or {}
    if "Box" not in str(space.get(":type:", "")):
        return None
    low, high = (_printed_vector(space.get(key)) for key in ("low", "high"))
    if low is None or high is None or len(low) != len(high):
        raise CorruptFileError("the zip's action space does not say its bounds")
    return low, high


def _printed_vector(text: object) -> tuple[float, ...] | None:
    """A NumPy vector as it prints itself, ``[-1. -1.]``; None when it was abbreviated."""
    if not isinstance(text, str) or "..." in text:
        return None
    try:
        return tuple(float(word) for word in text.strip().strip("[]").split())
    except ValueError:
        return None
