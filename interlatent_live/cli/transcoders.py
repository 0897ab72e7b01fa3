"""``interlatent-live collect``, ``train``, ``evaluate``, ``export``, ``import``, ``finetune``."""

from __future__ import annotations

import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from interlatent_live.cli.options import POLICY_HELP, ConfigOption, EnvOption, resolve_options

if TYPE_CHECKING:
    from interlatent_live.transcoders.native import TranscoderEntry
    from interlatent_live.transcoders.training.trainer import TrainProgress

_FORMATS = ("saelens", "sparsify", "circuit-tracer")

Choice = TypeVar("Choice", bound=StrEnum)

_HOOK_HELP = (
    "Module whose input and output are x and y, or a span first..last; give it once per hook point."
)


def collect(
    out: Annotated[Path, typer.Option(help="Directory of the dataset.")],
    policy: Annotated[str, typer.Argument(help=POLICY_HELP)] = "",
    hook_point: Annotated[
        list[str] | None, typer.Option("--hook-point", "-p", help=_HOOK_HELP)
    ] = None,
    env: EnvOption = "",
    episodes: Annotated[int, typer.Option(min=1, help="Whole episodes to collect.")] = 200,
    seed: Annotated[int, typer.Option(help="Episode i is reset with seed + i.")] = 0,
    epsilon: Annotated[
        float, typer.Option(min=0, max=1, help="Probability of a random action in each step.")
    ] = 0.0,
    copies: Annotated[int, typer.Option(min=1, help="Episodes run side by side.")] = 32,
    max_steps: Annotated[
        int | None, typer.Option(min=1, help="Cut episodes that do not end.")
    ] = None,
    start: Annotated[float, typer.Option(min=0, help="Spread of disturbed starts; 0: none.")] = 0.0,
    push: Annotated[float, typer.Option(min=0, help="Strength of pushes; 0: none.")] = 0.0,
    push_interval: Annotated[float, typer.Option(min=0, help="Mean seconds between pushes.")] = 0.0,
    splice: Annotated[
        list[Path] | None,
        typer.Option(
            help="Earlier transcoder(s), or folders of them, through which the policy acts in part "
            "of the episodes: the next ones learn the states that this leads to."
        ),
    ] = None,
    recording: Annotated[
        Path | None,
        typer.Option(help="Collect what a recorded agent did, instead of running a policy."),
    ] = None,
    live: Annotated[
        str,
        typer.Option(
            metavar="ENDPOINT",
            help="Collect what running agents do: bind this, such as tcp://127.0.0.1:28410, in the "
            "encoder's place, until Ctrl-C. Let them send every y (y_every=1).",
        ),
    ] = "",
    max_rows: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many live rows, all calls together.")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Collect activation pairs and metrics into a dataset; run again after a kill to go on.

    Example: interlatent-live collect lunarlander-ppo -p hidden.1 --episodes 300 --out data/lander
    """
    import torch
    from rich.progress import Progress

    from interlatent_live.environments.disturbance import Disturbance
    from interlatent_live.errors import UserError
    from interlatent_live.transcoders.acting import acting_policy
    from interlatent_live.transcoders.collect import (
        CollectProgress,
        RolloutSettings,
        collect_rollouts,
    )

    if [bool(policy), recording is not None, bool(live)].count(True) != 1:
        raise UserError(
            "give a policy to run, --recording FILE of one that ran, or --live ENDPOINT for agents "
            "that run; one of the three"
        )
    if recording is not None:
        _collect_recording(recording, tuple(hook_point or ()), out)
        return
    if live:
        _collect_live(live, tuple(hook_point or ()), out, max_rows=max_rows, config=config)
        return
    torch.set_num_threads(1)  # two compute threads on two busy cores collapse
    acting = acting_policy(policy, environment=env)
    settings = RolloutSettings(
        episodes=episodes,
        seed=seed,
        epsilon=epsilon,
        copies=copies,
        max_steps=max_steps,
        disturbance=Disturbance(start=start, push=push, push_interval_s=push_interval),
    )
    with Progress() as bar:
        task = bar.add_task("collect", total=episodes)

        def show(progress: CollectProgress) -> None:
            bar.update(
                task,
                completed=progress.done,
                description=f"{progress.rows:,} rows, mean return {progress.mean_return:.1f}",
            )

        manifest = collect_rollouts(
            acting,
            hook_point or _default_hook_points(acting.module),
            out,
            settings,
            show,
            spliced=[entry.load() for entry in _entries(splice or [])],
        )
    print(
        f"{out}: {manifest.rows:,} rows of {manifest.episodes} episodes at "
        f"{', '.join(hook.name for hook in manifest.header.hook_points)}, {manifest.dataset_hash()}"
    )


def train(
    dataset: Annotated[Path, typer.Argument(help="Directory made by collect.")],
    out: Annotated[Path, typer.Option(help="Directory for the transcoders.")],
    hook_point: Annotated[
        list[str] | None, typer.Option("--hook-point", "-p", help="Default: all of the dataset's.")
    ] = None,
    architecture: Annotated[
        str, typer.Option(help="relu, topk, batchtopk, jumprelu or matryoshka.")
    ] = "batchtopk",
    features: Annotated[
        list[int] | None, typer.Option("--features", "-F", help="Width; once per width to train.")
    ] = None,
    k: Annotated[
        int, typer.Option("--k", "-k", min=1, help="Features on per row (not for relu).")
    ] = 8,
    l1: Annotated[float | None, typer.Option(min=0, help="L1 weight (relu only).")] = None,
    skip: Annotated[bool, typer.Option(help="Add an affine path x W_skip.")] = False,
    sae: Annotated[
        bool, typer.Option(help="Reconstruct x instead of y: a sparse autoencoder.")
    ] = False,
    widths: Annotated[str, typer.Option(help="Matryoshka's nested widths, such as 2,4,8.")] = "",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0 … N−1, all trained together.")] = 3,
    steps: Annotated[int, typer.Option(help="Gradient steps.", min=1)] = 4000,
    batch: Annotated[int, typer.Option(min=1, help="Rows per step and model.")] = 512,
    rate: Annotated[float | None, typer.Option(help="Peak learning rate; default 0.01.")] = None,
    head_weight: Annotated[
        float,
        typer.Option(min=0, help="Weight of the error's effect on the action; needs --policy."),
    ] = 0.0,
    policy: Annotated[str, typer.Option(help=POLICY_HELP)] = "",
    normalise: Annotated[str, typer.Option(help="zscore or scale.")] = "zscore",
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    bf16: Annotated[bool, typer.Option(help="Products in bfloat16 (CUDA only).")] = False,
    tensorboard: Annotated[
        Path | None, typer.Option(help="Also log to this TensorBoard folder.")
    ] = None,
    wandb: Annotated[str, typer.Option(help="Also log to this Weights & Biases project.")] = "",
) -> None:
    """Train transcoders for every hook point, width and seed together; run again to go on.

    Example: interlatent-live train data/lander --features 256 --k 8 --out transcoders
    """
    import torch
    from rich.progress import Progress

    from interlatent_live.transcoders.acting import acting_policy
    from interlatent_live.transcoders.config import Architecture, Target
    from interlatent_live.transcoders.dataset import ActivationDataset
    from interlatent_live.transcoders.training.logging import progress_loggers
    from interlatent_live.transcoders.training.recipe import Normalise, Recipe
    from interlatent_live.transcoders.training.run import TrainRequest, train_dataset

    torch.set_num_threads(1)
    opened = ActivationDataset(dataset)
    takes_l1 = architecture == "relu"
    request = TrainRequest(
        hook_points=tuple(hook_point or ()),
        architecture=_choice(Architecture, architecture, "--architecture"),
        n_features=tuple(features or (256,)),
        k=None if takes_l1 else k,
        l1=(0.01 if l1 is None else l1) if takes_l1 else l1,
        skip=skip,
        target=Target.INPUT if sae else Target.OUTPUT,
        seeds=seeds,
        widths=_numbers(widths, "--widths") if widths else None,
    )
    recipe = Recipe(
        steps=steps,
        batch=batch,
        learning_rate=rate,
        head_weight=head_weight,
        normalise=_choice(Normalise, normalise, "--normalise"),
        bf16=bf16,
    )
    acting = acting_policy(policy) if policy else None
    with progress_loggers(tensorboard=tensorboard, wandb_project=wandb) as log, Progress() as bar:
        task = bar.add_task("train", total=steps)

        def show(progress: TrainProgress) -> None:
            fvu = sorted(job.fvu for job in progress.jobs)
            l0 = sum(job.l0 for job in progress.jobs) / len(progress.jobs)
            dead = sum(job.dead for job in progress.jobs) / len(progress.jobs)
            bar.update(
                task,
                completed=progress.step,
                description=(
                    f"FVU {fvu[len(fvu) // 2]:.4f}  L0 {l0:.1f}  dead {dead:.0f}  "
                    f"{progress.rows_per_second:,.0f} rows/s"
                ),
            )
            log(progress)

        trained = train_dataset(
            opened,
            out,
            request,
            recipe,
            policy=acting,
            device=device,
            command=_command_line(),
            on_progress=show,
        )
    for one in trained:
        summary = one.summary
        print(
            f"{one.path}: FVU {summary['fvu']:.5f} (affine {summary['fvu_affine']:.5f}), "
            f"L0 {summary['l0']:.2f}, dead {summary['dead']:.0%}, {one.transcoder.identity}"
        )


def evaluate(
    transcoders: Annotated[
        list[Path], typer.Argument(help="Transcoders, or folders of them, of one hook point.")
    ],
    dataset: Annotated[Path, typer.Option(help="The dataset they were trained on.")],
    policy: Annotated[str, typer.Option(help=POLICY_HELP)],
    out: Annotated[Path, typer.Option(help="Folder for report.json, report.md and report.html.")],
    hook_point: Annotated[
        str, typer.Option("--hook-point", "-p", help="Needed when the folders hold several.")
    ] = "",
    env: EnvOption = "",
    episodes: Annotated[
        int, typer.Option(min=0, help="Paired seeds with the transcoder spliced in; 0: none.")
    ] = 100,
    first_seed: Annotated[int, typer.Option(help="First environment seed.")] = 100_000,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Cut endless episodes.")] = None,
) -> None:
    """Report what transcoders are worth: reconstruction, features, stability, behaviour, gate.

    Exits with 1 when a gate fails. Example:
    interlatent-live evaluate DIR --dataset data/lander --policy lunarlander-ppo --out report
    """
    import torch
    from rich.progress import Progress

    from interlatent_live.transcoders.acting import acting_policy
    from interlatent_live.transcoders.dataset import ActivationDataset
    from interlatent_live.transcoders.evaluation.evaluate import EvaluationSettings
    from interlatent_live.transcoders.evaluation.evaluate import evaluate as run
    from interlatent_live.transcoders.evaluation.report import markdown, write_report

    torch.set_num_threads(1)
    entries = _entries(transcoders, hook_point)
    settings = EvaluationSettings(episodes, first_seed, max_steps)
    with Progress() as bar:
        task = bar.add_task("evaluate", total=None)
        report = run(
            [entry.load() for entry in entries],
            ActivationDataset(dataset),
            acting_policy(policy, environment=env),
            settings,
            lambda text: bar.update(task, description=text),
        )
    paths = write_report(report, out)
    print(markdown(report))
    print("written: " + ", ".join(str(path) for path in paths.values()))
    if not all(group["gate"]["passed"] for group in report["groups"]):
        raise typer.Exit(1)


def export(
    transcoders: Annotated[
        list[Path],
        typer.Argument(help="Transcoder to export; for circuit-tracer one per layer, in order."),
    ],
    format: Annotated[  # noqa: A002 - the option's name
        str, typer.Option(help="saelens, sparsify or circuit-tracer.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
) -> None:
    """Export to another tool's files: exactly, or refused with the reason."""
    from interlatent_live.errors import UserError
    from interlatent_live.transcoders.formats.circuit_tracer import export_circuit_tracer
    from interlatent_live.transcoders.formats.saelens import export_saelens
    from interlatent_live.transcoders.formats.sparsify import export_sparsify
    from interlatent_live.transcoders.native import load_transcoder

    loaded = [load_transcoder(path) for path in transcoders]
    if format == "circuit-tracer":
        export_circuit_tracer(loaded, out)
    elif len(loaded) != 1:
        raise UserError(f"{format} holds one transcoder per folder; export one at a time")
    elif format == "saelens":
        export_saelens(loaded[0], out)
    elif format == "sparsify":
        export_sparsify(loaded[0], out)
    else:
        raise UserError(f"--format is {format!r}; it must be one of {', '.join(_FORMATS)}")
    print(f"written: {out}")


def import_(
    source: Annotated[Path, typer.Argument(help="Folder that the other tool saved.")],
    format: Annotated[  # noqa: A002 - the option's name
        str, typer.Option(help="saelens, sparsify or circuit-tracer.")
    ],
    policy: Annotated[str, typer.Option(help=POLICY_HELP)],
    dataset: Annotated[
        Path, typer.Option(help="Collected from that policy; the file is measured on it.")
    ],
    out: Annotated[Path, typer.Option(help="Directory of the transcoder.")],
    hook_point: Annotated[
        str, typer.Option("--hook-point", "-p", help="Of the dataset; needed when it has several.")
    ] = "",
    layer: Annotated[int, typer.Option(min=0, help="Layer (circuit-tracer only).")] = 0,
    max_fvu: Annotated[float, typer.Option(min=0, help="Refuse to bind above this FVU.")] = 0.5,
) -> None:
    """Read another tool's transcoder and bind it to a policy after measuring it there."""
    from interlatent_live.errors import MismatchError, UserError
    from interlatent_live.transcoders.acting import acting_policy
    from interlatent_live.transcoders.dataset import ActivationDataset
    from interlatent_live.transcoders.formats.circuit_tracer import read_circuit_tracer
    from interlatent_live.transcoders.formats.foreign import bind
    from interlatent_live.transcoders.formats.saelens import read_saelens
    from interlatent_live.transcoders.formats.sparsify import read_sparsify

    if format not in _FORMATS:
        raise UserError(f"--format is {format!r}; it must be one of {', '.join(_FORMATS)}")
    opened, acting = ActivationDataset(dataset), acting_policy(policy)
    if opened.header.policy_hash != acting.policy_hash:
        raise MismatchError(
            f"the dataset was collected from policy {opened.header.policy_hash}, but "
            f"{acting.name} is {acting.policy_hash}; collect one from this policy"
        )
    names = [hook.name for hook in opened.header.hook_points]
    if not hook_point and len(names) != 1:
        raise UserError(f"the dataset has {', '.join(names)}; name one with --hook-point")
    if format == "saelens":
        weights = read_saelens(source)
    elif format == "sparsify":
        weights = read_sparsify(source)
    else:
        weights = read_circuit_tracer(source, layer)
    bound = bind(
        weights, opened, hook_point or names[0], out, max_fvu=max_fvu, command=_command_line()
    )
    summary = bound.provenance.evaluation
    print(
        f"{out}: FVU {summary['fvu']:.5f} (affine {summary['fvu_affine']:.5f}), "
        f"L0 {summary['l0']:.2f}, {bound.transcoder.identity}"
    )


def finetune(
    transcoder: Annotated[Path, typer.Argument(help="The version in use.")],
    dataset: Annotated[Path, typer.Option(help="Collected after the drift, same hook point.")],
    out: Annotated[Path, typer.Option(help="Directory of the next version.")],
    steps: Annotated[int, typer.Option(help="Gradient steps.", min=1)] = 1000,
    rate: Annotated[
        float | None, typer.Option(help="Peak learning rate; default: 6 % of training's.")
    ] = None,
) -> None:
    """Follow a drift: train on with feature ids kept; makes a new version beside the old."""
    import torch
    from rich.progress import Progress

    from interlatent_live.transcoders.dataset import ActivationDataset
    from interlatent_live.transcoders.native import load_transcoder
    from interlatent_live.transcoders.training.finetune import finetune as run

    torch.set_num_threads(1)
    with Progress() as bar:
        task = bar.add_task("finetune", total=steps)
        done = run(
            load_transcoder(transcoder),
            ActivationDataset(dataset),
            out,
            steps=steps,
            rate=rate,
            command=_command_line(),
            on_progress=lambda progress: bar.update(task, completed=progress.step),
        )
    provenance = done.loaded.provenance
    print(
        f"{out}: version {provenance.version}, FVU on the new rows {done.before['fvu']:.5f} at L0 "
        f"{done.before['l0']:.1f} (recalibrated {done.recalibrated['fvu']:.5f} at "
        f"{done.recalibrated['l0']:.1f}) → {done.after['fvu']:.5f} at {done.after['l0']:.1f}, "
        f"{len(done.kept)} of "
        f"{len(done.kept) + len(done.changed)} live features keep their ids, "
        f"{done.loaded.transcoder.identity}"
    )


def _collect_recording(recording: Path, hook_points: tuple[str, ...], out: Path) -> None:
    from rich.progress import Progress

    from interlatent_live.transcoders.recorded import collect_recording

    with Progress() as bar:
        task = bar.add_task("collect", total=None)
        done = collect_recording(
            recording,
            hook_points,
            out,
            lambda progress: bar.update(task, description=f"{progress.rows:,} rows"),
        )
    print(f"{out}: {done.rows:,} rows of {done.episodes} episodes, {done.dataset_hash()}")


def _collect_live(
    endpoint: str,
    hook_points: tuple[str, ...],
    out: Path,
    *,
    max_rows: int | None,
    config: Path | None,
) -> None:
    import signal
    import threading

    from rich.progress import Progress

    from interlatent_live.services.collecting import LiveAgents, collect_live

    keys = resolve_options(config, None).settings.security.keys
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with Progress() as bar, LiveAgents(endpoint, keys, stop.is_set) as agents:
        task = bar.add_task(f"waiting for agents at {endpoint}", total=max_rows)
        done = collect_live(
            agents,
            hook_points,
            out,
            max_rows=max_rows,
            on_progress=lambda progress: bar.update(
                task, completed=progress.done, description=f"{progress.rows:,} rows"
            ),
        )
        lost = agents.lost()
    if done is None:
        print(f"no agent came to {endpoint}; nothing was written")
        return
    print(
        f"{out}: {done.rows:,} rows with every activation of {done.progress:,} steps, "
        f"{done.episodes} episodes, {lost} steps lost on the way, {done.dataset_hash()}"
    )


def _entries(folders: list[Path], hook_point: str = "") -> list[TranscoderEntry]:
    """Every transcoder under the folders, of one hook point where it is named."""
    from interlatent_live.errors import UserError
    from interlatent_live.transcoders.native import find_transcoders

    entries = {
        entry.path: entry
        for folder in folders
        for (_, hook), found in find_transcoders(folder).items()
        for entry in found
        if hook_point in ("", hook)
    }
    if folders and not entries:
        raise UserError(f"there is no transcoder under {', '.join(map(str, folders))}")
    return list(entries.values())


def _default_hook_points(module: object) -> list[str]:
    """Every hidden layer of a plain policy; other policies must name theirs."""
    from interlatent_live.errors import UserError
    from interlatent_live.policies.mlp import MlpPolicy

    if isinstance(module, MlpPolicy):
        return [name for name in module.spec.hook_points() if name != "head"]
    raise UserError("name the modules to collect from with --hook-point")


def _choice(kind: type[Choice], name: str, option: str) -> Choice:
    from interlatent_live.errors import UserError

    try:
        return kind(name)
    except ValueError as error:
        raise UserError(f"{option} is {name!r}; it must be one of {', '.join(kind)}") from error


def _numbers(text: str, option: str) -> tuple[int, ...]:
    from interlatent_live.errors import UserError

    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError as error:
        raise UserError(f"{option} is {text!r}; it must be numbers such as 2,4,8") from error


def _command_line() -> str:
    return shlex.join(["interlatent-live", *sys.argv[1:]])
