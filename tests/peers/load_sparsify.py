"""Run in the peers' environment: load folders with sparsify's own class, apply, write outputs."""

# The peers are not in our environment.
# mypy: disable-error-code="import-not-found"

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sparsify import SparseCoder
from sparsify.config import SparseCoderConfig


def apply(coder, x):
    with torch.no_grad():
        encoded = coder.encode(x)
        features = torch.zeros(len(x), coder.num_latents)
        features.scatter_(1, encoded.top_indices, encoded.top_acts)
        y = coder.decode(encoded.top_acts, encoded.top_indices)
        if coder.W_skip is not None:
            y = y + x @ coder.W_skip.mT
    return features, y


def main():
    for folder in json.loads(sys.argv[1]):
        path = Path(folder)
        x = load_file(path / "x.safetensors")["x"]
        features, y = apply(SparseCoder.load_from_disk(path), x)
        save_file({"features": features, "y": y}, path / "peer.safetensors")


def save(folder, transcode):
    torch.manual_seed(0)
    config = SparseCoderConfig(
        expansion_factor=4, k=3, transcode=transcode, skip_connection=transcode
    )
    coder = SparseCoder(6, config)
    with torch.no_grad():
        for parameter in coder.parameters():
            parameter.copy_(torch.randn_like(parameter))
    coder.save_to_disk(folder)
    x = torch.randn(40, 6)
    features, y = apply(coder, x)
    save_file({"x": x, "features": features, "y": y}, Path(folder) / "theirs.safetensors")


if __name__ == "__main__":
    if sys.argv[1] == "save":
        save(sys.argv[2], sys.argv[3] == "transcode")
    else:
        main()
