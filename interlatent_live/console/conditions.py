"""Whether a condition on metrics can be judged by an agent, before it is sent there.

The agent decides; this says the same sentence earlier, with the place of the mistake, and reads the
condition back in English, so that a person sees what was understood.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
from fastapi import APIRouter, HTTPException, Query, Response

from interlatent_live.explanations.predicates.parser import PredicateError, parse
from interlatent_live.explanations.predicates.render import to_english
from interlatent_live.stream import MetricSpec, Role

if TYPE_CHECKING:
    from interlatent_live.console.history import StepHistory


def router(history: StepHistory) -> APIRouter:
    """``GET /control/condition``."""
    out = APIRouter(tags=["control"], default_response_class=Response)

    @out.get("/control/condition", summary="What a condition on an agent's metrics means")
    def condition(
        boot_id: Annotated[str, Query(max_length=256)],
        text: Annotated[str, Query(max_length=1000)],
    ) -> Response:
        names = history.names(boot_id)
        if not names:
            raise HTTPException(404, "nobody has said yet what this agent's metrics are called")
        specs = [MetricSpec(one.name, one.unit, Role(one.role)) for one in names]
        try:
            english = to_english(parse(text, specs, roles=frozenset(Role)))
        except PredicateError as error:
            # To find a mistake is what was asked for, so it is no refusal.
            return _json({"english": None, "mistake": str(error), "position": error.position})
        return _json({"english": english, "mistake": None, "position": None})

    return out


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
