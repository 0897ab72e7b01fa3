"""A shadow in a process of its own: the agent's thread copies inputs into shared memory, no more.

A thread of the agent would hold the interpreter's lock while it measures. The process gets a
description of the policy and its weights once (:mod:`interlatent_live.agent.shadow_recipe`), reads
samples from a ring in memory without a name, and answers with measured features. It runs at the
lowest priority with one torch thread, ends with the agent however that ends, and does not hear the
terminal's Ctrl-C. A thread of the agent starts it, sends what it is to know and takes its answers;
nobody waits for that thread.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import selectors
import subprocess
import sys
import tempfile
import threading
import time
from mmap import mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from interlatent_live.agent.shadow_measuring import LEAST_EPISODES
from interlatent_live.agent.shadow_recipe import Recipe, RecipeError, describe, tensor_bytes
from interlatent_live.agent.shadow_ring import CallShapeError, RingWriter, ring_shape
from interlatent_live.agent.shadow_sampling import Sampler, copied
from interlatent_live.agent.shadow_state import PolicyState
from interlatent_live.agent.shadow_values import measured_from
from interlatent_live.engine import exec_child

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import nn

    from interlatent_live.agent.shadow_sampling import Arguments, Place
    from interlatent_live.agent.shadow_values import (
        Answered,
        MeasuredFeature,
        ShadowNames,
        ShadowOptions,
        WhyQuestion,
    )
    from interlatent_live.transcoders.transcoder import Transcoder

logger = logging.getLogger(__name__)

FULL_S: Final = 0.01
LOOK_S: Final = 0.1
"""How often the agent's thread of the shadow looks for what is to be sent."""
COMPARE_S: Final = 10.0
"""How often the weights' bytes are compared."""
RECIPE: Final = b"R"
RING: Final = b"G"
TENSORS: Final = b"T"
QUESTION: Final = b"Q"
MOST_ASKED: Final = 4
WITHIN_S: Final = 5.0
"""For the account of a decision."""
_CHUNK: Final = 1 << 16


