"""Options that several commands share, so that they are spelt and explained once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from interlatent_live.config import Resolved

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        help="TOML file to read; otherwise $INTERLATENT_CONFIG or ./interlatent.toml.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        metavar="NAME=VALUE",
        help="One setting, such as encoder.device=cpu; beats the environment and the file.",
    ),
]

POLICY_HELP = (
    "Built-in policy, policy folder, SB3 .zip, TorchScript .pt, or module:function returning a "
    "module."
)
EnvOption = Annotated[str, typer.Option("--env", help="Gymnasium id, if the policy does not say.")]


def resolve_options(
    config: Path | None, sets: Sequence[str] | None, flags: Mapping[str, Any] | None = None
) -> Resolved:
    """The configuration under ``--config`` and ``--set``; a command's own ``flags`` beat both.

    Raises:
        UserError: as :func:`interlatent_live.config.resolve`.
    """
    from interlatent_live.config import parse_flag, resolve

    chosen = dict(parse_flag(text) for text in sets or ())
    chosen.update({name: value for name, value in (flags or {}).items() if value is not None})
    return resolve(config, chosen)
