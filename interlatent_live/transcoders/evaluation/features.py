"""Figures of single features on held-out episodes, as the definitions have them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from scipy import stats

from interlatent_live.transcoders.evaluation.reconstruction import row_chunks

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy.sparse import csc_array

    from interlatent_live.transcoders.transcoder import Transcoder

QUANTILES: Final = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
LIVE_DENSITY: Final = 0.001
LIVE_EPISODES: Final = 3
ELIGIBLE_DENSITY: Final = (0.005, 0.5)
ELIGIBLE_BOUTS: Final = 20
ELIGIBLE_EPISODES: Final = 6
MEMORISED_FDR: Final = 0.05
REDUNDANT: Final = 0.95
"""Features whose activations correlate above this say the same thing."""


@dataclass(frozen=True, slots=True, eq=False)
class FeatureStatistics:
    """Columns over the F features."""

    density: NDArray[np.float64]
    """[F] share of held-out steps in which it is on."""
    train_density: NDArray[np.float64]
    """[F] the same on the training episodes."""
    episodes: NDArray[np.int64]
    """[F] held-out episodes in which it is ever on."""
    bouts: NDArray[np.int64]
    """[F] runs of on-steps within held-out episodes."""
    quantiles: NDArray[np.float64]
    """[F, len(QUANTILES)] of the activation while on; NaN where never on."""
    live: NDArray[np.bool_]
    """[F] on in ≥ 0.1 % of held-out steps and in ≥ 3 episodes."""
    eligible: NDArray[np.bool_]
    """[F] on in 0.5–50 % of steps, ≥ 20 bouts in ≥ 6 episodes."""
    memorised: NDArray[np.bool_]
    """[F] held-out density significantly below half of the training density (clustered by episode,
    false discoveries among the features held to 5 %)."""
    held_out_steps: int
    held_out_episodes: int


@dataclass(frozen=True, slots=True)
class Redundancy:
    """How often two live features say the same."""

    share: float
    """Share of live features whose activation correlates > 0.95 with another's."""
    median_nearest: float
    """Median over live features of the largest correlation with another."""
    median_nearest_decoder: float
    """Median over live features of the largest |cosine| with another's decoder row."""


def activations_csc(transcoder: Transcoder, x: NDArray[np.float32]) -> csc_array:
    """Feature activations of x [n, d_in] as a sparse matrix [n, F] by columns."""
    from scipy.sparse import csr_array, vstack  # noqa: PLC0415 - slow to import

    parts = []
    for rows in row_chunks(len(x)):
        codes = transcoder.encode_sparse(x[rows])
        shape = (rows.stop - rows.start, transcoder.config.n_features)
        parts.append(
            csr_array((codes.value, codes.index.astype(np.int64), codes.indptr), shape=shape)
        )
    return vstack(parts).tocsc()


def feature_statistics(
    transcoder: Transcoder,
    train: tuple[NDArray[np.float32], NDArray[np.uint32]],
    held_out: tuple[NDArray[np.float32], NDArray[np.uint32]],
) -> FeatureStatistics:
    """Statistics from (x [n, d_in], episode [n]) of training and held-out episodes.

    Rows of an episode are in time order, episodes may be interleaved.
    """
    x, episode = _by_episode(*held_out)
    active = activations_csc(transcoder, x)
    n, n_features = active.shape
    train_active = activations_csc(transcoder, train[0])
    clusters, train_clusters = _Clusters(episode), _Clusters(train[1])
    episodes = np.zeros(n_features, np.int64)
    bouts = np.zeros(n_features, np.int64)
    quantiles = np.full((n_features, len(QUANTILES)), np.nan)
    p_values = np.ones(n_features)
    for feature in range(n_features):
        span = slice(active.indptr[feature], active.indptr[feature + 1])
        rows, values = active.indices[span], active.data[span]
        span = slice(train_active.indptr[feature], train_active.indptr[feature + 1])
        on = clusters.counts(rows)
        p_values[feature] = fell_below_half(
            on,
            clusters.lengths,
            train_clusters.counts(train_active.indices[span]),
            train_clusters.lengths,
        )
        if len(rows) == 0:
            continue
        episodes[feature] = int((on > 0).sum())
        apart = (np.diff(rows) > 1) | (np.diff(clusters.of_row[rows]) != 0)
        bouts[feature] = 1 + int(apart.sum())
        quantiles[feature] = np.quantile(values, QUANTILES)
    train_density = np.diff(train_active.indptr) / max(len(train[0]), 1)
    density = np.diff(active.indptr) / n
    live = (density >= LIVE_DENSITY) & (episodes >= LIVE_EPISODES)
    low, high = ELIGIBLE_DENSITY
    eligible = (
        (density >= low)
        & (density <= high)
        & (bouts >= ELIGIBLE_BOUTS)
        & (episodes >= ELIGIBLE_EPISODES)
    )
    return FeatureStatistics(
        density=density,
        train_density=train_density,
        episodes=episodes,
        bouts=bouts,
        quantiles=quantiles,
        live=live,
        eligible=eligible,
        memorised=benjamini_hochberg(p_values, MEMORISED_FDR),
        held_out_steps=n,
        held_out_episodes=len(clusters.lengths),
    )


