"""Why this action? A complete account of one decision, over hook points, that adds up.

The quantity explained is a linear read-out of the last hook point's output y: logit(chosen) −
logit(runner-up), or an action minus its mean, with what the tail after it does beyond its gradient
as an explicit constant. With the transcoder, y = Σ fᵢ dᵢ + x W_skip + b_dec + error, so the
quantity is a sum over features, skip, bias and an error node. A feature that is on is linear in its
input, fᵢ = x·eᵢ + bᵢ, and x is the output of the hook point before, which opens each term again,
down to the observation (Ameisen et al., "Circuit Tracing", 2025, §3: attribution graphs with error
nodes; here nothing is frozen because an active feature *is* linear). Where layers without a
transcoder lie between the observation and the first hook point, they are followed by the caller's
path integral, and what it does not give to a number of the observation is a term of its own. At
every level the terms sum to the same number; the tests hold that to 1e-4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

if TYPE_CHECKING:
    from collections.abc import Sequence

EXPLAINED_SHARE: Final = 0.5
MOST_EDGES: Final = 64
MOST_TERMS: Final = 24
"""Of each level in an answer; what the lighter ones add up to is one more."""

Observed = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Readings [r, d_in] of the first hook point's input → the part [r, n] of each number of the
observation in them, beside a usual observation."""


@dataclass(frozen=True, slots=True, eq=False)
class LayerTrace:
    """One hook point at one step: what went in and out, and its transcoder."""

    hook_point: str
    x: NDArray[np.floating]
    """[d_in]."""
    y: NDArray[np.floating]
    """[d_out]."""
    index: NDArray[np.integer]
    """[a] features that are on."""
    value: NDArray[np.floating]
    """[a] their activations."""
    W_enc: NDArray[np.floating]
    """[d_in, F]."""
    b_enc: NDArray[np.floating]
    """[F]."""
    W_dec: NDArray[np.floating]
    """[F, d_out]."""
    b_dec: NDArray[np.floating]
    """[d_out]."""
    W_skip: NDArray[np.floating] | None = None
    """[d_in, d_out]."""


@dataclass(frozen=True, slots=True, eq=False)
class ActionTarget:
    """The number to be explained, as seen from the last hook point's output y."""

    label: str
    """Such as ``"right over left"``."""
    value: float
    """Its exact value at this step."""
    gradient: NDArray[np.floating]
    """[d_out] its gradient at y; the head's difference of rows where the tail is linear."""


@dataclass(frozen=True, slots=True)
class Node:
    """A term of the sum at one level."""

    name: str
    """``feature:HOOK/INDEX``, ``input:HOOK/INDEX``, ``observation:INDEX``, ``baseline:HOOK``,
    ``skip:HOOK``, ``bias:HOOK``, ``error:HOOK`` or ``tail``."""
    kind: str
    contribution: float


@dataclass(frozen=True, slots=True)
class Edge:
    """How much of a downstream term comes from an upstream one."""

    source: str
    target: str
    weight: float


@dataclass(frozen=True, slots=True)
class Attribution:
    """The account of one decision."""

    label: str
    value: float
    levels: tuple[tuple[Node, ...], ...]
    """From the last hook point to the observation; each level sums to ``value``."""
    edges: tuple[Edge, ...]
    feature_share: float
    """Σ|feature terms| / Σ|all terms| at the last hook point."""

    @property
    def verdict(self) -> str:
        """Whether features carry the decision."""
        if self.feature_share < EXPLAINED_SHARE:
            return f"not explained by features ({self.feature_share:.0%} of the terms)"
        return f"features carry {self.feature_share:.0%} of the terms"

    def residuals(self) -> tuple[float, ...]:
        """Value minus the sum of each level; zero up to rounding."""
        return tuple(self.value - sum(n.contribution for n in level) for level in self.levels)

    def top(self, count: int = 8) -> tuple[Node, ...]:
        """The largest terms at the last hook point."""
        ranked = sorted(self.levels[0], key=lambda node: -abs(node.contribution))
        return tuple(ranked[:count])

    def to_json(self, edges: int = MOST_EDGES, terms: int = MOST_TERMS) -> dict[str, Any]:
        """The graph as the API shows it: of each level the largest terms, and the heaviest edges.

        What the other terms of a level add up to is its last one, of kind ``others``, so that a
        level still sums to ``value``.
        """
        levels = [_shown(level, depth, terms) for depth, level in enumerate(self.levels)]
        known = {"action", *(one["name"] for level in levels for one in level)}
        among = [edge for edge in self.edges if edge.source in known and edge.target in known]
        heavy = sorted(among, key=lambda edge: -abs(edge.weight))[:edges]
        return {
            "label": self.label,
            "value": self.value,
            "feature_share": self.feature_share,
            "verdict": self.verdict,
            "levels": levels,
            "edges": [{"source": e.source, "target": e.target, "weight": e.weight} for e in heavy],
            "edges_left_out": len(self.edges) - len(heavy),
        }


