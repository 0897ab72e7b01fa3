"""What a tap says of itself: frozen snapshots of its counters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class LinkStats:
    """The sender's ledger: ``sent = acknowledged + sum(lost.values()) + in_flight``, in rows.

    ``sent`` counts every row whose turn came, transmitted or declared lost. ``state`` is ``none``
    (no endpoint), ``connecting``, ``open``, ``refused`` or ``closed``.
    """

    state: str = "none"
    sent: int = 0
    acknowledged: int = 0
    lost: Mapping[str, int] = field(default_factory=dict)
    in_flight: int = 0
    last_error: str = ""
    spooled_bytes: int = 0


@dataclass(frozen=True, slots=True)
class TapStats:
    """What a tap did, in rows (one row: one step of one agent copy).

    ``steps = waiting + link.sent``: every step was handed to the link, where it was acknowledged,
    is in flight or was declared lost, or still waits in the ring. ``not_steps`` counts reset calls
    of next-step autoreset, ``sampled_out`` what a sampling option left out, ``faults`` errors
    inside the tap. ``refused_forwards`` counts, by hook point and reason, forwards that were not
    taken for a step.
    """

    steps: int
    waiting: int
    not_steps: int
    sampled_out: int
    faults: int
    last_error: str
    silent: tuple[str, ...]
    refused_forwards: Mapping[str, Mapping[str, int]]
    buffer_bytes: int
    link: LinkStats
