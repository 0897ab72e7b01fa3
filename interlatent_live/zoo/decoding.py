"""What a layer tells of a metric by a straight line, beside what the input tells anyway.

Ridge regression on standardised activations, the penalty chosen on validation episodes, R² on test
episodes with an interval that resamples whole episodes. Decoding an input is no finding, so the
same probe reads the network's input, and the same layer of a network that was never trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from interlatent_live.probes.probe import Side
from interlatent_live.probes.train import layer_activations, random_copy
from interlatent_live.transcoders.dataset import concatenate, split_by_episode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from interlatent_live.transcoders.acting import ActingPolicy
    from interlatent_live.transcoders.dataset import ActivationDataset, Split

PENALTIES: Final = (1e-6, 1e-4, 1e-2, 1.0)
"""Per row, in units of the inputs' variance."""
DRAWS: Final = 500


def decode_metrics(
    policy: ActingPolicy,
    dataset: ActivationDataset,
    hook: str,
    metrics: Sequence[str],
    *,
    first_module: str,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """R² of each metric from the layer, from the network's input and from an untrained layer.

    Args:
        policy: whose layers.
        dataset: with ``hook`` and ``first_module``, whose x is what the network sees.
        hook: hook point whose output is read.
        metrics: names among the dataset's.
        first_module: where the network begins.
        seed: of the untrained network.

    Raises:
        KeyError: when the dataset lacks a hook point or a metric.
    """
    rows = concatenate([*dataset.shards()])
    inputs = rows.activations[first_module][0]
    untrained = layer_activations(random_copy(policy.module, seed), inputs, hook, Side.OUTPUT)
    sources = {"layer": rows.activations[hook][1], "input": inputs, "untrained": untrained}
    split = split_by_episode(rows.episode)
    columns = {column.name: place for place, column in enumerate(dataset.header.metrics)}
    y = rows.metrics[:, [columns[name] for name in metrics]]
    found = {name: _r2(x, y, rows.episode, split) for name, x in sources.items()}
    units = {column.name: column.unit for column in dataset.header.metrics}
    return [
        {
            "metric": name,
            "unit": units[name],
            **{source: scores[place] for source, scores in found.items()},
        }
        for place, name in enumerate(metrics)
    ]


@dataclass(frozen=True, slots=True, eq=False)
class _Ridge:
    """Predictions (x − mean) / scale @ weight + offset."""

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    weight: NDArray[np.float64]
    offset: NDArray[np.float64]

    def __call__(self, x: NDArray[np.floating]) -> NDArray[np.float64]:
        return np.asarray((x - self.mean) / self.scale @ self.weight + self.offset)


def fit_ridge(
    x: NDArray[np.floating], y: NDArray[np.float64], penalties: Sequence[float]
) -> list[_Ridge]:
    """One regression of y [n, M] on x [n, d] per penalty; a constant column gets no weight."""
    mean, scale = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    scale = np.where(scale > 1e-9 * max(float(scale.max()), 1e-300), scale, np.inf)
    design = (x - mean) / scale
    offset = y.mean(0)
    gram, right = design.T @ design / len(x), design.T @ (y - offset) / len(x)
    eye = np.eye(len(gram))
    return [
        _Ridge(mean, scale, np.linalg.solve(gram + penalty * eye, right), offset)
        for penalty in penalties
    ]


def _r2(
    x: NDArray[np.float32], y: NDArray[np.float64], episode: NDArray[np.integer], split: Split
) -> list[dict[str, float | None]]:
    fits = fit_ridge(x[split.train], y[split.train], PENALTIES)
    errors = np.stack(
        [np.square(fit(x[split.validation]) - y[split.validation]).mean(0) for fit in fits]
    )
    best = errors.argmin(0)
    test = split.test
    _, unit = np.unique(episode[test], return_inverse=True)
    centre = y[test].mean(0)
    out = []
    for place in range(y.shape[1]):
        residual = np.square(fits[best[place]](x[test])[:, place] - y[test, place])
        total = np.square(y[test, place] - centre[place])
        sums = [np.bincount(unit, values).astype(np.float64) for values in (residual, total)]
        out.append(_clustered(np.stack(sums)))
    return out


def _clustered(by_unit: NDArray[np.float64]) -> dict[str, float | None]:
    """1 − residual / total of sums [2, U] by episode, with a bootstrap interval over episodes.

    None throughout for a metric that does not vary in some episode, of which there is no share to
    explain.
    """
    if not (by_unit[1] > 0).all():
        return {"value": None, "low": None, "high": None}
    rng = np.random.default_rng(0)
    picks = rng.integers(0, by_unit.shape[1], (DRAWS, by_unit.shape[1]))
    residual, total = by_unit[:, picks].sum(2)
    low, high = np.percentile(1 - residual / total, [2.5, 97.5])
    residual_all, total_all = by_unit.sum(1)
    return {"value": float(1 - residual_all / total_all), "low": float(low), "high": float(high)}
