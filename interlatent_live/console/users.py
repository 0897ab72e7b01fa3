"""People who may log in: names, roles and password hashes in one file of the state folder.

Passwords are hashed with scrypt (RFC 7914) at N = 2¹⁵, r = 8, p = 3, one of the settings that
OWASP's cheat sheet on password storage calls equal to its first choice; it takes 32 MiB. The
settings stand in each hash, so they can rise later. The file is the user's alone, is replaced
whole, and is read again when it has changed.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
import secrets
import stat
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from interlatent_live.control.wire import Role
from interlatent_live.errors import UserError
from interlatent_live.files import replace_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FILE_NAME: Final = "users.toml"
SHORTEST: Final = 10
"""Characters of a password."""
LONGEST: Final = 256
MOST_USERS: Final = 1000
LARGEST_FILE: Final = 2**20
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")
_LOG_N, _R, _P = 15, 8, 3
_MEMORY: Final = 64 * 2**20
"""What a hash may take: 128 · N · r bytes and some more."""


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who may log in."""

    name: str
    role: Role
    password: str
    """``scrypt$log2 N$r$p$salt$hash``, the last two in base64."""

    @property
    def stamp(self) -> str:
        """Changes with the password; sessions that began under another one end."""
        return hashlib.sha256(self.password.encode()).hexdigest()[:32]


class Users:
    """The file, as it is now.

    Raises:
        UserError: by every method, when others could read or have written the file, or it is
            damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / FILE_NAME
        self._seen: tuple[int, int, int] | None = None
        self._users: Mapping[str, User] = {}
        # Names that are unknown cost as much time as those that are not.
        self._nobody = hash_password(secrets.token_hex(16))

    def all(self) -> Mapping[str, User]:
        """Everybody, by name."""
        try:
            found = self.file.stat(follow_symlinks=False)
        except FileNotFoundError:
            self._seen, self._users = None, {}
            return self._users
        seen = found.st_mtime_ns, found.st_size, found.st_ino
        if seen != self._seen:
            self._users = _read(self.file)
            self._seen = seen
        return self._users

    def check(self, name: str, password: str) -> User | None:
        """The user, if that is the password. Takes about 0.2 s and 32 MiB either way."""
        user = self.all().get(name)
        good = verify_password(password, self._nobody if user is None else user.password)
        return user if good and user is not None else None

    def add(self, name: str, role: Role, password: str) -> None:
        """Let somebody in.

        Raises:
            UserError: also when the name is taken or no name, or the password too short.
        """
        users = dict(self.all())
        if not _NAME.fullmatch(name):
            raise UserError(
                f"{name!r} is no name for a user: 1 to 32 of a-z, 0-9, dot, dash and underscore"
            )
        if name in users:
            raise UserError(f"there is a user {name} already; remove them first, or use passwd")
        if len(users) >= MOST_USERS:
            raise UserError(f"there are {MOST_USERS} users already; remove one first")
        users[name] = User(name, role, hash_password(password))
        self._write(users)

    def remove(self, name: str) -> None:
        """Let somebody in no more; their sessions end with the next request."""
        users = dict(self.all())
        self._known(name)
        del users[name]
        self._write(users)

    def set_password(self, name: str, password: str) -> None:
        """Give somebody another password; sessions under the old one end."""
        users = dict(self.all())
        users[name] = User(name, self._known(name).role, hash_password(password))
        self._write(users)

    def _known(self, name: str) -> User:
        users = self.all()
        if name not in users:
            raise UserError(f"there is no user {name!r}; there are: {', '.join(users) or 'none'}")
        return users[name]

    def _write(self, users: Mapping[str, User]) -> None:
        text = "# Made by `interlatent-live users`; passwords are scrypt hashes.\n" + "".join(
            f"\n[users.{json.dumps(one.name)}]\nrole = {json.dumps(one.role.value)}\n"
            f"password = {json.dumps(one.password)}\n"
            for one in users.values()
        )
        replace_private(self.file, text)
        self._seen = None


def hash_password(password: str) -> str:
    """A new hash under today's settings.

    Raises:
        UserError: when the password is too short or too long.
    """
    if not SHORTEST <= len(password) <= LONGEST:
        raise UserError(f"a password has {SHORTEST} to {LONGEST} characters, not {len(password)}")
    salt = secrets.token_bytes(16)
    made = hashlib.scrypt(
        password.encode(), salt=salt, n=2**_LOG_N, r=_R, p=_P, maxmem=_MEMORY, dklen=32
    )
    parts = (base64.b64encode(one).decode() for one in (salt, made))
    return "$".join(("scrypt", str(_LOG_N), str(_R), str(_P), *parts))


def verify_password(password: str, stored: str) -> bool:
    """Whether a password is the one of a hash."""
    if len(password) > LONGEST:
        return False
    _, log_n, r, p, salt, wanted = stored.split("$")
    made = hashlib.scrypt(
        password.encode(),
        salt=base64.b64decode(salt),
        n=2 ** int(log_n),
        r=int(r),
        p=int(p),
        maxmem=_MEMORY,
        dklen=32,
    )
    return hmac.compare_digest(made, base64.b64decode(wanted))


def read_private(file: Path, most_bytes: int) -> bytes:
    """The bytes of a file that nobody else can read or write.

    Raises:
        FileNotFoundError: when there is none.
        UserError: when others could read or have written it, or it is too large.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as source:
        found = os.fstat(source.fileno())
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise UserError(
                f"{file} must belong to this user and be readable by nobody else: chmod 600 it, or "
                "remove it and begin anew"
            )
        data = source.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise UserError(f"{file} is larger than {most_bytes} bytes; remove it and begin anew")
    return data


def replace_private(file: Path, text: str) -> None:
    """Put a file that only its owner can read in place, whole.

    Raises:
        UserError: when it cannot be written.
    """
    try:
        replace_file(file, text.encode())
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}") from error


def _read(file: Path) -> dict[str, User]:
    try:
        table = tomllib.loads(read_private(file, LARGEST_FILE).decode()).get("users", {})
        users = {
            name: User(name, Role(entry["role"]), str(entry["password"]))
            for name, entry in table.items()
        }
        for user in users.values():
            _check_hash(user.password)
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} is no file of users; mend it, or remove it and add them anew"
        ) from error
    return users


def _check_hash(stored: str) -> None:
    """Refuse a hash that is none of ours, or that would take more memory than we have set aside."""
    kind, log_n, r, p, _, _ = stored.split("$")
    if kind != "scrypt" or 128 * 2 ** min(int(log_n), 30) * int(r) > _MEMORY or int(p) > 16:
        raise ValueError("another hash than ours")
