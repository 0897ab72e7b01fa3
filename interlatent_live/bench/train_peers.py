"""The other trainers, run by the interpreter of *their* environment on the activations given.

A script, not a module of ours: it imports nothing from this package, so that the environment with
SAELens and sparsify needs neither it nor its dependencies. Each peer trains with its own trainer
class; what is timed is that trainer's ``fit`` and nothing else. It prints one line of JSON.

Usage: python train_peers.py REQUEST.json
"""
# ruff: noqa: T201 - a script's output is its answer, and it is no part of the package

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


def main() -> None:
    """Train as the request says and print what came of it."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(int(request["threads"]))
    device = request["device"]
    tensors = load_file(request["activations"])
    hooks = sorted(request["hooks"])
    train = {hook: tensors[f"{hook}/train"].to(device) for hook in hooks}
    test = {hook: tensors[f"{hook}/test"].to(device) for hook in hooks}
    run = {"saelens": saelens, "sparsify": sparsify}[request["peer"]]
    results = []
    for mode, rate in request["choices"]:
        with contextlib.redirect_stdout(sys.stderr):
            seconds, coders = run(request, train, mode=mode, rate=rate)
            scores = {
                f"{hook}/{seed}": score(coder, test[hook], request["k"])
                for (hook, seed), coder in coders.items()
            }
        results.append({"mode": mode, "rate": rate, "seconds": seconds, "scores": scores})
    print(json.dumps(results))


def score(coder: Any, x: torch.Tensor, k: int) -> dict[str, float]:
    """Held-out FVU and L0 of an ``(encode, decode)`` pair."""
    encode, decode = coder
    with torch.no_grad():
        features = encode(x, k)
        error = (decode(features) - x).double().square().sum()
        total = (x - x.mean(0)).double().square().sum()
        l0 = (features > 0).sum(1).double().mean()
    return {"fvu": float(error / total), "l0": float(l0)}


def saelens(
    request: dict[str, Any], train: dict[str, torch.Tensor], *, mode: str, rate: float
) -> tuple[float, dict[tuple[str, int], Any]]:
    """One ``SAETrainer.fit`` per hook point and seed."""
    from sae_lens.config import LoggingConfig, SAETrainerConfig  # noqa: PLC0415 - either peer
    from sae_lens.saes.batchtopk_sae import (  # noqa: PLC0415
        BatchTopKTrainingSAE,
        BatchTopKTrainingSAEConfig,
    )
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig  # noqa: PLC0415
    from sae_lens.training.sae_trainer import SAETrainer  # noqa: PLC0415

    make: Any = (
        (TopKTrainingSAE, TopKTrainingSAEConfig)
        if mode == "topk"
        else (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig)
    )
    steps = request["samples"] // request["batch"]
    seconds, coders = 0.0, {}
    for hook, x in train.items():
        for seed in range(request["seeds"]):
            torch.manual_seed(seed)
            config = make[1](
                d_in=x.shape[1],
                d_sae=request["n_features"],
                k=request["k"],
                dtype="float32",
                device=request["device"],
                normalize_activations="expected_average_only_in",
            )
            sae = make[0](config)
            with torch.no_grad():
                sae.b_dec.copy_(x.mean(0))
            trainer = SAETrainer(
                SAETrainerConfig(
                    total_training_samples=request["samples"],
                    train_batch_size_samples=request["batch"],
                    lr=rate,
                    lr_end=rate / 100,
                    lr_warm_up_steps=steps // 50,
                    lr_decay_steps=steps // 2,
                    device=request["device"],
                    dead_feature_window=200,
                    n_batches_for_norm_estimate=20,
                    logger=LoggingConfig(log_to_wandb=False),
                ),
                sae,
                batches(x, request["batch"], seed),
            )
            begin = time.perf_counter()
            trainer.fit()
            synchronise(request["device"])
            seconds += time.perf_counter() - begin
            coders[hook, seed] = (recalibrated(sae, mode), sae.decode)
    return seconds, coders


def recalibrated(sae: Any, mode: str) -> Any:
    """Encode with the peer's own TopK, or for BatchTopK at the threshold where L0 is k.

    Its moving average of the training cut lands elsewhere; at equal L0 it is at its best.
    """

    def encode(x: torch.Tensor, k: int) -> torch.Tensor:
        if mode == "topk":
            features: torch.Tensor = sae.encode(x)
            return features.to_dense() if features.is_sparse else features
        pre: torch.Tensor = sae.hook_sae_acts_pre(sae.process_sae_in(x) @ sae.W_enc + sae.b_enc)
        if sae.cfg.rescale_acts_by_decoder_norm:
            pre = pre * sae.W_dec.norm(dim=-1)
        cut = torch.topk(pre.flatten(), k * len(x), sorted=False).values.amin()
        return pre * (pre >= cut)

    return encode


def sparsify(
    request: dict[str, Any], train: dict[str, torch.Tensor], *, mode: str, rate: float
) -> tuple[float, dict[tuple[str, int], Any]]:
    """One ``Trainer.fit`` over all hook points and seeds, which is how sparsify does it best."""
    import os  # noqa: PLC0415

    from sparsify import SaeConfig, TrainConfig, Trainer  # noqa: PLC0415 - either peer

    hooks = sorted(train)
    length = 64
    rows = min(len(train[hook]) for hook in hooks)
    count = request["samples"] // length
    dataset = Sequences(rows, length, count)
    seeds = list(range(request["seeds"]))
    with tempfile.TemporaryDirectory() as folder:
        previous = Path.cwd()
        os.chdir(folder)
        try:
            config = TrainConfig(
                SaeConfig(num_latents=request["n_features"], k=request["k"]),
                batch_size=request["batch"] // length,
                optimizer=mode,
                lr=rate,
                lr_warmup_steps=request["samples"] // request["batch"] // 50,
                auxk_alpha=1 / 32,
                dead_feature_threshold=200 * request["batch"],
                hookpoints=[f"layer{place}" for place in range(len(hooks))],
                init_seeds=seeds,
                save_every=1 << 30,
                log_to_wandb=False,
            )
            trainer = Trainer(config, dataset, Replay([train[hook] for hook in hooks]))
            begin = time.perf_counter()
            trainer.fit()
            synchronise(request["device"])
            seconds = time.perf_counter() - begin
        finally:
            os.chdir(previous)
    coders: dict[tuple[str, int], Any] = {}
    for place, hook in enumerate(hooks):
        for seed in seeds:
            name = f"layer{place}/seed{seed}" if len(seeds) > 1 else f"layer{place}"
            coders[hook, seed] = dense(trainer.saes[name])
    return seconds, coders


def dense(coder: Any) -> Any:
    """Encode to and decode from dense features with the peer's own functions."""

    def encode(x: torch.Tensor, k: int) -> torch.Tensor:
        del k
        encoded = coder.encode(x)
        features = x.new_zeros(len(x), coder.num_latents)
        return features.scatter_(1, encoded.top_indices, encoded.top_acts)

    def decode(features: torch.Tensor) -> torch.Tensor:
        top = torch.topk(features, coder.cfg.k, dim=1)
        decoded: torch.Tensor = coder.decode(top.values, top.indices)
        return decoded

    return encode, decode


