"""The route that looks back on an episode's end: asked of the explainer, which has the rows."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from fastapi import APIRouter, HTTPException, Query, Response

from interlatent_live.explanations.requests import IncidentFound, LookBack, Refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from interlatent_live.console.asking import Asking
    from interlatent_live.store import ClaimStore

Text = Annotated[str, Query(max_length=256)]


def router(
    store: ClaimStore, asking: Asking, now_ns: Callable[[], int] = time.time_ns
) -> APIRouter:
    """``GET /incidents``."""
    out = APIRouter(tags=["reading"], default_response_class=Response)

    @out.get("/incidents", summary="What was unusual in the features at the end of an episode")
    def incidents(
        run_id: Text,
        episode: Annotated[int, Query(ge=0, lt=2**63)],
        env: Annotated[int, Query(ge=0, lt=2**31)] = 0,
        window: Annotated[int, Query(ge=1, le=10_000)] = 100,
        hook_point: Text = "",
    ) -> Response:
        run = store.run(run_id)
        if run is None:
            raise HTTPException(404, f"there is no run {run_id[:64]}")
        known = [one["name"] for one in run["document"].get("hook_points", ())]
        if hook_point and hook_point not in known:
            raise HTTPException(
                404, f"run {run_id[:64]} has no hook point {hook_point[:64]!r}: {', '.join(known)}"
            )
        found: list[dict[str, Any]] = []
        for name in [hook_point] if hook_point else known:
            look = LookBack(secrets.token_hex(8), now_ns(), run_id, name, env, episode, window)
            answer = asking.ask(look)
            if isinstance(answer, Refused):
                raise HTTPException(503 if answer.why == "busy" else 404, answer.message)
            if not isinstance(answer, IncidentFound):
                raise HTTPException(502, "the explainer gave another answer than asked for")
            found.append(answer.incident)
        told = {"run_id": run_id, "control_hz": run["document"].get("control_hz"), "items": found}
        return Response(msgspec.json.encode(told), media_type="application/json")

    return out
