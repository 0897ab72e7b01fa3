"""The bytes a correlator will hold, from its configuration alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from interlatent_live.statistics.betting import BETS
from interlatent_live.statistics.deep import deep_set
from interlatent_live.statistics.moments import Layout
from interlatent_live.statistics.serial import DWELL_BINS
from interlatent_live.statistics.sketches import quantile_bins
from interlatent_live.statistics.units import unit_shapes
from interlatent_live.statistics.within import within_shapes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from interlatent_live.statistics.config import CorrelatorConfig

ENV_BYTES = 8 << 16
"""Last known row of each possible agent copy."""


def memory_bytes(
    config: CorrelatorConfig,
    n_features: int,
    n_metrics: int,
    *,
    active_per_step: int = 32,
    envs: int = 1,
    partial_metrics: int = 0,
) -> int:
    """Bytes once every table is full; equals ``Correlator.nbytes`` then, to a few per cent.

    ``active_per_step``: features on per row (L0); ``envs``: agent copies, whose unfinished episodes
    are held; ``partial_metrics``: metrics that were ever absent.
    """
    return sum(
        memory_parts(
            config,
            n_features,
            n_metrics,
            active_per_step=active_per_step,
            envs=envs,
            partial_metrics=partial_metrics,
        ).values()
    )


def memory_parts(
    config: CorrelatorConfig,
    n_features: int,
    n_metrics: int,
    *,
    active_per_step: int = 32,
    envs: int = 1,
    partial_metrics: int = 0,
) -> Mapping[str, int]:
    """The same, part by part, for the line printed at start."""
    f, m = n_features, n_metrics
    layout = Layout(m, tuple(range(partial_metrics)))
    g = layout.groups
    pane = 8 * f * (2 * (g + m) + g)
    window = 8 * f * layout.width
    flush = config.flush_rows(f)
    row = 8 * m + 8 * active_per_step + 8 + 4
    depth = max((-(-n // config.pane_steps) for n in config.sliding), default=0)
    ring_features = _distinct(f, config.pane_steps * active_per_step)
    parts = {
        "open pane": pane + 8 * f,
        "windows": window * (1 + len(config.half_lives)),
        "ring": max(depth - 1, 0) * ring_features * 8 * (layout.width + 1),
        "slices": len(config.slices) * (pane + window),
        "waiting rows": flush * row,
        "copies": ENV_BYTES,
    }
    if config.episodic:
        parts |= _deep_parts(config, f, m, active_per_step, envs, window)
    return parts


def _deep_parts(  # noqa: PLR0917 - one caller
    config: CorrelatorConfig, f: int, m: int, active: int, envs: int, window: int
) -> dict[str, int]:
    d = len(deep_set(f, config))
    lag_count = 2 * config.lags + 1
    kept = config.exemplars_top + config.exemplars_random
    exemplar = 8 + 8 + 8 + 2 + 4 + 4 + 8 * (2 * config.context + 1) * m
    events = len(config.events)
    log_row = 8 + 8 + 2 + 4 + 4 + 1 + 1 + 8 * m + 8 + 8 * active
    log_rows = min(config.max_log_rows, 2 * envs * config.block_steps // 2 * 2 + config.pass_rows)
    sample_row = 8 + 8 + 2 + 4 + 8 * m + 8 + 8 * active
    return {
        "outcome slices": 2 * window if config.outcome_slices else 0,
        "units": 8 * sum(int(np.prod(s)) for s in unit_shapes(config.units, d, m).values()),
        "betting": d * m * (8 * (2 + len(BETS)) + 4),
        "autocovariances": 8 * len(config.acf_lags) * (d + 3 * m),
        "lags": 8 * lag_count * d * (2 + m),
        "bouts": 8 * d * (DWELL_BINS + 4),
        "within": 8 * sum(int(np.prod(s)) for s in within_shapes(d, m, config.max_envs).values()),
        "quantiles": 4 * d * quantile_bins(config.sketch_error),
        "auroc": 4 * d * m * config.auroc_bins + 8 * m * config.auroc_bins,
        "exemplars": d * kept * exemplar,
        "row sample": config.row_sample * sample_row,
        "events": events * d * (8 * (config.event_horizon + 1) + 4 * 64)
        + d * 4 * 64 * bool(events),
        "co-firing": 4 * d * d if d <= config.cofiring_features else 0,
        "unfinished episodes": log_rows * log_row,
    }


def _distinct(f: int, draws: int) -> int:
    """Expected distinct features among uniform draws; concentrated activity needs less."""
    return round(f * -np.expm1(-draws / f)) if f else 0
