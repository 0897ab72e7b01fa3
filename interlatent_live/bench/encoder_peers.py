"""The other packages' encoders, timed by the interpreter of *their* environment.

A script, not a module of ours: it imports nothing from this package, so the environment with
SAELens and sparsify needs neither it nor its dependencies. It reads requests from standard input, a
line of JSON each (``peer``, ``shape``, ``n``, ``by_k``, ``seconds``), and answers each with the
median time of one ``encode`` in µs. What is timed is the peer's own ``encode`` and nothing else.
"""
# ruff: noqa: T201 - a script's output is its answer, and it is no part of the package

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import time
from typing import Any

import torch

with contextlib.redirect_stdout(sys.stderr):  # the peers greet when they are imported
    from sae_lens.saes.topk_sae import (
        TopKSAE,
        TopKSAEConfig,
    )
    from sae_lens.saes.transcoder import (
        JumpReLUTranscoder,
        JumpReLUTranscoderConfig,
    )
    from sparsify import (
        SparseCoder,
        SparseCoderConfig,
    )


def main() -> None:
    """Answer requests until standard input ends."""
    torch.set_num_threads(1)
    made: dict[tuple[Any, ...], Any] = {}
    for line in sys.stdin:
        request = json.loads(line)
        key = (request["peer"], *request["shape"], request["by_k"])
        if key not in made:
            made.clear()
            with contextlib.redirect_stdout(sys.stderr):
                made[key] = make(*key)
        x = torch.randn(request["n"], request["shape"][0])
        with torch.no_grad():
            print(json.dumps(burst(made[key], x, request["seconds"])), flush=True)


def make(peer: str, d: int, n_features: int, k: int, by_k: bool) -> Any:  # noqa: FBT001 - a request's fields
    """A peer's coder with random weights of unit pre-activations, about k features on."""
    torch.manual_seed(0)
    weight = torch.randn(d, n_features) / d**0.5
    bias = 0.1 * torch.randn(n_features)
    if peer == "sparsify":
        config = SparseCoderConfig(num_latents=n_features, k=k, transcode=True)
        coder = SparseCoder(d, config)
        coder.encoder.weight.data = weight.t().contiguous()
        coder.encoder.bias.data = bias
        return coder
    if by_k:
        sae = TopKSAE(TopKSAEConfig(d_in=d, d_sae=n_features, k=k, apply_b_dec_to_input=False))
    else:
        sae = JumpReLUTranscoder(
            JumpReLUTranscoderConfig(d_in=d, d_sae=n_features, d_out=d, apply_b_dec_to_input=False)
        )
        pre = torch.randn(32, d) @ weight + bias
        sae.threshold.data.fill_(float(pre.flatten().topk(32 * k).values[-1]))
    sae.W_enc.data = weight
    sae.b_enc.data = bias
    return sae


def burst(coder: Any, x: torch.Tensor, seconds: float) -> float:
    """Median µs of one call in a short burst; the first warms up, unless it outlasts the burst."""
    taken: list[float] = []
    until = time.perf_counter() + seconds
    while len(taken) < 2 or time.perf_counter() < until:
        start = time.perf_counter()
        coder.encode(x)
        taken.append((time.perf_counter() - start) * 1e6)
        if len(taken) == 1 and taken[0] > seconds * 1e6:
            return taken[0]
    return statistics.median(taken[1:])


if __name__ == "__main__":
    main()
