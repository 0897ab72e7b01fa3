from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interlatent_live.errors import UserError
from interlatent_live.transcoders.transcoder import Transcoder


def rows(n, d, seed=1):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def dense(codes, n_features):
    out = np.zeros((len(codes.indptr) - 1, n_features), np.float32)
    for row in range(len(out)):
        span = slice(codes.indptr[row], codes.indptr[row + 1])
        out[row, codes.index[span]] = codes.value[span]
    return out


def test_sparse_and_dense_agree(any_transcoder):
    x = rows(64, any_transcoder.config.d_in)
    codes = any_transcoder.encode_sparse(x.numpy())
    features = any_transcoder.encode(x)
    np.testing.assert_allclose(dense(codes, 24), features.numpy(), atol=1e-5)
    assert (codes.value > 0).all()
    for begin, end in zip(codes.indptr, codes.indptr[1:], strict=False):
        assert (np.diff(codes.index[begin:end].astype(int)) > 0).all()
    expected = any_transcoder.decode(features, x).numpy()
    np.testing.assert_allclose(any_transcoder.decode_sparse(codes, x.numpy()), expected, atol=1e-4)
    some = np.array([3, 17, 40])
    part = any_transcoder.decode_sparse(codes, x.numpy(), some)
    np.testing.assert_allclose(part, expected[some], atol=1e-4)


def test_rows_do_not_depend_on_each_other(any_transcoder):
    x = rows(32, any_transcoder.config.d_in)
    together = any_transcoder.encode(x)
    alone = torch.cat([any_transcoder.encode(row[None]) for row in x])
    torch.testing.assert_close(together, alone)


def test_topk_keeps_at_most_k_of_the_positive(build_transcoder):
    transcoder = build_transcoder("topk", k=3)
    x = rows(200, 5) * torch.linspace(-2, 2, 200)[:, None]
    transcoder = replace(transcoder, b_enc=transcoder.b_enc - 4)
    on = (transcoder.encode(x) > 0).sum(1)
    assert int(on.max()) == 3
    assert int(on.min()) == 0
    codes = transcoder.encode_sparse(x.numpy())
    assert np.diff(codes.indptr.astype(int)).max() == 3


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n=st.integers(0, 9), k=st.integers(1, 24), seed=st.integers(0, 2**16))
def test_any_batch_size_and_k(build_transcoder, n, k, seed):
    transcoder = build_transcoder("topk", k=k, seed=seed)
    x = rows(n, 5, seed)
    codes = transcoder.encode_sparse(x.numpy())
    np.testing.assert_allclose(dense(codes, 24), transcoder.encode(x).numpy(), atol=1e-5)


def test_identity_follows_content_and_nothing_else(build_transcoder):
    one = build_transcoder()
    assert one.identity == build_transcoder().identity
    assert one.identity.startswith("sha256:")
    assert len(one.identity) == 7 + 12
    assert one.with_baselines(None).identity == one.identity
    assert one.to("cpu").identity == one.identity
    nudged = one.b_dec.clone()
    nudged[0] += 1e-6
    assert replace(one, b_dec=nudged).identity != one.identity
    assert build_transcoder("matryoshka").identity != one.identity


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("W_enc", torch.zeros(24, 5), "W_enc"),
        ("b_dec", torch.full((7,), float("nan")), "b_dec"),
        ("W_dec", torch.zeros(24, 7, dtype=torch.int32), "W_dec"),
        ("threshold", torch.full((24,), -0.1), "threshold"),
        ("threshold", None, "threshold"),
        ("W_skip", torch.zeros(5, 7), "W_skip"),
    ],
)
def test_impossible_tensors_are_refused(build_transcoder, name, value, said):
    transcoder = build_transcoder("batchtopk")
    with pytest.raises(UserError, match=said):
        replace(transcoder, **{name: value})


def test_unknown_tensor_names_are_refused(build_transcoder):
    transcoder = build_transcoder("relu")
    with pytest.raises(UserError, match="W_gate"):
        Transcoder.from_tensors(
            transcoder.config, {**transcoder.tensors(), "W_gate": torch.zeros(1)}
        )


def test_a_skip_path_needs_x(build_transcoder):
    transcoder = build_transcoder("relu", skip=True)
    with pytest.raises(ValueError, match="needs x"):
        transcoder.decode(torch.zeros(1, 24))
