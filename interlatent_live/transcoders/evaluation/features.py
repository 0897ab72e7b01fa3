"""Figures of single features on held-out episodes, as the definitions have them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

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
    """[F] held-out density significantly below half of the training density."""
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
    ids, inverse, lengths = np.unique(episode, return_inverse=True, return_counts=True)
    train_active = activations_csc(transcoder, train[0])
    train_density = np.diff(train_active.indptr) / max(len(train[0]), 1)
    episodes = np.zeros(n_features, np.int64)
    bouts = np.zeros(n_features, np.int64)
    quantiles = np.full((n_features, len(QUANTILES)), np.nan)
    memorised = np.zeros(n_features, np.bool_)
    for feature in range(n_features):
        span = slice(active.indptr[feature], active.indptr[feature + 1])
        rows, values = active.indices[span], active.data[span]
        per_episode = np.bincount(inverse[rows], minlength=len(ids))
        memorised[feature] = _fell_below_half(per_episode, lengths, float(train_density[feature]))
        if len(rows) == 0:
            continue
        episodes[feature] = int((per_episode > 0).sum())
        starts = np.diff(rows) > 1
        crossed = np.diff(inverse[rows]) != 0
        bouts[feature] = 1 + int((starts | crossed).sum())
        quantiles[feature] = np.quantile(values, QUANTILES)
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
        memorised=memorised,
        held_out_steps=n,
        held_out_episodes=len(ids),
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


def _fell_below_half(
    on: NDArray[np.int64], lengths: NDArray[np.int64], train_density: float
) -> bool:
    """Whether the held-out density is significantly (5 %, one-sided) below half of training's.

    Ratio estimate of the density with its error clustered by episode; features that hardly fired
    in training cannot be told apart from rare ones and do not count.
    """
    if train_density < LIVE_DENSITY or len(on) < 2:
        return False
    density = on.sum() / lengths.sum()
    residual = on - density * lengths
    clusters = len(on)
    error = np.sqrt(clusters / (clusters - 1) * np.square(residual).sum()) / lengths.sum()
    # With no firing at all the sample error is 0: one expected firing per cluster bounds it.
    floor = train_density / np.sqrt(max(train_density * lengths.sum(), 1.0))
    return bool(density + 1.645 * max(float(error), floor) < train_density / 2)


def _by_episode(
    x: NDArray[np.float32], episode: NDArray[np.uint32]
) -> tuple[NDArray[np.float32], NDArray[np.uint32]]:
    """Rows reordered so that each episode is contiguous, in its own order."""
    order = np.argsort(episode, kind="stable")
    return x[order], episode[order]
