"""Why did the agent act as it did? Answered in the shadow's process, from what it sampled.

:mod:`interlatent_live.explanations.causal.why` takes a decision apart; here a step is found among
the samples, what is usual is taken from the others, terms get names that people know, and a policy
whose decision one observation does not determine is told from one that can be taken apart.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from interlatent_live.agent.shadow_measuring import KEPT_STEPS, as_rows
from interlatent_live.agent.shadow_sampling import EPISODE_BITS
from interlatent_live.errors import UserError
from interlatent_live.explanations.causal.why import Explaining

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from interlatent_live.agent.shadow_measuring import Sample
    from interlatent_live.agent.shadow_values import ShadowNames, WhyQuestion
    from interlatent_live.explanations.causal.shadow import Shadow
    from interlatent_live.explanations.causal.why import Why
    from interlatent_live.transcoders.transcoder import Transcoder

RECURRENT: Final = (nn.RNNBase, nn.RNNCellBase)
_EPISODE: Final = (1 << EPISODE_BITS) - 1
_INSTEAD: Final = "look at the measured effects of its features instead"
_WORDS: Final = {
    "tail": "what follows the last hook point, beyond its gradient",
    "skip": "skip path of {}",
    "bias": "constant of {}",
    "encoder bias": "encoder's constant of {}",
    "encoder slack": "encoder's error of {}",
    "error": "what the transcoder of {} leaves out",
    "between": "what lies before {}",
    "baseline": "what a usual observation gives",
    "input": "unit {} that {} reads",
    "others": "lighter terms together",
}


class CannotExplainError(UserError):
    """No decision of this policy can be taken apart."""


class Accounts:
    """Takes sampled decisions of one policy apart.

    Args:
        policy: a copy of the policy, in the modes of the acting one.
        points: by hook point, what runs a copy and its transcoder, in any order.
        names: of the observation's numbers and of the actions.
        discrete: whether the policy's outputs are scores of discrete actions.
        sample_every: every how many forwards one is sampled.
    """

    def __init__(
        self,
        policy: nn.Module,
        points: Mapping[str, tuple[Shadow, Transcoder]],
        *,
        names: ShadowNames,
        discrete: bool,
        sample_every: int,
    ) -> None:
        self._points, self._names = dict(points), names
        self._discrete, self._every = discrete, sample_every
        self._never = _never(policy)
        self._ordered: list[str] = []

    def account(self, samples: Sequence[Sample], question: WhyQuestion) -> dict[str, Any]:
        """The account of one step, in plain JSON.

        Raises:
            CannotExplainError: when no decision of the policy can be taken apart.
            UserError: when the step is not held, or there is no such copy or component.
        """
        if self._never:
            raise CannotExplainError(self._never)
        if not samples:
            raise UserError("no forward of the policy was sampled yet; ask again in a moment")
        sample = self._sample(samples, question)
        observations = _observations(samples)
        seen = _rows(sample)[question.env : question.env + 1]
        shadow = next(iter(self._points.values()))[0]
        outputs = self._outputs(shadow, seen)
        component = self._component(question.component, shadow, observations, outputs)
        mean = 0.0
        if component is not None:
            mean = float(shadow.outputs(observations)[:, component].double().mean())
        usual = _usual(observations)
        found = self._taken_apart(seen, component, mean, usual)
        return {
            **self._named(found, seen, usual),
            "env": question.env,
            "episode": int(sample.episode[question.env]) & _EPISODE,
            "t": int(sample.t[question.env]),
            "time_ns": sample.time_ns,
            "age_s": max(0.0, (time.time_ns() - sample.time_ns) / 1e9),
            "sample_every": self._every,
            "hook_points": self._order(seen),
            "mean": mean if component is not None else None,
        }

    # -- which step ----------------------------------------------------------------------------

    def _sample(self, samples: Sequence[Sample], question: WhyQuestion) -> Sample:
        env = question.env
        copies = len(samples[-1].t)
        if not 0 <= env < copies:
            raise UserError(f"there is no copy {env}: the agent has {copies}, counted from 0")
        held = [one for one in samples if one.t[env] >= 0]
        if not held:
            raise UserError(f"no step of copy {env} was sampled yet; ask again in a moment")
        if question.t is None:
            return held[-1]
        places = [(int(one.episode[env]) & _EPISODE, int(one.t[env])) for one in held]
        # Without an episode the newest one is meant.
        wanted = places[-1][0] if question.episode is None else question.episode, question.t
        if wanted in places:
            return held[places.index(wanted)]
        nearest = min(places, key=lambda one: (abs(one[0] - wanted[0]), abs(one[1] - wanted[1])))
        raise UserError(
            f"step {wanted[1]} of episode {wanted[0]} is not held: every {self._every}th forward "
            f"is, the newest {len(held)} of them; the nearest is step {nearest[1]} of episode "
            f"{nearest[0]}"
        )

    # -- which number --------------------------------------------------------------------------

    @staticmethod
    def _outputs(shadow: Shadow, seen: Tensor) -> Tensor:
        """[A]; the same when it is run again, or one observation does not determine them."""
        first, second = shadow.outputs(seen), shadow.outputs(seen)
        if not torch.equal(first, second):
            raise CannotExplainError(
                "the policy's output is another one each time for the same observation, because it "
                f"draws or remembers: {_INSTEAD}"
            )
        return first[0]

    def _component(
        self, name: str, shadow: Shadow, observations: Tensor, outputs: Tensor
    ) -> int | None:
        """Which output is explained by itself; None for the best against the second best."""
        if name:
            known = [self._action(index) for index in range(len(outputs))]
            if name in known:
                return known.index(name)
            if name.isdecimal() and int(name) < len(outputs):
                return int(name)
            shown = ", ".join(known[:32])
            raise UserError(f"the policy has no output {name[:64]!r}; it has {shown}")
        if self._discrete and len(outputs) > 1:
            return None
        # Of a continuous action, what is furthest from what it usually is.
        usual = shadow.outputs(observations).double()
        spread = usual.std(0, correction=0).clamp_min(1e-12)
        return int(((outputs.double() - usual.mean(0)).abs() / spread).argmax())

    def _action(self, index: int) -> str:
        names = self._names.actions
        return names[index] if index < len(names) else f"action {index}"

    # -- the account ---------------------------------------------------------------------------

    def _order(self, seen: Tensor) -> list[str]:
        """Hook points from the observation to the action, as the policy calls them."""
        if not self._ordered:
            policy = next(iter(self._points.values()))[0].policy
            called: list[str] = []
            modules = dict(policy.named_modules())
            handles = [
                modules[name].register_forward_pre_hook(
                    lambda _module, _inputs, name=name: called.append(name)
                )
                for name in self._points
            ]
            try:
                with torch.no_grad():
                    policy(seen)
            finally:
                for handle in handles:
                    handle.remove()
            self._ordered = list(dict.fromkeys(called))
        return self._ordered

    def _taken_apart(self, seen: Tensor, component: int | None, mean: float, usual: Tensor) -> Why:
        order = self._order(seen)
        for first in range(len(order)):
            # Hook points that are no neighbours are not one account; the later ones are.
            points = {name: self._points[name] for name in order[first:]}
            try:
                return Explaining(points, self._names.actions).why(
                    seen, component=component, mean=mean, usual=usual
                )
            except ValueError:
                continue
        raise CannotExplainError(f"the policy calls none of {', '.join(self._points)}: {_INSTEAD}")

    def _named(self, found: Why, seen: Tensor, usual: Tensor) -> dict[str, Any]:
        """The account with a label on each term, and the observation's numbers in their units."""
        told = found.to_json()
        here = seen.reshape(-1).double().tolist()
        there = usual.reshape(-1).double().tolist()
        for level in told["levels"]:
            for term in level:
                term.update(self._label(term["name"], here, there))
        return told

    def _label(self, name: str, here: Sequence[float], there: Sequence[float]) -> dict[str, Any]:
        kind, _, rest = name.partition(":")
        hook, _, last = rest.rpartition("/")
        if kind == "feature":
            return {"label": f"feature {last} of {hook}", "hook_point": hook, "index": int(last)}
        if kind == "observation":
            index, numbers = int(rest), self._names.observation
            whole = len(numbers) == len(here)
            number = numbers[index] if whole else None
            scale = 1.0 if number is None else number.scale
            return {
                "label": f"observation {index}" if number is None else number.name,
                "unit": "" if number is None else number.unit,
                "index": index,
                "value": here[index] * scale,
                "usual": there[index] * scale,
            }
        if kind == "input":
            return {"label": _WORDS[kind].format(last, hook)}
        return {"label": _WORDS[kind].format(rest)}


