"""``interlatent-live keys``: make, list, replace and revoke the keys of agents and services."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from datetime import datetime

    from interlatent_live.wire.keys import Certificate, KeyDirectory

app = typer.Typer(
    name="keys",
    help="Make, list, replace and revoke the keys of agents and services.",
    no_args_is_help=True,
)

DirOption = Annotated[
    Path,
    typer.Option(
        "--dir",
        envvar="INTERLATENT_SECURITY__KEYS",
        help="Key directory; the services' setting is security.keys.",
    ),
]
DaysOption = Annotated[
    float, typer.Option("--days", min=0, help="How long the key is valid; 0 is for ever.")
]
DEFAULT_DIR = Path("keys")


@app.command("new")
def new(
    name: Annotated[str, typer.Argument(help="For an agent: the agent's own name.")],
    role: Annotated[str, typer.Option(help="agent, service or viewer.")] = "agent",
    days: DaysOption = 365,
    directory: DirOption = DEFAULT_DIR,
) -> None:
    """Make a key: NAME.key is secret and goes with its owner, NAME.pub stays where it is known.

    An agent's key speaks for the agent of that name and for no other.
    """
    from interlatent_live.errors import UserError
    from interlatent_live.wire.keys import KeyRole

    if role not in set(KeyRole):
        raise UserError(f"{role!r} is not a role; it may be agent, service or viewer")
    key = _directory(directory).create(name, KeyRole(role), days=days or None)
    print(f"made {directory / name}.key (secret) and {directory / name}.pub")
    print(f"fingerprint {key.certificate.fingerprint}, {_validity(key.certificate)}")
    if key.certificate.role is not KeyRole.SERVICE:
        print(f"move {name}.key to its owner, together with the service's .pub file")


@app.command("list")
def list_(directory: DirOption = DEFAULT_DIR) -> None:
    """List the known keys and whether they are let in."""
    from datetime import UTC, datetime

    from rich.console import Console
    from rich.table import Table

    keys = _existing(directory)
    ring, problems = keys.ring()
    table = Table("name", "role", "state", "expires", "fingerprint", "secret here", box=None)
    now = datetime.now(UTC)
    for certificate in keys.certificates():
        verdict = ring.check(certificate.public, now)
        table.add_row(
            certificate.name,
            certificate.role.value,
            verdict.reason or "valid",
            _day(certificate.expires),
            certificate.fingerprint,
            "yes" if _secret_is_here(keys, certificate) else "no",
        )
    Console().print(table)
    for problem in problems:
        print(f"warning: {problem}")


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="Name of the key.")],
    directory: DirOption = DEFAULT_DIR,
) -> None:
    """Show the public half of a key."""
    certificate = _existing(directory).certificate(name)
    print(f"name         {certificate.name}")
    print(f"role         {certificate.role}")
    print(f"public       {certificate.public}")
    print(f"fingerprint  {certificate.fingerprint}")
    print(f"created      {certificate.created:%Y-%m-%d %H:%M} UTC")
    print(f"valid        {_validity(certificate)}")


@app.command("rotate")
def rotate(
    name: Annotated[str, typer.Argument(help="Name of the key.")],
    grace_hours: Annotated[
        float, typer.Option(min=0, help="How long the old key is still let in.")
    ] = 24,
    days: DaysOption = 365,
    directory: DirOption = DEFAULT_DIR,
) -> None:
    """Replace a key; the old one is let in for a grace period.

    Running services notice by themselves. A service's own key is read when it starts: after
    rotating it, restart the service and give its new .pub file to the agents.
    """
    from datetime import timedelta

    key = _existing(directory).rotate(name, grace=timedelta(hours=grace_hours), days=days or None)
    print(f"made a new {directory / name}.key; the old one ends in {grace_hours:g} hours")
    print(f"fingerprint {key.certificate.fingerprint}, {_validity(key.certificate)}")


@app.command("revoke")
def revoke(
    name: Annotated[str, typer.Argument(help="Name of the key.")],
    directory: DirOption = DEFAULT_DIR,
) -> None:
    """Refuse a key from now on; running services notice by themselves."""
    gone = _existing(directory).revoke(name)
    for certificate in gone:
        print(f"revoked {certificate.name} {certificate.fingerprint}")


def _directory(path: Path) -> KeyDirectory:
    from interlatent_live.wire.keys import KeyDirectory

    return KeyDirectory(path)


def _existing(path: Path) -> KeyDirectory:
    from interlatent_live.errors import UserError

    if not path.is_dir():
        raise UserError(
            f"there is no key directory {path}; `interlatent-live keys new NAME --dir {path}` "
            "makes one, or name another with --dir"
        )
    return _directory(path)


def _secret_is_here(keys: KeyDirectory, certificate: Certificate) -> bool:
    if not keys.has_private(certificate.name):
        return False
    return keys.private(certificate.name).certificate.public == certificate.public


def _validity(certificate: Certificate) -> str:
    if certificate.expires is None:
        return "valid until revoked"
    return f"valid until {certificate.expires:%Y-%m-%d %H:%M} UTC"


def _day(moment: datetime | None) -> str:
    return "never" if moment is None else f"{moment:%Y-%m-%d}"
