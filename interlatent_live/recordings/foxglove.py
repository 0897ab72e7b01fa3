"""The same recording for Foxglove and other viewers: a few JSON channels beside our own.

At most ten rows a second of each agent's first copy, narration as ``foxglove.Log`` and pictures as
``foxglove.CompressedImage``. Schemas: https://docs.foxglove.dev/docs/sdk/schemas. Our own readers
pass these channels over, so nothing is lost by leaving them out.
"""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from interlatent_live.feed.documents import Topic
from interlatent_live.stream import Role
from interlatent_live.wire.messages import Document, Picture

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from interlatent_live.stream import FeatureBatch, Manifest, SparseCodes
    from interlatent_live.wire.messages import WireMessage

EVERY_NS: Final = 100_000_000
"""Nanoseconds between two rows of an agent, at least: 10 Hz."""
TOP: Final = 8
"""Strongest features of a row that are shown."""
INFO: Final = 2
SECOND_NS: Final = 1_000_000_000

_TIME: Final = {
    "type": "object",
    "title": "time",
    "properties": {
        "sec": {"type": "integer", "minimum": 0},
        "nsec": {"type": "integer", "minimum": 0, "maximum": 999_999_999},
    },
}
_NUMBER: Final = {"type": ["number", "null"]}
_COUNT: Final = {"type": "integer", "minimum": 0}
LOG: Final[Mapping[str, Any]] = {
    "title": "foxglove.Log",
    "type": "object",
    "properties": {
        "timestamp": _TIME,
        "level": {"type": "integer", "minimum": 0, "maximum": 5},
        "message": {"type": "string"},
        "name": {"type": "string"},
        "file": {"type": "string"},
        "line": _COUNT,
    },
    "required": ["timestamp", "level", "message", "name", "file", "line"],
}
IMAGE: Final[Mapping[str, Any]] = {
    "title": "foxglove.CompressedImage",
    "type": "object",
    "properties": {
        "timestamp": _TIME,
        "frame_id": {"type": "string"},
        "data": {"type": "string", "contentEncoding": "base64"},
        "format": {"type": "string"},
    },
    "required": ["timestamp", "frame_id", "data", "format"],
}
FEATURES: Final[Mapping[str, Any]] = {
    "title": "interlatent_live.TopFeatures",
    "type": "object",
    "properties": {
        "timestamp": _TIME,
        "active": _COUNT,
        "features": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"index": _COUNT, "value": {"type": "number"}},
            },
        },
    },
}
_ROLES: Final = {
    "metrics": (Role.STATE, Role.INTERNAL, Role.CLOCK),
    "action": (Role.ACTION,),
    "reward": (Role.OUTCOME,),
}
"""Channels by the roles of the metrics in them."""


@dataclass(frozen=True, slots=True)
class JsonMessage:
    """One message for a JSON channel."""

    topic: str
    schema: Mapping[str, Any]
    value: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Columns:
    topic: str
    schema: Mapping[str, Any]
    names: tuple[str, ...]
    columns: tuple[int, ...]


class FoxgloveChannels:
    """What of a recorder's messages is shown, and how; one for each file."""

    def __init__(self) -> None:
        self._columns: dict[str, tuple[_Columns, ...]] = {}
        self._agents: dict[str, str] = {}
        self._due_ns: dict[str, int] = {}

    def rows(self, manifest: Manifest, batch: FeatureBatch) -> list[JsonMessage]:
        """The rows of copy 0 that are due, in JSON."""
        boot_id, steps = manifest.boot_id, batch.steps
        self._agents[boot_id] = manifest.agent
        columns = self._columns.get(boot_id)
        if columns is None:
            columns = self._columns[boot_id] = _columns(manifest)
        found: list[JsonMessage] = []
        for row in np.flatnonzero(steps.env == 0):
            time_ns = int(steps.time_ns[row])
            if time_ns < self._due_ns.get(boot_id, 0):
                continue
            self._due_ns[boot_id] = time_ns + EVERY_NS
            stamp = _stamp(time_ns)
            for one in columns:
                values = {
                    name: _finite(steps.metrics[row, column])
                    for name, column in zip(one.names, one.columns, strict=True)
                }
                value = {**values, "episode": int(steps.episode[row]), "timestamp": stamp}
                found.append(JsonMessage(one.topic, one.schema, value))
            for hook_point, codes in batch.codes.items():
                topic = f"/{manifest.agent}/features/{hook_point}"
                value = {"timestamp": stamp, **_top(codes, int(row))}
                found.append(JsonMessage(topic, FEATURES, value))
        return found

    def of(self, message: WireMessage) -> list[JsonMessage]:
        """A narration's sentences, or a picture; nothing of other messages."""
        if isinstance(message, Picture):
            agent = self._agents.get(message.boot_id, message.boot_id)
            value = {
                "timestamp": _stamp(message.sent_ns),
                "frame_id": f"{agent}/{message.env}",
                "data": base64.b64encode(message.jpeg).decode(),
                "format": "jpeg",
            }
            return [JsonMessage(f"/{agent}/picture/{message.env}", IMAGE, value)]
        if isinstance(message, Document) and message.topic == Topic.NARRATION:
            return _narrated(message.payload)
        return []


def _narrated(payload: Mapping[str, Any]) -> list[JsonMessage]:
    agent = str(payload.get("agent", ""))
    stamp = _stamp(int(payload.get("published_ns", 0)))
    return [
        JsonMessage(
            f"/{agent}/narration",
            LOG,
            {
                "timestamp": stamp,
                "level": INFO,
                "message": str(line.get("text", "")),
                "name": f"{agent}/{payload.get('env', 0)}",
                "file": "",
                "line": 0,
            },
        )
        for line in payload.get("lines", ())
    ]


def _columns(manifest: Manifest) -> tuple[_Columns, ...]:
    found = []
    for channel, roles in _ROLES.items():
        chosen = [(i, one) for i, one in enumerate(manifest.metrics) if one.role in roles]
        if not chosen:
            continue
        described = {
            one.name: {**_NUMBER, "description": f"{one.description} [{one.unit}]".strip()}
            for _, one in chosen
        }
        schema = {
            "title": f"interlatent_live.{channel}.{manifest.agent}",
            "type": "object",
            "properties": {**described, "episode": _COUNT, "timestamp": _TIME},
        }
        names = tuple(one.name for _, one in chosen)
        columns = tuple(i for i, _ in chosen)
        found.append(_Columns(f"/{manifest.agent}/{channel}", schema, names, columns))
    return tuple(found)


def _top(codes: SparseCodes, row: int) -> dict[str, Any]:
    here = slice(int(codes.indptr[row]), int(codes.indptr[row + 1]))
    index, value = codes.index[here], codes.value[here]
    order = np.argsort(-value, kind="stable")[:TOP]
    strongest: Sequence[dict[str, Any]] = [
        {"index": int(index[i]), "value": float(value[i])} for i in order
    ]
    return {"active": len(index), "features": strongest}


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _stamp(time_ns: int) -> dict[str, int]:
    return {"sec": time_ns // SECOND_NS, "nsec": time_ns % SECOND_NS}
