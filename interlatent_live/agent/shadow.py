"""What a feature does to the action, measured beside the running policy and never in its way.

Every so many forwards the policy's inputs are copied into a bounded buffer; that is all that
happens on the policy's thread. A thread of the lowest priority runs a copy of the policy on them,
takes one feature after another out of a hook point's output, and holds the change of the action
against controls of equal norm (:mod:`interlatent_live.explanations.causal`). The copy has its own
weights, buffers and random state, so the action sequence of a seeded agent is the same to the bit.
Results stay in :meth:`ShadowWorker.reports` and are handed to ``publish``, which
:mod:`interlatent_live.agent.shadow_link` gives.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random as python_random
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from interlatent_live.errors import UserError
from interlatent_live.explanations.causal.effects import EffectSamples, measure_effect
from interlatent_live.explanations.causal.shadow import (
    Call,
    Shadow,
    ShadowSteps,
    SharedRandomError,
    shadow_effects,
)
from interlatent_live.transcoders.native import check_binding, load_transcoder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import nn
    from torch.utils.hooks import RemovableHandle

    from interlatent_live.explanations.causal.effects import EffectReport
    from interlatent_live.transcoders.native import LoadedTranscoder
    from interlatent_live.transcoders.transcoder import Transcoder

logger = logging.getLogger(__name__)

NICE: Final = 19
PAUSE_S: Final = 0.001
"""Between two forwards of the copy, so that the policy's thread is never far from the processor."""
LEAST_STEPS: Final = 8
"""Fewer on-steps of a feature say nothing."""
LEAST_EPISODES: Final = 3
KEPT_STEPS: Final = 1024
"""On-steps of one (feature, action) that are kept to be judged together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowOptions:
    """What the shadow measures, and how little it may take for it.

    Attributes:
        transcoders: by hook point: a folder in the native format, or one that was loaded.
        sample_every: every how many forwards the policy's inputs are copied.
        buffer: how many of these copies are kept.
        period_s: pause between two features.
        steps: most on-steps of one measurement.
        controls: of each kind.
        seed: of the controls, and of the copy's own draws.
        read: takes the action's values [n, A] out of what the policy returns; the first tensor
            unless said.
        explainer: where measured effects go; None keeps them in the process.
        key: what reports are signed with; None is this user's own key, where there is one.
    """

    transcoders: Mapping[str, LoadedTranscoder | Path | str]
    sample_every: int = 16
    buffer: int = 512
    period_s: float = 0.5
    steps: int = 48
    controls: int = 100
    seed: int = 0
    read: Callable[[Any], torch.Tensor] | None = None
    explainer: str | None = None
    key: bytes | None = None

    def __post_init__(self) -> None:
        for name in ("sample_every", "buffer", "steps", "controls"):
            if getattr(self, name) < 1:
                raise UserError(f"shadow: {name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True, slots=True)
class MeasuredFeature:
    """What one feature does to every action, one step ahead."""

    hook_point: str
    transcoder: str
    feature: int
    steps: int
    episodes: int
    effects: tuple[EffectReport, ...]
    """One per action (or component of it), in the policy's order."""


@dataclass(frozen=True, slots=True, eq=False)
class _Sample:
    call: Call
    episode: NDArray[np.int64]
    """[n] of each copy."""


class _StoppedError(Exception):
    """The shadow was told to end in the middle of a measurement."""


