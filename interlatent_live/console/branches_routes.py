"""Branches over HTTP: ``/api/v1/branches``, to read for whoever may look, to play for operators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
from fastapi import APIRouter, Depends, HTTPException, Response
from pydantic import BaseModel, ConfigDict, Field

from interlatent_live.console.access import Access, Caller, DeniedError
from interlatent_live.console.branches import BusyError, Wanted
from interlatent_live.errors import UserError
from interlatent_live.interventions.values import Kind

if TYPE_CHECKING:
    from interlatent_live.console.branches import BranchFolder, BranchJobs

Name = Annotated[str, Field(min_length=1, max_length=200)]


class BranchBody(BaseModel):
    """What is to be played: by which policy, what is changed, and from which moments."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    policy_hash: Name
    transcoder: Name
    hook_point: Name
    feature: Annotated[int, Field(ge=0, lt=2**31)]
    kind: Kind
    value: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    while_on: bool = False
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    moments: Annotated[int, Field(ge=1)] = 8
    """Episodes of as many seeds, each at the same step."""
    at: Annotated[int, Field(ge=0, le=100_000)] = 50
    steps: Annotated[int, Field(ge=1, le=10_000)] = 200
    reason: Annotated[str, Field(max_length=1000)] = ""


def router(folder: BranchFolder, jobs: BranchJobs, access: Access) -> APIRouter:
    """The routes. Plain functions, which FastAPI runs on its threads: they wait for the disk."""
    out = APIRouter(tags=["branches"], default_response_class=Response)
    allowed = Depends(access.caller)

    @out.get("/branches", summary="Branches that were played, what runs, and moments together")
    def listing() -> Response:
        return _json(folder.listing() | {"job": jobs.state()})

    @out.get("/branches/{name}", summary="One of them, step by step, with what differs")
    def document(name: str) -> Response:
        try:
            return _json(folder.document(name))
        except UserError as error:
            raise HTTPException(404, str(error)) from error

    @out.post("/branches", status_code=202, summary="Play branches; one job at a time")
    def play(body: BranchBody, caller: Caller = allowed) -> Response:
        try:
            state = jobs.start(Wanted(**body.model_dump()), caller.actor)
        except BusyError as error:
            raise DeniedError(409, "busy", str(error)) from error
        except UserError as error:
            raise DeniedError(422, "branch", str(error)) from error
        return Response(msgspec.json.encode(state), 202, media_type="application/json")

    return out


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
