"""The statistics over HTTP: a router that an application mounts, with paging and OpenAPI.

Parameters are checked by the very types that the socket's questions have, and answers are described
to OpenAPI from theirs, so the two faces cannot drift apart. The routes are plain functions: FastAPI
runs them on its threads, each with a client of its own, and no event loop waits for a correlator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.openapi.constants import REF_PREFIX

from interlatent_live.errors import UserError
from interlatent_live.queries import messages as m

if TYPE_CHECKING:
    from collections.abc import Callable

    from interlatent_live.queries.client import StatisticsClient

ROUTES: Final[tuple[tuple[str, type[m.Question], type[m.Answer]], ...]] = (
    ("/runs", m.Runs, m.RunsAnswer),
    ("/hook-points", m.HookPoints, m.HookPointsAnswer),
    ("/features", m.Features, m.FeaturesAnswer),
    ("/features/{feature}", m.Profile, m.ProfileAnswer),
    ("/pairs", m.Pairs, m.PairsAnswer),
    ("/metrics/{metric}", m.MetricView, m.MetricAnswer),
    ("/screening", m.Screening, m.FindingsAnswer),
    ("/discoveries", m.Discoveries, m.FindingsAnswer),
    ("/alerts", m.Alerts, m.AlertsAnswer),
    ("/slices", m.Slices, m.SlicesAnswer),
    ("/snapshots", m.Snapshots, m.SnapshotsAnswer),
    ("/compare", m.Compare, m.CompareAnswer),
)
"""Path, question and answer of every route; all are GET."""


def router(client_factory: Callable[[], StatisticsClient]) -> APIRouter:
    """The routes. ``client_factory`` makes a client for one request, which closes it.

    A question that is refused is 422, one about what there is not 404, no correlator 503; each has
    its sentence under ``detail``.
    """
    out = APIRouter(tags=["statistics"])
    for path, question, answer in ROUTES:
        out.add_api_route(
            path,
            _route(question, client_factory),
            methods=["GET"],
            name=question.__name__,
            summary=(question.__doc__ or "").strip().partition("\n")[0],
            operation_id=f"statistics_{question.__struct_config__.tag}",
            responses={200: _described(answer)},
            openapi_extra={"parameters": _parameters(path, question)},
            response_class=Response,
        )
    return out


def _route(
    kind: type[m.Question], client_factory: Callable[[], StatisticsClient]
) -> Callable[[Request], Response]:
    def route(request: Request) -> Response:
        question = _question(kind, request)
        try:
            with client_factory() as client:
                answer = client.ask(question)
        except UserError as error:
            status = 503 if "no correlator answered" in str(error) else 404
            raise HTTPException(status, str(error)) from error
        return Response(msgspec.json.encode(answer), media_type="application/json")

    return route


def _question(kind: type[m.Question], request: Request) -> Any:
    fields: dict[str, Any] = {}
    for name in (*request.path_params, *request.query_params):
        if name not in kind.__struct_fields__:
            known = ", ".join(kind.__struct_fields__)
            raise HTTPException(422, f"there is no parameter {name!r}; there are: {known}")
        values = request.query_params.getlist(name) or [request.path_params[name]]
        fields[name] = values if name == "features" else values[-1]
    try:
        return msgspec.convert(fields, kind, strict=False)
    except msgspec.ValidationError as error:
        raise HTTPException(422, str(error)) from error


def _schemas(kind: type[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    (schema,), components = msgspec.json.schema_components(
        [kind], ref_template=REF_PREFIX + "{name}"
    )
    return schema, components


def _inlined(value: Any, components: dict[str, Any]) -> Any:
    """A schema without references: FastAPI has no place for components of others."""
    if isinstance(value, dict):
        if "$ref" in value:
            return _inlined(components[value["$ref"].removeprefix(REF_PREFIX)], components)
        return {key: _inlined(one, components) for key, one in value.items()}
    if isinstance(value, list):
        return [_inlined(one, components) for one in value]
    return value


def _described(answer: type[Any]) -> dict[str, Any]:
    schema = _inlined(*_schemas(answer))
    return {
        "description": (answer.__doc__ or "").strip(),
        "content": {"application/json": {"schema": schema}},
    }


def _parameters(path: str, question: type[Any]) -> list[dict[str, Any]]:
    schema = _inlined(*_schemas(question))
    required = schema.get("required", [])
    return [
        {
            "name": name,
            "in": "path" if f"{{{name}}}" in path else "query",
            "required": name in required,
            "schema": one,
        }
        for name, one in schema["properties"].items()
        if name != "ask"
    ]