class ShadowWorker:
    """Samples a policy's inputs and measures features on a copy; stop it with :meth:`close`.

    A policy that is handed its recurrent state is measured from that state; one that keeps it
    inside is measured from whatever state the copy has come to.

    Args:
        policy: the acting policy; a copy is made now.
        hook_points: dotted module names; those with a transcoder are measured.
        options: see :class:`ShadowOptions`.
        policy_hash: the transcoders must have been trained on it.
        discrete: whether the policy's outputs are scores of discrete actions.
        steps_in_episode: step within the episode of the next row, per copy.
        publish: told of every measured feature, on the shadow's thread.

    Raises:
        UserError: when the policy cannot be copied or a hook point is not a module's output.
        MismatchError: when a transcoder belongs to another policy or hook point.
    """

    def __init__(
        self,
        policy: nn.Module,
        hook_points: Sequence[str],
        options: ShadowOptions,
        *,
        policy_hash: str,
        discrete: bool,
        steps_in_episode: Callable[[], int | NDArray[np.uint32]],
        publish: Callable[[MeasuredFeature], None] = lambda _: None,
    ) -> None:
        self._options = options
        self._discrete = discrete
        self._steps_in_episode = steps_in_episode
        self._publish = publish
        self._points: dict[str, tuple[Shadow, Transcoder]] = {}
        for name, given in options.transcoders.items():
            if name not in hook_points:
                raise UserError(f"shadow: {name!r} is not among the hook points {hook_points}")
            loaded = load_transcoder(Path(given)) if isinstance(given, (str, Path)) else given
            identity = loaded.transcoder.identity
            check_binding(loaded.provenance, identity, policy_hash=policy_hash, hook_point=name)
            try:
                shadow = Shadow(policy, name, read=options.read or _first_tensor, seed=options.seed)
            except (ValueError, TypeError, RuntimeError) as error:
                raise UserError(f"the shadow cannot copy the policy: {error}") from error
            self._points[name] = shadow, loaded.transcoder
        self._samples: deque[_Sample] = deque(maxlen=options.buffer)
        self._calls = 0
        self._probed = False
        self._episode = np.zeros(0, np.int64)
        self._last_t = np.zeros(0, np.int64)
        self._turn = 0
        self._kept: dict[tuple[str, int], list[list[EffectSamples]]] = {}
        self._reports: dict[tuple[str, int], MeasuredFeature] = {}
        self.off = ""
        """Why it does not measure; empty while it does."""
        self.faults = 0
        self._measuring = threading.Lock()
        self._whole_calls = False
        self._stop = threading.Event()
        self._handle: RemovableHandle | None = policy.register_forward_pre_hook(
            self._sampled, with_kwargs=True
        )
        self._thread = threading.Thread(target=self._run, name="interlatent-shadow", daemon=True)
        self._thread.start()

    def reports(self) -> tuple[MeasuredFeature, ...]:
        """What was measured so far, the newest of each feature."""
        return tuple(self._reports.values())

    def close(self) -> None:
        """Take the hook off and end the thread."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        self._stop.set()
        self._thread.join(timeout=5.0)

    # -- on the policy's thread --------------------------------------------------------------------

    def _sampled(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._calls += 1
        if self._calls % self._options.sample_every or self.off or torch.is_grad_enabled():
            return
        try:
            call = Call(_copied(args), _copied(kwargs))
            if not self._probed:
                self._probe(call)
            self._samples.append(_Sample(call, self._episodes()))
        except Exception as error:  # noqa: BLE001 - a bug of ours must never reach the policy
            self._fault(error)

    def _episodes(self) -> NDArray[np.int64]:
        """An episode number for each copy; a step number that fell is another episode."""
        t = np.atleast_1d(np.asarray(self._steps_in_episode(), np.int64)).copy()
        if len(t) != len(self._last_t):
            self._last_t, self._episode = t, np.arange(len(t)) << 32
        self._episode = self._episode + (t < self._last_t)
        self._last_t = t
        return self._episode

    def _probe(self, call: Call) -> None:
        """One run of the copy where nobody else draws: it must leave shared generators alone."""
        self._probed = True
        states = (torch.get_rng_state(), np.random.get_state(), python_random.getstate())  # noqa: NPY002 - the shared one is what is looked at
        try:
            for shadow, _ in self._points.values():
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
        with contextlib.suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        while not self._stop.wait(self._options.period_s):
            if self.off:
                continue
            try:
                self.measure_next()
            except _StoppedError:
                return
            except Exception as error:  # noqa: BLE001 - nothing may end this thread
                self._fault(error)

    def _pause(self) -> None:
        if self._stop.wait(PAUSE_S):
            raise _StoppedError

    def _fault(self, error: Exception) -> None:
        self.faults += 1
        if self.faults == 1:
            logger.error("the shadow failed and goes on", exc_info=error)

    def measure_next(self) -> MeasuredFeature | None:
        """Measure one more feature on what was sampled, in turn; None when nothing can be."""
        with self._measuring:
            return self._measure_one(list(self._samples))

    def _measure_one(self, samples: Sequence[_Sample]) -> MeasuredFeature | None:
        if not samples:
            return None
        for name, (shadow, transcoder) in self._points.items():
            steps = self._steps_of(samples, shadow, transcoder)
            if steps is None:
                continue
            feature = self._next_feature(name, steps)
            if feature is not None:
                return self._measure(name, feature, steps)
        return None

    def _steps_of(
        self, samples: Sequence[_Sample], shadow: Shadow, transcoder: Transcoder
    ) -> ShadowSteps | None:
        """The samples as one batch, where the policy takes one tensor of observations."""
        calls = [sample.call for sample in samples]
        plain = all(len(call.args) == 1 and not call.kwargs for call in calls) and all(
            isinstance(call.args[0], torch.Tensor) for call in calls
        )
        if plain and not self._whole_calls:
            chosen = samples[-KEPT_STEPS:]
            rows = [_as_rows(sample.call.args[0], len(sample.episode)) for sample in chosen]
            episode = np.concatenate([sample.episode for sample in chosen])
            try:
                return self._encoded(torch.cat(rows), episode, shadow, transcoder)
            except RuntimeError:
                # It keeps a state of the size it was called with.
                self._whole_calls = True
        # More than observations, such as a recurrent state: one call at a time.
        sample = samples[self._turn % len(samples)]
        return self._encoded(sample.call, sample.episode, shadow, transcoder)

    @staticmethod
    def _encoded(
        observations: torch.Tensor | Call,
        episode: NDArray[np.int64],
        shadow: Shadow,
        transcoder: Transcoder,
    ) -> ShadowSteps | None:
        x, _ = shadow.seen_at_hook(observations)
        if len(x) != len(episode):
            return None
        codes = transcoder.encode_sparse(x.float().numpy())
        features = np.zeros((len(x), transcoder.config.n_features), np.float32)
        rows = np.repeat(np.arange(len(x)), np.diff(codes.indptr).astype(np.intp))
        features[rows, codes.index] = codes.value
        return ShadowSteps(observations, features, episode)

    def _next_feature(self, name: str, steps: ShadowSteps) -> int | None:
        on = steps.features > 0
        enough = on.sum(0) >= (LEAST_STEPS if isinstance(steps.observations, torch.Tensor) else 1)
        candidates = np.flatnonzero(enough)
        if len(candidates) == 0:
            self._turn += 1
            return None
        # Whoever was measured on the fewest steps is next.
        done = [
            self._reports[key].steps if (key := (name, int(f))) in self._reports else 0
            for f in candidates
        ]
        self._turn += 1
        return int(candidates[int(np.argmin(done))])

    def _measure(self, name: str, feature: int, steps: ShadowSteps) -> MeasuredFeature:
        shadow, transcoder = self._points[name]
        options = self._options
        chosen = _some_steps(steps, feature, options.steps, self._turn)
        decoders = transcoder.W_dec.detach().numpy()
        found = shadow_effects(
            shadow,
            chosen,
            decoders,
            feature,
            controls=options.controls,
            seed=options.seed,
            centred=self._discrete,
            pause=self._pause,
        )
        kept = self._kept.setdefault((name, feature), [[] for _ in found])
        effects = []
        for mine, new in zip(kept, found, strict=True):
            mine.append(new)
            while sum(len(one.delta) for one in mine) > KEPT_STEPS and len(mine) > 1:
                mine.pop(0)
            effects.append(measure_effect(_together(mine), seed=options.seed))
        together = _together(kept[0])
        report = MeasuredFeature(
            name,
            transcoder.identity,
            feature,
            len(together.delta),
            len(np.unique(together.cluster)),
            tuple(effects),
        )
        self._reports[name, feature] = report
        if report.episodes >= LEAST_EPISODES:
            self._publish(report)
        return report


def _copied(value: Any) -> Any:
    """Tensors cloned to the host, also within tuples, lists and maps; anything else as it is."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, (tuple, list)):
        return type(value)(_copied(one) for one in value)
    if isinstance(value, dict):
        return {key: _copied(one) for key, one in value.items()}
    return value


