"""sparsify: ``cfg.json`` and ``sae.safetensors``, TopK only.

``encoder.weight [F, d_in]``, ``encoder.bias``, ``W_dec [F, d_in]``, ``b_dec [d_in]``, optional
``W_skip [d_in, d_in]`` applied as ``x @ W_skip.T``; d_out = d_in. A transcoder encodes x as it is,
an autoencoder x − b_dec. Thresholded and ReLU transcoders are refused: nothing in this format can
say them.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors.torch import save

from interlatent_live.errors import UserError
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

CONFIG_FILE: Final = "cfg.json"
WEIGHTS_FILE: Final = "sae.safetensors"


def export_sparsify(loaded: LoadedTranscoder, out: Path) -> Path:
    """Write a folder that sparsify's own class loads.

    Raises:
        UserError: when it cannot be exported exactly.
    """
    transcoder = loaded.transcoder
    config = transcoder.config
    if config.architecture is not Architecture.TOPK:
        raise UserError(
            f"sparsify knows TopK only, and {config.architecture} is something else at inference; "
            "export to SAELens, or train with topk"
        )
    if config.d_in != config.d_out:
        raise UserError(
            f"sparsify needs d_out equal to d_in, and this transcoder maps {config.d_in} to "
            f"{config.d_out}; export to SAELens"
        )
    bias = transcoder.b_enc
    if config.target is Target.INPUT:
        # It encodes x − b_dec: (x − b_dec) W + b' = x W + b for b' = b + b_dec W.
        bias = bias + transcoder.b_dec @ transcoder.W_enc
    tensors = {
        "encoder.weight": transcoder.W_enc.T,
        "encoder.bias": bias,
        "W_dec": transcoder.W_dec,
        "b_dec": transcoder.b_dec,
    }
    if transcoder.W_skip is not None:
        tensors["W_skip"] = transcoder.W_skip.T
    described: dict[str, Any] = {
        "activation": "topk",
        "expansion_factor": max(1, config.n_features // config.d_in),
        "normalize_decoder": False,
        "num_latents": config.n_features,
        "k": config.k,
        "multi_topk": False,
        "skip_connection": config.skip,
        "transcode": config.target is Target.OUTPUT,
        "d_in": config.d_in,
    }
    payload = save(
        {k: v.detach().to("cpu", torch.float32).contiguous() for k, v in tensors.items()}
    )
    out.mkdir(parents=True, exist_ok=True)
    replace_file(out / WEIGHTS_FILE, payload)
    replace_file(out / CONFIG_FILE, (json.dumps(described, indent=1) + "\n").encode())
    return out


def read_sparsify(path: Path) -> ForeignWeights:
    """Read a folder that sparsify saved.

    Raises:
        UserError: when there is none, or it computes something that we do not.
        CorruptFileError: when it is damaged or hostile.
    """
    file = path / CONFIG_FILE
    config = read_json(file)
    if config.get("activation", "topk") != "topk":
        raise UserError(f"{file} uses the activation {config['activation']!r}; only topk is read")
    d_in, k = positive_int(config, "d_in", file), positive_int(config, "k", file)
    # num_latents = 0 means expansion_factor × d_in.
    n_features = config.get("num_latents") or positive_int(config, "expansion_factor", file) * d_in
    n_features = positive_int({"num_latents": n_features}, "num_latents", file)
    skip, transcode = bool(config.get("skip_connection")), bool(config.get("transcode"))
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.weight": (n_features, d_in),
        "encoder.bias": (n_features,),
        "W_dec": (n_features, d_in),
        "b_dec": (d_in,),
    }
    if skip:
        shapes["W_skip"] = (d_in, d_in)
    raw = read_floats(path / WEIGHTS_FILE, shapes)
    tensors = {
        "W_enc": raw["encoder.weight"].T.contiguous(),
        "b_enc": raw["encoder.bias"],
        "W_dec": raw["W_dec"],
        "b_dec": raw["b_dec"],
    }
    if not transcode:
        tensors["b_enc"] = tensors["b_enc"] - tensors["b_dec"] @ tensors["W_enc"]
    if skip:
        tensors["W_skip"] = raw["W_skip"].T.contiguous()
    target = Target.OUTPUT if transcode else Target.INPUT
    return ForeignWeights("sparsify", Architecture.TOPK, target, tensors, k)
