"""Our files loaded by their owners' classes, and theirs by ours, to 1e-5."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from environment import (  # type: ignore[import-not-found]  # conftest.py puts it on the path
    peers_python,
)
from safetensors.torch import load_file, save_file

from interlatent_live.transcoders.config import Architecture, Target, TranscoderConfig
from interlatent_live.transcoders.formats.circuit_tracer import export_circuit_tracer
from interlatent_live.transcoders.formats.saelens import export_saelens, read_saelens
from interlatent_live.transcoders.formats.sparsify import export_sparsify, read_sparsify
from interlatent_live.transcoders.native import LoadedTranscoder, Provenance
from interlatent_live.transcoders.transcoder import Transcoder

pytestmark = [pytest.mark.peers, pytest.mark.timeout(1800)]

HERE = Path(__file__).parent
X = torch.randn(40, 6, generator=torch.Generator().manual_seed(2))


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def loaded(kind, *, skip=False, sae=False, d_out=6, seed=0):
    config = TranscoderConfig(
        architecture=kind,
        d_in=6,
        d_out=d_out,
        n_features=24,
        k=None if kind is Architecture.RELU else 3,
        l1=0.01 if kind is Architecture.RELU else None,
        widths=(8, 24) if kind is Architecture.MATRYOSHKA else None,
        skip=skip,
        target=Target.INPUT if sae else Target.OUTPUT,
    )
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(shape, generator=generator)
        for name, shape in config.tensor_shapes().items()
    }
    if "threshold" in tensors:
        tensors["threshold"].abs_()
    transcoder = Transcoder.from_tensors(config, tensors)
    provenance = Provenance(policy_hash="sha256:" + "a" * 64, hook_point=f"hidden.{seed}")
    return LoadedTranscoder(transcoder, provenance, Path("nowhere"))


def run(script, *arguments):
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    done = subprocess.run(
        [str(peers_python()), str(HERE / script), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def assert_same(transcoder, folder, number=""):
    theirs = load_file(folder / "peer.safetensors")
    assert_close(theirs[f"features{number}"], transcoder.encode(X))
    assert_close(theirs[f"y{number}"], transcoder.reconstruct(X))


def test_saelens_loads_what_we_export(tmp_path):
    cases = {}
    for kind in Architecture:
        for skip, sae, d_out in ((False, False, 6), (True, False, 7), (False, True, 6)):
            if kind is Architecture.TOPK and not sae:
                continue
            one = loaded(kind, skip=skip, sae=sae, d_out=d_out)
            folder = export_saelens(one, tmp_path / f"{kind}-{skip}-{sae}-{d_out}")
            save_file({"x": X}, folder / "x.safetensors")
            cases[str(folder)] = one.transcoder
    told = json.loads(run("load_saelens.py", json.dumps(list(cases))).splitlines()[-1])
    for name, transcoder in cases.items():
        assert_same(transcoder, Path(name))
        assert told[name]["metadata"]["interlatent_transcoder"] == transcoder.identity


def test_we_load_what_saelens_saves(tmp_path):
    run("load_saelens.py", "save", str(tmp_path))
    theirs = load_file(tmp_path / "theirs.safetensors")
    transcoder = read_saelens(tmp_path).transcoder(k=3)
    assert_close(transcoder.encode(theirs["x"]), theirs["features"])
    assert_close(transcoder.reconstruct(theirs["x"]), theirs["y"])


def test_sparsify_loads_what_we_export(tmp_path):
    cases = {}
    for skip, sae in ((False, False), (True, False), (False, True)):
        one = loaded(Architecture.TOPK, skip=skip, sae=sae)
        folder = export_sparsify(one, tmp_path / f"{skip}-{sae}")
        save_file({"x": X}, folder / "x.safetensors")
        cases[str(folder)] = one.transcoder
    run("load_sparsify.py", json.dumps(list(cases)))
    for name, transcoder in cases.items():
        assert_same(transcoder, Path(name))


@pytest.mark.parametrize("mode", ["transcode", "autoencode"])
def test_we_load_what_sparsify_saves(tmp_path, mode):
    run("load_sparsify.py", "save", str(tmp_path), mode)
    theirs = load_file(tmp_path / "theirs.safetensors")
    transcoder = read_sparsify(tmp_path).transcoder()
    assert_close(transcoder.encode(theirs["x"]), theirs["features"])
    assert_close(transcoder.reconstruct(theirs["x"]), theirs["y"])


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("kind", [Architecture.RELU, Architecture.JUMPRELU, Architecture.BATCHTOPK])
def test_circuit_tracer_loads_what_we_export(tmp_path, kind, skip):
    layers = [loaded(kind, skip=skip, seed=seed) for seed in range(3)]
    export_circuit_tracer(layers, tmp_path)
    save_file({"x": X}, tmp_path / "x.safetensors")
    run("load_circuit_tracer.py", str(tmp_path))
    for number, one in enumerate(layers):
        assert_same(one.transcoder, tmp_path, str(number))
