"""Many arms on many episodes at once: the engine of the experiment.

Rows are (arm, episode) pairs. A fixed number of them is in play; a row whose episode ends makes
room for the next pair, so that the batch stays full whatever the episodes' lengths. Episode e has
one start state and one uniform number per step, whatever the arm: arms are compared on the same
luck (common random numbers), which is what makes paired differences sharp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from interlatent_live.environments import cartpole_vectorised as cartpole
from interlatent_live.environments.families.cartpole import CARTPOLE
from interlatent_live.interventions.reproduction.arms import UNSTEERED, MetricCondition

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from interlatent_live.interventions.reproduction.arms import Arm, Condition
    from interlatent_live.policies.mlp import MlpPolicy
    from interlatent_live.transcoders.transcoder import Transcoder

SLOTS = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Episodes:
    """Start states [E, 4] and uniform numbers [E, 500] of E episodes."""

    starts: NDArray[np.float64]
    uniforms: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.starts)

    def first(self, count: int) -> Episodes:
        """The first ``count`` of them."""
        return Episodes(self.starts[:count], self.uniforms[:count])


def episodes(first_seed: int, count: int) -> Episodes:
    """Episodes with Gymnasium's start states for seeds ``first_seed``, …, and luck of their own."""
    starts = cartpole.start_states(range(first_seed, first_seed + count))
    rng = np.random.default_rng([first_seed, count])
    return Episodes(starts, rng.random((count, cartpole.TIME_LIMIT), dtype=np.float32))


