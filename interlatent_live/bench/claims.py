"""How much of a real policy's dictionary is verified, and how much would be of anything.

Some share of any dictionary verifies, because metrics are inputs. So LunarLander PPO and Walker2d
go through the full rule (proposal on some episodes, verdicts on others, the rule search repeated
under the null) beside what the best shallow tree would pass, beside controls on the very same rows
at matched densities (raw units, random directions, principal components, a transcoder of the same
network untrained), and beside streams whose features are unrelated to the metrics. An endless gait
is cut into blocks, which are what is resampled and re-paired: whole episodes of it all start in one
phase (docs/explanations.md, "Endless runs").
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import nn

from interlatent_live.bench.explainer import bar_shares, reassigned
from interlatent_live.bench.parts import Parts
from interlatent_live.bench.progress import progress_bar
from interlatent_live.bench.report import BenchReport, BenchRow, bench_report, bench_row
from interlatent_live.bench.scenes import LUNARLANDER, WALKER2D, Scene, Stage
from interlatent_live.explanations.dictionaries import (
    VerifiedDictionary,
    matched_controls,
    share_difference,
    verify_dictionary,
    with_features,
)
from interlatent_live.explanations.nulls import NullKind
from interlatent_live.explanations.search import PLAIN_TERMS
from interlatent_live.policies.hashing import policy_hash
from interlatent_live.transcoders.acting import ActingPolicy, acting_policy

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from interlatent_live.explanations.evidence import Evidence
    from interlatent_live.explanations.scores import Interval

SEED: Final = 20_261_231
"""Not among the seeds of development."""
DRAWS: Final = 999
CONTROL_DRAWS: Final = 99
"""Enough: a p of .05 is exact from 19 draws on, more of them only make it less noisy."""
CONTROLS: Final = ("raw units", "random dictionary", "principal components")
"""Names that :func:`matched_controls` gives."""


@dataclass(frozen=True, slots=True)
class _Sizes:
    episodes: int
    draws: int
    control_draws: int


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """One scene's proposal and held-out rows, with the activations of the hook point's output."""

    name: str
    proposal: Evidence
    held_out: Evidence
    y_proposal: NDArray[np.float32]
    """[n, d]."""
    y_held_out: NDArray[np.float32]


def run(*, quick: bool = False, seed: int = SEED) -> BenchReport:
    """Both scenes; ``quick`` has few episodes and draws and only shows that it runs.

    What was cut off goes on with the part that it was at.
    """
    rows: list[BenchRow] = []
    scenes = (LUNARLANDER,) if quick else (LUNARLANDER, WALKER2D)
    draws = (39, 39) if quick else (DRAWS, CONTROL_DRAWS)
    parts = Parts("claims", [[asdict(scene) for scene in scenes], draws, seed])
    with progress_bar((3 + len(CONTROLS)) * len(scenes)) as begin:
        for scene in scenes:
            endless = scene.block_steps is not None
            sizes = _Sizes(24 if endless or quick else 64, *draws)
            rows += _scene_rows(scene, sizes, seed, begin, parts)
    notes = [
        "adjusted p of the dictionaries from {} draws, of controls and unrelated streams from "
        "{}".format(*draws)
    ]
    parts.forget()
    return bench_report("claims", rows, notes=notes)


def _scene_rows(
    scene: Scene, sizes: _Sizes, seed: int, begin: Callable[[str], None], parts: Parts
) -> list[BenchRow]:
    name = scene.name

    @cache
    def acted() -> _Rows:
        with Stage(scene) as stage:
            first, second = (
                stage.evidence_and_outputs(sizes.episodes, start) for start in (seed, seed + 10_000)
            )
        return _Rows(name, first[0], second[0], first[1], second[1])

    begin(f"{name}: the dictionary, {sizes.draws} draws of the null")
    kept = parts.value(f"{name}: dictionary", lambda: _dictionary(acted(), sizes, seed))
    out = [BenchRow(**row) for row in kept["rows"]]
    verified, density = np.array(kept["verified"], bool), np.array(kept["density"])
    for control in CONTROLS:
        begin(f"{name}: {control}")
        make = partial(_matched_row, control, acted, kept, sizes, seed)
        out += parts.rows(f"{name}: {control}", make)
    begin(f"{name}: a transcoder of the untrained network")
    out += parts.rows(
        f"{name}: untrained", lambda: [_untrained_row(scene, verified, density, sizes, seed)]
    )
    begin(f"{name}: unrelated streams")
    out += parts.rows(f"{name}: unrelated", lambda: _unrelated_rows(acted(), sizes, seed))
    return out


def _dictionary(rows: _Rows, sizes: _Sizes, seed: int) -> dict[str, Any]:
    """The dictionary's rows, with what its controls are matched and paired by."""
    found = _verify(rows.proposal, rows.held_out, sizes.draws, seed)
    return {
        "rows": [asdict(row) for row in _share_rows(found, rows)],
        "verified": found.verified.tolist(),
        "density": rows.proposal.density()[list(found.features)].tolist(),
    }