def redundancy(
    transcoder: Transcoder, x: NDArray[np.float32], live: NDArray[np.bool_]
) -> Redundancy | None:
    """How redundant the live features are on rows x; None with fewer than 2 live features."""
    chosen = np.flatnonzero(live)
    if len(chosen) < 2:
        return None
    correlation = feature_correlation(activations_csc(transcoder, x)[:, chosen])
    np.fill_diagonal(correlation, -1.0)
    nearest = correlation.max(1)
    decoder = torch.nn.functional.normalize(transcoder.W_dec[torch.from_numpy(chosen)], dim=1)
    cosine = (decoder @ decoder.T).abs().fill_diagonal_(0.0)
    return Redundancy(
        share=float((nearest > REDUNDANT).mean()),
        median_nearest=float(np.median(nearest)),
        median_nearest_decoder=float(cosine.amax(1).median()),
    )


def feature_correlation(active: csc_array, other: csc_array | None = None) -> NDArray[np.float64]:
    """Pearson correlations [F, G] between the columns of sparse [n, F] and [n, G].

    0 where a column is constant. Sums in float64, from the sparse products.
    """
    left = active.astype(np.float64)
    right = left if other is None else other.astype(np.float64)
    n = left.shape[0]
    mean_l, mean_r = (np.asarray(m.sum(0)).reshape(-1) / n for m in (left, right))
    product = np.asarray((left.T @ right).todense()) / n - np.outer(mean_l, mean_r)
    spread_l, spread_r = (
        np.sqrt(np.maximum(np.asarray((m * m).sum(0)).reshape(-1) / n - mean**2, 0.0))
        for m, mean in ((left, mean_l), (right, mean_r))
    )
    scale = np.outer(spread_l, spread_r)
    result: NDArray[np.float64] = np.divide(
        product, scale, out=np.zeros_like(product), where=scale > 1e-12
    )
    return result


def fell_below_half(
    on: NDArray[np.int64],
    lengths: NDArray[np.int64],
    train_on: NDArray[np.int64],
    train_lengths: NDArray[np.int64],
) -> float:
    """One-sided p-value for "held-out density < half of the training density".

    Args:
        on: [E] steps in which the feature is on, per held-out episode.
        lengths: [E] steps per held-out episode.
        train_on: [G] likewise in training.
        train_lengths: [G].

    The episode is the unit: ratio estimates of both densities, the spread between episodes pooled
    from both sets (a feature that fires in one episode of fifty says nothing by being silent in
    ten), Student's t with the held-out episodes' degrees of freedom. 1 for a feature that hardly
    fired in training: it is rare, which is not memorised.
    """
    total, train_total = int(lengths.sum()), int(train_lengths.sum())
    density, train_density = on.sum() / total, train_on.sum() / max(train_total, 1)
    if train_density < LIVE_DENSITY or len(on) < 2:
        return 1.0
    # Spread of an episode's count around its expectation, at the density of its own set.
    own = np.concatenate([on - density * lengths, train_on - train_density * train_lengths])
    variance = float(np.square(own).sum() / max(len(own) - 2, 1))
    error = np.sqrt(
        variance * len(on) / total**2 + variance * len(train_on) / (2.0 * train_total) ** 2
    )
    gap = train_density / 2 - density
    if error <= 0:
        return 0.0 if gap > 0 else 1.0
    return float(stats.t.sf(gap / error, len(on) - 1))


def benjamini_hochberg(p_values: NDArray[np.float64], level: float) -> NDArray[np.bool_]:
    """Rejections [n] at a false discovery rate (Benjamini & Hochberg 1995)."""
    order = np.argsort(p_values)
    bounds = level * np.arange(1, len(p_values) + 1) / len(p_values)
    below = np.flatnonzero(p_values[order] <= bounds)
    rejected = np.zeros(len(p_values), np.bool_)
    if len(below):
        rejected[order[: below[-1] + 1]] = True
    return rejected


class _Clusters:
    """Rows grouped by episode."""

    def __init__(self, episode: NDArray[np.uint32]) -> None:
        _, self.of_row, self.lengths = np.unique(episode, return_inverse=True, return_counts=True)

    def counts(self, rows: NDArray[np.integer]) -> NDArray[np.int64]:
        """Of the given rows, how many lie in each episode [E]."""
        return np.bincount(self.of_row[rows], minlength=len(self.lengths)).astype(np.int64)


def _by_episode(
    x: NDArray[np.float32], episode: NDArray[np.uint32]
) -> tuple[NDArray[np.float32], NDArray[np.uint32]]:
    """Rows reordered so that each episode is contiguous, in its own order."""
    order = np.argsort(episode, kind="stable")
    return x[order], episode[order]
