"""The HTTP application: the page, what the store and the statistics hold, the feed, and writing.

Reading needs no login, because only this machine can ask (the service refuses to listen elsewhere);
writing and commanding need the token of the state folder or a session
(:mod:`interlatent_live.console.access`). Whatever is refused says why in one sentence under
``detail``. Routes that read are plain functions, which FastAPI runs on its threads, so that no
event loop waits for a database.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from fastapi import (
    APIRouter,
    Depends,
    FastAPI,
    Header,
    HTTPException,
    Query,
    Request,
    Response,
    WebSocket,
)
from fastapi.exceptions import RequestValidationError

from interlatent_live import __version__
from interlatent_live.console.access import Access, Caller, DeniedError, denied_response
from interlatent_live.console.asking import NotAnsweredError
from interlatent_live.console.audit_view import router as audit_router
from interlatent_live.console.bodies import (  # noqa: TC001 - FastAPI reads annotations
    ClaimBody,
    CorrectionBody,
    WordingBody,
)
from interlatent_live.console.branches_routes import router as branches_router
from interlatent_live.console.built_page import built_page, page_router
from interlatent_live.console.comparison import router as comparison_router
from interlatent_live.console.conditions import router as conditions_router
from interlatent_live.console.control_routes import ControlDoor
from interlatent_live.console.control_routes import router as control_router
from interlatent_live.console.exemplar_pictures import router as moments_router
from interlatent_live.console.feed_socket import serve_feed
from interlatent_live.console.guard import Guard
from interlatent_live.console.incidents import router as incidents_router
from interlatent_live.console.live import LiveHub, View
from interlatent_live.console.live_socket import serve_live
from interlatent_live.console.pictures import router as pictures_router
from interlatent_live.console.recordings_routes import router as recordings_router
from interlatent_live.console.session_routes import router as session_router
from interlatent_live.console.streaming import LINES, SSE, FeedResponse
from interlatent_live.console.why import router as why_router
from interlatent_live.errors import UserError
from interlatent_live.explanations.requests import Accepted, ClaimByPerson, Refused, Wording
from interlatent_live.feed.documents import Topic
from interlatent_live.queries.rest import router as statistics_router
from interlatent_live.store import ClaimFilter, Correction, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from interlatent_live.console.asking import Asking
    from interlatent_live.console.audit_view import AuditView
    from interlatent_live.console.branches import BranchFolder, BranchJobs
    from interlatent_live.console.broadcast import Broadcast
    from interlatent_live.console.control_link import ControlLink
    from interlatent_live.console.exemplar_pictures import ExemplarPictures
    from interlatent_live.console.history import StepHistory
    from interlatent_live.console.pictures import PictureHub
    from interlatent_live.console.recordings_routes import RecordingReader
    from interlatent_live.console.sessions import Sessions
    from interlatent_live.queries.client import StatisticsClient
    from interlatent_live.store import ClaimStore

PREFIX: Final = "/api/v1"
TOPICS: Final = frozenset(Topic) - {Topic.FEATURES}
_STATUS: Final = {"predicate": 422, "unknown": 404, "refused": 409, "busy": 503, "stale": 409}

Limit = Annotated[int, Query(ge=1, le=500)]
Text = Annotated[str, Query(max_length=256)]


@dataclass(frozen=True, slots=True)
class Sources:
    """All that the application speaks to."""

    store: ClaimStore
    broadcast: Broadcast
    live: LiveHub
    asking: Asking
    token: str
    """Who sends it may write."""
    statistics: Callable[[], StatisticsClient]
    """Makes a client for one request."""
    health: Callable[[], dict[str, Any]]
    """Facts about the service."""
    sessions: Sessions | None = None
    """Who is logged in; None: nobody can log in."""
    control: ControlLink | None = None
    """The way to the control service; None: nobody commands from here."""
    audit: AuditView | None = None
    """What was done; None: it is not shown."""
    history: StepHistory | None = None
    """What metrics were around interventions; None: it is not kept."""
    pictures: PictureHub | None = None
    """What agents look at; None: no pictures are taken."""
    moments: ExemplarPictures | None = None
    """What they looked at in the moments on features' cards; None: none are kept."""
    recordings: RecordingReader | None = None
    """Reads recordings; None: there is no folder of them."""
    branches: tuple[BranchFolder, BranchJobs] | None = None
    """Branches that were played, and who plays new ones; None: neither."""


