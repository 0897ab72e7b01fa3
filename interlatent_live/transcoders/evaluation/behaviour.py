"""Does the policy still behave when a hook point is replaced by its transcoder?

Reconstruction, agreement and return disagree with each other: a value network kept its full return
at half of its actions. So all are measured, on fresh episodes with paired seeds, and the verdict is
two-sided equivalence: a transcoder that scores *above* the original is unfaithful too.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import stats

from interlatent_live.environments.metric_packs import OutputKind
from interlatent_live.errors import UserError
from interlatent_live.transcoders.evaluation.splice import Splice
from interlatent_live.transcoders.rollouts import EnvironmentPool

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from interlatent_live.transcoders.acting import ActingPolicy
    from interlatent_live.transcoders.evaluation.splice import Replacement

EQUIVALENCE_SHARE = 0.05
"""Margin of equivalence, as a share of what ablating the hook point costs."""
DIVERGENCE = 0.1
"""Continuous actions have diverged when they differ by this many standard deviations."""
_NOISE = 0x6E6F6973
"""Keeps a sampling policy's draws apart from the environment's, which has the same seed."""


@dataclass(frozen=True, slots=True)
class StepAgreement:
    """What a splice does to single actions, on the states of the original policy.

    Undefined figures are None: ``agreement``, ``kl`` and ``regret`` for discrete actions (KL for
    logits, regret for values), ``rmse`` for continuous ones.
    """

    states: int
    agreement: float | None
    """Share of states with the same action."""
    kl: float | None
    """Mean KL(original ‖ spliced) of the softmax, in nat."""
    regret: float | None
    """Mean of max Q − Q(action of the splice), by the original's values, over their mean top-2
    gap."""
    rmse: float | None
    """Root mean square difference of actions, in units of each action's standard deviation."""
    output_fvu: float
    """Fraction of variance unexplained of the compared outputs: centred logits or values (for
    values, the advantages), or actions."""


@dataclass(frozen=True, slots=True)
class Equivalence:
    """Two one-sided tests at 5 % each on paired differences of returns (Schuirmann 1987)."""

    difference: float
    """Mean of splice − original."""
    lo: float
    hi: float
    """90 % interval of the difference, clustered by environment seed."""
    margin: float
    equivalent: bool


@dataclass(frozen=True, slots=True)
class SpliceResult:
    """One replacement's behaviour."""

    name: str
    returns: tuple[float, ...]
    """By environment seed."""
    first_divergence: float | None
    """Median step at which the action first differs, over episodes that diverge."""
    diverged: float
    """Share of episodes that diverge at all."""
    agreement: StepAgreement | None


@dataclass(frozen=True, slots=True)
class BehaviourResult:
    """The original beside its replacements."""

    seeds: tuple[int, ...]
    original: SpliceResult
    ablated: SpliceResult
    """With the hook point's output replaced by its training mean."""
    spliced: tuple[SpliceResult, ...]

    def kept(self, result: SpliceResult) -> float:
        """Share of (original − ablated) that a replacement keeps."""
        full = np.mean(self.original.returns) - np.mean(self.ablated.returns)
        own = np.mean(result.returns) - np.mean(self.ablated.returns)
        return float(own / full) if full else float("nan")