def _shown(level: Sequence[Node], depth: int, most: int) -> list[dict[str, Any]]:
    ranked = sorted(level, key=lambda node: -abs(node.contribution))
    shown = [
        {"name": n.name, "kind": n.kind, "contribution": n.contribution} for n in ranked[:most]
    ]
    if rest := ranked[most:]:
        total = sum(node.contribution for node in rest)
        shown.append(
            {
                "name": f"others:{depth}",
                "kind": "others",
                "contribution": total,
                "count": len(rest),
            }
        )
    return shown


@dataclass(frozen=True, slots=True, eq=False)
class _Reading:
    """A term of the level above as a linear reading of the vector below: r · vector + constant."""

    name: str
    reading: NDArray[np.float64]


def attribute(
    layers: Sequence[LayerTrace], target: ActionTarget, *, observed: Observed | None = None
) -> Attribution:
    """Decompose the target over hook points, the last one first.

    ``layers`` are in the order of the forward pass, each the input of the next or of something
    between: where a layer's x is not the y before it, the difference is a ``between`` node. The
    last level is the first layer's x, or with ``observed`` what that makes of the observation.

    Raises:
        ValueError: without layers, or where shapes do not fit.
    """
    if not layers:
        raise ValueError("an attribution needs at least one hook point")
    last = layers[-1]
    gradient = np.asarray(target.gradient, np.float64)
    if gradient.shape != last.y.shape:
        raise ValueError(f"the gradient is {gradient.shape}, the output is {last.y.shape}")
    tail = target.value - float(gradient @ np.asarray(last.y, np.float64))
    carried: list[Node] = [Node("tail", "tail", tail)] if abs(tail) > 1e-12 else []
    edges: list[Edge] = [Edge("tail", "action", tail)] if carried else []
    readings = [_Reading("action", gradient)]
    levels: list[tuple[Node, ...]] = []
    share = 0.0
    for depth in range(len(layers) - 1, -1, -1):
        layer = layers[depth]
        above = None if depth == 0 else np.asarray(layers[depth - 1].y, np.float64)
        nodes, below, constants = _open_layer(layer, readings, edges)
        levels.append((*nodes, *carried))
        if depth == len(layers) - 1:
            sizes = {n.name: abs(n.contribution) for n in levels[0]}
            features = sum(abs(n.contribution) for n in levels[0] if n.kind == "feature")
            total = sum(sizes.values())
            share = features / total if total else 0.0
        carried += constants
        if above is not None:
            carried += _between(layer, above, below, edges)
        readings = below
    if observed is None:
        ends = _inputs(layers[0], readings, edges)
    else:
        ends = _observations(layers[0], readings, edges, observed)
    levels.append((*ends, *carried))
    return Attribution(target.label, target.value, tuple(levels), tuple(edges), share)


def _open_layer(
    layer: LayerTrace, readings: list[_Reading], edges: list[Edge]
) -> tuple[list[Node], list[_Reading], list[Node]]:
    """Terms of a layer, how they read its input, and what ends here (bias, error).

    Every reading of y is opened into features, skip, bias and error; a feature's terms are added
    over all readings.
    """
    hook = layer.hook_point
    x, y = np.asarray(layer.x, np.float64), np.asarray(layer.y, np.float64)
    index, value = np.asarray(layer.index), np.asarray(layer.value, np.float64)
    decoders = np.asarray(layer.W_dec, np.float64)[index]
    encoders = np.asarray(layer.W_enc, np.float64)[:, index]
    b_enc, b_dec = (np.asarray(b, np.float64) for b in (layer.b_enc, layer.b_dec))
    skip = None if layer.W_skip is None else np.asarray(layer.W_skip, np.float64)
    skipped = np.zeros_like(y) if skip is None else x @ skip
    error = y - value @ decoders - skipped - b_dec
    # The encoder runs in float32 and may be a JumpReLU: what it says beyond its own line is named.
    slack = value - (x @ encoders + b_enc[index])
    total = sum((r.reading for r in readings), np.zeros_like(y))
    through = decoders @ total
    nodes = [
        Node(f"feature:{hook}/{i}", "feature", float(v * t))
        for i, v, t in zip(index, value, through, strict=True)
    ]
    for reading in readings:
        for i, weight in zip(index, value * (decoders @ reading.reading), strict=True):
            edges.append(Edge(f"feature:{hook}/{i}", reading.name, float(weight)))
        edges.append(Edge(f"bias:{hook}", reading.name, float(reading.reading @ b_dec)))
        edges.append(Edge(f"error:{hook}", reading.name, float(reading.reading @ error)))
        if skip is not None:
            edges.append(Edge(f"skip:{hook}", reading.name, float(reading.reading @ skipped)))
    ends = [
        Node(f"bias:{hook}", "bias", float(total @ b_dec)),
        Node(f"error:{hook}", "error", float(total @ error)),
    ]
    below = [
        _Reading(f"feature:{hook}/{i}", encoders[:, place] * through[place])
        for place, i in enumerate(index)
    ]
    constants = [
        *ends,
        Node(f"encoder bias:{hook}", "bias", float(b_enc[index] @ through)),
        Node(f"encoder slack:{hook}", "error", float(slack @ through)),
    ]
    if skip is not None:
        nodes.append(Node(f"skip:{hook}", "skip", float(total @ skipped)))
        below.append(_Reading(f"skip:{hook}", skip @ total))
    return nodes + ends, below, constants


