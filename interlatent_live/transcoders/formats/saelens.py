"""SAELens: ``cfg.json`` and ``sae_weights.safetensors``.

``W_enc [d_in, d_sae]``, ``b_enc``, ``W_dec [d_sae, d_out]``, ``b_dec``, ``threshold [d_sae]`` for
jumprelu*, ``W_skip [d_out, d_in]``. Its loader breaks on a missing ``dtype``, on a missing
``apply_b_dec_to_input`` and on any extra tensor, and drops custom metadata without
``metadata.sae_lens_version``. BatchTopK goes out as JumpReLU, which is what it is at inference.
There is no TopK transcoder in SAELens, so that one is refused.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors.torch import save

from interlatent_live.errors import CorruptFileError, UserError
from interlatent_live.transcoders.config import Architecture, Target
from interlatent_live.transcoders.formats.foreign import (
    ForeignWeights,
    positive_int,
    read_floats,
    read_json,
)
from interlatent_live.transcoders.tensorfiles import replace_file

if TYPE_CHECKING:
    from pathlib import Path

    from interlatent_live.transcoders.native import LoadedTranscoder
    from interlatent_live.transcoders.transcoder import Transcoder

CONFIG_FILE: Final = "cfg.json"
WEIGHTS_FILE: Final = "sae_weights.safetensors"
WRITTEN_FOR: Final = "6.0.0"
"""Version of the layout; SAELens reads metadata only when one is stated."""

_TRANSCODERS: Final = {
    "transcoder": (Architecture.RELU, False),
    "skip_transcoder": (Architecture.RELU, True),
    "jumprelu_transcoder": (Architecture.JUMPRELU, False),
    "jumprelu_skip_transcoder": (Architecture.JUMPRELU, True),
}
_AUTOENCODERS: Final = {
    "standard": Architecture.RELU,
    "jumprelu": Architecture.JUMPRELU,
    "topk": Architecture.TOPK,
}


def architecture_name(transcoder: Transcoder) -> str:
    """SAELens' word for what the transcoder computes at inference.

    Raises:
        UserError: when SAELens has none.
    """
    config = transcoder.config
    if config.target is Target.INPUT:
        if config.architecture is Architecture.TOPK:
            return "topk"
        return "jumprelu" if config.thresholded else "standard"
    if config.architecture is Architecture.TOPK:
        raise UserError(
            "SAELens has no TopK transcoder: its features would need a threshold that depends on "
            "the row; train with batchtopk, which goes out exactly as jumprelu_transcoder"
        )
    base = "jumprelu_transcoder" if config.thresholded else "transcoder"
    if not config.skip:
        return base
    return "jumprelu_skip_transcoder" if config.thresholded else "skip_transcoder"


def export_saelens(loaded: LoadedTranscoder, out: Path) -> Path:
    """Write a folder that SAELens' own classes load.

    Raises:
        UserError: when it cannot be exported exactly.
    """
    transcoder, provenance = loaded.transcoder, loaded.provenance
    name = architecture_name(transcoder)
    config: dict[str, Any] = {
        "architecture": name,
        "d_in": transcoder.config.d_in,
        "d_sae": transcoder.config.n_features,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": WRITTEN_FOR,
            "hook_name": provenance.hook_point,
            "interlatent_policy_hash": provenance.policy_hash,
            "interlatent_transcoder": transcoder.identity,
            "interlatent_architecture": str(transcoder.config.architecture),
            "interlatent_k": transcoder.config.k,
        },
    }
    if name in _TRANSCODERS:
        config["d_out"] = transcoder.config.d_out
    if name == "topk":
        config |= {"k": transcoder.config.k, "rescale_acts_by_decoder_norm": False}
    tensors = dict(transcoder.tensors())
    if "W_skip" in tensors:
        tensors["W_skip"] = tensors["W_skip"].T
    payload = save(
        {k: v.detach().to("cpu", torch.float32).contiguous() for k, v in tensors.items()}
    )
    out.mkdir(parents=True, exist_ok=True)
    replace_file(out / WEIGHTS_FILE, payload)
    replace_file(out / CONFIG_FILE, (json.dumps(config, indent=1) + "\n").encode())
    return out


def read_saelens(path: Path) -> ForeignWeights:
    """Read a folder that SAELens saved.

    Raises:
        UserError: when there is none, or it computes something that we do not.
        CorruptFileError: when it is damaged or hostile.
    """
    file = path / CONFIG_FILE
    config = read_json(file)
    name = str(config.get("architecture"))
    d_in, n_features = (positive_int(config, key, file) for key in ("d_in", "d_sae"))
    _refuse_what_is_not_in_the_weights(config, file)
    if name in _TRANSCODERS:
        architecture, skip = _TRANSCODERS[name]
        target, d_out = Target.OUTPUT, positive_int(config, "d_out", file)
    elif name in _AUTOENCODERS:
        architecture, skip, target, d_out = _AUTOENCODERS[name], False, Target.INPUT, d_in
    else:
        known = ", ".join((*_TRANSCODERS, *_AUTOENCODERS))
        raise UserError(f"{file} is of architecture {name!r}; what can be read is {known}")
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (d_in, n_features),
        "b_enc": (n_features,),
        "W_dec": (n_features, d_out),
        "b_dec": (d_out,),
    }
    if architecture is Architecture.JUMPRELU:
        shapes["threshold"] = (n_features,)
    if skip:
        shapes["W_skip"] = (d_out, d_in)
    tensors = read_floats(path / WEIGHTS_FILE, shapes)
    if config.get("apply_b_dec_to_input"):
        if target is not Target.INPUT:
            raise CorruptFileError(f"{file} subtracts b_dec, of the output, from the input")
        # (x − b_dec) W + b = x W + (b − b_dec W)
        tensors["b_enc"] = tensors["b_enc"] - tensors["b_dec"] @ tensors["W_enc"]
    if skip:
        tensors["W_skip"] = tensors["W_skip"].T.contiguous()
    k = positive_int(config, "k", file) if architecture is Architecture.TOPK else None
    return ForeignWeights("SAELens", architecture, target, tensors, k)


def _refuse_what_is_not_in_the_weights(config: dict[str, Any], file: Path) -> None:
    for key in ("normalize_activations", "reshape_activations"):
        if config.get(key, "none") not in ("none", None):
            raise UserError(
                f"{file} wants {key} = {config[key]!r}, which depends on the data at run time; "
                "fold it into the weights in SAELens first"
            )
    if config.get("rescale_acts_by_decoder_norm"):
        raise UserError(
            f"{file} rescales activations by decoder norms; fold them with SAELens' "
            "fold_W_dec_norm first"
        )
