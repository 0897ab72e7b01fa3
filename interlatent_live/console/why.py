"""The route that asks an agent why it acted as it did, and puts claims to the features it names.

The question goes to the agent's shadow by way of the explainer; nothing is computed here. Anybody
who may look may ask, now and then: each account takes a shadow some milliseconds.
"""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Query, Response
from starlette.concurrency import run_in_threadpool

from interlatent_live.console.access import DeniedError, RateLimit, too_often
from interlatent_live.console.asking import NotAnsweredError
from interlatent_live.explanations.requests import Refused
from interlatent_live.explanations.why_relay import AskWhy, WhyAnswered
from interlatent_live.store import ClaimFilter

if TYPE_CHECKING:
    from collections.abc import Callable

    from interlatent_live.console.asking import Asking
    from interlatent_live.store import ClaimStore

WITHIN_S: Final = 8.0
"""The explainer itself gives up on a shadow after six."""
PER_S: Final = 1.0
BURST: Final = 5.0
MOST_CLAIMS: Final = 500
_STATUS: Final = {"unknown": 404, "cannot": 409, "refused": 409, "busy": 503, "silent": 504}

Name = Annotated[str, Query(max_length=200)]
Count = Annotated[int | None, Query(ge=0, lt=2**32)]


def router(
    store: ClaimStore,
    asking: Asking,
    *,
    now_ns: Callable[[], int] = time.time_ns,
    within_s: float = WITHIN_S,
) -> APIRouter:
    """``GET /agents/{agent}/why``."""
    out = APIRouter(tags=["reading"], default_response_class=Response)
    limit = RateLimit(PER_S, BURST)

    @out.get("/agents/{agent:path}/why", summary="Why it acted as it did: one decision taken apart")
    async def why(  # noqa: PLR0917 - called by name
        agent: str,
        run_id: Name = "",
        env: Annotated[int, Query(ge=0, lt=2**16)] = 0,
        episode: Count = None,
        t: Count = None,
        component: Name = "",
    ) -> Response:
        # Here, where one thread runs, because the limit has no lock; the waiting is elsewhere.
        if wait := limit.take(agent):
            raise too_often(wait, "this agent is being asked why too often; wait a second")
        question = AskWhy(
            secrets.token_hex(8), now_ns(), agent[:200], run_id, env, episode, t, component
        )
        return await run_in_threadpool(_answer, store, asking, question, within_s)

    return out


def _answer(store: ClaimStore, asking: Asking, question: AskWhy, within_s: float) -> Response:
    try:
        answer = asking.ask(question, within_s)
    except NotAnsweredError as error:
        if not isinstance(error.__cause__, TimeoutError):
            raise
        raise DeniedError(
            504,
            "silent",
            f"no answer within {within_s:g} s: the explainer, which passes the question on, is not "
            "up or does not answer; the agent acts without it",
        ) from error
    if isinstance(answer, Refused):
        raise DeniedError(503, answer.why, answer.message)
    if not isinstance(answer, WhyAnswered):
        raise DeniedError(502, "other", "the explainer gave another answer than asked for")
    if answer.found is None:
        raise DeniedError(_STATUS.get(answer.why, 409), answer.why, answer.message)
    _attach_claims(store, answer.found)
    return Response(msgspec.json.encode(answer.found), media_type="application/json")


def _attach_claims(store: ClaimStore, found: dict[str, Any]) -> None:
    """Put the verified claim of each feature that has one to its term."""
    run_id = str(found.get("run_id", ""))
    terms = [one for level in found.get("levels", ()) for one in level if one["kind"] == "feature"]
    for hook_point in {one["hook_point"] for one in terms}:
        wanted = ClaimFilter(run_id, hook_point, "verified")
        claims = {row.feature: row for row in store.claims(wanted, limit=MOST_CLAIMS)}
        for term in terms:
            row = claims.get(term["index"])
            if term["hook_point"] == hook_point and row is not None:
                said = row.document
                term["claim"] = {
                    "id": row.id,
                    "version": row.version,
                    "label": said.get("label", ""),
                    "description": said.get("description", ""),
                    "predicate": said.get("predicate"),
                }
