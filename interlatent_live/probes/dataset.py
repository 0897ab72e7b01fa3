"""From a dataset of activations to labelled rows: sorted, split by episode, with inputs beside."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from interlatent_live.errors import UserError
from interlatent_live.policies.hook_points import span_ends
from interlatent_live.probes.probe import Side
from interlatent_live.probes.targets import label
from interlatent_live.probes.train import ProbeRows
from interlatent_live.transcoders.dataset import concatenate, split_by_episode

if TYPE_CHECKING:
    from interlatent_live.probes.targets import Target
    from interlatent_live.transcoders.dataset import ActivationDataset

PLAIN_INPUT = "hidden.0"
"""Where a plain policy's network begins: its x is what the network sees of the world."""


def probe_rows(
    dataset: ActivationDataset,
    *,
    target: Target,
    hook_point: str,
    side: Side,
    step_seconds: float,
    first_module: str = PLAIN_INPUT,
    max_bytes: int = 2 << 30,
) -> ProbeRows:
    """Load a dataset and label it; ``first_module`` is where the policy's network begins.

    Raises:
        UserError: when a hook point is missing, the dataset is too large to be held, or the target
            does not fit its metrics.
        CorruptFileError: when a shard is damaged.
    """
    dataset.header.hook(hook_point)
    beginnings = {span_ends(hook.name)[0]: hook.name for hook in dataset.header.hook_points}
    if first_module not in beginnings:
        raise UserError(
            f"{dataset.path} does not hold what the network sees, with which a probe is compared: "
            f"collect from {first_module} too"
        )
    parts, size = [], 0
    for shard in dataset.shards():
        parts.append(shard)
        size += shard.nbytes
        if size > max_bytes:
            raise UserError(
                f"{dataset.path} holds more than {max_bytes >> 20} MiB; collect fewer episodes for "
                "a probe"
            )
    if not parts:
        raise UserError(f"{dataset.path} holds no rows yet; run collect to the end first")
    rows = concatenate(parts)
    order = np.lexsort((rows.t, rows.episode))
    episode = rows.episode[order]
    names = [column.name for column in dataset.header.metrics]
    labels = label(
        target,
        names=names,
        metrics=rows.metrics[order],
        flags=rows.flags[order],
        episode=episode,
        t=rows.t[order],
        step_seconds=step_seconds,
    )
    read = rows.activations[hook_point][0 if side is Side.INPUT else 1]
    return ProbeRows(
        activations=read[order],
        inputs=rows.activations[beginnings[first_module]][0][order],
        episode=episode,
        labels=labels,
        split=split_by_episode(episode),
    )
