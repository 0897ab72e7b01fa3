"""Placing and supervising services: one port, one adapter for local processes."""

from __future__ import annotations

from interlatent_live.engine.local import LocalEngine
from interlatent_live.engine.port import (
    Engine,
    EngineEvent,
    EventKind,
    HttpReady,
    LineReady,
    OutputLine,
    Phase,
    Restart,
    RestartPolicy,
    ServiceSpec,
    ServiceStatus,
    SpawnReady,
    service_command,
    wait_ready,
)

__all__ = [
    "Engine",
    "EngineEvent",
    "EventKind",
    "HttpReady",
    "LineReady",
    "LocalEngine",
    "OutputLine",
    "Phase",
    "Restart",
    "RestartPolicy",
    "ServiceSpec",
    "ServiceStatus",
    "SpawnReady",
    "service_command",
    "wait_ready",
]