class Sequences(torch.utils.data.Dataset[Any]):
    """Row numbers in shuffled sequences, which sparsify takes for token ids."""

    def __init__(self, rows: int, length: int, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        epochs = -(-count * length // rows)
        shuffled = [torch.randperm(rows, generator=generator) for _ in range(epochs)]
        self.ids = torch.cat(shuffled)[: count * length].view(count, length)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index]}


class Replay(torch.nn.Module):
    """A "language model" whose layers put out recorded rows by number."""

    def __init__(self, rows: list[torch.Tensor]) -> None:
        super().__init__()
        self.rows = rows
        for place in range(len(rows)):
            self.add_module(f"layer{place}", torch.nn.Identity())
        self.anchor = torch.nn.Parameter(torch.zeros(1, device=rows[0].device))

    @property
    def base_model(self) -> torch.nn.Module:
        """The model without its head."""
        return self

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self.anchor.device

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        """Anything it can run on."""
        return {"input_ids": torch.zeros(1, 2, dtype=torch.long)}

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Pass the rows [batch, length, d] of the given numbers through each layer."""
        out = self.anchor
        for place, rows in enumerate(self.rows):
            out = self.get_submodule(f"layer{place}")(rows[input_ids])
        return out


def batches(x: torch.Tensor, size: int, seed: int) -> Any:
    """Shuffled epochs of rows, for ever."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(x), generator=generator).to(x.device)
        for begin in range(0, len(x) - size + 1, size):
            yield x[order[begin : begin + size]]


def synchronise(device: str) -> None:
    """Wait for the device, so that a time is a time."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
