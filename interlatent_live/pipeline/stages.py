"""How long a message of rows spends where in the encoder, as histograms per stage.

The latency from a step to its feature says that something is slow; this says what. A stage is
timed once per message or micro-batch, never per row.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import numpy as np

from interlatent_live.pipeline.latency import LatencyHistogram

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from interlatent_live.pipeline.encoder import Encode, TranscoderLike
    from interlatent_live.stream import Activations, SparseCodes

QUEUE: Final = "queue"
"""From a message's arrival until its last micro-batch is encoded, without that encoding."""
ENCODE: Final = "encode"
"""One micro-batch on the device."""
PUBLISH: Final = "publish"
"""Gathered features become a message and are offered to every consumer."""
STAGES: Final = (QUEUE, ENCODE, PUBLISH)
AT_ONCE: Final = 64


class StageTimes:
    """Histograms by stage. Used from the service's loop; :meth:`histograms` copies for others.

    Args:
        clock: seconds, monotonic; replaced in tests.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._histograms = {stage: LatencyHistogram() for stage in STAGES}
        self._seen: dict[str, list[float]] = {stage: [] for stage in STAGES}
        self._arrived: dict[str, deque[float]] = {}
        self._began = 0.0

    def arrived(self, source: str) -> None:
        """A message of ``source`` was taken in and will be encoded."""
        self._arrived.setdefault(source, deque()).append(self._clock())

    def encoding(self, encode: Encode) -> Encode:
        """``encode``, timed."""

        def timed(transcoder: TranscoderLike, activations: Activations) -> SparseCodes:
            self._began = self._clock()
            try:
                return encode(transcoder, activations)
            finally:
                self._observe(ENCODE, self._clock() - self._began)

        return timed

    def encoded(self, source: str) -> None:
        """The oldest message of ``source`` is encoded; nothing where none was said to arrive."""
        arrived = self._arrived.get(source)
        if arrived:
            self._observe(QUEUE, max(0.0, self._began - arrived.popleft()))
            if not arrived:
                del self._arrived[source]

    @contextmanager
    def publishing(self) -> Iterator[None]:
        """Time what hands features on."""
        began = self._clock()
        try:
            yield
        finally:
            self._observe(PUBLISH, self._clock() - began)

    def histograms(self) -> dict[str, LatencyHistogram]:
        """Copies, by stage."""
        for stage in STAGES:
            self._sum_up(stage)
        return {stage: histogram.copy() for stage, histogram in self._histograms.items()}

    def _observe(self, stage: str, seconds: float) -> None:
        seen = self._seen[stage]
        seen.append(seconds)
        if len(seen) >= AT_ONCE:
            self._sum_up(stage)

    def _sum_up(self, stage: str) -> None:
        seen = self._seen[stage]
        if seen:
            self._histograms[stage].observe(np.array(seen) * 1e3)
            seen.clear()
