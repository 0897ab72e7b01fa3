"""Do different seeds find the same features?

Features of two dictionaries are matched one to one on the correlation of their activations over
held-out rows. A matched score means nothing alone: on low-dimensional data even random dictionaries
match well, so theirs stands beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from interlatent_live.transcoders.config import Architecture, TranscoderConfig
from interlatent_live.transcoders.dataset import some_rows
from interlatent_live.transcoders.evaluation.features import activations_csc, feature_correlation
from interlatent_live.transcoders.training.finish import calibrated_threshold
from interlatent_live.transcoders.transcoder import Transcoder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

MAX_ROWS = 20_000


@dataclass(frozen=True, slots=True)
class Matched:
    """A one-to-one match between two sets of live features."""

    pairs: tuple[tuple[int, int], ...]
    """Feature numbers (of one, of the other)."""
    correlation: tuple[float, ...]
    """Of the activations, per pair."""
    decoder_cosine: tuple[float, ...]
    """Per pair; NaN where the outputs differ in width."""


@dataclass(frozen=True, slots=True)
class SeedStability:
    """Medians over all pairs of seeds, beside random dictionaries."""

    correlation: float
    """Median over matched pairs of the activations' correlation."""
    share_above_07: float
    """Share of matched pairs with a correlation above 0.7."""
    decoder_cosine: float
    random_correlation: float
    """The same median for two random dictionaries of the same L0 and number of live features."""
    random_share_above_07: float
    seeds: int


def match_features(
    one: Transcoder,
    two: Transcoder,
    x: NDArray[np.float32],
    live_one: NDArray[np.intp],
    live_two: NDArray[np.intp],
) -> Matched:
    """Match the given features of two transcoders on rows x [n, d_in] (Hungarian algorithm)."""
    first = activations_csc(one, x)[:, live_one]
    second = activations_csc(two, x)[:, live_two]
    correlation = feature_correlation(first, second)
    rows, columns = linear_sum_assignment(-correlation)
    left, right = live_one[rows], live_two[columns]
    cosine = np.full(len(rows), np.nan)
    if one.config.d_out == two.config.d_out:
        cosine = torch.nn.functional.cosine_similarity(
            one.W_dec[torch.from_numpy(left)], two.W_dec[torch.from_numpy(right)], dim=1
        ).numpy()
    return Matched(
        tuple(zip(left.tolist(), right.tolist(), strict=True)),
        tuple(correlation[rows, columns].tolist()),
        tuple(float(value) for value in cosine),
    )


def seed_stability(
    transcoders: Sequence[Transcoder],
    live: Sequence[NDArray[np.bool_]],
    x: NDArray[np.float32],
    *,
    l0: float,
) -> SeedStability | None:
    """Stability over seeds on held-out rows; None with fewer than 2 seeds or live features.

    Args:
        transcoders: one per seed.
        live: [F] per seed.
        x: held-out rows.
        l0: features on per row, which the random dictionaries are calibrated to.
    """
    x = x[some_rows(len(x), MAX_ROWS)]
    chosen = [np.flatnonzero(mask) for mask in live]
    if len(transcoders) < 2 or min(len(c) for c in chosen) < 2:
        return None
    pairs = list(combinations(range(len(transcoders)), 2))
    found = [
        match_features(transcoders[a], transcoders[b], x, chosen[a], chosen[b]) for a, b in pairs
    ]
    size = int(np.median([len(c) for c in chosen]))
    randoms = [random_dictionary(transcoders[0], x, size, l0, seed) for seed in range(2)]
    every = np.arange(size)
    control: NDArray[np.float64] = np.asarray(
        match_features(randoms[0], randoms[1], x, every, every).correlation
    )
    correlation = np.concatenate([np.asarray(match.correlation) for match in found])
    cosine = np.concatenate([np.asarray(match.decoder_cosine) for match in found])
    return SeedStability(
        correlation=float(np.median(correlation)),
        share_above_07=float((correlation > 0.7).mean()),
        decoder_cosine=float(np.median(cosine)),
        random_correlation=float(np.median(control)),
        random_share_above_07=float((control > 0.7).mean()),
        seeds=len(transcoders),
    )


def random_dictionary(
    like: Transcoder, x: NDArray[np.float32], n_features: int, l0: float, seed: int
) -> Transcoder:
    """A dictionary of random directions in z-scored x whose threshold gives the same L0.

    The control for every claim of the form "the features are …": random features of inputs also
    fire sparsely and also go with metrics.
    """
    generator = torch.Generator().manual_seed(seed)
    d_in, d_out = like.config.d_in, like.config.d_out
    scale = torch.from_numpy(np.maximum(x.std(0), 1e-3 * max(float(x.std(0).max()), 1e-12)))
    W_enc = torch.randn(d_in, n_features, generator=generator) / scale[:, None]
    b_enc = -torch.from_numpy(x.mean(0)) @ W_enc
    W_dec = torch.randn(n_features, d_out, generator=generator)
    pre = torch.addmm(b_enc, torch.from_numpy(x), W_enc).numpy()
    k = max(1, min(round(l0), n_features - 1))
    config = TranscoderConfig(
        architecture=Architecture.BATCHTOPK,
        d_in=d_in,
        d_out=d_out,
        n_features=n_features,
        k=k,
        target=like.config.target,
    )
    threshold = torch.full((n_features,), calibrated_threshold(pre, k))
    return Transcoder(config, W_enc, b_enc, W_dec, torch.zeros(d_out), threshold=threshold)
