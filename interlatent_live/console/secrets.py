"""The state folder, and the one secret in it: the token that lets this user, and no other, write.

The token is made by whichever process needs it first and is readable by its owner only. Programs
send it as a bearer token; between console and explainer only signatures under a key derived from it
travel (:mod:`interlatent_live.explanations.requests`), so whoever listens on the wrong port learns
nothing.
"""

from __future__ import annotations

import hmac
import os
import secrets
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from interlatent_live.errors import UserError
from interlatent_live.wire.keys import make_private_folder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from interlatent_live.config import Settings

FILE_NAME: Final = "console.token"
_TOKEN_BYTES: Final = 32
_LONGEST_FILE: Final = 256
_WRITTEN_WITHIN_S: Final = 2.0


def state_folder(settings: Settings, environment: Mapping[str, str] | None = None) -> Path:
    """Where the console keeps things: configured, systemd's, or the user's; made when missing.

    Raises:
        UserError: when there is no such place, or it cannot be made.
    """
    folder = settings.console.state or _default(os.environ if environment is None else environment)
    try:
        make_private_folder(folder)
    except OSError as error:
        raise UserError(
            f"the state folder {folder} can't be made: {error.strerror}; set console.state to a "
            "folder that this user may write"
        ) from error
    return folder


def _default(environment: Mapping[str, str]) -> Path:
    # systemd may name several folders; the first is ours (deploy/systemd).
    given = environment.get("STATE_DIRECTORY", "").partition(":")[0]
    if given:
        return Path(given)
    base = environment.get("XDG_STATE_HOME", "")
    if base:
        return Path(base) / "interlatent-live"
    try:
        return Path.home() / ".local" / "state" / "interlatent-live"
    except RuntimeError as error:
        raise UserError("this user has no home folder; set console.state to a folder") from error


def load_token(folder: Path) -> str:
    """The token of a state folder, made when there is none.

    Raises:
        UserError: when others could read or have written it, or it cannot be read or made.
    """
    file = folder / FILE_NAME
    try:
        return _read(file)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UserError(f"{file} can't be read: {error.strerror}") from error
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        return _read(file)  # another service of this system was faster
    except OSError as error:
        raise UserError(
            f"{file} can't be made: {error.strerror}; set console.state to a folder that this user "
            "may write"
        ) from error
    with os.fdopen(descriptor, "w", encoding="ascii") as out:
        out.write(secrets.token_urlsafe(_TOKEN_BYTES) + "\n")
    return _read(file)


def request_key(token: str) -> bytes:
    """The key that requests to the explainer are signed with."""
    return hmac.digest(token.encode(), b"interlatent-live explainer requests", "sha256")


def _read(file: Path) -> str:
    deadline = time.monotonic() + _WRITTEN_WITHIN_S
    while True:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "r", encoding="ascii", errors="replace") as source:
            found = os.fstat(source.fileno())
            if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
                raise UserError(
                    f"{file} must belong to this user and be readable by nobody else; remove it, "
                    "and a new token is made"
                )
            token = source.read(_LONGEST_FILE).strip()
        if len(token) >= _TOKEN_BYTES:
            return token
        # Its maker has created it and is about to write.
        if time.monotonic() > deadline:
            raise UserError(f"{file} holds no token; remove it, and a new one is made")
        time.sleep(0.02)
