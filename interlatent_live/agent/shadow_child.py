"""The process that measures for a shadow: ``python -m interlatent_live.agent.shadow_child``.

Started by :mod:`interlatent_live.agent.shadow_process` only. Frames come in on standard input (one
letter, 8 bytes of length, payload), samples lie in shared memory, and each answer is a line of JSON
on a pipe. When the input ends, so does the process.
"""

from __future__ import annotations

import json
import os
import random
import select
import sys
import time
from mmap import PROT_READ, mmap
from typing import Any, Final, NoReturn

import msgspec
import numpy as np
import torch
from safetensors.torch import load as load_tensors

from interlatent_live.agent.shadow_measuring import Measuring, Sample, first_tensor
from interlatent_live.agent.shadow_process import RECIPE, RING
from interlatent_live.agent.shadow_recipe import read_recipe
from interlatent_live.agent.shadow_ring import RingReader, RingShape
from interlatent_live.agent.shadow_state import load_changed
from interlatent_live.agent.shadow_values import measured_json
from interlatent_live.explanations.causal.shadow import Call, Shadow
from interlatent_live.policies.hashing import policy_hash
from interlatent_live.transcoders.config import TranscoderConfig
from interlatent_live.transcoders.transcoder import Transcoder

PAUSE_S: Final = 0.001
"""Between two forwards, so that caches and memory are the agent's most of the time."""


class _NewsError(Exception):
    """A frame has come in the middle of a measurement."""


class _Child:
    def __init__(self, memory: int, answers: int) -> None:
        self._memory, self._answers = memory, answers
        self._read: Any = None
        self._policy: Any = None
        self._numbers: dict[str, Any] = {}
        self._transcoders: dict[str, Transcoder] = {}
        self._shadows: dict[str, Shadow] = {}
        self._measuring: Measuring | None = None
        self._ring: RingReader | None = None
        self._is_off = False

    def run(self) -> NoReturn:
        """Measure until the input ends."""
        period = 0.05
        while True:
            try:
                if select.select([0], [], [], period)[0]:
                    self._frame()
                elif self._measuring is not None and self._ring is not None and not self._is_off:
                    self._measure(self._measuring, self._ring)
                period = self._numbers.get("period_s", period)
            except _NewsError:
                continue
            except Exception as error:  # noqa: BLE001 - told to the agent, who logs it
                self._tell({"fault": f"{type(error).__name__}: {error}"})
                if self._measuring is None:
                    self._turn_off(f"the policy cannot be rebuilt in its process: {error}")

    def _frame(self) -> None:
        kind = _exactly(1)
        payload = _exactly(int.from_bytes(_exactly(8), "little"))
        if kind == RECIPE:
            self._rebuild(payload)
        elif kind == RING:
            shape = msgspec.json.decode(payload, type=RingShape)
            self._ring = RingReader(mmap(self._memory, shape.nbytes, prot=PROT_READ), shape)
        else:
            tensors = load_tensors(payload)
            reasons = [load_changed(one.policy, tensors) for one in self._shadows.values()]
            if any(reasons):
                self._turn_off(reasons[0])

    def _rebuild(self, payload: bytes) -> None:
        parts = read_recipe(payload)
        numbers = parts["numbers"]
        found = policy_hash(parts["policy"])
        if found != numbers["policy_hash"]:
            self._turn_off(f"rebuilt in its process the policy is {found}")
            return
        for name, one in parts["transcoders"].items():
            config = msgspec.convert(one["config"], TranscoderConfig)
            self._transcoders[name] = Transcoder.from_tensors(config, one["tensors"])
            self._shadows[name] = Shadow(
                parts["policy"],
                name,
                read=parts["read"] or first_tensor,
                seed=numbers["seed"],
                own_random=False,
            )
        self._numbers = numbers
        self._measuring = Measuring(
            {name: (shadow, self._transcoders[name]) for name, shadow in self._shadows.items()},
            steps=numbers["steps"],
            controls=numbers["controls"],
            seed=numbers["seed"],
            discrete=numbers["discrete"],
            pause=_pause,
        )

    def _measure(self, measuring: Measuring, ring: RingReader) -> None:
        samples = [Sample(Call(*call), episode) for call, episode in ring.samples()]
        measured = measuring.measure_next(samples)
        if measured is not None:
            self._tell({"measured": measured_json(measured)})

    def _turn_off(self, reason: str) -> None:
        self._is_off = True
        self._tell({"off": reason})

    def _tell(self, document: dict[str, Any]) -> None:
        line = json.dumps(document).encode() + b"\n"
        while line:
            line = line[os.write(self._answers, line) :]


def _pause() -> None:
    time.sleep(PAUSE_S)
    if select.select([0], [], [], 0)[0]:
        raise _NewsError


def _exactly(size: int) -> bytes:
    found = bytearray()
    while len(found) < size:
        chunk = os.read(0, min(size - len(found), 1 << 20))
        if not chunk:
            sys.exit(0)
        found += chunk
    return bytes(found)


def main(memory: int, answers: int, seed: int) -> NoReturn:
    """Measure on one thread, from draws of its own."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - this process has it for the policy alone
    random.seed(seed)
    _Child(memory, answers).run()


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
