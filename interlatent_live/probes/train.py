"""Train a probe with its controls beside it, from a dataset of activations.

Decoding an input is no finding: the observation itself, and a network of the same shape that was
never trained, often tell the target as well. So each probe is reported beside a probe on the
policy's input, beside one on the same layer of a randomly initialised copy, and, where a transcoder
is given, beside its best single feature, all on the same rows and episodes.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from interlatent_live.errors import UserError
from interlatent_live.policies.mlp import MlpPolicy
from interlatent_live.probes.linear import Logistic, calibrate, fit_logistic
from interlatent_live.probes.probe import LinearProbe, Side
from interlatent_live.probes.scores import (
    ProbeScores,
    ScoreInterval,
    auroc,
    best_threshold,
    paired_auroc,
    score_probe,
)
from interlatent_live.transcoders.capture import Capture

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from interlatent_live.probes.targets import Labels, Target
    from interlatent_live.transcoders.dataset import Split
    from interlatent_live.transcoders.transcoder import Transcoder

PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0)
"""The L2 penalty is chosen among these by Brier score on the validation episodes."""


@dataclass(frozen=True, slots=True, eq=False)
class ProbeRows:
    """Labelled rows: activations and inputs of n steps."""

    activations: NDArray[np.float32]
    """[n, d] x or y of the hook point."""
    inputs: NDArray[np.float32]
    """[n, d_in] what the network's first layer saw."""
    episode: NDArray[np.uint32]
    labels: Labels
    split: Split

    def known(self, part: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Rows of a part of the split that have a label."""
        known: NDArray[np.bool_] = part & self.labels.known
        return known


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """A probe's scores on test episodes, beside its controls' on the same rows."""

    target: str
    hook_point: str
    side: str
    l2: float
    probe: ProbeScores
    on_input: ProbeScores
    on_random_network: ProbeScores
    over_input: ScoreInterval
    """Difference in AUROC, paired by episode."""
    over_random_network: ScoreInterval
    best_feature: int | None = None
    """Of the transcoder, the feature with the best AUROC on the validation episodes."""
    feature_auroc: ScoreInterval | None = None
    """Its AUROC on the test episodes."""
    over_feature: ScoreInterval | None = None


def train_probe(
    rows: ProbeRows,
    *,
    target: Target,
    hook_point: str,
    side: Side,
    policy_hash: str,
    random_activations: NDArray[np.float32],
    features: NDArray[np.float32] | None = None,
) -> tuple[LinearProbe, ProbeReport]:
    """Fit on training episodes, choose and calibrate on validation, report on test.

    Args:
        rows: labelled rows and their split by episode.
        target: what the labels mean.
        hook_point: where the activations are from.
        side: x or y.
        policy_hash: whose they are.
        random_activations: [n, d'] the same hook point of a network that was never trained.
        features: [n, F] a transcoder's features of these rows, for the comparison with the best.

    Raises:
        UserError: when training, validation or test rows lack one of the labels.
    """
    for name in ("train", "validation", "test"):
        part = rows.known(getattr(rows.split, name))
        positive = rows.labels.positive[part]
        if not positive.any() or positive.all():
            raise UserError(
                f"the {name} episodes hold {int(positive.sum())} rows of {len(positive)} in which "
                f"{str(target)!r} is true: collect more episodes, or more disturbed ones"
            )
    fitted = _fit(rows, rows.activations)
    on_input = _fit(rows, rows.inputs)
    on_random = _fit(rows, random_activations)
    test = rows.known(rows.split.test)
    positive, episode = rows.labels.positive[test], rows.episode[test]
    own = fitted.scores(rows.activations[test])
    best, feature_auroc, over_feature = None, None, None
    if features is not None:
        best = _best_feature(rows, features)
        if best is not None:
            single = features[test, best]
            feature_auroc = score_feature(single, positive, episode)
            over_feature = paired_auroc(own, single, positive, episode)
    probe = LinearProbe(target, hook_point, side, policy_hash, fitted.logistic, fitted.threshold)
    report = ProbeReport(
        target=str(target),
        hook_point=hook_point,
        side=side.value,
        l2=fitted.l2,
        probe=fitted.judge(rows.activations[test], positive, episode),
        on_input=on_input.judge(rows.inputs[test], positive, episode),
        on_random_network=on_random.judge(random_activations[test], positive, episode),
        over_input=paired_auroc(own, on_input.scores(rows.inputs[test]), positive, episode),
        over_random_network=paired_auroc(
            own, on_random.scores(random_activations[test]), positive, episode
        ),
        best_feature=best,
        feature_auroc=feature_auroc,
        over_feature=over_feature,
    )
    return probe, report


def score_feature(
    activation: NDArray[np.float32], positive: NDArray[np.bool_], episode: NDArray[np.integer]
) -> ScoreInterval:
    """AUROC of a feature's activation with its interval over episodes."""
    zero = np.zeros(len(activation), np.float32)
    difference = paired_auroc(activation, zero, positive, episode)

    def shifted(value: float | None) -> float | None:
        # A constant's AUROC is ½ in every resample, so the difference is the AUROC less ½.
        return None if value is None else value + 0.5

    return ScoreInterval(
        shifted(difference.value), shifted(difference.low), shifted(difference.high)
    )


@torch.no_grad()
def random_copy(policy: nn.Module, seed: int) -> nn.Module:
    """A policy of the same shape and normalisation that was never trained.

    Raises:
        UserError: when a module with weights of its own cannot be initialised anew.
    """
    made = copy.deepcopy(policy).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, module in made.named_modules():
            reset = getattr(module, "reset_parameters", None)
            if reset is not None:
                reset()
            elif next(module.parameters(recurse=False), None) is not None:
                raise UserError(
                    f"the module {name or 'itself'!r} of the policy has weights and no "
                    "reset_parameters(): there is no untrained network to compare a probe with"
                )
    return made


@torch.no_grad()
def layer_activations(
    policy: nn.Module, inputs: NDArray[np.float32], hook_point: str, side: Side
) -> NDArray[np.float32]:
    """X or y of a hook point, a name or a span, for network inputs [n, d_in].

    A plain policy's inputs are what comes after its adapter and normalisation.

    Raises:
        UserError: when the policy has no such hook point.
    """
    with Capture(policy, [hook_point]) as capture:
        if isinstance(policy, MlpPolicy):
            h = torch.from_numpy(inputs)
            for module in (*policy.hidden, policy.head):
                h = module(h)
        else:
            policy(torch.from_numpy(inputs))
        x, y = capture.take()[hook_point]
    return np.asarray((x if side is Side.INPUT else y).numpy(), np.float32)


def dense_features(transcoder: Transcoder, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Features [n, F] of a transcoder for x [n, d_in]."""
    with torch.no_grad():
        return np.asarray(transcoder.encode(torch.from_numpy(x)).numpy(), np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class _Fitted:
    logistic: Logistic
    threshold: float
    l2: float

    def scores(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        return self.logistic.probability(x)

    def judge(
        self, x: NDArray[np.float32], positive: NDArray[np.bool_], episode: NDArray[np.integer]
    ) -> ProbeScores:
        return score_probe(self.scores(x), positive, episode, threshold=self.threshold)


def _fit(rows: ProbeRows, x: NDArray[np.float32]) -> _Fitted:
    train, validation = rows.known(rows.split.train), rows.known(rows.split.validation)
    positive = rows.labels.positive
    best: tuple[float, float, Logistic] | None = None
    for l2 in PENALTIES:
        fitted = fit_logistic(x[train], positive[train], l2=l2)
        error = float(np.square(fitted.probability(x[validation]) - positive[validation]).mean())
        if best is None or error < best[0]:
            best = (error, l2, fitted)
    if best is None:  # pragma: no cover - PENALTIES is not empty
        raise AssertionError("no penalty was tried")
    calibrated = calibrate(best[2], x[validation], positive[validation])
    threshold = best_threshold(calibrated.probability(x[validation]), positive[validation])
    return _Fitted(calibrated, float(np.clip(threshold, 1e-6, 1 - 1e-6)), best[1])


def _best_feature(rows: ProbeRows, features: NDArray[np.float32]) -> int | None:
    validation = rows.known(rows.split.validation)
    positive = rows.labels.positive[validation]
    scores = [auroc(features[validation, index], positive) for index in range(features.shape[1])]
    found = [(score, index) for index, score in enumerate(scores) if score is not None]
    return max(found)[1] if found else None