def behaviour_fidelity(
    policy: ActingPolicy,
    hook_point: str,
    replacements: Mapping[str, Replacement],
    y_mean: Tensor,
    *,
    seeds: Sequence[int],
    max_steps: int | None = None,
    on_progress: Callable[[str, int], None] | None = None,
) -> BehaviourResult:
    """Paired rollouts of the policy as it is, mean-ablated, and with each replacement.

    Args:
        policy: who acts. One that samples draws the same noise per seed and step in every arm, so
            that a difference is the replacement's.
        hook_point: where.
        replacements: name → what replaces y; several training seeds of one transcoder.
        y_mean: float [d_out], the mean ablation.
        seeds: environment seeds, none of them collected from.
        max_steps: truncates endless episodes.
        on_progress: told the arm and its step.

    Raises:
        UserError: when there are fewer than 2 seeds or no replacement.
    """
    if len(seeds) < 2 or not replacements:
        raise UserError("behaviour needs at least 2 seeds and 1 transcoder to splice in")
    with EnvironmentPool(policy.environment, len(seeds)) as pool:
        runner = _Runner(
            policy,
            hook_point,
            pool,
            tuple(seeds),
            max_steps=max_steps,
            on_progress=on_progress,
        )
        original, actions, agreements = runner.original(replacements)
        ablated = runner.arm("mean-ablated", lambda _, y: y_mean.expand(y.shape), actions, None)
        spliced = tuple(
            runner.arm(name, replacement, actions, agreements[name])
            for name, replacement in replacements.items()
        )
    return BehaviourResult(tuple(seeds), original, ablated, spliced)


def equivalence(
    original: SpliceResult, ablated: SpliceResult, spliced: Sequence[SpliceResult]
) -> Equivalence:
    """Equivalence of the mean over training seeds, clustered by environment seed."""
    own = np.asarray(original.returns)
    difference = np.mean([result.returns for result in spliced], axis=0) - own
    margin = EQUIVALENCE_SHARE * float(own.mean() - np.mean(ablated.returns))
    n = len(difference)
    half = float(stats.t.ppf(0.95, n - 1) * difference.std(ddof=1) / np.sqrt(n))
    mean = float(difference.mean())
    lo, hi = mean - half, mean + half
    return Equivalence(mean, lo, hi, margin, equivalent=-margin < lo and hi < margin)


class _Runner:
    def __init__(
        self,
        policy: ActingPolicy,
        hook_point: str,
        pool: EnvironmentPool,
        seeds: tuple[int, ...],
        *,
        max_steps: int | None,
        on_progress: Callable[[str, int], None] | None,
    ) -> None:
        self.policy, self.hook_point, self.pool = policy, hook_point, pool
        self.seeds, self.max_steps = seeds, max_steps
        self.on_progress = on_progress

    def original(
        self, replacements: Mapping[str, Replacement]
    ) -> tuple[SpliceResult, list[list[NDArray[Any]]], dict[str, StepAgreement]]:
        """The untouched policy; on each of its states also asks every splice what it would do."""
        outputs: list[NDArray[np.float64]] = []
        others: dict[str, list[NDArray[np.float64]]] = {name: [] for name in replacements}

        def act(obs: NDArray[Any], copies: NDArray[np.intp]) -> NDArray[Any]:
            own = self.policy.outputs(obs)
            outputs.append(own.double().numpy())
            for name, replacement in replacements.items():
                with Splice(self.policy.module, self.hook_point, replacement):
                    others[name].append(self.policy.outputs(obs).double().numpy())
            return self._sampled(own, copies, noise)

        noise = self._noise()
        actions: list[list[NDArray[Any]]] = [[] for _ in self.seeds]
        returns = self._run("original", act, actions, None)[0]
        own = np.concatenate(outputs)
        agreements = {
            name: step_agreement(self.policy, own, np.concatenate(parts))
            for name, parts in others.items()
        }
        return SpliceResult("original", returns, None, 0.0, None), actions, agreements

    def arm(
        self,
        name: str,
        replacement: Replacement,
        original: list[list[NDArray[Any]]],
        agreement: StepAgreement | None,
    ) -> SpliceResult:
        """One replacement from the same starts."""
        with ExitStack() as stack:
            stack.enter_context(Splice(self.policy.module, self.hook_point, replacement))
            noise = self._noise()

            def act(obs: NDArray[Any], copies: NDArray[np.intp]) -> NDArray[Any]:
                return self._sampled(self.policy.outputs(obs), copies, noise)

            returns, first = self._run(name, act, None, original)
        diverged = first[first >= 0]
        return SpliceResult(
            name,
            returns,
            float(np.median(diverged)) if len(diverged) else None,
            float((first >= 0).mean()),
            agreement,
        )

    def _noise(self) -> list[np.random.Generator]:
        """Of each seed's episode, the same in every arm."""
        return [np.random.default_rng([seed, _NOISE]) for seed in self.seeds]

    def _sampled(
        self, outputs: Tensor, copies: NDArray[np.intp], noise: list[np.random.Generator]
    ) -> NDArray[Any]:
        rows = zip(outputs, copies, strict=True)
        return np.concatenate([self.policy.actions(row[None], noise[copy]) for row, copy in rows])

    def _run(
        self,
        name: str,
        act: Callable[[NDArray[Any], NDArray[np.intp]], NDArray[Any]],
        record: list[list[NDArray[Any]]] | None,
        compare: list[list[NDArray[Any]]] | None,
    ) -> tuple[tuple[float, ...], NDArray[np.int64]]:
        returns = np.zeros(len(self.seeds))
        first = np.full(len(self.seeds), -1, np.int64)
        spread = _action_spread(compare)
        for step in self.pool.episodes(self.seeds, act, max_steps=self.max_steps):
            returns[step.copies] += step.rewards
            for row, copy in enumerate(step.copies):
                if record is not None:
                    record[copy].append(step.actions[row])
                if compare is not None and first[copy] < 0:
                    theirs = compare[copy]
                    if step.t >= len(theirs) or _differs(step.actions[row], theirs[step.t], spread):
                        first[copy] = step.t
            if self.on_progress is not None and step.t % 50 == 0:
                self.on_progress(name, step.t)
        return tuple(float(value) for value in returns), first


