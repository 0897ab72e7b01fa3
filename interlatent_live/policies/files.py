"""Policies on disk: one folder with weights, a description and where it all came from.

``policy.safetensors`` holds the state dict, ``policy.json`` the :class:`PolicySpec`, the
environment, the hash and the provenance, ``LICENSE`` the terms. Nothing here unpickles anything: a
Stable-Baselines3 zip is read through the ``policy.pth`` inside it with ``weights_only=True``, and
its JSON.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from interlatent_live.errors import CorruptFileError, MismatchError, UserError
from interlatent_live.policies.conv import ConvPolicy
from interlatent_live.policies.conv_spec import conv_spec_from_json, is_conv
from interlatent_live.policies.hashing import policy_hash
from interlatent_live.policies.mlp import MlpPolicy
from interlatent_live.policies.recurrent import RecurrentPolicy
from interlatent_live.policies.recurrent_spec import is_recurrent, recurrent_spec_from_json
from interlatent_live.policies.spec import spec_from_json

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

    import torch

WEIGHTS: Final = "policy.safetensors"
DESCRIPTION: Final = "policy.json"
LICENCE: Final = "LICENSE"
SCHEMA: Final = 1


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a policy came from, and what it was measured to do."""

    source: str
    """Repository and commit, or the command that trained it."""
    licence: str
    """SPDX identifier; its text lies beside the weights."""
    algorithm: str = ""
    measured: str = ""
    """Return with its number of episodes and seeds, in words."""
    returns: tuple[float, ...] = ()
    """Returns of single episodes; episode i was reset with seed ``first_seed + i``."""
    first_seed: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    """Whatever else is known: seeds, versions, hashes of the originals."""


@dataclass(frozen=True, slots=True)
class LoadedPolicy:
    """A policy ready to act, with what is known about it."""

    name: str
    module: MlpPolicy
    environment: str
    """Gymnasium id."""
    provenance: Provenance
    policy_hash: str


def built_in_policies() -> tuple[str, ...]:
    """Names of the policies that travel with the package."""
    root = _data_root()
    return tuple(sorted(entry.name for entry in root.iterdir() if _is_policy(entry)))


def load_policy(name_or_path: str | Path) -> LoadedPolicy:
    """Load a built-in policy by name, or one of our folders, or an SB3 zip by path.

    The zip of an algorithm whose files do not say the environment gets ``environment=""``; use
    :func:`interlatent_live.policies.sb3_files.load_sb3_zip` to state it.

    Raises:
        UserError: when there is no such policy, or the file is of a kind that cannot be hooked.
        CorruptFileError: when the files are damaged or not what they say.
    """
    text = str(name_or_path)
    root = _data_root()
    if text in built_in_policies():
        with resources.as_file(root / text) as folder:
            return load_folder(folder)
    path = Path(name_or_path)
    if path.is_dir():
        return load_folder(path)
    if not path.exists():
        names = ", ".join(built_in_policies())
        raise UserError(
            f"there is no policy {text!r}: give one of {names}, a policy folder or an SB3 zip"
        )
    if path.suffix == ".zip":
        from interlatent_live.policies.sb3_files import load_sb3_zip  # noqa: PLC0415 - it imports us

        return load_sb3_zip(path)
    if path.suffix in (".pt", ".ts", ".torchscript"):
        raise UserError(
            f"{text} looks like TorchScript, which says neither its environment nor what its "
            "outputs mean: `interlatent-live collect`, `evaluate`, `diff` and `probe` take it; "
            "elsewhere rebuild it as a torch.nn.Module "
            "(policies.torchscript.rebuild_torchscript) and attach to that"
        )
    raise UserError(
        f"{text} is neither a policy folder ({WEIGHTS} and {DESCRIPTION}) nor an SB3 zip: "
        "`interlatent-live policies import` turns weights into one"
    )


