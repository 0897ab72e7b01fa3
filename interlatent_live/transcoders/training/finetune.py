"""Following a drift without losing the labels: fine-tuning with feature ids kept.

A drifted stream makes a transcoder explain less, but people have learned what feature 17 means. So
training goes on from the weights as they are, at a low rate, with each decoder row held within a
cone around where it pointed, and afterwards each feature is matched with its former self on the new
rows. What changed too much is listed, never silently renamed: the
result is a new version with a new identity, and the claims about the old one end with it.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import torch

from interlatent_live.bench.report import version_facts
from interlatent_live.errors import MismatchError, UserError
from interlatent_live.transcoders.config import Target
from interlatent_live.transcoders.dataset import split_by_episode
from interlatent_live.transcoders.evaluation.features import activations_csc
from interlatent_live.transcoders.evaluation.reconstruction import reconstruction_summary
from interlatent_live.transcoders.evaluation.stability import match_features
from interlatent_live.transcoders.native import LoadedTranscoder, save_transcoder
from interlatent_live.transcoders.training.finish import finish, unfold
from interlatent_live.transcoders.training.job import Job, fit_baselines, hook_data
from interlatent_live.transcoders.training.recipe import RATE, Normalise, Recipe
from interlatent_live.transcoders.training.trainer import Trainer, TrainProgress

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from interlatent_live.transcoders.dataset import ActivationDataset
    from interlatent_live.transcoders.training.stack import Stack
    from interlatent_live.transcoders.transcoder import Transcoder

RATE_SHARE = 0.06
"""Of the rate for training from scratch: enough to follow a drift, too little to reshuffle."""
KEPT_COSINE = 0.8
"""A feature keeps its id when its decoder still points where it did."""


@dataclass(frozen=True)
class FineTuned:
    """The new version beside the old one on the new rows."""

    loaded: LoadedTranscoder
    before: dict[str, Any]
    """Reconstruction of the old version on the new held-out rows, as it is."""
    recalibrated: dict[str, Any]
    """The same with its threshold recalibrated on the new rows: what no training at all would give
    at the new version's L0. A drift often shows as more features on, which flatters ``before``."""
    after: dict[str, Any]
    kept: tuple[int, ...]
    """Live features that keep id and meaning: best match of their former self, cosine ≥ 0.8."""
    changed: tuple[int, ...]
    """Live features that do not: their labels must be made anew."""