@dataclass(frozen=True, slots=True, eq=False)
class Net:
    """The policy 4-128-64-2 as the engine runs it, maybe with layers replaced by transcoders."""

    policy: MlpPolicy
    splice: tuple[Transcoder | None, Transcoder | None] = (None, None)
    condition_features: Transcoder | None = None
    """Transcoder of hidden.0 whose features the conditions speak of."""

    def layer(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """Output of hidden layer ``index``, [n, d], from its input."""
        spliced = self.splice[index]
        if spliced is not None:
            return spliced.decode(spliced.encode(x), x)
        out: torch.Tensor = self.policy.hidden[index](x)
        return out


class _Table:
    """The arms as arrays, so that a row finds what is its own by one index."""

    def __init__(self, arms: Sequence[Arm], sizes: tuple[int, int]) -> None:
        self.deltas: list[torch.Tensor | None] = []
        for layer, size in enumerate(sizes):
            rows = np.zeros((len(arms), size), np.float32)
            for index, arm in enumerate(arms):
                if arm.layer == layer and arm.delta is not None:
                    rows[index] = arm.delta
            self.deltas.append(torch.from_numpy(rows) if rows.any() else None)
        self.bias = np.array([arm.bias for arm in arms], np.float32)
        distinct: dict[Condition | None, int] = {}
        for arm in arms:
            distinct.setdefault(arm.condition, len(distinct))
        self.conditions = list(distinct)
        self.condition = np.array([distinct[arm.condition] for arm in arms])

    @property
    def conditional(self) -> bool:
        return self.conditions != [None]


@torch.no_grad()
def returns(net: Net, arms: Sequence[Arm], played: Episodes) -> NDArray[np.int64]:
    """Returns [A, E] of A arms on E episodes (CartPole's return is the episode's length)."""
    sizes = net.policy.spec.layer_sizes
    table = _Table(arms, (sizes[1], sizes[2]))
    n_arms, n_episodes = len(arms), len(played)
    total = n_arms * n_episodes
    out = np.zeros(total, np.int64)
    pair = np.arange(min(SLOTS, total))
    following = len(pair)
    arm, episode = np.divmod(pair, n_episodes)
    state = played.starts[episode]
    t = np.zeros(len(pair), np.int64)
    while len(pair):
        right = _actions(net, table, state, arm, played.uniforms[episode, t])
        state = cartpole.step(state, right)
        t += 1
        done = cartpole.terminated(state) | (t >= cartpole.TIME_LIMIT)
        ended = np.nonzero(done)[0]
        if not len(ended):
            continue
        out[pair[ended]] = t[ended]
        fresh = np.arange(following, min(following + len(ended), total))
        following += len(fresh)
        slots = ended[: len(fresh)]
        pair[slots] = fresh
        arm[slots], episode[slots] = np.divmod(fresh, n_episodes)
        state[slots] = played.starts[episode[slots]]
        t[slots] = 0
        if len(fresh) < len(ended):
            keep = np.ones(len(pair), bool)
            keep[ended[len(fresh) :]] = False
            pair, arm, episode, t = pair[keep], arm[keep], episode[keep], t[keep]
            state = state[keep]
    return out.reshape(n_arms, n_episodes)


def _actions(
    net: Net,
    table: _Table,
    state: NDArray[np.float64],
    arm: NDArray[np.int64],
    uniform: NDArray[np.float32],
) -> NDArray[np.bool_]:
    """[n] whether to push right: sampled from the softmax of the steered logits."""
    x = torch.from_numpy(cartpole.observation(state))
    gain = _gain(net, table, state, x, arm) if table.conditional else None
    index = torch.from_numpy(arm)
    y = x
    for layer in (0, 1):
        y = net.layer(layer, y)
        deltas = table.deltas[layer]
        if deltas is not None:
            change = deltas[index]
            if gain is not None:
                change = change * torch.from_numpy(gain)[:, None]
            y = y + change
    logits = net.policy.head(y).numpy()
    shift = table.bias[arm]
    if gain is not None:
        shift = shift * gain
    margin = logits[:, 1] - logits[:, 0] + shift
    # u < σ(m) without the exponential overflowing: logit(u) < m.
    with np.errstate(divide="ignore"):
        chosen: NDArray[np.bool_] = np.log(uniform) - np.log1p(-uniform) < margin
    return chosen


def _gain(
    net: Net,
    table: _Table,
    state: NDArray[np.float64],
    x: torch.Tensor,
    arm: NDArray[np.int64],
) -> NDArray[np.float32]:
    """[n] what each row's delta is multiplied by: 1, 0 or −1 by its arm's condition."""
    metrics = CARTPOLE.measure(state)
    features = None
    if net.condition_features is not None:
        features = net.condition_features.encode(x).numpy()
    columns = np.empty((len(state), len(table.conditions)), np.float32)
    for index, condition in enumerate(table.conditions):
        if condition is None:
            columns[:, index] = 1.0
        elif isinstance(condition, MetricCondition):
            columns[:, index] = condition.sign(metrics)
        elif features is None:
            raise ValueError("a condition on a feature needs the transcoder it speaks of")
        else:
            columns[:, index] = features[:, condition.feature] > condition.threshold
    gain: NDArray[np.float32] = columns[np.arange(len(state)), table.condition[arm]]
    return gain


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """The steps of whole episodes, in lockstep order: n rows."""

    states: NDArray[np.float64]
    """[n, 4] what the policy saw."""
    actions: NDArray[np.bool_]
    """[n] whether it pushed right."""
    episode: NDArray[np.int64]
    """[n]."""
    t: NDArray[np.int64]
    """[n] step within the episode."""
    lengths: NDArray[np.int64]
    """[E]."""


@torch.no_grad()
def trace(net: Net, played: Episodes) -> Trace:
    """Every step of the unsteered policy on these episodes."""
    sizes = net.policy.spec.layer_sizes
    table = _Table([UNSTEERED], (sizes[1], sizes[2]))
    lengths = np.zeros(len(played), np.int64)
    alive = np.arange(len(played))
    state = played.starts
    rows: list[tuple[NDArray[Any], ...]] = []
    for t in range(cartpole.TIME_LIMIT):
        arm = np.zeros(len(alive), np.int64)
        right = _actions(net, table, state, arm, played.uniforms[alive, t])
        rows.append((state, right, alive, np.full(len(alive), t)))
        state = cartpole.step(state, right)
        lengths[alive] = t + 1
        keep = ~cartpole.terminated(state)
        state, alive = state[keep], alive[keep]
        if not len(alive):
            break
    states, actions, episode, steps = (np.concatenate(column) for column in zip(*rows, strict=True))
    return Trace(states, actions, episode, steps, lengths)
