"""The one schema that says what a transcoder computes, shared by trainer, files and peers' formats.

A setting that the architecture would silently ignore is refused here: a saved ``k`` on a ReLU
transcoder would be read as a promise about sparsity that nothing keeps.
"""

from __future__ import annotations

from enum import StrEnum
from itertools import pairwise
from typing import Final

import msgspec

from interlatent_live.errors import UserError

MAX_WIDTH: Final = 1 << 17
"""Largest d_in or d_out accepted; wider is a malformed file, not a layer."""
MAX_FEATURES: Final = 1 << 22
"""Largest dictionary accepted."""


class Architecture(StrEnum):
    """How pre-activations become features.

    ``relu``: ReLU trained with an L1 penalty (Bricken et al. 2023). ``topk``: the k largest
    positive pre-activations of each row (Gao et al. 2024, arXiv:2406.04093). ``batchtopk``: the k·n
    largest of a batch while training, one learned threshold at inference (Bussmann et al. 2024,
    arXiv:2412.06410), so that rows never depend on each other. ``jumprelu``: one learned threshold
    per feature (Rajamanoharan et al. 2024, arXiv:2407.14435). ``matryoshka``: BatchTopK whose
    nested prefixes each reconstruct y (Bussmann et al. 2025, arXiv:2503.17547).
    """

    RELU = "relu"
    TOPK = "topk"
    BATCHTOPK = "batchtopk"
    JUMPRELU = "jumprelu"
    MATRYOSHKA = "matryoshka"


class Target(StrEnum):
    """What is reconstructed from the input x of a hook point."""

    OUTPUT = "output"
    """The module's output y: a transcoder proper."""
    INPUT = "input"
    """x itself: a sparse autoencoder, the case y = x."""


THRESHOLDED: Final = frozenset(
    {Architecture.BATCHTOPK, Architecture.JUMPRELU, Architecture.MATRYOSHKA}
)
"""Architectures whose inference compares with stored thresholds."""

_TAKES_K: Final = THRESHOLDED | {Architecture.TOPK}


class TranscoderConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Shapes and architecture of one transcoder.

    Args:
        architecture: see :class:`Architecture`.
        d_in: width of x.
        d_out: width of y.
        n_features: number of features F.
        k: mean (BatchTopK, Matryoshka, JumpReLU: the trained target) or exact (TopK) number of
            features on per row; required by those four, refused by ``relu``.
        l1: weight of the L1 penalty Σ|f|·‖W_dec row‖; required by ``relu``, refused by the others.
        widths: ascending prefix lengths that each reconstruct y, the last equal to ``n_features``;
            required by ``matryoshka``, refused by the others.
        skip: whether an affine path x W_skip is added to the reconstruction.
        target: what is reconstructed; ``input`` needs d_in == d_out and no skip path, which would
            copy x.

    Raises:
        UserError: when a value is impossible or the architecture cannot honour it.
    """

    architecture: Architecture
    d_in: int
    d_out: int
    n_features: int
    k: int | None = None
    l1: float | None = None
    widths: tuple[int, ...] | None = None
    skip: bool = False
    target: Target = Target.OUTPUT

    def __post_init__(self) -> None:
        self._check_shapes()
        self._check_sparsity()
        self._check_widths()
        if self.target is Target.INPUT and (self.skip or self.d_in != self.d_out):
            raise UserError(
                "target=input (a sparse autoencoder) needs d_in equal to d_out and no skip path; "
                "drop skip or reconstruct the output"
            )

    def _check_shapes(self) -> None:
        for name, value, limit in (
            ("d_in", self.d_in, MAX_WIDTH),
            ("d_out", self.d_out, MAX_WIDTH),
            ("n_features", self.n_features, MAX_FEATURES),
        ):
            if not 1 <= value <= limit:
                raise UserError(f"{name} is {value}; it must lie between 1 and {limit}")

    def _check_sparsity(self) -> None:
        kind = self.architecture
        if kind in _TAKES_K:
            if self.k is None:
                raise UserError(f"architecture {kind} needs k, the number of features on per row")
            if not 1 <= self.k <= self.n_features:
                raise UserError(
                    f"k is {self.k}; it must lie between 1 and n_features = {self.n_features}"
                )
        elif self.k is not None:
            raise UserError(f"architecture {kind} cannot honour k; leave it out or use batchtopk")
        if kind is Architecture.RELU:
            if self.l1 is None or not 0 <= self.l1 < float("inf"):
                raise UserError("architecture relu needs l1, a finite weight of at least 0")
        elif self.l1 is not None:
            raise UserError(f"architecture {kind} cannot honour l1; leave it out or use relu")

    def _check_widths(self) -> None:
        if self.architecture is not Architecture.MATRYOSHKA:
            if self.widths is not None:
                raise UserError(
                    f"architecture {self.architecture} cannot honour widths; use matryoshka"
                )
            return
        widths = self.widths
        if (
            not widths
            or widths[0] < 1
            or widths[-1] != self.n_features
            or any(a >= b for a, b in pairwise(widths))
        ):
            raise UserError(
                "architecture matryoshka needs widths, ascending prefix lengths that end at "
                f"n_features = {self.n_features}; got {widths}"
            )

    @property
    def thresholded(self) -> bool:
        """Whether inference compares pre-activations with stored thresholds."""
        return self.architecture in THRESHOLDED

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of every tensor that a transcoder of this configuration has."""
        shapes: dict[str, tuple[int, ...]] = {
            "W_enc": (self.d_in, self.n_features),
            "b_enc": (self.n_features,),
            "W_dec": (self.n_features, self.d_out),
            "b_dec": (self.d_out,),
        }
        if self.thresholded:
            shapes["threshold"] = (self.n_features,)
        if self.skip:
            shapes["W_skip"] = (self.d_in, self.d_out)
        return shapes
