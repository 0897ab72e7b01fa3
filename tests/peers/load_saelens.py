"""Run in the peers' environment: load folders with SAELens' own classes, apply, write outputs."""
# ruff: noqa: T201 - a script's output is its answer
# The peers are not in our environment.
# mypy: disable-error-code="import-not-found"

import json
import sys
from pathlib import Path

import torch
from sae_lens import SAE
from safetensors.torch import load_file, save_file


def main():
    out = {}
    for folder in json.loads(sys.argv[1]):
        path = Path(folder)
        x = load_file(path / "x.safetensors")["x"]
        sae = SAE.load_from_disk(path, device="cpu")
        with torch.no_grad():
            features = sae.encode(x)
            skip = getattr(sae, "W_skip", None)
            y = sae(x) if skip is not None else sae.decode(features)
        save_file(
            {"features": features.contiguous(), "y": y.contiguous()}, path / "peer.safetensors"
        )
        out[folder] = {
            "class": type(sae).__name__,
            "architecture": sae.cfg.architecture(),
            "metadata": dict(sae.cfg.metadata.to_dict()),
        }
    print(json.dumps(out, default=str))


def save(folder):
    """Save a jumprelu transcoder made by SAELens itself, with what it computes."""
    from sae_lens.saes.transcoder import (  # noqa: PLC0415
        JumpReLUTranscoder,
        JumpReLUTranscoderConfig,
    )

    torch.manual_seed(0)
    config = JumpReLUTranscoderConfig(d_in=6, d_sae=24, d_out=7, apply_b_dec_to_input=False)
    sae = JumpReLUTranscoder(config)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(torch.randn_like(parameter))
            if name == "threshold":
                parameter.abs_()
    sae.save_model(folder)
    x = torch.randn(40, 6)
    with torch.no_grad():
        features = sae.encode(x)
        y = sae.decode(features)
    save_file({"x": x, "features": features, "y": y}, Path(folder) / "theirs.safetensors")


if __name__ == "__main__":
    if sys.argv[1] == "save":
        save(sys.argv[2])
    else:
        main()
