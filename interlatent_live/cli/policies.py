"""``interlatent-live policies``: list, import, train and measure policies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="policies",
    help="List, import, train and measure policies.",
    no_args_is_help=True,
)


@app.command("list")
def list_() -> None:
    """List the policies that travel with the package."""
    from rich.console import Console
    from rich.table import Table

    from interlatent_live.policies.files import built_in_policies, load_policy

    table = Table("name", "environment", "network", "measured", "licence", "hash")
    for name in built_in_policies():
        loaded = load_policy(name)
        table.add_row(
            name,
            loaded.environment,
            loaded.module.spec.network,
            loaded.provenance.measured,
            loaded.provenance.licence,
            loaded.policy_hash[:15] + "…",
        )
    Console().print(table)


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="NAME.actor.npz with a manifest, or an SB3 .zip.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    name: Annotated[str, typer.Option(help="Name of the policy; default: the folder's.")] = "",
    environment: Annotated[str, typer.Option(help="Gymnasium id (zip only).")] = "",
    licence: Annotated[str, typer.Option(help="SPDX identifier (zip only).")] = "",
    licence_file: Annotated[Path | None, typer.Option(help="Its text (zip only).")] = None,
) -> None:
    """Turn a weight file into a policy folder: safetensors, description, licence.

    Nothing is unpickled: of a Stable-Baselines3 zip only the plain weights are read.
    """
    from interlatent_live.errors import UserError
    from interlatent_live.policies.importing import import_plain, import_zip

    if source.suffix == ".zip":
        if not (environment and licence and licence_file and licence_file.is_file()):
            raise UserError(
                "an SB3 zip does not say its environment or licence: give --environment, --licence "
                "and --licence-file"
            )
        loaded = import_zip(
            source,
            out,
            name=name or out.name,
            environment=environment,
            licence=licence,
            licence_text=licence_file.read_text(encoding="utf-8"),
        )
    else:
        loaded = import_plain(source, out, name=name or out.name)
    print(f"{loaded.name}: {loaded.environment}, {loaded.policy_hash}, in {out}")


@app.command("evaluate")
def evaluate(
    policy: Annotated[str, typer.Argument(help="Built-in name, policy folder or SB3 zip.")],
    episodes: Annotated[int, typer.Option(help="Episodes to measure.", min=1)] = 20,
    seed: Annotated[int, typer.Option(help="Seed of the first episode.")] = 2000,
    environment: Annotated[str, typer.Option(help="Where the file does not say it.")] = "",
) -> None:
    """Measure a policy's return: its mean and standard deviation over seeds seed, seed + 1, …."""
    import gymnasium
    import numpy as np
    from rich.progress import track

    from interlatent_live.errors import UserError
    from interlatent_live.policies.files import load_policy
    from interlatent_live.policies.rollout import episode_returns

    loaded = load_policy(policy)
    env_id = environment or loaded.environment
    if not env_id:
        raise UserError(f"{policy} does not say its environment: give --environment")
    env = gymnasium.make(env_id)
    returns = [
        episode_returns(loaded.module, env, [index])[0]
        for index in track(range(seed, seed + episodes), description=env_id)
    ]
    env.close()
    print(f"{np.mean(returns):.1f} ± {np.std(returns):.1f} over {episodes} episodes, seeds {seed}+")


@app.command("train")
def train(
    environment: Annotated[str, typer.Argument(help="Gymnasium id, such as CartPole-v1.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    seed: Annotated[int, typer.Option(help="Seed of training; evaluation uses seeds 10000+.")] = 1,
    steps: Annotated[int, typer.Option(help="Environment steps; 0: the preset's.", min=0)] = 0,
    episodes: Annotated[int, typer.Option(help="Episodes of the final measurement.", min=1)] = 100,
    name: Annotated[str, typer.Option(help="Name of the policy; default: the folder's.")] = "",
) -> None:
    """Train a policy with PPO (extra sb3), measure it and save its plain weights.

    `interlatent-live policies train CartPole-v1 --seed 1 --out …` made the demo's policy, in about
    20 s on one core.
    """
    from importlib import resources

    import torch
    from rich.progress import Progress

    from interlatent_live.policies.files import save_policy
    from interlatent_live.policies.training import (
        PRESETS,
        TrainingConfig,
        measure,
        train_ppo,
        training_provenance,
    )

    # Two threads on two busy cores collapse; one is also what makes the run repeatable.
    torch.set_num_threads(1)
    settings = dict(PRESETS.get(environment, {}))
    if steps:
        settings["steps"] = steps
    config = TrainingConfig(environment, seed=seed, **settings)
    with Progress() as bar:
        task = bar.add_task(f"PPO on {environment}", total=config.steps)
        policy = train_ppo(config, lambda done: bar.update(task, completed=done))
    returns, measured = measure(policy, environment, episodes=episodes, first_seed=10_000)
    provenance = training_provenance(config, returns=returns, measured=measured, first_seed=10_000)
    licence = resources.files("interlatent_live.data") / "policies" / "LICENSE.own"
    loaded = save_policy(
        out,
        policy,
        name=name or out.name,
        environment=environment,
        provenance=provenance,
        licence_text=licence.read_text(encoding="utf-8"),
    )
    print(f"{loaded.name}: {measured}, {loaded.policy_hash}, in {out}")
