"""A shadow on a thread of the agent, for policies that no other process can rebuild.

It shares the interpreter's lock with the acting thread, so it works for a hundredth of the time
only, at the agent's own priority: a thread of a lower one could be put aside by another process
while it holds the lock, and the acting thread would wait with it.
"""

from __future__ import annotations

import logging
import random as python_random
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from interlatent_live.agent.shadow_measuring import (
    LEAST_EPISODES,
    Measuring,
    Sample,
    first_tensor,
)
from interlatent_live.agent.shadow_sampling import Sampler, copied
from interlatent_live.agent.shadow_state import PolicyState, load_changed
from interlatent_live.errors import UserError
from interlatent_live.explanations.causal.shadow import Call, Shadow, SharedRandomError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray
    from torch import nn

    from interlatent_live.agent.shadow_sampling import Place
    from interlatent_live.agent.shadow_values import (
        Answered,
        MeasuredFeature,
        ShadowOptions,
        WhyQuestion,
    )
    from interlatent_live.transcoders.transcoder import Transcoder

logger = logging.getLogger(__name__)

DUTY: Final = 0.01
"""Share of the time in which the copy runs."""
LEAST_PAUSE_S: Final = 0.001


class _StoppedError(Exception):
    """The shadow was told to end in the middle of a measurement."""


class ThreadShadow:
    """Samples a policy's inputs and measures features on a copy; stop it with :meth:`close`.

    A policy that is handed its recurrent state is measured from that state; one that keeps it
    inside is measured from whatever state the copy has come to. One that draws from NumPy's or
    Python's shared generator is not measured: its draws would be taken from the agent's.

    Args:
        policy: the acting policy; a copy is made now.
        transcoders: by hook point.
        options: see :class:`ShadowOptions`.
        discrete: whether the policy's outputs are scores of discrete actions.
        place: episode and step within it of the next row, per copy.
        publish: told of every measured feature, on the shadow's thread.
        attend: called there now and then.
        because: why there is no process.

    Raises:
        UserError: when the policy cannot be copied or a hook point is not a module's output.
    """

    def __init__(
        self,
        policy: nn.Module,
        transcoders: Mapping[str, Transcoder],
        options: ShadowOptions,
        *,
        discrete: bool,
        place: Callable[[], Place],
        publish: Callable[[MeasuredFeature], None] = lambda _: None,
        attend: Callable[[], None] = lambda: None,
        because: str = "",
    ) -> None:
        self._options = options
        self._publish, self._attend = publish, attend
        self.in_thread_because = because
        self._shadows = {name: _shadow(policy, name, options) for name in transcoders}
        points = {name: (self._shadows[name], one) for name, one in transcoders.items()}
        self._measuring = Measuring(
            points,
            steps=options.steps,
            controls=options.controls,
            seed=options.seed,
            discrete=discrete,
            pause=self._pause,
        )
        self._samples: deque[Sample] = deque(maxlen=options.buffer)
        self._changed: deque[dict[str, torch.Tensor]] = deque(maxlen=1)
        self._probed = False
        self._reports: dict[tuple[str, int], MeasuredFeature] = {}
        self.off = ""
        self._at_work = threading.Lock()
        self._stop = threading.Event()
        self._ran_since = time.thread_time()
        self._state = PolicyState(policy)
        self._sampler = Sampler(
            policy,
            options.sample_every,
            self._state,
            place=place,
            take=self._take,
            changed=self._changed.append,
        )
        self._thread = threading.Thread(target=self._run, name="interlatent-shadow", daemon=True)
        self._thread.start()

    @property
    def faults(self) -> int:
        """Errors of ours, which reached nobody."""
        return self._sampler.faults

    def reports(self) -> tuple[MeasuredFeature, ...]:
        """What was measured so far, the newest of each feature."""
        return tuple(self._reports.values())

    @property
    def cannot_explain(self) -> str:
        """Why it takes no decision apart: it would hold the agent's thread up for milliseconds."""
        return (
            "no decision of this agent is taken apart, because its shadow runs on a thread of the "
            f"agent ({self.in_thread_because}); attach a policy whose classes and functions can be "
            "imported by name, with shadow's process=True"
        )

    def explain(self, question: WhyQuestion, answered: Answered) -> None:
        """Refuse."""
        answered(question.id, None, "cannot", self.cannot_explain)

    def close(self) -> None:
        """Take the hook off and end the thread."""
        self._sampler.stop()
        self._stop.set()
        self._thread.join(timeout=5.0)

    # -- on the policy's thread --------------------------------------------------------------------

    def _take(
        self, call: tuple[Any, Any], episode: NDArray[np.int64], t: NDArray[np.int64]
    ) -> None:
        if self.off:
            return
        sample = Sample(Call(copied(call[0]), copied(call[1])), episode, t, time.time_ns())
        if not self._probed:
            self._probe(sample.call)
        self._samples.append(sample)

    def _probe(self, call: Call) -> None:
        """One run of the copy where nobody else draws: it must leave shared generators alone."""
        self._probed = True
        states = (torch.get_rng_state(), np.random.get_state(), python_random.getstate())  # noqa: NPY002 - the shared one is what is looked at
        try:
            for shadow in self._shadows.values():
                shadow.outputs(call)
        except SharedRandomError as error:
            self.off = str(error)
        finally:
            numpy_same = str(np.random.get_state()) == str(states[1])  # noqa: NPY002 - likewise
            same = (
                torch.equal(torch.get_rng_state(), states[0])
                and numpy_same
                and python_random.getstate() == states[2]
            )
            if not same:
                torch.set_rng_state(states[0])
                np.random.set_state(states[1])  # noqa: NPY002 - likewise
                python_random.setstate(states[2])
                self.off = "the policy draws from NumPy's or Python's shared generator"
        if self.off:
            logger.warning("no shadow interventions: %s", self.off)

    # -- on the shadow's thread --------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.wait(self._options.period_s):
            self._attend()
            if self.off:
                continue
            try:
                self._state.compare()
                measured = self.measure_next()
                if measured is not None and measured.episodes >= LEAST_EPISODES:
                    self._publish(measured)
            except _StoppedError:
                return
            except Exception as error:  # noqa: BLE001 - nothing may end this thread
                self._sampler.fault(error)

    def _pause(self) -> None:
        self._attend()
        # Its own processor time: what others took meanwhile is no reason to wait longer.
        ran = time.thread_time() - self._ran_since
        if self._stop.wait(max(LEAST_PAUSE_S, ran * (1 / DUTY - 1))):
            raise _StoppedError
        self._ran_since = time.thread_time()

    def measure_next(self) -> MeasuredFeature | None:
        """Measure one more feature on what was sampled, in turn; None when nothing can be."""
        with self._at_work:
            while self._changed:
                tensors = self._changed.popleft()
                for shadow in self._shadows.values():
                    self.off = load_changed(shadow.policy, tensors) or self.off
            if self.off:
                logger.warning("no shadow interventions any more: %s", self.off)
                return None
            self._ran_since = time.thread_time()
            measured = self._measuring.measure_next(list(self._samples))
            if measured is not None:
                self._reports[measured.hook_point, measured.feature] = measured
            return measured


def _shadow(policy: nn.Module, name: str, options: ShadowOptions) -> Shadow:
    try:
        return Shadow(policy, name, read=options.read or first_tensor, seed=options.seed)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"the shadow cannot copy the policy: {error}") from error
