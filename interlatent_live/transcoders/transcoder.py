"""A transcoder as a value: its tensors, and what it computes at inference.

Training lives elsewhere. What is here has no cross-sample dependence and no state, so the same
object serves the encoder service, interventions, evaluation and exports, and its identity is a hash
of exactly what determines its features.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from interlatent_live.errors import UserError
from interlatent_live.transcoders.config import Architecture, TranscoderConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Baselines:
    """What the live error is compared with, measured on the training rows.

    ``y_variance`` is E‖y − ȳ‖², so ‖y − ŷ‖² / y_variance averages to the fraction of variance
    unexplained (FVU). The affine map is the least-squares fit of y from x.
    """

    affine_weight: Tensor
    """float32 [d_in, d_out]."""
    affine_bias: Tensor
    """float32 [d_out]."""
    y_mean: Tensor
    """float32 [d_out]."""
    y_variance: float


@dataclass(frozen=True, slots=True, eq=False)
class SparseRows:
    """Feature activations in compressed sparse rows; the columns of ``SparseCodes``."""

    indptr: NDArray[np.uint32]
    """[n + 1]."""
    index: NDArray[np.uint32]
    """[nnz], ascending within a row."""
    value: NDArray[np.float32]
    """[nnz], > 0."""


@dataclass(frozen=True, eq=False)
class Transcoder:
    """Sparse map from x to y: ``f = act(x W_enc + b_enc)``, ``ŷ = f W_dec + b_dec (+ x W_skip)``.

    Tensors are float and on one device; normalisation of x and y is already folded in.

    Raises:
        UserError: when a tensor is missing, superfluous, misshapen, not finite, or a threshold is
            negative (a feature that is on must be > 0).
    """

    config: TranscoderConfig
    W_enc: Tensor
    """[d_in, F]."""
    b_enc: Tensor
    """[F]."""
    W_dec: Tensor
    """[F, d_out]."""
    b_dec: Tensor
    """[d_out]."""
    threshold: Tensor | None = None
    """[F] for BatchTopK, Matryoshka (one value repeated) and JumpReLU; a feature is on above it."""
    W_skip: Tensor | None = None
    """[d_in, d_out]."""
    baselines: Baselines | None = None

    def __post_init__(self) -> None:
        expected = self.config.tensor_shapes()
        tensors = self.tensors()
        if set(tensors) != set(expected):
            raise UserError(
                f"a transcoder of architecture {self.config.architecture} has the tensors "
                f"{sorted(expected)}, not {sorted(tensors)}"
            )
        for name, tensor in tensors.items():
            if tuple(tensor.shape) != expected[name]:
                raise UserError(
                    f"tensor {name} has shape {tuple(tensor.shape)}; {expected[name]} was expected"
                )
            if not tensor.is_floating_point():
                raise UserError(f"tensor {name} is {tensor.dtype}; a float type was expected")
            if not bool(torch.isfinite(tensor).all()):
                raise UserError(f"tensor {name} holds values that are not finite")
        if self.threshold is not None and bool((self.threshold < 0).any()):
            raise UserError("tensor threshold holds negative values; an active feature must be > 0")

    @classmethod
    def from_tensors(
        cls,
        config: TranscoderConfig,
        tensors: Mapping[str, Tensor],
        baselines: Baselines | None = None,
    ) -> Transcoder:
        """Build one from named tensors; a superfluous name is refused.

        Raises:
            UserError: as the class says.
        """
        unknown = set(tensors) - {"W_enc", "b_enc", "W_dec", "b_dec", "threshold", "W_skip"}
        missing = {"W_enc", "b_enc", "W_dec", "b_dec"} - set(tensors)
        if unknown or missing:
            raise UserError(f"unknown tensors {sorted(unknown)}, missing {sorted(missing)}")
        return cls(config, **{**tensors, "baselines": baselines})  # type: ignore[arg-type]  # names were checked above

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that determine features and reconstruction, by name; no baselines."""
        named = {
            "W_enc": self.W_enc,
            "b_enc": self.b_enc,
            "W_dec": self.W_dec,
            "b_dec": self.b_dec,
            "threshold": self.threshold,
            "W_skip": self.W_skip,
        }
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @cached_property
    def content_hash(self) -> str:
        """Full SHA-256 over configuration and tensors (float32, little-endian)."""
        digest = hashlib.sha256(msgspec.json.encode(self.config, order="sorted"))
        for name, tensor in sorted(self.tensors().items()):
            array = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
            digest.update(f"{name}{array.shape}".encode())
            digest.update(array.astype("<f4", copy=False).tobytes())
        return digest.hexdigest()

    @property
    def identity(self) -> str:
        """``"sha256:"`` and 12 hex digits: the hash in feature addresses.

        Baselines are left out: measuring them again must not rename the features.
        """
        return "sha256:" + self.content_hash[:12]

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> Transcoder:
        """The same transcoder elsewhere; rounding to another dtype changes its identity."""
        moved = {name: tensor.to(device, dtype) for name, tensor in self.tensors().items()}
        baselines = self.baselines
        if baselines is not None:
            baselines = replace(
                baselines,
                affine_weight=baselines.affine_weight.to(device, dtype),
                affine_bias=baselines.affine_bias.to(device, dtype),
                y_mean=baselines.y_mean.to(device, dtype),
            )
        return Transcoder.from_tensors(self.config, moved, baselines)

    def with_baselines(self, baselines: Baselines | None) -> Transcoder:
        """The same transcoder with these baselines."""
        return replace(self, baselines=baselines)

    def pre_activations(self, x: Tensor) -> Tensor:
        """Return ``x W_enc + b_enc``: [n, F] from x [n, d_in]."""
        return torch.addmm(self.b_enc, x, self.W_enc)

    def activate(self, pre_activations: Tensor) -> Tensor:
        """Features [n, F] from pre-activations [n, F], each row on its own.

        Among tied TopK pre-activations the choice is unspecified.
        """
        config = self.config
        if config.architecture is Architecture.TOPK:
            if config.k is None:  # pragma: no cover - the configuration refuses this
                raise AssertionError("topk without k")
            top = torch.topk(pre_activations, config.k, dim=-1, sorted=False)
            features = torch.zeros_like(pre_activations)
            return features.scatter_(-1, top.indices, top.values.clamp_min(0))
        if self.threshold is None:
            return torch.relu(pre_activations)
        return pre_activations * (pre_activations > self.threshold)

    def encode(self, x: Tensor) -> Tensor:
        """Features, dense: float [n, F] from x [n, d_in]; 0 where off."""
        return self.activate(self.pre_activations(x))

    def decode(self, features: Tensor, x: Tensor | None = None) -> Tensor:
        """Reconstruction ŷ: [n, d_out] from features [n, F]; ``x`` [n, d_in] feeds a skip path.

        Raises:
            ValueError: when the transcoder has a skip path and ``x`` is missing.
        """
        out = torch.addmm(self.b_dec, features, self.W_dec)
        if self.W_skip is None:
            return out
        if x is None:
            raise ValueError("this transcoder has a skip path: decode needs x")
        return out.addmm(x, self.W_skip)

    def reconstruct(self, x: Tensor) -> Tensor:
        """ŷ [n, d_out] from x [n, d_in]."""
        return self.decode(self.encode(x), x)

    def encode_sparse(self, x: NDArray[np.floating]) -> SparseRows:
        """Features of CPU rows x [n, d_in], sparse; agrees with :meth:`encode` up to rounding.

        NumPy rather than torch: at control rate a batch has few rows, and the dispatch of a dozen
        torch calls would cost more than the product.
        """
        host = self._host
        pre = np.ascontiguousarray(x, np.float32) @ host.W_enc
        pre += host.b_enc
        if self.config.architecture is Architecture.TOPK:
            return _top_k_rows(pre, self.config.k or 0)
        rows, index = np.nonzero(pre > host.threshold)
        return _compress(len(pre), rows, index, pre[rows, index])

    def decode_sparse(
        self, codes: SparseRows, x: NDArray[np.floating], rows: NDArray[np.integer] | None = None
    ) -> NDArray[np.float32]:
        """ŷ float32 [m, d_out] of all rows of ``codes``, or of the ascending ``rows``.

        ``x`` [n, d_in] has the rows of ``codes``. Costs O(active features), not O(F).
        """
        host = self._host
        indptr, index, value = codes.indptr.astype(np.intp), codes.index, codes.value
        if rows is not None and len(rows) != len(indptr) - 1:
            x = x[rows]
            counts = (indptr[1:] - indptr[:-1])[rows]
            picked = np.concatenate(([0], np.cumsum(counts)))
            entries = np.repeat(indptr[rows] - picked[:-1], counts) + np.arange(picked[-1])
            indptr, index, value = picked, index[entries], value[entries]
        matrix = csr_array(
            (value, index.astype(np.intp), indptr), shape=(len(indptr) - 1, self.config.n_features)
        )
        out: NDArray[np.float32] = matrix @ host.W_dec
        out += host.b_dec
        if host.W_skip is not None:
            out += np.asarray(x, np.float32) @ host.W_skip
        return out

    @cached_property
    def _host(self) -> _HostTensors:
        arrays = {
            name: tensor.detach().to("cpu", torch.float32).contiguous().numpy()
            for name, tensor in self.tensors().items()
        }
        threshold = arrays.get("threshold", np.zeros(1, np.float32))
        if threshold.size > 1 and (threshold == threshold[0]).all():
            threshold = threshold[:1]  # one learned threshold: a scalar compare is faster
        return _HostTensors(
            arrays["W_enc"],
            arrays["b_enc"],
            arrays["W_dec"],
            arrays["b_dec"],
            threshold,
            arrays.get("W_skip"),
        )


class _HostTensors(NamedTuple):
    W_enc: NDArray[np.float32]
    b_enc: NDArray[np.float32]
    W_dec: NDArray[np.float32]
    b_dec: NDArray[np.float32]
    threshold: NDArray[np.float32]
    W_skip: NDArray[np.float32] | None


def _top_k_rows(pre: NDArray[np.float32], k: int) -> SparseRows:
    """The k largest positive entries of each row of pre [n, F]."""
    n, n_features = pre.shape
    if k < n_features:
        chosen = np.argpartition(pre, n_features - k, axis=1)[:, n_features - k :]
        chosen.sort(axis=1)
    else:
        chosen = np.broadcast_to(np.arange(n_features), (n, n_features))
    values = np.take_along_axis(pre, chosen, axis=1)
    keep = values > 0
    rows = np.nonzero(keep)[0]
    return _compress(n, rows, chosen[keep], values[keep])


def _compress(
    n: int, rows: NDArray[np.intp], index: NDArray[np.intp], value: NDArray[np.float32]
) -> SparseRows:
    indptr = np.zeros(n + 1, np.uint32)
    np.cumsum(np.bincount(rows, minlength=n), out=indptr[1:])
    return SparseRows(indptr, index.astype(np.uint32), value)
