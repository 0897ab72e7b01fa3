"""circuit-tracer: ``config.yaml`` and ``layer_{i}.safetensors``, one transcoder per layer.

``W_enc [F, d]``, ``W_dec [F, d]``, ``b_enc``, ``b_dec``, optional ``W_skip [d, d]`` applied as
``x @ W_skip.T``, and ``activation_function.threshold [F]`` for JumpReLU. Layers are contiguous,
share one F, and have d_in = d_out. Its JumpReLU has no ReLU in it, which is exact for us because
our thresholds are ≥ 0. TopK is refused.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

import torch
from safetensors.torch import save

from interlatent_live.errors import CorruptFileError, UserError
from interlatent_live.transcoders.config import Architecture, Target
from interlatent_live.transcoders.formats.foreign import ForeignWeights, read_floats
from interlatent_live.transcoders.tensorfiles import read_safetensors_header, replace_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from interlatent_live.transcoders.native import LoadedTranscoder
    from interlatent_live.transcoders.transcoder import Transcoder

CONFIG_FILE: Final = "config.yaml"
_THRESHOLD: Final = "activation_function.threshold"


def export_circuit_tracer(layers: Sequence[LoadedTranscoder], out: Path) -> Path:
    """Write a folder of layers, numbered in the order given.

    Raises:
        UserError: when a layer cannot be exported exactly, or the layers differ in width or policy.
    """
    if not layers:
        raise UserError("circuit-tracer's format needs at least one layer")
    for one in layers:
        _check_layer(one.transcoder)
    widths = {(one.transcoder.config.d_in, one.transcoder.config.n_features) for one in layers}
    if len(widths) > 1:
        raise UserError(
            f"circuit-tracer needs one width and one number of features for all layers; got "
            f"{sorted(widths)}"
        )
    policies = {one.provenance.policy_hash for one in layers}
    if len(policies) > 1:
        raise UserError(
            f"these layers are of {len(policies)} policies; export one policy at a time"
        )
    out.mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(layers):
        replace_file(out / f"layer_{number}.safetensors", save(_layer_tensors(one.transcoder)))
    described = {
        "model_name": f"policy-{policies.pop()}",
        "model_kind": "transcoder_set",
        "feature_input_hook": "interlatent.hook_in",
        "feature_output_hook": "interlatent.hook_out",
        "scan": [f"{one.provenance.hook_point}@{one.transcoder.identity}" for one in layers],
    }
    # A JSON string is a YAML string, so no YAML writer is needed.
    lines = [f"{key}: {json.dumps(value)}\n" for key, value in described.items()]
    replace_file(out / CONFIG_FILE, "".join(lines).encode())
    return out


def read_circuit_tracer(path: Path, layer: int = 0) -> ForeignWeights:
    """Read one layer of a folder.

    Raises:
        UserError: when there is no such layer.
        CorruptFileError: when it is damaged or hostile.
    """
    file = path / f"layer_{layer}.safetensors"
    if not file.is_file():
        known = sorted(
            int(match[1])
            for entry in path.glob("layer_*.safetensors")
            if (match := re.fullmatch(r"layer_(\d+)\.safetensors", entry.name))
        )
        raise UserError(f"{path} has no layer {layer}; it has {known}")
    header = read_safetensors_header(file)
    shape = header.get("W_enc", ("", ()))[1]
    if len(shape) != 2:
        raise CorruptFileError(f"{file} has no matrix W_enc")
    n_features, d = shape
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (n_features, d),
        "b_enc": (n_features,),
        "W_dec": (n_features, d),
        "b_dec": (d,),
        "W_skip": (d, d),
        _THRESHOLD: (n_features,),
    }
    raw = read_floats(file, shapes, optional=("W_skip", _THRESHOLD))
    tensors = {
        "W_enc": raw["W_enc"].T.contiguous(),
        "b_enc": raw["b_enc"],
        "W_dec": raw["W_dec"],
        "b_dec": raw["b_dec"],
    }
    if "W_skip" in raw:
        tensors["W_skip"] = raw["W_skip"].T.contiguous()
    architecture = Architecture.RELU
    if _THRESHOLD in raw:
        architecture = Architecture.JUMPRELU
        tensors["threshold"] = raw[_THRESHOLD]
        if bool((raw[_THRESHOLD] < 0).any()):
            raise UserError(
                f"{file} has negative thresholds, under which circuit-tracer lets negative "
                "activations through; our features are > 0 when on, so it cannot be read exactly"
            )
    return ForeignWeights("circuit-tracer", architecture, Target.OUTPUT, tensors)


def _check_layer(transcoder: Transcoder) -> None:
    config = transcoder.config
    if config.architecture is Architecture.TOPK:
        raise UserError(
            "circuit-tracer's files hold ReLU or thresholds, and TopK is neither; train with "
            "batchtopk, which goes out exactly"
        )
    if config.d_in != config.d_out:
        raise UserError(
            f"circuit-tracer needs d_out equal to d_in, and this transcoder maps {config.d_in} to "
            f"{config.d_out}; export to SAELens"
        )
    if config.target is Target.INPUT:
        raise UserError(
            "circuit-tracer holds transcoders of a block's output; an autoencoder goes to SAELens"
        )


def _layer_tensors(transcoder: Transcoder) -> dict[str, torch.Tensor]:
    tensors = {
        "W_enc": transcoder.W_enc.T,
        "b_enc": transcoder.b_enc,
        "W_dec": transcoder.W_dec,
        "b_dec": transcoder.b_dec,
    }
    if transcoder.W_skip is not None:
        tensors["W_skip"] = transcoder.W_skip.T
    if transcoder.threshold is not None:
        tensors[_THRESHOLD] = transcoder.threshold
    return {k: v.detach().to("cpu", torch.float32).contiguous() for k, v in tensors.items()}
