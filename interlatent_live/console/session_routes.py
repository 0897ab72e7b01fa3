"""Logging in and out: ``/api/v1/session``."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Annotated, Final, Self

import msgspec
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator

from interlatent_live.console.access import CSRF, DeniedError, RateLimit, too_often
from interlatent_live.console.sessions import COOKIE, LASTS_S, matches
from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from interlatent_live.console.access import Access
    from interlatent_live.console.sessions import Begun

MOST_AT_ONCE: Final = 8
"""Logins that may wait for their turn; one password is hashed at a time, which takes 32 MiB."""


class Login(BaseModel):
    """The token (or a one-time code), or a name and a password."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    token: Annotated[str, Field(max_length=256)] = ""
    name: Annotated[str, Field(max_length=64)] = ""
    password: Annotated[str, Field(max_length=1024)] = ""

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if bool(self.token) == bool(self.name or self.password):
            raise ValueError("give token, or name and password")
        return self


class LoginDesk:
    """Lets people in one at a time, and not too often.

    Names have five attempts and one more every 12 s, all together twenty and one a second. Attempts
    with the right token are never held up: nobody can be locked out by somebody else's guessing.
    """

    def __init__(self, access: Access, clock: Callable[[], float] = time.monotonic) -> None:
        self._access = access
        self._names = RateLimit(1 / 12, 5, clock)
        self._all = RateLimit(1.0, 20, clock)
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def login(self, given: Login) -> Begun:
        """A session.

        Raises:
            DeniedError: 401 for wrong credentials, 429 for too many attempts.
        """
        sessions = self._access.sessions
        if sessions is None:
            raise DeniedError(404, "login", "this console has no logins")
        if given.token:
            begun = await asyncio.to_thread(sessions.by_token, given.token)
            key = "token"
        else:
            key = f"name {given.name}"
            begun = await self._by_password(given, key)
        if begun is None:
            self._names.take(key)
            self._all.take("")
            wait = max(self._names.wait_s(key), self._all.wait_s(""))
            if given.token and wait:
                raise too_often(wait, "too many attempts to log in; wait a little")
            raise DeniedError(401, "login", "that is not right; check it and try again")
        return begun

    async def _by_password(self, given: Login, key: str) -> Begun | None:
        sessions = self._access.sessions
        if sessions is None or self._waiting >= MOST_AT_ONCE:
            raise too_often(1.0, "too many people log in at once; wait a little")
        self._waiting += 1
        try:
            async with self._turn:
                wait = max(self._names.wait_s(key), self._all.wait_s(""))
                if wait:
                    raise too_often(wait, "too many attempts to log in; wait a little")
                return await asyncio.to_thread(sessions.by_password, given.name, given.password)
        finally:
            self._waiting -= 1


def router(access: Access) -> APIRouter:
    """The three routes."""
    out = APIRouter(tags=["session"], default_response_class=Response)
    desk = LoginDesk(access)

    @out.post("/session", summary="Log in with the token, or with name and password")
    async def login(request: Request, body: Login) -> Response:
        try:
            begun = await desk.login(body)
        except UserError as error:
            raise DeniedError(503, "users", str(error)) from error
        session = begun.session
        answer = _json({"actor": session.actor, "role": session.role, "csrf": begun.csrf})
        answer.set_cookie(
            COOKIE,
            begun.cookie,
            max_age=int(LASTS_S),
            path="/",
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return answer

    @out.get("/session", summary="Who is logged in")
    async def who(request: Request) -> Response:
        session = access.session(request)
        if session is None:
            raise DeniedError(401, "login", "nobody is logged in")
        csrf = request.headers.get(CSRF, "")
        return _json(
            {
                "actor": session.actor,
                "role": session.role,
                "csrf": csrf if matches(session, csrf) else None,
            }
        )

    @out.delete("/session", summary="Log out")
    async def logout(request: Request) -> Response:
        session = access.session(request)
        if session is not None and access.sessions is not None:
            access.check_page(request, session)
            await asyncio.to_thread(access.sessions.end, session)
        answer = Response(status_code=204)
        answer.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
        return answer

    return out


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