def make_app(sources: Sources) -> FastAPI:
    """The application, guarded. Its OpenAPI document is at ``/api/v1/openapi.json``."""
    # The usual pages of documentation load scripts from elsewhere, which the policy forbids.
    app = FastAPI(
        title="interlatent-live",
        version=__version__,
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=None,
        redoc_url=None,
    )
    app.include_router(_reading(sources), prefix=PREFIX)
    app.include_router(_feed(sources), prefix=PREFIX)
    app.include_router(incidents_router(sources.store, sources.asking), prefix=PREFIX)
    app.include_router(why_router(sources.store, sources.asking), prefix=PREFIX)
    access = Access(sources.token, sources.sessions)
    door = None if sources.control is None else ControlDoor(sources.control)
    app.include_router(_writing(sources, access), prefix=PREFIX)
    app.include_router(session_router(access), prefix=PREFIX)
    if door is not None:
        app.include_router(control_router(door, access), prefix=PREFIX)
    if sources.audit is not None:
        app.include_router(audit_router(sources.audit), prefix=PREFIX)
    if sources.history is not None:
        app.include_router(comparison_router(sources.history), prefix=PREFIX)
        app.include_router(conditions_router(sources.history), prefix=PREFIX)
    if sources.pictures is not None:
        app.include_router(pictures_router(sources.pictures), prefix=PREFIX)
    if sources.moments is not None:
        app.include_router(moments_router(sources.moments), prefix=PREFIX)
    app.include_router(recordings_router(sources.recordings), prefix=PREFIX)
    if sources.branches is not None:
        app.include_router(branches_router(*sources.branches, access), prefix=PREFIX)
    app.include_router(statistics_router(sources.statistics), prefix=f"{PREFIX}/statistics")
    app.include_router(_live(sources.live, door), prefix=PREFIX)
    app.include_router(page_router(built_page()))
    app.add_exception_handler(DeniedError, denied_response)
    app.add_exception_handler(StoreError, _unavailable)
    app.add_exception_handler(NotAnsweredError, _unavailable)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_middleware(Guard)
    return app


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def _unavailable(_: Request, error: Exception) -> Response:
    return _json({"detail": str(error)}, 503)


def _invalid(_: Request, error: Exception) -> Response:
    # The offending input is left out: it may be large, or not ours to repeat.
    problems = error.errors() if isinstance(error, RequestValidationError) else ()
    sentences = [
        f"{'.'.join(str(part) for part in one['loc'][1:]) or one['loc'][0]}: "
        f"{str(one['msg']).removeprefix('Value error, ')}"
        for one in problems
    ]
    return _json({"detail": "; ".join(sentences)}, 422)


def _page(rows: Sequence[Any], limit: int, name: str) -> Response:
    """The first ``limit`` rows; one more was asked for, to know whether there is a next page."""
    shown = list(msgspec.to_builtins(rows[:limit]))
    cursor = str(shown[-1][name]) if len(rows) > limit else None
    return _json({"items": shown, "next_cursor": cursor})


# --------------------------------------------------------------------------------------- reading


def _reading(sources: Sources) -> APIRouter:
    out = APIRouter(tags=["reading"], default_response_class=Response)
    store = sources.store

    @out.get("/health", summary="Whether the console works, and what it keeps")
    def health() -> Response:
        facts = sources.health()
        return _json(
            {"version": __version__, "clients": sources.broadcast.clients, **facts},
            200 if facts.get("ready", True) else 503,
        )

    @out.get("/runs", summary="Runs that were seen")
    def runs(cursor: Text = "", limit: Limit = 100) -> Response:
        return _page(store.runs(after=cursor, limit=limit + 1), limit, "run_id")

    @out.get("/runs/{run_id:path}", summary="One run")
    def run(run_id: str) -> Response:
        row = store.run(run_id)
        if row is None:
            raise HTTPException(404, f"there is no run {run_id[:64]}")
        return _json(row)

    @out.get("/claims", summary="Claims as they were last published")
    def claims(  # noqa: PLR0917 - called by name
        run_id: Text = "",
        hook_point: Text = "",
        verdict: Text = "",
        address: Text = "",
        cursor: Text = "",
        limit: Limit = 100,
    ) -> Response:
        wanted = ClaimFilter(run_id, hook_point, verdict, address)
        return _page(store.claims(wanted, after=cursor, limit=limit + 1), limit, "id")

    @out.get("/claims/{claim_id}", summary="One claim")
    def claim(claim_id: str) -> Response:
        return _json(_claim(store, claim_id))

    @out.get("/claims/{claim_id}/history", summary="Its versions, verdicts and corrections")
    def history(claim_id: str) -> Response:
        return _json({"claim": _claim(store, claim_id), **store.history(claim_id)})

    @out.get("/narration", summary="Narrated intervals, newest first")
    def narration(
        run_id: Text = "",
        cursor: Annotated[int | None, Query(ge=0, lt=2**62)] = None,
        limit: Limit = 100,
    ) -> Response:
        rows = store.narration(run_id=run_id, before=cursor, limit=limit + 1)
        return _page(rows, limit, "number")

    @out.get("/costs", summary="What each explainer process has spent, newest first")
    def costs(limit: Limit = 100) -> Response:
        return _json({"items": store.costs(limit=limit)})

    return out


