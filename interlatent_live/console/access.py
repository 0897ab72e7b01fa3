"""Who asks, and whether they may: the token, a session, or nobody in particular.

Reading needs nothing on this machine. Writing and commanding need the bearer token (programs), or a
session's cookie together with its other half in ``X-CSRF-Token`` and an ``Origin`` that is this
console's own (pages), and at least the role of an operator.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec
from fastapi import Request, Response

from interlatent_live.console.secrets import FILE_NAME
from interlatent_live.console.sessions import COOKIE, matches, token_actor
from interlatent_live.control.wire import Role
from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from interlatent_live.console.sessions import Session, Sessions

CSRF: Final = "x-csrf-token"
MOST_KEYS: Final = 1024
MAY_COMMAND: Final = frozenset({Role.OPERATOR, Role.ADMIN})


class DeniedError(Exception):
    """A request that is answered with a status, a word and a sentence."""

    def __init__(
        self, status: int, why: str, detail: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.why, self.headers = status, why, dict(headers or {})


def denied_response(_: Request, error: Exception) -> Response:
    """The answer to a :class:`DeniedError`."""
    if not isinstance(error, DeniedError):
        raise error
    body = msgspec.json.encode({"detail": str(error), "why": error.why})
    return Response(body, error.status, error.headers, media_type="application/json")


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody who may write."""

    actor: str
    role: Role
    lease: str
    """Interventions made under it end when nobody renews it."""
    by_session: bool


class Access:
    """Decides.

    Args:
        token: the bearer token.
        sessions: who is logged in; None: nobody can.
    """

    def __init__(self, token: str, sessions: Sessions | None = None) -> None:
        self.sessions = sessions
        self._token = token
        self._lease = "t-" + hashlib.sha256(f"lease {token}".encode()).hexdigest()[:16]

    def session(self, request: Request) -> Session | None:
        """Whose cookie the request carries; says nothing of whether they may command."""
        if self.sessions is None:
            return None
        try:
            return self.sessions.find(request.cookies.get(COOKIE, ""))
        except UserError as error:
            raise DeniedError(503, "users", str(error)) from error

    async def caller(self, request: Request) -> Caller:
        """Who may write, as a FastAPI dependency: async, so that no thread is waited for.

        Raises:
            DeniedError: 401, or 403 with ``csrf``, ``origin`` or ``role``.
        """
        if "authorization" in request.headers:
            return self._bearer(request.headers["authorization"])
        session = self.session(request)
        if session is None:
            raise DeniedError(
                401,
                "login",
                "writing needs a login, or the header Authorization: Bearer TOKEN; the token is in "
                f"{FILE_NAME} in the console's state folder",
                {"WWW-Authenticate": "Bearer"},
            )
        self.check_page(request, session)
        if session.role not in MAY_COMMAND:
            raise DeniedError(403, "role", "a viewer commands nothing: ask an operator")
        return Caller(session.actor, session.role, f"s-{session.id[:16]}", by_session=True)

    def check_page(self, request: Request, session: Session) -> None:
        """Whether the request was made by this console's own page.

        Raises:
            DeniedError: 403 ``origin`` or ``csrf``.
        """
        # That a given origin is our own was checked for every request (guard); a page gives one.
        if not request.headers.get("origin"):
            raise DeniedError(403, "origin", "a page's request says its origin; this one does not")
        if not matches(session, request.headers.get(CSRF, "")):
            raise DeniedError(
                403, "csrf", "the header X-CSRF-Token is missing or another session's: log in anew"
            )

    def _bearer(self, header: str) -> Caller:
        scheme, _, token = header.partition(" ")
        good = hmac.compare_digest(token.strip().encode(), self._token.encode())
        if scheme.lower() != "bearer" or not good:
            raise DeniedError(
                401,
                "login",
                "writing needs the header Authorization: Bearer TOKEN; the token is in "
                f"{FILE_NAME} in the console's state folder",
                {"WWW-Authenticate": "Bearer"},
            )
        return Caller(token_actor(), Role.ADMIN, self._lease, by_session=False)


@dataclass(slots=True)
class _Bucket:
    left: float
    at: float


@dataclass(slots=True)
class RateLimit:
    """Token buckets by key; one thread at a time.

    Args:
        per_s: how many come back in a second.
        burst: how many there are at most.
        clock: monotonic seconds.
    """

    per_s: float
    burst: float
    clock: Callable[[], float] = time.monotonic
    _buckets: OrderedDict[str, _Bucket] = field(default_factory=OrderedDict)

    def wait_s(self, key: str) -> float:
        """Seconds until the key has one; 0 when it has one now."""
        left = self._filled(key).left
        return 0.0 if left >= 1.0 else (1.0 - left) / self.per_s

    def take(self, key: str) -> float:
        """Use one up; returns 0, or the seconds to wait when there was none."""
        wait = self.wait_s(key)
        if not wait:
            self._filled(key).left -= 1.0
        return wait

    def _filled(self, key: str) -> _Bucket:
        now = self.clock()
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = _Bucket(self.burst, now)
            if len(self._buckets) > MOST_KEYS:
                # The key that was made first; should it come back, it begins with a full bucket.
                self._buckets.popitem(last=False)
        bucket.left = min(self.burst, bucket.left + (now - bucket.at) * self.per_s)
        bucket.at = now
        return bucket


def too_often(wait_s: float, detail: str) -> DeniedError:
    """The refusal of a request that must wait."""
    return DeniedError(429, "rate", detail, {"Retry-After": str(max(1, round(wait_s + 0.5)))})
