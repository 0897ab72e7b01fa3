"""Who is logged in, and what a request must show to be theirs.

A session has two halves. The cookie is one, and a browser sends it to every server on this machine
whatever its port: another user's server could collect it. So commanding also needs the other half,
``csrf``, which only the answer to the login tells, and which the page keeps where a browser
separates ports (localStorage). Neither is kept here, only their hashes, and those in a file, so
that a restart of the console logs nobody out.

A one-time code logs in whoever opens the address that ``up`` and ``demo`` print. It can be made by
whoever can read the token, and is good once.
"""

from __future__ import annotations

import getpass
import hashlib
import hmac
import json
import os
import secrets
import threading
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from interlatent_live.console.secrets import load_token, state_folder
from interlatent_live.console.users import Users, read_private, replace_private
from interlatent_live.control.wire import Role
from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from interlatent_live.config import Settings
    from interlatent_live.console.users import User

FILE_NAME: Final = "sessions.json"
COOKIE: Final = "interlatent"
LASTS_S: Final = 12 * 3600.0
CODE_LASTS_S: Final = 15 * 60.0
MOST_SESSIONS: Final = 256
LARGEST_FILE: Final = 2**20
LONGEST_CODE: Final = 200


@dataclass(frozen=True, slots=True)
class Session:
    """Somebody who is logged in."""

    id: str
    """Hash of the cookie; names the session, and lets nobody in."""
    csrf: str
    """Hash of the other half."""
    actor: str
    role: Role
    user: str
    """Name in the file of users; empty for whoever showed the token."""
    stamp: str
    """Of the password or token that it began with."""
    until_s: float
    """Wall clock."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A session with its two secrets, which are never told again."""

    session: Session
    cookie: str
    csrf: str


class Sessions:
    """All that are open. Safe to use from several threads.

    Args:
        folder: the state folder.
        token: whoever shows it is an admin.
        users: who else may log in.
        clock: wall clock in seconds.

    Raises:
        UserError: when the file that keeps them could be read by others.
    """

    def __init__(
        self, folder: Path, token: str, users: Users, clock: Callable[[], float] = time.time
    ) -> None:
        self._file = folder / FILE_NAME
        self._token, self._users, self._clock = token, users, clock
        self._lock = threading.Lock()
        self._open: dict[str, Session] = {}
        self._used: dict[str, float] = {}
        """One-time codes that were used, until when they would have been good."""
        self._load()

    @property
    def users(self) -> Users:
        """Who may log in by name."""
        return self._users

    def by_token(self, given: str) -> Begun | None:
        """A session for whoever shows the token, or a one-time code made with it."""
        if not hmac.compare_digest(given.encode(), self._token.encode()) and not self._once(given):
            return None
        return self._begin(token_actor(), Role.ADMIN, "", _stamp(self._token))

    def by_password(self, name: str, password: str) -> Begun | None:
        """A session for a user; takes a while, on purpose."""
        user = self._users.check(name, password)
        return None if user is None else self._begin(user.name, user.role, user.name, user.stamp)

    def find(self, cookie: str) -> Session | None:
        """Whose cookie that is; the role is what the file of users says now."""
        if not cookie:
            return None
        session = self._open.get(_hash(cookie))
        if session is None or self._clock() >= session.until_s:
            return None
        if not session.user:
            return session if session.stamp == _stamp(self._token) else None
        user: User | None = self._users.all().get(session.user)
        if user is None or user.stamp != session.stamp:
            return None
        return session if user.role is session.role else _with_role(session, user.role)

    def end(self, session: Session) -> None:
        """Log out."""
        with self._lock:
            self._open.pop(session.id, None)
            self._save()

    def _begin(self, actor: str, role: Role, user: str, stamp: str) -> Begun:
        cookie, csrf = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        until = self._clock() + LASTS_S
        session = Session(_hash(cookie), _hash(csrf), actor, role, user, stamp, until)
        with self._lock:
            self._open[session.id] = session
            while len(self._open) > MOST_SESSIONS:
                del self._open[next(iter(self._open))]
            self._save()
        return Begun(session, cookie, csrf)

    def _once(self, code: str) -> bool:
        now = self._clock()
        until = _code_until(self._token, code)
        with self._lock:
            self._used = {one: end for one, end in self._used.items() if end > now}
            if until is None or not now < until <= now + CODE_LASTS_S + 1 or code in self._used:
                return False
            if len(self._used) >= MOST_SESSIONS:
                return False
            self._used[code] = until
            # On the disk before it counts: a restart must not make it good again.
            self._save()
        return True

    def _load(self) -> None:
        try:
            said = json.loads(read_private(self._file, LARGEST_FILE))
            now = self._clock()
            for fields in said["open"]:
                session = Session(**{**fields, "role": Role(fields["role"])})
                if session.until_s > now:
                    self._open[session.id] = session
            self._used = {_text(code): float(end) for code, end in said["used"].items()}
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self._file} is no file of sessions; remove it, and everybody logs in anew"
            ) from error

    def _save(self) -> None:
        now = self._clock()
        self._open = {name: one for name, one in self._open.items() if one.until_s > now}
        said = {"open": [asdict(one) for one in self._open.values()], "used": self._used}
        replace_private(self._file, json.dumps(said))


def matches(session: Session, csrf: str) -> bool:
    """Whether that is the session's other half."""
    return bool(csrf) and hmac.compare_digest(_hash(csrf), session.csrf)


def one_time_code(token: str, now_s: float | None = None) -> str:
    """A code that logs its bearer in once, within a quarter of an hour."""
    until = int((time.time() if now_s is None else now_s) + CODE_LASTS_S)
    return _sign(token, f"{until}.{secrets.token_urlsafe(12)}")


def login_address(settings: Settings) -> str:
    """The page's address with a one-time code, which browsers keep to themselves (a fragment).

    Raises:
        UserError: when there is no token and none can be made.
    """
    code = one_time_code(load_token(state_folder(settings)))
    return f"http://{settings.console.http}/#login={code}"


def token_actor() -> str:
    """What the audit calls whoever acts by the token: this process's user."""
    try:
        name = getpass.getuser()
    except (OSError, KeyError):
        name = str(os.getuid())
    return f"{name} (token)"


def _code_until(token: str, code: str) -> float | None:
    text, dot, _ = code.rpartition(".")
    if not dot or len(code) > LONGEST_CODE:
        return None
    good = hmac.compare_digest(code.encode(), _sign(token, text).encode())
    return float(text.partition(".")[0]) if good else None


def _sign(token: str, text: str) -> str:
    key = hmac.digest(token.encode(), b"interlatent-live one-time login", "sha256")
    return f"{text}.{hmac.new(key, text.encode(), 'sha256').hexdigest()[:32]}"


def _with_role(session: Session, role: Role) -> Session:
    fields = asdict(session) | {"role": role}
    return Session(**fields)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _stamp(token: str) -> str:
    return _hash(f"stamp {token}")[:32]


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("a code is a text")
    return value