def _feed(sources: Sources) -> APIRouter:
    out = APIRouter(tags=["reading"], default_response_class=Response)

    @out.websocket("/feed/ws")
    async def feed_socket(
        socket: WebSocket, topics: Text = "", after: Annotated[str, Query(max_length=64)] = ""
    ) -> None:
        try:
            await serve_feed(socket, sources.broadcast, _topics(topics), after)
        except UserError as error:
            await socket.send_denial_response(_json({"detail": str(error)}, _refused(error)))
        except HTTPException as error:
            await socket.send_denial_response(_json({"detail": error.detail}, error.status_code))

    @out.get("/feed", summary="The feed as server-sent events, or as JSON lines by Accept")
    async def feed(
        accept: Annotated[str, Header()] = SSE,
        last_event_id: Annotated[str | None, Header(max_length=64)] = None,
        topics: Annotated[str, Query(max_length=200)] = "",
    ) -> Response:
        wanted = _topics(topics)
        kind = LINES if LINES in accept else SSE
        try:
            return FeedResponse(sources.broadcast, wanted, last_event_id, kind)
        except UserError as error:
            raise HTTPException(_refused(error), str(error)) from error

    return out


def _refused(error: UserError) -> int:
    """The status for a place in the feed that is not given."""
    return 422 if "Last-Event-ID" in str(error) else 503


def _live(hub: LiveHub, door: ControlDoor | None) -> APIRouter:
    out = APIRouter()

    @out.websocket("/live")
    async def live(
        socket: WebSocket,
        run_id: Text,
        hook_point: Text,
        env: Annotated[int, Query(ge=0, lt=2**16)] = 0,
        after: Annotated[str, Query(max_length=64)] = "",
    ) -> None:
        await serve_live(socket, hub, View(run_id, hook_point, env), after, door)

    return out


def _claim(store: ClaimStore, claim_id: str) -> Any:
    row = store.claim(claim_id)
    if row is None:
        raise HTTPException(404, f"there is no claim {claim_id[:64]}")
    return msgspec.to_builtins(row)


def _topics(text: str) -> frozenset[Topic]:
    if not text:
        return TOPICS
    names = {one.value: one for one in TOPICS}
    asked = [one.strip() for one in text.split(",")]
    for name in asked:
        if name not in names:
            known = ", ".join(sorted(names))
            raise HTTPException(422, f"there is no topic {name!r}; there are: {known}")
    return frozenset(names[name] for name in asked)


# --------------------------------------------------------------------------------------- writing


def _writing(sources: Sources, access: Access) -> APIRouter:
    out = APIRouter(tags=["writing"], default_response_class=Response)
    allowed = Depends(access.caller)

    @out.post("/claims", status_code=201, summary="A predicate by a person, judged like any")
    def make_claim(body: ClaimBody, caller: Caller = allowed) -> Response:
        request = ClaimByPerson(sent_ns=time.time_ns(), **_by(caller, body))
        answer = sources.asking.ask(request)
        if isinstance(answer, Refused):
            return _json(
                {"detail": answer.message, "why": answer.why, "position": answer.position},
                _STATUS.get(answer.why, 409),
            )
        if not isinstance(answer, Accepted):
            return _json({"detail": "the explainer gave another answer than asked for"}, 502)
        return _json(answer, 201)

    @out.post("/wordings", status_code=202, summary="Word a feature's claim before all others")
    def word(body: WordingBody, _caller: Caller = allowed) -> Response:
        wish = Wording(body.id, time.time_ns(), body.run_id, body.hook_point, body.feature)
        answer = sources.asking.ask(wish)
        if isinstance(answer, Refused):
            return _json(
                {"detail": answer.message, "why": answer.why}, _STATUS.get(answer.why, 409)
            )
        return _json({"id": body.id}, 202)

    @out.post("/corrections", summary="A person's word on a claim, kept with it", status_code=201)
    def correct(body: CorrectionBody, caller: Caller = allowed) -> Response:
        said = Correction(at_ns=time.time_ns(), **_by(caller, body))
        try:
            return _json(sources.store.correct(said), 201)
        except StoreError:
            raise
        except UserError as error:
            status = 404 if "there is no claim" in str(error) else 409
            raise HTTPException(status, str(error)) from error

    return out


def _by(caller: Caller, body: ClaimBody | CorrectionBody) -> dict[str, Any]:
    """The fields of a body; somebody who is logged in speaks in their own name only."""
    fields = body.model_dump()
    return fields | {"person": caller.actor} if caller.by_session else fields
