"""The names that ``interlatent-live bench NAME`` knows, each with the function that runs it.

Strings, not functions: listing the benchmarks must not import torch. Each function has keyword
arguments with defaults (``quick: bool``, ``device: str`` where it can honour them) and returns a
:class:`~interlatent_live.bench.report.BenchReport`.
"""

from __future__ import annotations

from typing import Final

BENCHES: Final[dict[str, str]] = {
    "calibration": "interlatent_live.bench.calibration:run",
    "chaos": "interlatent_live.bench.chaos.bench:run",
    "claims": "interlatent_live.bench.claims:run",
    "correlator": "interlatent_live.bench.correlator:run",
    "encoder": "interlatent_live.bench.encoder:run",
    "explainer": "interlatent_live.bench.explainer:run",
    "hook": "interlatent_live.bench.hook:run",
    "interventions": "interlatent_live.bench.interventions.bench:run",
    "narration": "interlatent_live.bench.narration:run",
    "page": "interlatent_live.bench.page:run",
    "pipeline": "interlatent_live.bench.pipeline:run",
    "ray": "interlatent_live.bench.ray:run",
    "replay": "interlatent_live.bench.replay:run",
    "shadow": "interlatent_live.bench.shadow:run",
    "soak": "interlatent_live.bench.chaos.soak:run",
    "train": "interlatent_live.bench.train:run",
    "wire": "interlatent_live.bench.wire:run",
}
