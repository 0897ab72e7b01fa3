"""From other people's weight files to policy folders, with their licences and what was measured.

The sources are folders of plain arrays: ``NAME.actor.npz`` with W0, b0, W1, b1, … (torch's layout,
[out, in]), optional ``obs_mean`` and ``obs_std``, and a ``manifest.json`` one level up that says
the environment, the activation, the meaning of the output, the licence and every measured return.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from interlatent_live.errors import CorruptFileError, MismatchError, UserError
from interlatent_live.policies.files import LoadedPolicy, Provenance, save_policy
from interlatent_live.policies.sb3_files import load_sb3_zip, mlp_from_maps
from interlatent_live.policies.spec import Activation, Adapter, Output, PolicySpec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

SUFFIX: Final = ".actor.npz"


def import_plain(
    source: Path, out: Path, *, name: str, environment: str = "", adapter: Adapter | None = None
) -> LoadedPolicy:
    """Convert one ``NAME.actor.npz`` that a ``manifest.json`` beside its folder describes.

    Args:
        source: the file.
        out: folder to write.
        name: of the policy.
        environment: Gymnasium id, where it is not the manifest's.
        adapter: where that environment's observation is not what the manifest's adapter takes.

    Raises:
        UserError: when the file, its manifest entry, its environment or its licence is missing.
        MismatchError: when the file is not the one the manifest's sha256 names.
        CorruptFileError: when the arrays are not what the manifest says.
    """
    entry = _manifest_entry(source)
    content = source.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != entry["actor_sha256"]:
        raise MismatchError(
            f"{source} hashes to {digest[:16]}…, the manifest says {entry['actor_sha256'][:16]}…: "
            "fetch the file again"
        )
    arrays = _arrays(source)
    environment = environment or str(entry["env_id"])
    output = Output(entry["output"])
    low, high = _action_bounds(environment, output)
    mean, std = arrays.get("obs_mean"), arrays.get("obs_std")
    spec = PolicySpec(
        layer_sizes=(int(entry["obs_dim"]), *map(int, entry["hidden"]), int(entry["out_dim"])),
        activation=Activation.TANH if not entry["hidden"] else Activation(entry["activation"]),
        output=output,
        adapter=_adapter(str(entry["obs_adapter"])) if adapter is None else adapter,
        obs_mean=None if mean is None else tuple(float(v) for v in mean.reshape(-1)),
        obs_std=None if std is None else tuple(float(v) for v in std.reshape(-1)),
        obs_clip=None if entry["obs_clip"] is None else float(entry["obs_clip"]),
        action_low=low,
        action_high=high,
    )
    module = mlp_from_maps(spec, _maps(source, arrays))
    provenance = Provenance(
        source=f"{entry['source_repo']}: {entry['source_path']}",
        licence=str(entry["licence"]),
        algorithm=str(entry["algo"]),
        measured=str(entry["measured"]),
        returns=tuple(float(value) for value in entry.get("returns", ())),
        first_seed=2000,
        facts={"imported_from": source.name, "sha256": digest, "note": str(entry["note"])},
    )
    return save_policy(
        out,
        module,
        name=name,
        environment=environment,
        provenance=provenance,
        licence_text=_licence_text(source, entry),
    )


def import_zip(
    source: Path, out: Path, *, name: str, environment: str, licence: str, licence_text: str
) -> LoadedPolicy:
    """Convert an SB3 zip; the file says neither its environment nor its licence, so the user does.

    Raises:
        UserError: when the zip holds no plain MLP actor or the environment is not known.
        CorruptFileError: when the zip is damaged.
    """
    _make(environment).close()
    loaded = load_sb3_zip(source, environment=environment)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    provenance = Provenance(
        source=source.name,
        licence=licence,
        algorithm="Stable-Baselines3",
        facts={"imported_from": source.name, "sha256": digest},
    )
    return save_policy(
        out,
        loaded.module,
        name=name,
        environment=environment,
        provenance=provenance,
        licence_text=licence_text,
    )


def _manifest_entry(source: Path) -> dict[str, Any]:
    if not source.name.endswith(SUFFIX) or not source.is_file():
        raise UserError(f"{source} is no {SUFFIX} file")
    manifest = source.parent.parent / "manifest.json"
    try:
        entries = json.loads(manifest.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{source} needs {manifest}, which says what it is") from error
    except ValueError as error:
        raise CorruptFileError(f"{manifest} is not JSON: {error}") from error
    for entry in entries:
        if (entry["env_dir"], entry["actor_file"]) == (source.parent.name, source.name):
            return dict(entry)
    raise UserError(f"{manifest} says nothing about {source.parent.name}/{source.name}")


def _arrays(source: Path) -> dict[str, NDArray[np.floating]]:
    try:
        with np.load(source, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (OSError, ValueError) as error:
        raise CorruptFileError(f"{source} holds no plain arrays: {error}") from error


def _maps(
    source: Path, arrays: Mapping[str, NDArray[np.floating]]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    maps: list[tuple[torch.Tensor, torch.Tensor]] = []
    while f"W{len(maps)}" in arrays:
        index = len(maps)
        if f"b{index}" not in arrays:
            raise CorruptFileError(f"{source} has W{index} but no b{index}")
        weight, bias = arrays[f"W{index}"], arrays[f"b{index}"].reshape(-1)
        maps.append((torch.tensor(weight), torch.tensor(bias)))
    return maps


def _adapter(text: str) -> Adapter:
    if text.startswith("flatten"):
        return Adapter.FLATTEN
    try:
        return Adapter(text)
    except ValueError as error:
        raise UserError(
            f"the observation adapter {text!r} is not one of {', '.join(Adapter)}"
        ) from error


def _action_bounds(
    environment: str, output: Output
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    if output not in (Output.LINEAR_CLIP, Output.TANH_SCALE):
        return None, None
    env = _make(environment)
    low, high = getattr(env.action_space, "low", None), getattr(env.action_space, "high", None)
    env.close()
    if low is None or high is None:
        raise UserError(f"{environment} has discrete actions, but the output is {output.value}")
    return tuple(map(float, low)), tuple(map(float, high))


def _make(environment: str) -> Any:
    import gymnasium  # noqa: PLC0415 - slow to import, and only some policies need it

    try:
        return gymnasium.make(environment)
    except gymnasium.error.Error as error:
        raise UserError(f"Gymnasium cannot make {environment!r}: {error}") from error
    except ImportError as error:
        raise UserError(
            f"{environment} needs a package that is not installed ({error}): install the extra "
            "interlatent-live[box2d] or interlatent-live[mujoco]"
        ) from error


def _licence_text(source: Path, entry: Mapping[str, Any]) -> str:
    repository = str(entry["source_repo"]).partition(" ")[0].replace("/", "_")
    path = source.parent.parent / "LICENSES" / f"{repository}.{entry['licence']}.txt"
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"the licence text {path} is missing; nothing is imported without it"
        ) from error