def step_agreement(
    policy: ActingPolicy, own: NDArray[np.float64], other: NDArray[np.float64]
) -> StepAgreement:
    """Compare outputs [n, A] of the original with those of a splice on the same states."""
    actions = policy.actions(torch.from_numpy(own))
    spliced = policy.actions(torch.from_numpy(other))
    if policy.output_kind is OutputKind.CONTINUOUS:
        spread = np.maximum(actions.std(0), 1e-9)
        gap = (actions.astype(np.float64) - spliced) / spread
        rmse = float(np.sqrt(np.mean(np.square(gap))))
        return StepAgreement(len(own), None, None, None, rmse, _fvu(actions, spliced))
    same = float(np.mean(actions == spliced))
    centred, centred_other = (out - out.mean(1, keepdims=True) for out in (own, other))
    fvu = _fvu(centred, centred_other)
    if policy.output_kind is OutputKind.VALUES:
        top = np.partition(own, -2, axis=1)[:, -2:]
        lost = own.max(1) - own[np.arange(len(own)), spliced]
        gap_scale = max(float(np.mean(top[:, 1] - top[:, 0])), 1e-12)
        return StepAgreement(len(own), same, None, float(lost.mean() / gap_scale), None, fvu)
    log_p, log_q = _log_softmax(own), _log_softmax(other)
    kl = float(np.mean((np.exp(log_p) * (log_p - log_q)).sum(1)))
    return StepAgreement(len(own), same, kl, None, None, fvu)


def _fvu(y: NDArray[Any], y_hat: NDArray[Any]) -> float:
    total = float(np.square(y - y.mean(0)).sum())
    return float(np.square(y.astype(np.float64) - y_hat).sum() / total) if total else 0.0


def _log_softmax(out: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = out - out.max(1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return result


def _action_spread(recorded: list[list[NDArray[Any]]] | None) -> NDArray[np.float64] | None:
    """Standard deviation of each continuous action; None for discrete ones."""
    if recorded is None or np.ndim(recorded[0][0]) == 0:
        return None
    every = np.concatenate([np.stack(actions) for actions in recorded])
    spread: NDArray[np.float64] = np.maximum(every.std(0), 1e-9)
    return spread


def _differs(one: Any, two: Any, spread: NDArray[np.float64] | None) -> bool:
    if spread is None:
        return bool(one != two)
    return bool((np.abs(one - two) > DIVERGENCE * spread).any())
