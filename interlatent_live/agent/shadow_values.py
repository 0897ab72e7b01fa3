"""What a shadow is asked for and what it answers: values that its thread and its process share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from interlatent_live.errors import UserError
from interlatent_live.explanations.causal.effects import EffectReport
from interlatent_live.explanations.scores import Interval

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from interlatent_live.environments.observation_names import ObservedNumber
    from interlatent_live.transcoders.native import LoadedTranscoder


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
            unless said. A function of a module, where the shadow is to have a process.
        process: measure in a process of its own, where the policy can be rebuilt there; where it
            cannot, or with False, on a thread of the agent, for a hundredth of its time.
        nice: priority of that process, as ``nice`` counts; 19 is the lowest.
        explainer: where measured effects go; None keeps them in the process.
        key: what reports are signed with; None is this user's own key, where there is one.
        observation: names of the observation's numbers, for people who ask why; those of the
            environment's metrics unless said.
    """

    transcoders: Mapping[str, LoadedTranscoder | Path | str]
    sample_every: int = 16
    buffer: int = 512
    period_s: float = 0.5
    steps: int = 48
    controls: int = 100
    seed: int = 0
    read: Callable[[Any], torch.Tensor] | None = None
    process: bool = True
    nice: int = 19
    explainer: str | None = None
    key: bytes | None = None
    observation: tuple[str, ...] = ()

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


@dataclass(frozen=True, slots=True)
class ShadowNames:
    """What people call the numbers that go into a policy and come out of it."""

    actions: tuple[str, ...] = ()
    """Of discrete actions, or of the components of a continuous one."""
    observation: tuple[ObservedNumber, ...] = ()


@dataclass(frozen=True, slots=True)
class WhyQuestion:
    """Why did a copy act as it did, at a step or lately? ``component`` as in ``AskWhy``."""

    id: str
    env: int = 0
    episode: int | None = None
    t: int | None = None
    component: str = ""


Answered = Callable[[str, "dict[str, Any] | None", str, str], None]
"""Told the question's id, the account, or why there is none: a word and a sentence."""


class Explains(Protocol):
    """Who takes decisions apart, or says why not."""

    @property
    def cannot_explain(self) -> str:
        """Why it takes no decision apart, and what to do about it; empty where it does."""
        ...

    def explain(self, question: WhyQuestion, answered: Answered) -> None:
        """Have a decision taken apart; on the shadow's own thread, where the answer comes too."""
        ...


class ShadowWorker(Explains, Protocol):
    """What ``tap.shadow`` is, wherever it measures."""

    @property
    def off(self) -> str:
        """Why it does not measure; empty while it does."""
        ...

    @property
    def faults(self) -> int:
        """Errors of ours, which reached nobody."""
        ...

    @property
    def in_thread_because(self) -> str:
        """Why it measures on a thread of the agent; empty where it has a process of its own."""
        ...

    def reports(self) -> tuple[MeasuredFeature, ...]:
        """What was measured so far, the newest of each feature."""
        ...

    def close(self) -> None:
        """Take the hook off and end what measures."""
        ...


def measured_json(measured: MeasuredFeature) -> dict[str, Any]:
    """A measured feature in plain JSON."""
    return asdict(measured)


def measured_from(document: Mapping[str, Any]) -> MeasuredFeature:
    """What :func:`measured_json` was given."""
    effects = tuple(
        EffectReport(
            **{
                **one,
                "effect": Interval(**one["effect"]),
                "percentile": {kind: Interval(**at) for kind, at in one["percentile"].items()},
            }
        )
        for one in document["effects"]
    )
    return MeasuredFeature(**{**document, "effects": effects})