def _matched_row(
    control: str, acted: Callable[[], _Rows], kept: dict[str, Any], sizes: _Sizes, seed: int
) -> list[BenchRow]:
    rows = acted()
    verified, density = np.array(kept["verified"], bool), np.array(kept["density"])
    matched = {one.name: one for one in matched_controls(rows.y_proposal, density, seed=seed)}
    one = matched[control]
    sides = (
        with_features(rows.proposal, one.on(rows.y_proposal)),
        with_features(rows.held_out, one.on(rows.y_held_out)),
    )
    theirs = _verify(*sides, sizes.control_draws, seed, features=[*range(len(verified))])
    difference = share_difference(verified, theirs.verified, seed=seed)
    return [_control_row(rows.name, control, theirs, difference)]


def _verify(
    proposal: Evidence,
    held_out: Evidence,
    draws: int,
    seed: int,
    *,
    features: list[int] | None = None,
) -> VerifiedDictionary:
    return verify_dictionary(
        proposal,
        held_out,
        draws=draws,
        families=PLAIN_TERMS,
        seed=seed,
        features=features,
        kind=NullKind.REASSIGN,
    )


def _share_rows(found: VerifiedDictionary, rows: _Rows) -> list[BenchRow]:
    name = rows.name
    ours, theirs = bar_shares(found, rows.proposal, rows.held_out)
    units = rows.held_out.n_units
    return [
        bench_row(
            f"{name}: verified by the full rule, of {len(found.features)} eligible on {units} "
            "held-out units",
            found.share or 0.0,
            "share",
            reference="balanced accuracy ≥ .85 alone",
            reference_value=float(found.accurate.mean()),
            goal="value >= 0.4",
        ),
        bench_row(
            f"{name}: pass accuracy, precision and lower bound",
            ours,
            "share",
            reference="scikit-learn tree, depth 3, same rows",
            reference_value=theirs,
            goal="ratio >= 0.9",
        ),
    ]


def _control_row(
    name: str, control: str, theirs: VerifiedDictionary, difference: Interval
) -> BenchRow:
    low, high = difference.low or 0.0, difference.high or 0.0
    return bench_row(
        f"{name}: verified share minus that of {control} (95 % interval {low:.2f} to {high:.2f})",
        difference.value or 0.0,
        "share",
        reference=f"verified share of {control}",
        reference_value=float(theirs.verified.mean()) if len(theirs.features) else 0.0,
        goal="shown",
    )


# -------------------------------------------------------------------------- an untrained network


class _Beside(nn.Module):
    """An untrained network that sees what the trained one sees, which goes on acting.

    Its ``hidden`` layers are the untrained ones, so a hook point's name means the same place.
    """

    def __init__(self, trained: ActingPolicy, seed: int) -> None:
        super().__init__()
        untrained = copy.deepcopy(trained.module)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for module in untrained.modules():
                if isinstance(module, nn.Linear):
                    module.reset_parameters()
        self.hidden = untrained.get_submodule("hidden")
        self.head = untrained.get_submodule("head")
        # Not submodules: only the untrained weights make this module's names, hash and hooks.
        self._networks = (untrained, trained)

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        """The trained network's outputs; the untrained one runs for its activations."""
        untrained, trained = self._networks
        untrained(obs)
        out: torch.Tensor = trained.module(obs)
        return out

    def actions(self, outputs: torch.Tensor) -> NDArray[np.generic]:
        """As the trained policy acts."""
        return self._networks[1].actions(outputs, np.random.default_rng(0))


def _untrained_row(
    scene: Scene,
    verified: NDArray[np.bool_],
    density: NDArray[np.float64],
    sizes: _Sizes,
    seed: int,
) -> BenchRow:
    trained = acting_policy(scene.policy)
    module = _Beside(trained, seed % 2**31)
    beside = ActingPolicy(
        f"untrained-{scene.policy}",
        module,
        scene.environment,
        policy_hash(module),
        trained.output_kind,
    )
    with Stage(replace(scene, shipped="", head_weight=0.0), policy=beside) as stage:
        proposal = stage.evidence(sizes.episodes, seed)
        held_out = stage.evidence(sizes.episodes, seed + 10_000)
    theirs = _verify(proposal, held_out, sizes.control_draws, seed)
    # Its features have densities of their own: each of ours is paired with the nearest.
    own = proposal.density()[list(theirs.features)]
    nearest = np.abs(own[None] - density[:, None]).argmin(1)
    difference = share_difference(verified, theirs.verified[nearest], seed=seed)
    return _control_row(scene.name, "a transcoder of the untrained network", theirs, difference)


def _unrelated_rows(rows: _Rows, sizes: _Sizes, seed: int) -> list[BenchRow]:
    verified = judged = accurate = 0
    repeats = 3
    for number in range(repeats):
        random = np.random.default_rng([seed, number])
        sides = (reassigned(rows.proposal, random), reassigned(rows.held_out, random))
        found = _verify(*sides, sizes.control_draws, seed + number)
        judged += len(found.features)
        verified += int(found.verified.sum())
        accurate += int(found.accurate.sum())
    return [
        bench_row(
            f"{rows.name}: unrelated streams (whole units reassigned, {repeats} times): verified, "
            f"of {judged} eligible",
            verified / max(judged, 1),
            "share",
            reference="balanced accuracy ≥ .85 alone",
            reference_value=accurate / max(judged, 1),
            goal="value <= 0.01",
        )
    ]