def _never(policy: nn.Module) -> str:
    """Why no decision of a policy can be taken apart; empty where it can."""
    for name, module in policy.named_modules():
        if isinstance(module, RECURRENT):
            return (
                f"the policy is recurrent ({name or 'itself'} is a {type(module).__name__}), so "
                f"one observation does not determine its decision: {_INSTEAD}"
            )
        if isinstance(module, _BatchNorm) and module.training:
            return (
                f"the policy normalises by the batch it is called with ({name or 'itself'} is in "
                "training mode), so one observation does not determine its decision: call "
                "policy.eval() before it acts"
            )
    return ""


def _observations(samples: Sequence[Sample]) -> Tensor:
    """[n, …] of the newest samples, at most ``KEPT_STEPS`` calls.

    Raises:
        CannotExplainError: when the policy is called with more than observations.
    """
    return torch.cat([_rows(one) for one in _alike(samples[-KEPT_STEPS:])])


def _alike(samples: Sequence[Sample]) -> Iterator[Sample]:
    shape = _rows(samples[-1]).shape[1:]
    return (one for one in samples if _rows(one).shape[1:] == shape)


def _rows(sample: Sample) -> Tensor:
    call = sample.call
    if len(call.args) != 1 or call.kwargs or not isinstance(call.args[0], torch.Tensor):
        raise CannotExplainError(
            "the policy is called with more than one tensor of observations, such as a recurrent "
            "state or options: attach to the module that is called with observations alone"
        )
    return as_rows(call.args[0], len(sample.episode))


def _usual(observations: Tensor) -> Tensor:
    """[1, …] their mean; of whole numbers, which have none, the first one."""
    if not observations.is_floating_point():
        return observations[:1]
    mean: Tensor = observations.double().mean(0, keepdim=True).to(observations.dtype)
    return mean
