"""The measuring itself: one feature after another is taken out of copies of sampled steps.

It neither starts nor sends anything and keeps only what it needs to judge later measurements
together with earlier ones; a thread of the agent or a process beside it runs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from interlatent_live.agent.shadow_values import MeasuredFeature
from interlatent_live.explanations.causal.effects import EffectSamples, measure_effect
from interlatent_live.explanations.causal.shadow import ShadowSteps, shadow_effects

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from interlatent_live.explanations.causal.shadow import Call, Shadow
    from interlatent_live.transcoders.transcoder import Transcoder

LEAST_STEPS: Final = 8
"""Fewer on-steps of a feature say nothing."""
LEAST_EPISODES: Final = 3
"""Fewer are kept, and told to nobody."""
KEPT_STEPS: Final = 1024
"""On-steps of one (feature, action) that are kept to be judged together."""


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One call of the policy."""

    call: Call
    episode: NDArray[np.int64]
    """[n] of each copy; no two copies have the same."""
    t: NDArray[np.int64]
    """[n] step within the episode; −1 where it was a reset and no step."""
    time_ns: int
    """Wall clock of the agent."""


class Measuring:
    """Measures features in turn.

    Args:
        points: by hook point, what runs the policy's copy and its transcoder.
        steps: most on-steps of one measurement.
        controls: of each kind.
        seed: of the controls.
        discrete: whether the policy's outputs are scores of discrete actions.
        pause: called between two runs of the copy; may raise to end a measurement.
    """

    def __init__(
        self,
        points: Mapping[str, tuple[Shadow, Transcoder]],
        *,
        steps: int,
        controls: int,
        seed: int,
        discrete: bool,
        pause: Callable[[], None],
    ) -> None:
        self._points = points
        self._steps, self._controls, self._seed = steps, controls, seed
        self._discrete, self._pause = discrete, pause
        self._turn = 0
        self._kept: dict[tuple[str, int], list[list[EffectSamples]]] = {}
        self._done: dict[tuple[str, int], int] = {}
        self._whole_calls = False

    def measure_next(self, samples: Sequence[Sample]) -> MeasuredFeature | None:
        """Measure one more feature on what was sampled, in turn; None when nothing can be."""
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
        self, samples: Sequence[Sample], shadow: Shadow, transcoder: Transcoder
    ) -> ShadowSteps | None:
        """The samples as one batch, where the policy takes one tensor of observations."""
        calls = [sample.call for sample in samples]
        plain = all(len(call.args) == 1 and not call.kwargs for call in calls) and all(
            isinstance(call.args[0], torch.Tensor) for call in calls
        )
        if plain and not self._whole_calls:
            chosen = samples[-KEPT_STEPS:]
            rows = [as_rows(sample.call.args[0], len(sample.episode)) for sample in chosen]
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
        self._turn += 1
        if len(candidates) == 0:
            return None
        # Whoever was measured on the fewest steps is next.
        done = [self._done.get((name, int(feature)), 0) for feature in candidates]
        return int(candidates[int(np.argmin(done))])

    def _measure(self, name: str, feature: int, steps: ShadowSteps) -> MeasuredFeature:
        shadow, transcoder = self._points[name]
        found = shadow_effects(
            shadow,
            _some_steps(steps, feature, self._steps, self._turn),
            transcoder.W_dec.detach().numpy(),
            feature,
            controls=self._controls,
            seed=self._seed,
            centred=self._discrete,
            pause=self._pause,
        )
        kept = self._kept.setdefault((name, feature), [[] for _ in found])
        effects = []
        for mine, new in zip(kept, found, strict=True):
            mine.append(new)
            while sum(len(one.delta) for one in mine) > KEPT_STEPS and len(mine) > 1:
                mine.pop(0)
            effects.append(measure_effect(_together(mine), seed=self._seed))
        together = _together(kept[0])
        self._done[name, feature] = len(together.delta)
        return MeasuredFeature(
            name,
            transcoder.identity,
            feature,
            len(together.delta),
            len(np.unique(together.cluster)),
            tuple(effects),
        )


def first_tensor(out: Any) -> torch.Tensor:
    """The action's values in what a policy returns, unless the user says how to read them.

    Raises:
        TypeError: when there is no tensor in front.
    """
    while isinstance(out, (tuple, list)):
        out = out[0]
    if not isinstance(out, torch.Tensor):
        raise TypeError(f"the policy returns {type(out).__name__}; give shadow's read=...")
    return out


def as_rows(observations: torch.Tensor, copies: int) -> torch.Tensor:
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
