"""``interlatent-live health``: do the services take work? For people, containers and scripts."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from interlatent_live.cli.options import ConfigOption, SetOption, resolve_options

if TYPE_CHECKING:
    from interlatent_live.config import Settings

TIMEOUT_S = 4.0
MOST_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Health:
    """What one service said of itself."""

    service: str
    ready: bool
    why: str
    facts: dict[str, Any]


def health(
    services: Annotated[
        list[str] | None,
        typer.Argument(help="Services to ask. [default: those `up` starts]"),
    ] = None,
    config: ConfigOption = None,
    assign: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Ask services whether they take work; exits with 1 when one of those asked does not.

    Made for a container's health check and for scripts: it reads /healthz at the configured
    addresses, changes nothing, and answers within a few seconds.
    """
    from interlatent_live.config import ServiceName
    from interlatent_live.errors import UserError

    known = get_args(ServiceName)
    for name in services or ():
        if name not in known:
            raise UserError(f"there is no service {name!r}; there are {', '.join(known)}")
    settings = resolve_options(config, assign).settings
    found = [ask(settings, name) for name in services or settings.services()]
    if as_json:
        out = {one.service: {"ready": one.ready, "why": one.why, **one.facts} for one in found}
        print(json.dumps(out, indent=1, ensure_ascii=False))
    else:
        for one in found:
            print(f"{one.service:12}{'ready' if one.ready else 'not ready: ' + one.why}")
    if not all(one.ready for one in found):
        raise typer.Exit(1)


def ask(settings: Settings, service: str) -> Health:
    """What a service says at its configured address; no answer is an answer too."""
    address = settings.endpoints.health(service)  # type: ignore[arg-type] # checked by the caller
    # Bound to every interface, it is asked on this machine.
    address = address.replace("0.0.0.0:", "127.0.0.1:", 1).replace("[::]:", "[::1]:", 1)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{address}/healthz", timeout=TIMEOUT_S) as answer:
            body = answer.read(MOST_BYTES)
            ready = answer.status == 200
    except urllib.error.HTTPError as error:
        body, ready = error.read(MOST_BYTES), False
    except (OSError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", error)
        return Health(service, ready=False, why=f"no answer at {address} ({reason})", facts={})
    try:
        facts = json.loads(body)
    except ValueError:
        facts = {}
    facts = facts if isinstance(facts, dict) else {}
    return Health(
        service, ready, why="" if ready else str(facts.get("why", "it says so")), facts=facts
    )
