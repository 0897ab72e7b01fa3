"""A prepared policy on disk: what the test needs, so that an interrupted run does not choose again.

Matrix libraries round differently from process to process (memory alignment decides which loop they
take), so training again after an interruption would end in weights a last bit apart and, now and
then, in another choice of arms. The plan must be what was tested; so it is stored with everything
it speaks of, and a resumed run goes on from there.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from interlatent_live.errors import CorruptFileError, MismatchError
from interlatent_live.interventions.reproduction.arms import (
    Arm,
    Condition,
    FeatureCondition,
    MetricCondition,
)
from interlatent_live.interventions.reproduction.experiment import Prepared
from interlatent_live.interventions.reproduction.reinforce import Trained
from interlatent_live.interventions.reproduction.search import Chosen
from interlatent_live.policies.hashing import policy_hash
from interlatent_live.policies.mlp import MlpPolicy
from interlatent_live.policies.spec import Activation, Output, PolicySpec
from interlatent_live.transcoders.config import Architecture, TranscoderConfig
from interlatent_live.transcoders.transcoder import Transcoder

if TYPE_CHECKING:
    from pathlib import Path

    from interlatent_live.interventions.reproduction.settings import Settings

PLAN: Final = "plan.json"
TENSORS: Final = "prepared.safetensors"


def save_prepared(folder: Path, prepared: Prepared, settings: Settings) -> None:
    """Write tensors, then the plan: where there is a plan, there is all that it speaks of."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"policy.{name}": value.detach().contiguous()
        for name, value in prepared.trained.policy.state_dict().items()
    }
    for (layer, width), transcoder in prepared.dictionaries.items():
        for name, value in transcoder.tensors().items():
            tensors[f"transcoder.{layer}.{width}.{name}"] = value.detach().contiguous()
    for index, item in enumerate(prepared.chosen):
        if item.arm.delta is not None:
            tensors[f"delta.{index}"] = torch.from_numpy(item.arm.delta)
    save_file(tensors, folder / TENSORS)
    plan = {
        **prepared.plan(settings),
        "updates": prepared.trained.updates,
        "mean_return": prepared.trained.mean_return,
        "fvu": [[layer, width, value] for (layer, width), value in prepared.fvu.items()],
        "chosen": [_arm_to_json(item) for item in prepared.chosen],
    }
    write_whole(folder / PLAN, json.dumps(plan, indent=1, ensure_ascii=False) + "\n")


def load_prepared(folder: Path, settings: Settings) -> Prepared | None:
    """What an interrupted run had prepared; None when it had not come to a plan.

    Raises:
        CorruptFileError: when the files are damaged or do not belong together.
        MismatchError: when the plan was made with other settings.
    """
    if not (folder / PLAN).exists():
        return None
    try:
        plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        tensors = load_file(folder / TENSORS)
        stated = plan["settings"]
        prepared = _rebuild(plan, tensors, settings)
    except (
        OSError,
        SafetensorError,
        ValueError,
        KeyError,
        TypeError,
        RuntimeError,
    ) as error:
        raise CorruptFileError(
            f"the plan in {folder} is damaged ({error}): remove that folder to start over"
        ) from error
    if stated != settings.digest():
        raise MismatchError(
            f"the plan in {folder} was made with settings {stated}, not {settings.digest()}: "
            "remove that folder to start over"
        )
    if policy_hash(prepared.trained.policy) != plan["policy_hash"]:
        raise CorruptFileError(
            f"the weights in {folder} are not those its plan names: remove it to start over"
        )
    return prepared


def write_whole(path: Path, text: str) -> None:
    """Write whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _rebuild(
    plan: dict[str, Any], tensors: dict[str, torch.Tensor], settings: Settings
) -> Prepared:
    spec = PolicySpec(settings.layers, activation=Activation.RELU, output=Output.SOFTMAX)
    policy = MlpPolicy(spec)
    policy.load_state_dict(_under(tensors, "policy."))
    dictionaries = {}
    for layer in (0, 1):
        for width in settings.widths:
            config = TranscoderConfig(
                architecture=Architecture.RELU,
                d_in=settings.layers[layer],
                d_out=settings.layers[layer + 1],
                n_features=width,
                l1=0.0,
            )
            own = _under(tensors, f"transcoder.{layer}.{width}.")
            dictionaries[layer, width] = Transcoder.from_tensors(config, own)
    chosen = tuple(
        _arm_from_json(data, tensors.get(f"delta.{index}"))
        for index, data in enumerate(plan["chosen"])
    )
    trained = Trained(
        policy.eval(), int(plan["training_seed"]), int(plan["updates"]), float(plan["mean_return"])
    )
    fvu = {(int(layer), int(width)): float(value) for layer, width, value in plan["fvu"]}
    return Prepared(trained, dictionaries, chosen, fvu)


def _under(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _arm_to_json(item: Chosen) -> dict[str, Any]:
    condition = item.arm.condition
    kind = None
    if condition is not None:
        kind = "metric" if isinstance(condition, MetricCondition) else "feature"
    return {
        "family": item.family,
        "name": item.arm.name,
        "layer": item.arm.layer,
        "bias": item.arm.bias,
        "tried": item.tried,
        "selection_mean": item.selection_mean,
        "condition_kind": kind,
        "condition": None if condition is None else asdict(condition),
        "facts": item.arm.facts,
    }


def _arm_from_json(data: dict[str, Any], delta: torch.Tensor | None) -> Chosen:
    condition: Condition | None = None
    if data["condition_kind"] == "metric":
        condition = MetricCondition(**data["condition"])
    elif data["condition_kind"] == "feature":
        condition = FeatureCondition(**data["condition"])
    arm = Arm(
        data["name"],
        data["layer"],
        None if delta is None else np.asarray(delta.numpy(), np.float32),
        float(data["bias"]),
        condition,
        dict(data["facts"]),
    )
    return Chosen(data["family"], arm, int(data["tried"]), float(data["selection_mean"]))
