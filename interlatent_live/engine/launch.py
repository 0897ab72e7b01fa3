"""Which services make a system, in what order they start, and under which settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interlatent_live.config import Settings
from interlatent_live.engine.port import HttpReady, ServiceSpec, service_command

if TYPE_CHECKING:
    from interlatent_live.config import ServiceName

SERVICES: tuple[ServiceName, ...] = Settings().services()
"""What runs under the defaults."""


def service_specs(settings: Settings) -> tuple[ServiceSpec, ...]:
    """The services of a system under exactly these settings, a recorder where it has a folder.

    They do not depend on each other's being up: links reconnect, so each may start, die and return
    at any time, and all start at once.
    """
    environment = settings.environment()
    return tuple(
        ServiceSpec(
            name=name,
            command=service_command(name),
            environment=environment,
            readiness=HttpReady(f"http://{settings.endpoints.health(name)}/healthz"),
            ready_within_s=120.0,
            hang_after_s=60.0,
        )
        for name in settings.services()
    )
