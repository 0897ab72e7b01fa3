"""Layouts as their owners document them, exactness through a round trip, refusal of the rest."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from interlatent_live.errors import CorruptFileError, UserError
from interlatent_live.transcoders.config import Architecture, Target, TranscoderConfig
from interlatent_live.transcoders.formats.circuit_tracer import (
    export_circuit_tracer,
    read_circuit_tracer,
)
from interlatent_live.transcoders.formats.saelens import export_saelens, read_saelens
from interlatent_live.transcoders.formats.sparsify import export_sparsify, read_sparsify
from interlatent_live.transcoders.native import LoadedTranscoder, Provenance

X = torch.randn(50, 6, generator=torch.Generator().manual_seed(11))
READERS = {
    "saelens": read_saelens,
    "sparsify": read_sparsify,
    "circuit-tracer": read_circuit_tracer,
}
EXPORTERS = {
    "saelens": export_saelens,
    "sparsify": export_sparsify,
    "circuit-tracer": lambda one, out: export_circuit_tracer([one], out),
}


def loaded(transcoder, hook="hidden.1"):
    provenance = Provenance(policy_hash="sha256:" + "a" * 64, hook_point=hook)
    return LoadedTranscoder(transcoder, provenance, Path("nowhere"))


def autoencoder(transcoder):
    old = transcoder.config
    config = TranscoderConfig(
        architecture=old.architecture, d_in=6, d_out=6, n_features=24, k=old.k, l1=old.l1,
        widths=old.widths, target=Target.INPUT,
    )  # fmt: skip
    return replace(transcoder, config=config)


@pytest.fixture
def square(build_transcoder):
    def build(architecture, *, skip=False, sae=False, seed=0):
        made = build_transcoder(architecture, skip=skip, d_in=6, d_out=6, seed=seed)
        return autoencoder(made) if sae else made

    return build


CASES = [
    *(
        ("saelens", kind, skip, False)
        for kind in Architecture
        for skip in (False, True)
        if kind is not Architecture.TOPK
    ),
    *(("saelens", kind, False, True) for kind in Architecture),
    ("sparsify", Architecture.TOPK, False, False),
    ("sparsify", Architecture.TOPK, True, False),
    ("sparsify", Architecture.TOPK, False, True),
    *(
        ("circuit-tracer", kind, skip, False)
        for kind in Architecture
        for skip in (False, True)
        if kind is not Architecture.TOPK
    ),
]


@pytest.mark.parametrize(("peer", "kind", "skip", "sae"), CASES)
def test_round_trip(square, tmp_path, peer, kind, skip, sae):
    transcoder = square(kind, skip=skip, sae=sae)
    EXPORTERS[peer](loaded(transcoder), tmp_path)
    back = READERS[peer](tmp_path).transcoder(k=3)
    assert back.config.target is transcoder.config.target
    torch.testing.assert_close(back.encode(X), transcoder.encode(X), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(back.reconstruct(X), transcoder.reconstruct(X), atol=1e-5, rtol=1e-5)


def test_rectangular_transcoders_go_to_saelens_only(build_transcoder, tmp_path):
    transcoder = build_transcoder("batchtopk", skip=True)
    export_saelens(loaded(transcoder), tmp_path)
    tensors = load_file(tmp_path / "sae_weights.safetensors")
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {
        "W_enc": (5, 24), "b_enc": (24,), "W_dec": (24, 7), "b_dec": (7,), "threshold": (24,),
        "W_skip": (7, 5),
    }  # fmt: skip
    back = read_saelens(tmp_path).transcoder(k=3)
    x = X[:, :5]
    torch.testing.assert_close(back.reconstruct(x), transcoder.reconstruct(x))
    with pytest.raises(UserError, match="5 to 7"):
        export_circuit_tracer([loaded(transcoder)], tmp_path / "ct")
    with pytest.raises(UserError, match="5 to 7"):
        export_sparsify(loaded(build_transcoder("topk")), tmp_path / "sp")


def test_what_saelens_needs_to_load(square, tmp_path):
    export_saelens(loaded(square("batchtopk")), tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    assert config["architecture"] == "jumprelu_transcoder"
    assert config["dtype"] == "float32"
    assert config["apply_b_dec_to_input"] is False
    assert config["normalize_activations"] == config["reshape_activations"] == "none"
    assert config["metadata"]["sae_lens_version"]
    assert config["metadata"]["interlatent_policy_hash"].startswith("sha256:")
    assert (config["d_in"], config["d_sae"], config["d_out"]) == (6, 24, 6)


def test_what_sparsify_needs_to_load(square, tmp_path):
    export_sparsify(loaded(square("topk", skip=True)), tmp_path)
    assert json.loads((tmp_path / "cfg.json").read_text()) == {
        "activation": "topk", "expansion_factor": 4, "normalize_decoder": False, "num_latents": 24,
        "k": 3, "multi_topk": False, "skip_connection": True, "transcode": True, "d_in": 6,
    }  # fmt: skip
    tensors = load_file(tmp_path / "sae.safetensors")
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {
        "encoder.weight": (24, 6), "encoder.bias": (24,), "W_dec": (24, 6), "b_dec": (6,),
        "W_skip": (6, 6),
    }  # fmt: skip


def test_what_circuit_tracer_needs_to_load(square, tmp_path):
    layers = [loaded(square("jumprelu", seed=s), f"hidden.{s}") for s in range(3)]
    export_circuit_tracer(layers, tmp_path)
    assert sorted(p.name for p in tmp_path.glob("*.safetensors")) == [
        f"layer_{i}.safetensors" for i in range(3)
    ]
    tensors = load_file(tmp_path / "layer_2.safetensors")
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {
        "W_enc": (24, 6), "b_enc": (24,), "W_dec": (24, 6), "b_dec": (6,),
        "activation_function.threshold": (24,),
    }  # fmt: skip
    keys = [line.split(":")[0] for line in (tmp_path / "config.yaml").read_text().splitlines()]
    assert keys == ["model_name", "model_kind", "feature_input_hook", "feature_output_hook", "scan"]
    with pytest.raises(UserError, match=r"\[0, 1, 2\]"):
        read_circuit_tracer(tmp_path, 7)


@pytest.mark.parametrize(
    ("export", "kind", "sae", "reason"),
    [
        ("saelens", "topk", False, "no TopK transcoder"),
        ("sparsify", "batchtopk", False, "TopK only"),
        ("sparsify", "relu", False, "TopK only"),
        ("circuit-tracer", "topk", False, "neither"),
        ("circuit-tracer", "relu", True, "autoencoder"),
    ],
)
def test_what_cannot_be_said_exactly_is_refused_with_the_reason(
    square, tmp_path, export, kind, sae, reason
):
    with pytest.raises(UserError, match=reason):
        EXPORTERS[export](loaded(square(kind, sae=sae)), tmp_path)
    assert not list(tmp_path.iterdir())


def test_layers_must_match(square, build_transcoder, tmp_path):
    one = loaded(square("relu"))
    wide = loaded(build_transcoder("relu", d_in=6, d_out=6, n_features=30))
    with pytest.raises(UserError, match="one width"):
        export_circuit_tracer([one, wide], tmp_path)
    provenance = Provenance(policy_hash="sha256:other", hook_point="h")
    with pytest.raises(UserError, match="2 policies"):
        export_circuit_tracer([one, replace(one, provenance=provenance)], tmp_path)
    with pytest.raises(UserError, match="at least one"):
        export_circuit_tracer([], tmp_path)


def test_saelens_variants_that_are_folded_in(square, tmp_path):
    transcoder = square("topk", sae=True)
    export_saelens(loaded(transcoder), tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    config["apply_b_dec_to_input"] = True
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    back = read_saelens(tmp_path).transcoder()
    shifted = transcoder.encode(X - transcoder.b_dec)
    torch.testing.assert_close(back.encode(X), shifted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architecture": "gated"}, "gated"),
        ({"normalize_activations": "layer_norm"}, "layer_norm"),
        ({"rescale_acts_by_decoder_norm": True}, "fold"),
        ({"d_in": "six"}, "d_in"),
        ({"d_sae": -4}, "d_sae"),
        ({"d_sae": 1 << 50}, "W_enc"),
        ({"d_sae": True}, "d_sae"),
    ],
)
def test_saelens_files_we_cannot_honour(square, tmp_path, change, said):
    export_saelens(loaded(square("relu", sae=True)), tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError, match=said):
        read_saelens(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_read(square, tmp_path, dtype):
    transcoder = square("relu")
    export_saelens(loaded(transcoder), tmp_path)
    file = tmp_path / "sae_weights.safetensors"
    save_file({name: t.to(dtype) for name, t in load_file(file).items()}, file)
    back = read_saelens(tmp_path).transcoder()
    assert back.W_enc.dtype == torch.float32
    torch.testing.assert_close(back.W_enc, transcoder.W_enc.to(dtype).float())


WEIGHTS = {
    "saelens": ("relu", "sae_weights.safetensors"),
    "sparsify": ("topk", "sae.safetensors"),
    "circuit-tracer": ("relu", "layer_0.safetensors"),
}


@pytest.mark.parametrize("peer", list(WEIGHTS))
@pytest.mark.parametrize("damage", ["truncated", "pickle", "nan", "integers", "extra", "empty"])
def test_damaged_and_hostile_weights_are_refused(square, tmp_path, peer, damage):
    kind, name = WEIGHTS[peer]
    EXPORTERS[peer](loaded(square(kind)), tmp_path)
    file = tmp_path / name
    marker = tmp_path / "executed"
    tensors = load_file(file)
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-3])
    elif damage == "pickle":

        class Hostile:
            def __reduce__(self):
                return (open, (str(marker), "w"))

        file.write_bytes(pickle.dumps(Hostile()))
    elif damage == "nan":
        tensors["b_dec"][0] = float("nan")
        save_file(tensors, file)
    elif damage == "integers":
        tensors["b_dec"] = tensors["b_dec"].to(torch.int32)
        save_file(tensors, file)
    elif damage == "extra":
        save_file({**tensors, "scaling_factor": torch.ones(1)}, file)
    else:
        file.write_bytes(b"")
    with pytest.raises(CorruptFileError):
        READERS[peer](tmp_path).transcoder(k=3)
    assert not marker.exists()


@pytest.mark.parametrize("peer", ["saelens", "sparsify"])
@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "\x80"])
def test_damaged_descriptions_are_refused(square, tmp_path, peer, text):
    EXPORTERS[peer](loaded(square(WEIGHTS[peer][0])), tmp_path)
    (tmp_path / "cfg.json").write_text(text)
    with pytest.raises(CorruptFileError):
        READERS[peer](tmp_path)


@pytest.mark.parametrize("peer", list(READERS))
def test_nothing_there(tmp_path, peer):
    with pytest.raises(UserError):
        READERS[peer](tmp_path / "none")


def test_negative_thresholds_are_refused(square, tmp_path):
    export_circuit_tracer([loaded(square("jumprelu"))], tmp_path)
    file = tmp_path / "layer_0.safetensors"
    tensors = load_file(file)
    tensors["activation_function.threshold"][0] = -0.5
    save_file(tensors, file)
    with pytest.raises(UserError, match="negative"):
        read_circuit_tracer(tmp_path)