def _between(
    layer: LayerTrace, above: NDArray[np.float64], readings: list[_Reading], edges: list[Edge]
) -> list[Node]:
    """What lies between a layer's input and the output of the hook point before it."""
    x = np.asarray(layer.x, np.float64)
    if above.shape != x.shape:
        raise ValueError(
            f"{layer.hook_point} reads {x.shape} values, the hook point before it gives "
            f"{above.shape}; they are not neighbours"
        )
    gap = x - above
    name = f"between:{layer.hook_point}"
    total = 0.0
    for reading in readings:
        weight = float(reading.reading @ gap)
        total += weight
        if abs(weight) > 1e-12:
            edges.append(Edge(name, reading.name, weight))
    return [Node(name, "error", total)] if abs(total) > 1e-12 else []


def _inputs(layer: LayerTrace, readings: list[_Reading], edges: list[Edge]) -> list[Node]:
    x = np.asarray(layer.x, np.float64)
    total = np.zeros_like(x)
    for reading in readings:
        total += reading.reading
        for i, weight in enumerate(reading.reading * x):
            edges.append(Edge(f"input:{layer.hook_point}/{i}", reading.name, float(weight)))
    return [
        Node(f"input:{layer.hook_point}/{i}", "input", float(weight))
        for i, weight in enumerate(total * x)
    ]


def _observations(
    layer: LayerTrace, readings: list[_Reading], edges: list[Edge], observed: Observed
) -> list[Node]:
    if not readings:
        return []
    x = np.asarray(layer.x, np.float64)
    stacked = np.stack([reading.reading for reading in readings])
    parts = np.asarray(observed(stacked), np.float64)
    # What a usual observation would give, and what the path integral's sum misses.
    base = stacked @ x - parts.sum(1)
    name = f"baseline:{layer.hook_point}"
    for reading, weights, rest in zip(readings, parts, base, strict=True):
        for i, weight in enumerate(weights):
            edges.append(Edge(f"observation:{i}", reading.name, float(weight)))
        edges.append(Edge(name, reading.name, float(rest)))
    nodes = [
        Node(f"observation:{i}", "observation", float(weight))
        for i, weight in enumerate(parts.sum(0))
    ]
    return [*nodes, Node(name, "baseline", float(base.sum()))]


@dataclass(frozen=True, slots=True)
class Ablation:
    """What a feature's term says, and what taking the feature out really changes."""

    name: str
    contribution: float
    measured: float


def ablate_strongest(
    attribution: Attribution, ablated: Callable[[str], float], count: int = 10
) -> tuple[Ablation, ...]:
    """The features with the largest terms at the last hook point, each taken out.

    ``ablated(name)`` gives the target's value with that feature taken out.
    """
    features = [n for n in attribution.top(len(attribution.levels[0])) if n.kind == "feature"]
    return tuple(
        Ablation(node.name, node.contribution, attribution.value - ablated(node.name))
        for node in features[:count]
    )


def rank_agreement(ablations: Sequence[Ablation]) -> float | None:
    """Spearman's ρ between terms and measured changes; None with under three, or all alike."""
    if len(ablations) < 3:
        return None
    said = [one.contribution for one in ablations]
    measured = [one.measured for one in ablations]
    if len(set(said)) == 1 or len(set(measured)) == 1:
        return None
    return float(spearmanr(said, measured).statistic)
