"""``interlatent-live users``: who may log in to the console, and as what."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from interlatent_live.cli.options import ConfigOption, SetOption, resolve_options

if TYPE_CHECKING:
    from interlatent_live.console.users import Users

app = typer.Typer(
    name="users",
    help="Who may log in to the console: viewers look, operators step in, admins also decide what "
    "was escalated.",
    no_args_is_help=True,
)


class RoleChoice(StrEnum):
    """The roles, as the command line knows them without importing control."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"


NameArgument = Annotated[str, typer.Argument(help="1 to 32 of a-z, 0-9, dot, dash, underscore.")]
StdinOption = Annotated[
    bool,
    typer.Option("--password-stdin", help="Read the password from the first line of the input."),
]


@app.command()
def add(
    name: NameArgument,
    role: Annotated[RoleChoice, typer.Option(help="What they may do.")] = RoleChoice.OPERATOR,
    password_stdin: StdinOption = False,
    config: ConfigOption = None,
    assign: SetOption = None,
) -> None:
    """Let somebody log in; asks for a password of at least 10 characters."""
    from interlatent_live.control.wire import Role

    users = _users(config, assign)
    users.add(name, Role(role.value), _password(stdin=password_stdin))
    print(f"{name} may log in as {role.value}")


@app.command("list")
def list_(config: ConfigOption = None, assign: SetOption = None) -> None:
    """Show who may log in, and in which role."""
    users = _users(config, assign)
    for one in users.all().values():
        print(f"{one.name}  {one.role.value}")
    if not users.all():
        print("nobody yet; the console's token and the address that `up` prints let you in")


@app.command()
def remove(name: NameArgument, config: ConfigOption = None, assign: SetOption = None) -> None:
    """Let somebody in no more; their sessions end at once."""
    _users(config, assign).remove(name)
    print(f"{name} is removed")


@app.command()
def passwd(
    name: NameArgument,
    password_stdin: StdinOption = False,
    config: ConfigOption = None,
    assign: SetOption = None,
) -> None:
    """Give somebody another password; their sessions end at once."""
    users = _users(config, assign)
    users.set_password(name, _password(stdin=password_stdin))
    print(f"{name} has another password")


@app.command()
def link(config: ConfigOption = None, assign: SetOption = None) -> None:
    """Print an address that logs in as an admin, once, within a quarter of an hour."""
    from interlatent_live.console.sessions import login_address

    print(login_address(resolve_options(config, assign).settings))


def _users(config: ConfigOption, assign: SetOption) -> Users:
    from interlatent_live.console.secrets import state_folder
    from interlatent_live.console.users import Users

    return Users(state_folder(resolve_options(config, assign).settings))


def _password(*, stdin: bool) -> str:
    if stdin:
        return sys.stdin.readline().rstrip("\n")
    return str(typer.prompt("password", hide_input=True, confirmation_prompt=True))
