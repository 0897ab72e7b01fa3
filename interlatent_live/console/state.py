"""Where the console's store is, for the service that writes it and for commands that only look."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from interlatent_live.console.secrets import state_folder
from interlatent_live.store import open_store

if TYPE_CHECKING:
    from interlatent_live.config import Settings
    from interlatent_live.store import SqlClaimStore

_SQLITE = "sqlite:///"


def store_url(settings: Settings) -> str:
    """The configured database, or SQLite in the state folder.

    Raises:
        UserError: when the state folder cannot be made.
    """
    return settings.console.store or f"{_SQLITE}{state_folder(settings) / 'store.sqlite3'}"


def branch_folder(settings: Settings) -> Path:
    """Where branches are read, and played to: as configured, or in the state folder.

    Raises:
        UserError: when the state folder cannot be made.
    """
    return settings.console.branches or state_folder(settings) / "branches"


def existing_store(settings: Settings) -> SqlClaimStore | None:
    """The store, if there is one already; ``None`` before any console has run here.

    Raises:
        UserError: when it is there and cannot be opened.
    """
    url = store_url(settings)
    file = url.removeprefix(_SQLITE)
    return None if file != url and not Path(file).exists() else open_store(url)
