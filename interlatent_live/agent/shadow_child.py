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
from typing import Any, Final, NoReturn, cast

import msgspec
import numpy as np
import torch
from safetensors.torch import load as load_tensors

from interlatent_live.agent.shadow_measuring import Measuring, Sample, first_tensor
from interlatent_live.agent.shadow_process import QUESTION, RECIPE, RING
from interlatent_live.agent.shadow_recipe import read_recipe
from interlatent_live.agent.shadow_ring import RingReader, RingShape
from interlatent_live.agent.shadow_state import load_changed
from interlatent_live.agent.shadow_values import ShadowNames, WhyQuestion, measured_json
from interlatent_live.agent.shadow_why import Accounts, CannotExplainError
from interlatent_live.environments.observation_names import ObservedNumber
from interlatent_live.errors import UserError
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
        self._accounts: Accounts | None = None
        self._next: tuple[bytes, bytes] | None = None

    def run(self) -> NoReturn:
        """Measure until the input ends."""
        period = 0.05
        while True:
            try:
                if self._next is not None:
                    frame, self._next = self._next, None
                    self._take(*frame)
                elif select.select([0], [], [], period)[0]:
                    self._take(*_frame())
                elif self._measuring is not None and self._ring is not None and not self._is_off:
                    self._measure(self._measuring, self._ring)
                period = self._numbers.get("period_s", period)
            except _NewsError:
                continue
            except Exception as error:  # noqa: BLE001 - told to the agent, who logs it
                self._tell({"fault": f"{type(error).__name__}: {error}"})
                if self._measuring is None:
                    self._turn_off(f"the policy cannot be rebuilt in its process: {error}")

    def _take(self, kind: bytes, payload: bytes) -> None:
        if kind == RECIPE:
            self._rebuild(payload)
        elif kind == QUESTION:
            self._explain(payload)
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
        points = {name: (one, self._transcoders[name]) for name, one in self._shadows.items()}
        self._measuring = Measuring(
            points,
            steps=numbers["steps"],
            controls=numbers["controls"],
            seed=numbers["seed"],
            discrete=numbers["discrete"],
            pause=self._pause,
        )
        self._accounts = Accounts(
            parts["policy"],
            points,
            names=ShadowNames(
                tuple(numbers["actions"]),
                tuple(ObservedNumber(*one) for one in numbers["observation"]),
            ),
            discrete=numbers["discrete"],
            sample_every=numbers["sample_every"],
        )
        self._tell({"rebuilt": True})

    def _measure(self, measuring: Measuring, ring: RingReader) -> None:
        measured = measuring.measure_next(_samples(ring))
        if measured is not None:
            self._tell({"measured": measured_json(measured)})

    def _explain(self, payload: bytes) -> None:
        """Answer a question, whatever comes of it."""
        question = msgspec.json.decode(payload, type=WhyQuestion)
        told: dict[str, Any] = {"id": question.id}
        try:
            # Nobody asks before the policy is rebuilt, and after that there are accounts.
            told["found"] = cast("Accounts", self._accounts).account(_samples(self._ring), question)
        except CannotExplainError as error:
            told |= {"word": "cannot", "because": str(error)}
        except UserError as error:
            told |= {"word": "refused", "because": str(error)}
        except Exception as error:  # noqa: BLE001 - told to whoever asked
            told |= {"word": "refused", "because": f"it failed: {type(error).__name__}: {error}"}
        self._tell({"why": told})

    def _turn_off(self, reason: str) -> None:
        self._is_off = True
        self._tell({"off": reason})

    def _pause(self) -> None:
        """Between two runs of the copy: rest, and answer whoever asks."""
        time.sleep(PAUSE_S)
        while select.select([0], [], [], 0)[0]:
            kind, payload = _frame()
            if kind != QUESTION:
                self._next = kind, payload
                raise _NewsError
            self._explain(payload)

    def _tell(self, document: dict[str, Any]) -> None:
        line = json.dumps(document).encode() + b"\n"
        while line:
            line = line[os.write(self._answers, line) :]


def _samples(ring: RingReader | None) -> list[Sample]:
    if ring is None:
        return []
    return [Sample(Call(*one.call), one.episode, one.t, one.time_ns) for one in ring.samples()]


def _frame() -> tuple[bytes, bytes]:
    kind = _exactly(1)
    return kind, _exactly(int.from_bytes(_exactly(8), "little"))


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
