"""One policy through the whole experiment, in two steps that a file separates.

``select`` trains the policy and its transcoders, searches every family on the selection episodes
and returns the plan: which arm of each family will be tested, on which seeds, with which sign
predicted. ``test`` plays the held-out episodes. The plan is on disk before the first of them is
played.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from interlatent_live.errors import UserError
from interlatent_live.interventions.reproduction.arms import (
    UNSTEERED,
    Arm,
    bias_arms,
    conditions,
    control_arms,
    random_arms,
    steering_arms,
)
from interlatent_live.interventions.reproduction.dictionaries import (
    Dictionaries,
    explained,
    train_dictionaries,
)
from interlatent_live.interventions.reproduction.paired import estimate, paired
from interlatent_live.interventions.reproduction.reinforce import Trained, train_into_band
from interlatent_live.interventions.reproduction.rollouts import (
    Episodes,
    Net,
    episodes,
    returns,
    trace,
)
from interlatent_live.interventions.reproduction.search import Chosen, choose
from interlatent_live.policies.hashing import policy_hash

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from interlatent_live.interventions.reproduction.settings import Settings

STEERED = ("feature at hidden.0", "feature at hidden.1")
RANDOM = ("random direction at hidden.0", "random direction at hidden.1")
BIAS = "constant logit bias"
CONDITIONAL = "feature while a condition holds"
CONDITIONAL_BIAS = "logit bias while a condition holds"
UNSTEERED_NAME = "unsteered"
FAMILIES = (*STEERED, *RANDOM, BIAS, CONDITIONAL, CONDITIONAL_BIAS)

_MAX_SEED_TRIES = 20


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """Everything that the test needs of a policy."""

    trained: Trained
    dictionaries: Dictionaries
    chosen: tuple[Chosen, ...]
    fvu: dict[tuple[int, int], float]

    def net(self, splice: tuple[int | None, int | None] = (None, None)) -> Net:
        """The policy, with layers replaced by transcoders of these widths."""
        first, second = (
            None if width is None else self.dictionaries[layer, width]
            for layer, width in enumerate(splice)
        )
        widest = max(width for _, width in self.dictionaries)
        return Net(self.trained.policy, (first, second), self.dictionaries[0, widest])

    def plan(self, settings: Settings) -> dict[str, Any]:
        """The preregistration: what will be tested, on which episodes, against what."""
        return {
            "policy_hash": policy_hash(self.trained.policy),
            "training_seed": self.trained.seed,
            "settings": settings.digest(),
            "held_out": [settings.held_out_seed, settings.held_out_episodes],
            "prediction": "higher mean return than unsteered and than the best constant bias",
            "arms": [
                {
                    "family": item.family,
                    "arm": item.arm.name,
                    "tried": item.tried,
                    "norm": item.arm.norm,
                    "bias": item.arm.bias,
                    "condition": str(item.arm.condition or ""),
                    "selection_mean": item.selection_mean,
                }
                for item in self.chosen
            ],
        }


def prepare(settings: Settings, index: int, report: Callable[[str], None]) -> Prepared:
    """Train policy ``index`` and its transcoders and choose every family's winner.

    Raises:
        UserError: when no seed of the policy's own range ends in the band.
    """
    torch.set_num_threads(1)
    trained = None
    for attempt in range(_MAX_SEED_TRIES):
        seed = settings.first_training_seed + index + attempt * settings.policies
        trained = train_into_band(settings, seed)
        if trained is not None:
            break
    if trained is None:
        raise UserError(
            f"no REINFORCE policy stopped at {settings.target_return:g} ± {settings.tolerance:g} "
            f"within {_MAX_SEED_TRIES} seeds: widen the tolerance"
        )
    report("policy trained")
    dictionaries = train_dictionaries(settings, trained.policy, trained.seed)
    fvu = explained(dictionaries, trained.policy, trained.seed, settings)
    report("transcoders trained")
    prepared = Prepared(trained, dictionaries, (), fvu)
    net = prepared.net()
    selection = episodes(settings.selection_seed, settings.selection_episodes)
    chosen = []
    for family, arms in _families(settings, prepared, net, selection).items():
        chosen.append(choose(family, arms, net, selection, settings))
        report(f"chosen: {family}")
    return Prepared(trained, dictionaries, tuple(chosen), fvu)


def run_test(prepared: Prepared, settings: Settings) -> dict[str, Any]:
    """Play the held-out episodes: one policy's results, ready for JSON."""
    held_out = episodes(settings.held_out_seed, settings.held_out_episodes)
    net = prepared.net()
    arms = [UNSTEERED, *(item.arm for item in prepared.chosen)]
    played = returns(net, arms, held_out)
    by_family = {item.family: row for item, row in zip(prepared.chosen, played[1:], strict=True)}
    unsteered = played[0]
    against = {
        "unsteered": unsteered,
        "bias": by_family[BIAS],
        "conditional_bias": by_family[CONDITIONAL_BIAS],
    }
    table = [_row(UNSTEERED_NAME, "", 1, unsteered, against)]
    for item in prepared.chosen:
        values = by_family[item.family]
        table.append(_row(item.family, item.arm.name, item.tried, values, against))
    replaced = _replacements(prepared, settings, held_out, unsteered)
    plan = json.dumps(prepared.plan(settings), sort_keys=True)
    return {
        "policy_hash": policy_hash(prepared.trained.policy),
        "training_seed": prepared.trained.seed,
        "updates": prepared.trained.updates,
        "plan_sha256": hashlib.sha256(plan.encode()).hexdigest(),
        "fvu": {f"hidden.{at} k={width}": value for (at, width), value in prepared.fvu.items()},
        "arms": table,
        "replacement": replaced,
        "percentile": _percentiles(prepared, settings, net, held_out),
    }