def finetune(
    old: LoadedTranscoder,
    dataset: ActivationDataset,
    out: Path,
    *,
    steps: int = 1000,
    rate: float | None = None,
    command: str = "",
    on_progress: Callable[[TrainProgress], None] | None = None,
) -> FineTuned:
    """Train on from ``old`` on a drifted dataset and save the next version.

    Args:
        old: as loaded.
        dataset: new rows of the same hook point, of the same policy or a later one.
        out: directory of the new version; must not be that of the old.
        steps: gradient steps.
        rate: peak learning rate; 6 % of training's unless said.
        command: for the provenance.
        on_progress: told how it goes.

    Raises:
        MismatchError: when the dataset lacks the hook point or its widths differ, or ``out`` is the
            old version's directory.
        UserError: when ``old`` carries probes.
    """
    if out.resolve() == old.path.resolve():
        raise MismatchError(
            f"{out} holds version {old.provenance.version}, whose labels are in use; save the new "
            "version elsewhere"
        )
    if old.provenance.probes:
        raise UserError(
            f"{old.path} carries probes, which training would turn into something else; fine-tune "
            f"its parent {old.provenance.parent} and attach new probes to the result"
        )
    transcoder, hook_point = old.transcoder, old.provenance.hook_point
    config = transcoder.config
    rows = dataset.load(hook_point)
    split = split_by_episode(rows.episode)
    normalise = Normalise(str(old.provenance.training.get("normalise", Normalise.ZSCORE)))
    recipe = Recipe(
        steps=steps,
        learning_rate=rate or RATE_SHARE * RATE,
        normalise=normalise,
    )
    data = hook_data(
        rows, split, target=config.target, normalise=normalise, device=torch.device("cpu")
    )
    if data.widths != (config.d_in, config.d_out):
        raise MismatchError(
            f"transcoder {transcoder.identity} maps {config.d_in} to {config.d_out}, but the "
            f"dataset has {data.widths} at {hook_point!r}"
        )
    job = Job(hook_point, config, old.provenance.seed or 0)
    cone = _Cone(transcoder, data.x * data.scales.x_scale + data.scales.x_mean)
    trainer = Trainer(
        [job], {hook_point: data}, recipe, start={job: transcoder}, after_step=cone.project
    )
    trainer.run(on_progress=on_progress)
    ((_, new),) = trainer.results()
    x_test, y_test = data.test
    y_train = rows.x if config.target is Target.INPUT else rows.y
    rebased = transcoder.with_baselines(
        fit_baselines(torch.from_numpy(rows.x[split.train]), torch.from_numpy(y_train[split.train]))
    )
    before = reconstruction_summary(rebased, x_test, y_test)
    same = unfold(transcoder, data.scales)
    untrained = finish(config, same, data)
    recalibrated = reconstruction_summary(untrained, x_test, y_test)
    after = reconstruction_summary(new, x_test, y_test)
    kept, changed = identities_kept(transcoder, new, rows.x[split.test])
    provenance = msgspec.structs.replace(
        old.provenance,
        policy_hash=dataset.header.policy_hash,
        dataset_hash=dataset.hash,
        command=command,
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        versions=version_facts(),
        training={
            **msgspec.to_builtins(recipe),
            "finetuned": {
                "kept": list(kept),
                "changed": list(changed),
                "fvu_before": before["fvu"],
            },
        },
        evaluation=after,
        version=old.provenance.version + 1,
        parent=transcoder.identity,
    )
    path = save_transcoder(out, new, provenance)
    return FineTuned(
        LoadedTranscoder(new, provenance, path), before, recalibrated, after, kept, changed
    )


class _Cone:
    """Holds the decoder rows of features that fire on the new rows to their former directions.

    A feature that never fires there is free: it explains nothing, and may be needed for what is
    new. If it comes to life with another direction it is listed as changed.
    """

    def __init__(self, old: Transcoder, x: Tensor) -> None:
        self._direction = torch.nn.functional.normalize(old.W_dec, dim=1)
        fires = np.diff(activations_csc(old, x.numpy()).indptr) > 0
        self._held = torch.from_numpy(fires)[:, None]
        # A little inside the bound, so that rounding does not put a held feature outside.
        cosine = min(1.0, KEPT_COSINE + 0.01)
        self._slope = float(np.sqrt(1 - cosine**2) / cosine)

    def project(self, stack: Stack) -> None:
        """Move each held row to the nearest direction of its cone, keeping its part along it."""
        W_dec = stack.parameters["W_dec"].data[0]
        along = (W_dec * self._direction).sum(1, keepdim=True).clamp_min(1e-6)
        across = W_dec - (W_dec * self._direction).sum(1, keepdim=True) * self._direction
        size = across.norm(dim=1, keepdim=True).clamp_min(1e-12)
        inside = along * self._direction + across * (self._slope * along / size).clamp_max(1.0)
        W_dec.copy_(torch.where(self._held, inside, W_dec))


def identities_kept(
    old: Transcoder, new: Transcoder, x: NDArray[np.float32]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Which features on rows x [n, d_in] are still themselves: (kept, changed).

    Live means on in ≥ 0.1 % of the rows in the new version. A feature is kept when it is matched
    one to one with its former self on activations and its decoder row keeps its direction.
    """
    density = np.diff(activations_csc(new, x).indptr) / max(len(x), 1)
    old_density = np.diff(activations_csc(old, x).indptr) / max(len(x), 1)
    live = np.flatnonzero(density >= 0.001)
    candidates = np.flatnonzero((old_density >= 0.001) | (density >= 0.001))
    matched = match_features(new, old, x, live, candidates)
    same = {
        mine
        for (mine, theirs), cosine in zip(matched.pairs, matched.decoder_cosine, strict=True)
        if mine == theirs and cosine >= KEPT_COSINE
    }
    kept = tuple(int(feature) for feature in live if int(feature) in same)
    changed = tuple(int(feature) for feature in live if int(feature) not in same)
    return kept, changed