def load_folder(folder: Path) -> LoadedPolicy:
    """Load ``policy.safetensors`` and ``policy.json`` from a folder.

    Raises:
        CorruptFileError: when a file is missing, truncated, or tensors and description disagree.
        MismatchError: when the weights are not those the description's hash names.
    """
    description = _read_description(folder / DESCRIPTION)
    tensors = _read_tensors(folder / WEIGHTS)
    module = _untrained(description.get("spec"), tensors)
    _check_tensors(folder / WEIGHTS, module.state_dict(), tensors)
    module.load_state_dict(tensors)
    module.eval()
    found = policy_hash(module)
    stated = description.get("policy_hash")
    if found != stated:
        raise MismatchError(
            f"the weights in {folder / WEIGHTS} hash to {found}, but {DESCRIPTION} is about "
            f"{stated}: fetch both files again"
        )
    try:
        facts = dict(description["provenance"])
        facts["returns"] = tuple(float(value) for value in facts.get("returns", ()))
        provenance = Provenance(**facts)
        environment = str(description["environment"])
        name = str(description["name"])
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(f"{folder / DESCRIPTION} is damaged: {error}") from error
    return LoadedPolicy(name, module, environment, provenance, found)


def save_policy(
    folder: Path,
    module: MlpPolicy,
    *,
    name: str,
    environment: str,
    provenance: Provenance,
    licence_text: str,
) -> LoadedPolicy:
    """Write a policy folder (created if need be) and return what loading it would give.

    Raises:
        UserError: when the folder already holds a policy with other weights.
    """
    digest = policy_hash(module)
    existing = folder / DESCRIPTION
    if existing.exists() and _read_description(existing).get("policy_hash") != digest:
        raise UserError(
            f"{folder} already holds another policy: choose another folder or remove that one"
        )
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    save_file(state, folder / WEIGHTS)
    facts = {
        "source": provenance.source,
        "licence": provenance.licence,
        "algorithm": provenance.algorithm,
        "measured": provenance.measured,
        "returns": list(provenance.returns),
        "first_seed": provenance.first_seed,
        "facts": provenance.facts,
    }
    description = {
        "schema": SCHEMA,
        "name": name,
        "environment": environment,
        "policy_hash": digest,
        "spec": module.spec.to_json(),
        "provenance": facts,
    }
    text = json.dumps(description, indent=1, ensure_ascii=False) + "\n"
    (folder / DESCRIPTION).write_text(text, encoding="utf-8")
    (folder / LICENCE).write_text(licence_text, encoding="utf-8")
    return LoadedPolicy(name, module, environment, provenance, digest)


def _data_root() -> Traversable:
    return resources.files("interlatent_live.data") / "policies"


def _is_policy(entry: Traversable) -> bool:
    return entry.is_dir() and (entry / DESCRIPTION).is_file()


def _read_description(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CorruptFileError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CorruptFileError(f"{path} is not JSON: {error}") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise CorruptFileError(f"{path} does not describe a policy of schema {SCHEMA}")
    return data


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise CorruptFileError(f"{path} is no intact safetensors file: {error}") from error


def _untrained(data: Any, tensors: dict[str, torch.Tensor]) -> MlpPolicy:
    """The module that a description and the normalisation beside the weights make."""
    if is_conv(data):
        return ConvPolicy(conv_spec_from_json(data))
    if is_recurrent(data):
        return RecurrentPolicy(recurrent_spec_from_json(data))
    mean, std = (_as_floats(tensors.get(key)) for key in ("obs_mean", "obs_std"))
    return MlpPolicy(spec_from_json(data, obs_mean=mean, obs_std=std))


def _as_floats(tensor: torch.Tensor | None) -> tuple[float, ...] | None:
    return None if tensor is None else tuple(float(value) for value in tensor.reshape(-1).tolist())


def _check_tensors(
    path: Path, expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor]
) -> None:
    odd = sorted(expected.keys() ^ found.keys())
    if odd:
        raise CorruptFileError(f"{path} and its description disagree about {', '.join(odd)}")
    for key, tensor in expected.items():
        if tensor.shape != found[key].shape or tensor.dtype != found[key].dtype:
            raise CorruptFileError(
                f"{path} holds {key} as {tuple(found[key].shape)} {found[key].dtype}, its "
                f"description says {tuple(tensor.shape)} {tensor.dtype}"
            )