def _families(
    settings: Settings, prepared: Prepared, net: Net, selection: Episodes
) -> dict[str, list[Arm]]:
    rng = np.random.default_rng([prepared.trained.seed, 77])
    found: dict[str, list[Arm]] = {}
    by_layer = [
        [prepared.dictionaries[layer, width] for width in settings.widths] for layer in (0, 1)
    ]
    for layer, family in enumerate(STEERED):
        found[family] = steering_arms(layer, by_layer[layer], settings.alphas)
    for layer, family in enumerate(RANDOM):
        found[family] = random_arms(found[STEERED[layer]], rng)
    found[BIAS] = bias_arms(settings.biases)
    thought_of = conditions(_feature_medians(net, selection))
    found[CONDITIONAL] = [
        arm
        for condition in thought_of
        for layer in (0, 1)
        for arm in steering_arms(
            layer,
            [prepared.dictionaries[layer, settings.condition_width]],
            settings.condition_alphas,
            condition,
        )
    ]
    found[CONDITIONAL_BIAS] = [
        arm for condition in thought_of for arm in bias_arms(settings.condition_biases, condition)
    ]
    return {family: found[family] for family in FAMILIES}


def _feature_medians(net: Net, selection: Episodes) -> list[float]:
    """Median activation of each condition feature while it is on; NaN for one that never is."""
    if net.condition_features is None:
        return []
    seen = trace(net, selection)
    with torch.no_grad():
        x = torch.from_numpy(seen.states.astype(np.float32))
        features = net.condition_features.encode(x).numpy()
    return [
        float(np.median(column[column > 0])) if (column > 0).any() else float("nan")
        for column in features.T
    ]


def _row(
    family: str,
    arm: str,
    tried: int,
    values: NDArray[np.int64],
    against: dict[str, NDArray[np.int64]],
) -> dict[str, Any]:
    return {
        "family": family,
        "arm": arm,
        "tried": tried,
        "return": asdict(estimate(values)),
        "over": {name: asdict(paired(values, other)) for name, other in against.items()},
    }


def _replacements(
    prepared: Prepared, settings: Settings, held_out: Episodes, unsteered: NDArray[np.int64]
) -> list[dict[str, Any]]:
    """Reconstruction only: both layers, or one, replaced by the transcoder's output."""
    rows = []
    for width in settings.widths:
        for where, splice in (
            ("both", (width, width)),
            ("hidden.0", (width, None)),
            ("hidden.1", (None, width)),
        ):
            values = returns(prepared.net(splice), [UNSTEERED], held_out)[0]
            rows.append(
                {
                    "width": width,
                    "replaced": where,
                    "return": asdict(estimate(values)),
                    "over_unsteered": asdict(paired(values, unsteered)),
                }
            )
    return rows


def _percentiles(
    prepared: Prepared, settings: Settings, net: Net, held_out: Episodes
) -> dict[str, float]:
    """Share of unselected random directions of the winner's norm that the winner beats."""
    rng = np.random.default_rng([prepared.trained.seed, 78])
    played = held_out.first(settings.control_episodes)
    found = {}
    for item in prepared.chosen:
        if item.family not in (*STEERED, CONDITIONAL):
            continue
        controls = control_arms(item.arm, settings.control_directions, rng)
        means = returns(net, [item.arm, *controls], played).mean(axis=1)
        found[item.family] = float((means[0] > means[1:]).mean())
    return found
