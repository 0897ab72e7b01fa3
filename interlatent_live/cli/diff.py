"""``interlatent-live diff``: what changed between two versions of a policy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interlatent_live.cli.options import POLICY_HELP, EnvOption

if TYPE_CHECKING:
    from interlatent_live.policies.bank import StateBank
    from interlatent_live.transcoders.acting import ActingPolicy
    from interlatent_live.transcoders.transcoder import Transcoder


def diff(
    old: Annotated[str, typer.Argument(help=POLICY_HELP)],
    new: Annotated[str, typer.Argument(help="The version to compare it with.")],
    bank: Annotated[
        Path, typer.Option(help="Folder of the fixed bank of states; made there when missing.")
    ],
    old_transcoder: Annotated[
        list[Path] | None, typer.Option(help="Transcoder of the old version, per hook point.")
    ] = None,
    new_transcoder: Annotated[
        list[Path] | None, typer.Option(help="Transcoder of the new version, per hook point.")
    ] = None,
    env: EnvOption = "",
    states: Annotated[int, typer.Option(help="States of a new bank.", min=10)] = 4000,
    seed: Annotated[int, typer.Option(help="Seed of a new bank.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write JSON.")] = None,
) -> None:
    """Match two policy versions' features over a fixed bank of states and say what changed.

    Without a transcoder of the new version, the old one reads both: feature numbers stay, and its
    error on the new version says how stale it is.
    """
    import json
    from dataclasses import asdict

    import torch

    from interlatent_live.policies.diff import describe, diff_policies
    from interlatent_live.transcoders.acting import acting_policy

    torch.set_num_threads(1)
    first, second = acting_policy(old, environment=env), acting_policy(new, environment=env)
    difference = diff_policies(
        first,
        second,
        _bank(bank, first, states, seed),
        old_transcoders=_transcoders(old_transcoder or [], first),
        new_transcoders=_transcoders(new_transcoder or [], second),
    )
    for line in describe(difference):
        print(line)
    if json_file is not None:
        text = json.dumps(asdict(difference), indent=1) + "\n"
        json_file.write_text(text, encoding="utf-8")


def _bank(folder: Path, policy: ActingPolicy, states: int, seed: int) -> StateBank:
    import gymnasium

    from interlatent_live.environments.disturbance import disturbed
    from interlatent_live.errors import UserError
    from interlatent_live.policies.bank import DESCRIPTION, load_bank, make_bank, save_bank
    from interlatent_live.zoo.entry import entries

    if (folder / DESCRIPTION).exists():
        return load_bank(folder)
    if not policy.environment:
        raise UserError(
            f"{policy.name} does not say its environment: give --env, or an existing --bank"
        )
    env = gymnasium.make(policy.environment)
    for entry in entries():
        if entry.environment == policy.environment and (entry.demo or entry.policy == policy.name):
            env = disturbed(env, entry.disturbance)
            break
    made = make_bank(policy, env, policy.environment, rows=states, seed=seed)
    env.close()
    save_bank(folder, made)
    return made


def _transcoders(folders: list[Path], policy: ActingPolicy) -> dict[str, Transcoder]:
    from interlatent_live.transcoders.native import load_transcoder

    found = {}
    for folder in folders:
        loaded = load_transcoder(folder, policy_hash=policy.policy_hash)
        found[loaded.provenance.hook_point] = loaded.transcoder
    return found
