"""``interlatent-live store``: a copy of the console's store in one file, and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interlatent_live.cli.options import ConfigOption, SetOption, resolve_options

if TYPE_CHECKING:
    from interlatent_live.store.copies import Contents

app = typer.Typer(
    name="store",
    help="Back up the store of claims, verdicts, costs and corrections, and restore it.",
    no_args_is_help=True,
)


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(help="File to write: SQLite, whatever the store is in.")],
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    config: ConfigOption = None,
    sets: SetOption = None,
) -> None:
    """Copy the store into one file, as it is at one moment; the services go on meanwhile."""
    from interlatent_live.console.state import store_url
    from interlatent_live.store.copies import backup_store

    url = store_url(resolve_options(config, sets).settings)
    print(f"{file}: {_told(backup_store(url, file, force=force))}")


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="A backup, of this version or an older one.")],
    force: Annotated[
        bool, typer.Option("--force", help="Replace what the store holds; stop the console first.")
    ] = False,
    config: ConfigOption = None,
    sets: SetOption = None,
) -> None:
    """Put a backup in the place of the store, in SQLite or PostgreSQL."""
    from interlatent_live.console.state import store_url
    from interlatent_live.store.copies import restore_store

    url = store_url(resolve_options(config, sets).settings)
    print(f"restored {_told(restore_store(file, url, force=force))}")


def _told(contents: Contents) -> str:
    rows = contents.rows
    return (
        f"{rows['runs']} runs, {rows['claims']} claims in {rows['claim_versions']} versions with "
        f"{rows['verdicts']} verdicts, {rows['corrections']} corrections, schema "
        f"{contents.revision}"
    )
