"""Run in the peers' environment: load a folder with circuit-tracer's own classes, write outputs."""
# ruff: noqa: T201 - a script's output is its answer
# The peers are not in our environment.
# mypy: disable-error-code="import-not-found"

import json
import sys
from pathlib import Path

import torch
from circuit_tracer.transcoder.single_layer_transcoder import load_transcoder_set
from safetensors.torch import load_file, save_file


def main():
    path = Path(sys.argv[1])
    layers = sorted(path.glob("layer_*.safetensors"), key=lambda p: int(p.stem.split("_")[1]))
    x = load_file(path / "x.safetensors")["x"]
    loaded = load_transcoder_set(
        {number: str(layer) for number, layer in enumerate(layers)},
        scan="ours",
        feature_input_hook="hook_in",
        feature_output_hook="hook_out",
        dtype=torch.float32,
        device=torch.device("cpu"),
        lazy_encoder=False,
        lazy_decoder=False,
    )
    out = {}
    with torch.no_grad():
        for number, transcoder in enumerate(loaded):
            features = transcoder.encode(x)
            y = transcoder.decode(features, x)
            out[f"features{number}"] = features.contiguous()
            out[f"y{number}"] = y.contiguous()
    save_file(out, path / "peer.safetensors")
    print(json.dumps({"layers": len(layers)}))


if __name__ == "__main__":
    main()