class ProcessShadow:
    """Samples a policy's inputs; a process beside the agent measures. Stop it with :meth:`close`.

    Args:
        policy: the acting policy; it is described now.
        transcoders: by hook point.
        options: see :class:`ShadowOptions`.
        policy_hash: what the policy hashes to, here and once rebuilt.
        discrete: whether the policy's outputs are scores of discrete actions.
        place: episode and step within it of the next row, per copy.
        names: what people call observations and actions.
        publish: told of every measured feature, on a thread of the shadow's.
        attend: called several times a second on that thread.

    Raises:
        RecipeError: when the policy cannot be rebuilt in another process.
    """

    in_thread_because = ""

    def __init__(
        self,
        policy: nn.Module,
        transcoders: Mapping[str, Transcoder],
        options: ShadowOptions,
        *,
        policy_hash: str,
        discrete: bool,
        place: Callable[[], Place],
        names: ShadowNames,
        publish: Callable[[MeasuredFeature], None] = lambda _: None,
        attend: Callable[[], None] = lambda: None,
    ) -> None:
        if sys.platform != "linux":
            raise RecipeError("a process that surely ends with the agent needs Linux")
        self._options, self._publish, self._attend = options, publish, attend
        numbers = {"policy_hash": policy_hash, "discrete": discrete} | _numbers(options, names)
        self._recipe: Recipe | None = _recipe(policy, transcoders, options, numbers)
        self._reports: dict[tuple[str, int], MeasuredFeature] = {}
        self.off = ""
        self.left_out = 0
        """Calls of another shape than the first, which are not measured."""
        self._first: tuple[Arguments, NDArray[np.int64]] | None = None
        self._ring: RingWriter | None = None
        self._changed: dict[str, torch.Tensor] | None = None
        self._outgoing = bytearray()
        self._rebuilt = False
        self._asked: dict[str, tuple[float, Answered]] = {}
        self._part = b""
        self._stop = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._state = PolicyState(policy)
        self._sampler = Sampler(
            policy,
            options.sample_every,
            self._state,
            place=place,
            take=self._take,
            changed=self._note_changed,
        )
        self._thread = threading.Thread(target=self._run, name="interlatent-shadow", daemon=True)
        self._thread.start()

    @property
    def faults(self) -> int:
        """Errors of ours, which reached nobody."""
        return self._sampler.faults

    @property
    def pid(self) -> int | None:
        """The process's id, once it has one."""
        return None if self._process is None else self._process.pid

    @property
    def cannot_explain(self) -> str:
        """Why it takes no decision apart; empty where it does."""
        return f"no decision of this agent is taken apart: {self.off}" if self.off else ""

    def explain(self, question: WhyQuestion, answered: Answered) -> None:
        """Have the process take a decision apart; on the shadow's thread only."""
        if self.off:
            answered(question.id, None, "cannot", self.cannot_explain)
        elif not self._rebuilt:
            words = "the shadow's process is still starting; ask again in a few seconds"
            answered(question.id, None, "busy", words)
        elif len(self._asked) >= MOST_ASKED:
            answered(question.id, None, "busy", "the shadow is being asked already; ask again")
        else:
            self._asked[question.id] = time.monotonic() + WITHIN_S, answered
            self._send(QUESTION, msgspec.json.encode(question))

    def reports(self) -> tuple[MeasuredFeature, ...]:
        """What was measured so far, the newest of each feature."""
        return tuple(self._reports.values())

    def close(self) -> None:
        """Take the hook off and end the process, which has nothing to save."""
        self._sampler.stop()
        self._stop.set()
        if self._process is not None:
            self._process.kill()
        self._thread.join(timeout=5.0)

    # -- on the policy's thread --------------------------------------------------------------------

    def _take(self, call: Arguments, episode: NDArray[np.int64], t: NDArray[np.int64]) -> None:
        if self._ring is not None:
            if not self.off and not self._ring.put(call, episode, t, time.time_ns()):
                self.left_out += 1
        elif self._first is None:
            self._first = (copied(call[0]), copied(call[1])), episode

    def _note_changed(self, tensors: dict[str, torch.Tensor]) -> None:
        self._changed = tensors

    # -- on the shadow's thread --------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with contextlib.ExitStack() as stack:
                memory = stack.enter_context(_shared_memory())
                answers, told = os.pipe()
                stack.callback(os.close, answers)
                try:
                    self._process = _started(memory.fileno(), told, self._options)
                finally:
                    os.close(told)
                stack.callback(self._end)
                self._serve(self._process, memory, answers)
        except Exception as error:  # noqa: BLE001 - nothing of the shadow may reach the agent
            self._sampler.fault(error)
            self.off = self.off or f"its process could not be kept: {error}"
        # Whoever asks is still to be told why there is no answer.
        while not self._stop.wait(LOOK_S):
            self._settle_late(time.monotonic())
            self._attend()

    def _serve(self, process: subprocess.Popen[bytes], memory: Any, answers: int) -> None:
        stdin, stderr = process.stdin, process.stderr
        if stdin is None or stderr is None or self._recipe is None:
            raise RuntimeError("the shadow's process has no way in or out")
        os.set_blocking(stdin.fileno(), False)
        self._send(RECIPE, self._recipe.to_bytes())
        self._recipe = None
        compare_at = time.monotonic() + COMPARE_S
        complaint, alive = b"", True
        with selectors.DefaultSelector() as ready:
            ready.register(answers, selectors.EVENT_READ)
            ready.register(stderr, selectors.EVENT_READ)
            while alive and not self._stop.is_set():
                # Its pipe may be full for a while: it is importing torch.
                for key, _ in ready.select(FULL_S if self._outgoing else LOOK_S):
                    chunk = os.read(key.fd, _CHUNK)
                    if key.fd == answers:
                        self._take_answers(chunk)
                    else:
                        complaint = (complaint + chunk)[-_CHUNK:]
                    alive = alive and bool(chunk)
                self._attend()
                self._settle_late(time.monotonic())
                self._look(memory)
                self._write(stdin.fileno())
                if time.monotonic() >= compare_at:
                    self._state.compare()
                    compare_at = time.monotonic() + COMPARE_S
        if not self._stop.is_set() and not self.off:
            code = process.wait()
            said = (complaint + stderr.read()).decode(errors="replace").strip()
            self._turn_off(f"its process ended ({code}): {said.rpartition(chr(10))[2]}")

    def _take_answers(self, chunk: bytes) -> None:
        *lines, self._part = (self._part + chunk).split(b"\n")
        for line in lines:
            self._answered(json.loads(line))

    def _look(self, memory: Any) -> None:
        """Send what the acting thread has left here."""
        if self._changed is not None:
            tensors, self._changed = self._changed, None
            self._send(TENSORS, tensor_bytes(tensors))
        if self._ring is not None or self._first is None or self.off:
            return
        call, episode = self._first
        try:
            shape = ring_shape(call, len(episode), self._options.buffer)
        except CallShapeError as error:
            self._turn_off(f"{error}; give shadow's process=False to measure on a thread")
            return
        os.ftruncate(memory.fileno(), shape.nbytes)
        self._send(RING, msgspec.json.encode(shape))
        self._ring = RingWriter(mmap(memory.fileno(), shape.nbytes), shape)

    def _write(self, pipe: int) -> None:
        """Write what fits into the pipe."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            while self._outgoing:
                del self._outgoing[: os.write(pipe, self._outgoing[:_CHUNK])]

    def _send(self, kind: bytes, payload: bytes) -> None:
        self._outgoing += kind + len(payload).to_bytes(8, "little") + payload

    def _answered(self, document: dict[str, Any]) -> None:
        if "measured" in document:
            measured = measured_from(document["measured"])
            self._reports[measured.hook_point, measured.feature] = measured
            if measured.episodes >= LEAST_EPISODES:
                self._publish(measured)
        elif "fault" in document:
            self._sampler.fault(RuntimeError(document["fault"]))
        elif "rebuilt" in document:
            self._rebuilt = True
        elif "why" in document:
            told = document["why"]
            _, answered = self._asked.pop(told["id"], (0.0, _to_nobody))
            answered(told["id"], told.get("found"), told.get("word", ""), told.get("because", ""))
        else:
            self._turn_off(document["off"])

    def _settle_late(self, now: float) -> None:
        """Give up on questions that the process does not answer."""
        for name, (until, answered) in list(self._asked.items()):
            if self.off:
                reason = "cannot", self.cannot_explain
            elif now >= until:
                reason = (
                    "silent",
                    (
                        f"the shadow's process did not answer within {WITHIN_S:g} s: it is "
                        "frozen, or the machine too busy; the agent goes on without it"
                    ),
                )
            else:
                continue
            del self._asked[name]
            answered(name, None, *reason)

    def _turn_off(self, reason: str) -> None:
        self.off = reason
        logger.warning("no shadow interventions: %s", reason)

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            for pipe in (self._process.stdin, self._process.stderr):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
            self._process.wait()


def _recipe(
    policy: nn.Module,
    transcoders: Mapping[str, Transcoder],
    options: ShadowOptions,
    numbers: dict[str, Any],
) -> Recipe:
    told = {
        name: {"config": msgspec.to_builtins(one.config), "tensors": one.tensors()}
        for name, one in transcoders.items()
    }
    return describe(policy=policy, read=options.read, transcoders=told, numbers=numbers)


def _numbers(options: ShadowOptions, names: ShadowNames) -> dict[str, Any]:
    """What the process is to know besides, in plain values."""
    return {
        "period_s": options.period_s,
        "steps": options.steps,
        "controls": options.controls,
        "seed": options.seed,
        "sample_every": options.sample_every,
        "actions": list(names.actions),
        "observation": [[one.name, one.unit, one.scale] for one in names.observation],
    }


def _to_nobody(*_: object) -> None:
    """Where an answer goes that nobody waits for any more."""


def _shared_memory() -> Any:
    """A file in memory without a name, which goes with the last process that holds it."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("interlatent-shadow"), "r+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


def _started(memory: int, told: int, options: ShadowOptions) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        # Whatever the policy's classes were imported from is imported from there again.
        "PYTHONPATH": os.pathsep.join(one or str(Path.cwd()) for one in sys.path),
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    child = [sys.executable, "-P", "-m", "interlatent_live.agent.shadow_child"]
    # The helper has the kernel kill the process with this thread, and sets its priority.
    parent = [str(os.getpid()), str(options.nice)]
    helper = [sys.executable, "-I", "-S", exec_child.__file__, *parent]
    return subprocess.Popen(  # noqa: S603 - our own interpreter and files
        [*helper, *child, str(memory), str(told), str(options.seed)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
        pass_fds=(memory, told),
        # Ctrl-C in a terminal is for the agent; the session stays, within which priorities count.
        process_group=0,
    )
