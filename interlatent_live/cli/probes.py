"""``interlatent-live probe``: train a linear probe beside its controls; serve it as a feature."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interlatent_live.cli.options import POLICY_HELP

if TYPE_CHECKING:
    from interlatent_live.probes.scores import ProbeScores, ScoreInterval

app = typer.Typer(
    name="probe",
    help="Train linear probes for targets that can be named, and serve them as features.",
    no_args_is_help=True,
)


@app.command()
def train(
    dataset: Annotated[Path, typer.Argument(help="Dataset that `collect` wrote.")],
    policy: Annotated[str, typer.Option(help=POLICY_HELP)],
    target: Annotated[
        str, typer.Option(help="'terminated within 1 s', 'edge_distance < 0.8 within 0.5 s', …")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write the probe into.")],
    hook_point: Annotated[
        str, typer.Option("--hook-point", "-p", help="Module that it reads.")
    ] = "hidden.1",
    side: Annotated[str, typer.Option(help="x or y: what it reads of the hook point.")] = "y",
    transcoder: Annotated[
        Path | None, typer.Option(help="Compare with this transcoder's best feature.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the random network it is compared with.")] = 0,
) -> None:
    """Train a probe for a target that can be named, and say what it is worth.

    Trained on 80 % of the episodes, chosen and calibrated on 10 %, reported on 10 %, beside probes
    on the network's input and on a network of the same shape that was never trained. The dataset
    must hold the hook point and the first layer (hidden.0 of a plain policy), whose x is the
    network's input.
    """
    import torch

    from interlatent_live.environments.metric_packs import metric_pack_for
    from interlatent_live.errors import MismatchError, UserError
    from interlatent_live.probes.dataset import probe_rows
    from interlatent_live.probes.probe import Side, plain, save_probe
    from interlatent_live.probes.targets import parse_target
    from interlatent_live.probes.train import (
        dense_features,
        layer_activations,
        random_copy,
        train_probe,
    )
    from interlatent_live.transcoders.acting import acting_policy
    from interlatent_live.transcoders.dataset import ActivationDataset
    from interlatent_live.transcoders.native import load_transcoder

    torch.set_num_threads(1)
    if side not in tuple(Side):
        raise UserError(f"--side is {side!r}; a probe reads x or y")
    wanted, chosen = parse_target(target), Side(side)
    data = ActivationDataset(dataset)
    loaded = acting_policy(policy, environment=data.header.environment)
    if data.header.policy_hash != loaded.policy_hash:
        raise MismatchError(
            f"{dataset} was collected from policy {data.header.policy_hash}, {policy} is "
            f"{loaded.policy_hash}"
        )
    family = metric_pack_for(data.header.environment, obs_dim=1).family
    rows = probe_rows(
        data,
        target=wanted,
        hook_point=hook_point,
        side=chosen,
        step_seconds=family.step_seconds,
        first_module=loaded.hook_points()[0],
    )
    untrained = layer_activations(random_copy(loaded.module, seed), rows.inputs, hook_point, chosen)
    features = None
    if transcoder is not None:
        dictionary = load_transcoder(
            transcoder, policy_hash=loaded.policy_hash, hook_point=hook_point
        ).transcoder
        x = layer_activations(loaded.module, rows.inputs, hook_point, Side.INPUT)
        features = dense_features(dictionary, x)
    made, report = train_probe(
        rows,
        target=wanted,
        hook_point=hook_point,
        side=chosen,
        policy_hash=loaded.policy_hash,
        random_activations=untrained,
        features=features,
    )
    save_probe(out, made, plain(report))
    print(f"{report.target}, read from {hook_point}'s {side}, on {report.probe.episodes} episodes")
    _say("probe", report.probe)
    _say("on the network's input", report.on_input)
    _say("on an untrained network", report.on_random_network)
    print(
        f"  over the input: AUROC {_interval(report.over_input, signed=True)}; over the untrained "
        f"network: {_interval(report.over_random_network, signed=True)}"
    )
    if report.feature_auroc is not None and report.over_feature is not None:
        print(
            f"  best feature ({report.best_feature}): AUROC {_interval(report.feature_auroc)}; "
            f"the probe over it {_interval(report.over_feature, signed=True)}"
        )
    print(f"written to {out}")


@app.command()
def attach(
    transcoder: Annotated[Path, typer.Argument(help="The version in use.")],
    probes: Annotated[list[Path], typer.Argument(help="Folders that `probe train` wrote.")],
    out: Annotated[Path, typer.Option(help="Directory of the next version.")],
) -> None:
    """Serve probes as features: makes the transcoder's next version, whose last features they are.

    The other features keep their numbers and values. Probes must read the transcoder's input, so
    train them with --side x at its hook point.
    """
    from interlatent_live.probes.attach import attach_probes
    from interlatent_live.probes.probe import load_probe
    from interlatent_live.transcoders.native import load_transcoder

    done = attach_probes(
        load_transcoder(transcoder),
        [load_probe(folder) for folder in probes],
        out,
        command=shlex.join(["interlatent-live", *sys.argv[1:]]),
    )
    print(f"{out}: version {done.provenance.version}, {done.transcoder.identity}")
    for served in done.provenance.probes:
        print(f"  feature {served.feature} is {served.name}, on above P = {served.threshold:.3f}")


def _say(name: str, scores: ProbeScores) -> None:
    print(
        f"  {name}: AUROC {_interval(scores.auroc)}, balanced accuracy "
        f"{_interval(scores.balanced_accuracy)}, Brier {scores.brier:.4f} (base rate "
        f"{scores.brier_constant:.4f}), calibration error {scores.calibration_error:.4f}"
    )


def _interval(score: ScoreInterval, *, signed: bool = False) -> str:
    if score.value is None:
        return "undefined"
    form = "+.3f" if signed else ".3f"
    if score.low is None or score.high is None:
        return f"{score.value:{form}} (too few episodes for an interval)"
    return f"{score.value:{form}} [{score.low:{form}}, {score.high:{form}}]"