def _as_rows(observations: torch.Tensor, copies: int) -> torch.Tensor:
    """[n, …] also where a single copy's observation came without a batch dimension."""
    return observations if len(observations) == copies else observations[None]


def _some_steps(steps: ShadowSteps, feature: int, most: int, seed: int) -> ShadowSteps:
    """At most ``most`` on-steps, and as many off, where the steps can be chosen from."""
    if not isinstance(steps.observations, torch.Tensor):
        return steps
    random = np.random.default_rng([seed, feature])
    on = steps.features[:, feature] > 0
    rows = np.concatenate([random.permutation(np.flatnonzero(which))[:most] for which in (on, ~on)])
    rows.sort()
    return ShadowSteps(
        steps.observations[torch.from_numpy(rows)], steps.features[rows], steps.episode[rows]
    )


def _together(parts: Sequence[EffectSamples]) -> EffectSamples:
    """Samples of several measurements; only kinds of controls that all of them have."""
    kinds = set.intersection(*(set(part.controls) for part in parts))
    return EffectSamples(
        np.concatenate([part.delta for part in parts]),
        np.concatenate([part.cluster for part in parts]),
        {
            kind: np.concatenate([part.controls[kind] for part in parts], axis=1)
            for kind in sorted(kinds)
        },
    )


def _first_tensor(out: Any) -> torch.Tensor:
    while isinstance(out, (tuple, list)):
        out = out[0]
    if not isinstance(out, torch.Tensor):
        raise TypeError(f"the policy returns {type(out).__name__}; give shadow's read=...")
    return out
