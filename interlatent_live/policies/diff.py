"""What changed between two versions of a policy, on a fixed bank of states.

Three questions, in this order, because the later ones mean little without the earlier: do they act
differently (agreement, divergence), do their layers represent the states differently (linear CKA,
Kornblith et al. 2019, §3), and which features of the old version are still there (activations of
features matched one to one on the bank; or, without a transcoder of the new version, the old
transcoder's features read from both, with the error it makes on the new one).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from interlatent_live.environments.metric_packs import OutputKind
from interlatent_live.errors import MismatchError, UserError
from interlatent_live.policies.mlp import MlpPolicy
from interlatent_live.policies.spec import Adapter
from interlatent_live.transcoders.capture import Capture

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from interlatent_live.policies.bank import StateBank
    from interlatent_live.transcoders.acting import ActingPolicy
    from interlatent_live.transcoders.transcoder import Transcoder

KEPT_ABOVE = 0.7
"""A matched pair with a correlation above this is the same feature."""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How differently they act on the bank."""

    agreement: float | None
    """Share of states with the same greedy action; None for continuous control."""
    kl: float | None
    """Mean KL(old ‖ new) of the softmaxes, nat; None for continuous control."""
    action_rmse: float | None
    """Root mean squared difference of the actions; None for discrete control."""


@dataclass(frozen=True, slots=True)
class FeaturePair:
    """An old feature and the new one that fires most like it."""

    old: int
    new: int
    correlation: float
    old_density: float
    new_density: float


@dataclass(frozen=True, slots=True)
class LayerDiff:
    """One hook point."""

    hook_point: str
    cka: float
    """Linear CKA of the two versions' outputs y; 1 when equal up to rotation and scale."""
    fvu_old: float | None = None
    """Of the old transcoder on the old version, and on the new one: how stale it is."""
    fvu_new: float | None = None
    kept: tuple[FeaturePair, ...] = ()
    changed: tuple[FeaturePair, ...] = ()
    """Matched, but below the bar, most changed first."""
    gone: tuple[int, ...] = ()
    """Live in the old version, without a partner in the new one."""
    new: tuple[int, ...] = ()
    """Live in the new version, without a partner in the old one."""
    retrained: bool = False
    """Whether the new version has a transcoder of its own; if not, feature numbers are the
    old's."""


@dataclass(frozen=True, slots=True)
class PolicyDiff:
    """The whole comparison."""

    old_hash: str
    new_hash: str
    bank_hash: str
    states: int
    behaviour: Behaviour
    layers: tuple[LayerDiff, ...]


@torch.no_grad()
def diff_policies(
    old: ActingPolicy,
    new: ActingPolicy,
    bank: StateBank,
    *,
    old_transcoders: Mapping[str, Transcoder] | None = None,
    new_transcoders: Mapping[str, Transcoder] | None = None,
    least_density: float = 0.001,
) -> PolicyDiff:
    """Compare two versions on a bank; transcoders by hook point.

    Raises:
        MismatchError: when the versions' shapes differ, or the bank is of another environment.
        UserError: when a new transcoder has no old one to be matched with.
    """
    if _shapes(old) != _shapes(new):
        raise MismatchError(
            f"{old.name} has weights {_shapes(old)}, {new.name} has {_shapes(new)}: only versions "
            "of one architecture can be compared"
        )
    for policy in (old, new):
        if policy.environment and policy.environment != bank.environment:
            raise MismatchError(
                f"{policy.name} acts in {policy.environment}, the bank is of {bank.environment}"
            )
        _check_width(policy, bank)
    theirs, ours = new_transcoders or {}, old_transcoders or {}
    orphans = sorted(set(theirs) - set(ours))
    if orphans:
        raise UserError(
            f"the new version's transcoder of {orphans[0]} has no partner in the old version: give "
            "both, or only the old one"
        )
    names = tuple(dict.fromkeys((*old.hook_points(), *ours)))
    (out_old, seen_old), (out_new, seen_new) = (_seen(one, names, bank) for one in (old, new))
    layers = []
    for hook_point in names:
        (x_old, y_old), (x_new, y_new) = seen_old[hook_point], seen_new[hook_point]
        base = LayerDiff(hook_point, linear_cka(y_old, y_new))
        if hook_point in ours:
            base = _match(
                base,
                ours[hook_point],
                theirs.get(hook_point),
                (x_old, y_old),
                (x_new, y_new),
                least_density=least_density,
            )
        layers.append(base)
    return PolicyDiff(
        old.policy_hash,
        new.policy_hash,
        bank.hash,
        len(bank.obs),
        _behaviour(old, out_old, out_new),
        tuple(layers),
    )


def linear_cka(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """‖AᵀB‖² / (‖AᵀA‖ ‖BᵀB‖) of centred [n, d]; 1 when both are constant."""
    a64, b64 = (m.astype(np.float64) - m.mean(0, dtype=np.float64) for m in (a, b))
    own = np.linalg.norm(a64.T @ a64) * np.linalg.norm(b64.T @ b64)
    if own == 0.0:
        return 1.0 if not a64.any() and not b64.any() else 0.0
    return float(np.linalg.norm(a64.T @ b64) ** 2 / own)


def _shapes(policy: ActingPolicy) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in policy.module.state_dict().items()}


def _check_width(policy: ActingPolicy, bank: StateBank) -> None:
    if not isinstance(policy.module, MlpPolicy):
        return
    spec = policy.module.spec
    if spec.adapter is Adapter.NONE and bank.obs.shape[1] != spec.layer_sizes[0]:
        raise MismatchError(
            f"the bank has {bank.obs.shape[1]} observations per state, the policy takes "
            f"{spec.layer_sizes[0]}"
        )


def _seen(
    policy: ActingPolicy, names: tuple[str, ...], bank: StateBank
) -> tuple[torch.Tensor, dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]]:
    """Outputs [n, A], and (x, y) of every hook point, on the bank's states."""
    with Capture(policy.module, names) as capture:
        out = policy.outputs(bank.obs)
        seen = capture.take()
    return out, {name: (x.float().numpy(), y.float().numpy()) for name, (x, y) in seen.items()}


def _behaviour(policy: ActingPolicy, out_old: torch.Tensor, out_new: torch.Tensor) -> Behaviour:
    if policy.output_kind is OutputKind.CONTINUOUS:
        # Both speak of actions alike: they are versions of one policy.
        acts = [policy.actions(out).astype(np.float64) for out in (out_old, out_new)]
        return Behaviour(None, None, float(np.sqrt(np.square(acts[0] - acts[1]).mean())))
    log_old, log_new = (torch.log_softmax(out.double(), dim=1) for out in (out_old, out_new))
    kl = float((log_old.exp() * (log_old - log_new)).sum(1).mean())
    agreement = float((out_old.argmax(1) == out_new.argmax(1)).double().mean())
    return Behaviour(agreement, max(kl, 0.0), None)


def _match(
    base: LayerDiff,
    ours: Transcoder,
    theirs: Transcoder | None,
    old: tuple[NDArray[np.float32], NDArray[np.float32]],
    new: tuple[NDArray[np.float32], NDArray[np.float32]],
    *,
    least_density: float,
) -> LayerDiff:
    other = theirs or ours
    features_old, features_new = _features(ours, old[0]), _features(other, new[0])
    density_old, density_new = (features_old > 0).mean(0), (features_new > 0).mean(0)
    live_old = np.nonzero(density_old >= least_density)[0]
    live_new = np.nonzero(density_new >= least_density)[0]
    if theirs is None:
        # The same dictionary reads both versions: feature j is feature j.
        both = np.intersect1d(live_old, live_new)
        columns = ((features_old[:, j], features_new[:, j]) for j in both)
        matched = [(int(j), int(j), _correlation(*c)) for j, c in zip(both, columns, strict=True)]
    else:
        matched = _matched_across(features_old, features_new, live_old, live_new)
    pairs = [
        FeaturePair(i, j, r, float(density_old[i]), float(density_new[j])) for i, j, r in matched
    ]
    return LayerDiff(
        hook_point=base.hook_point,
        cka=base.cka,
        fvu_old=_fvu(ours, *old),
        fvu_new=_fvu(ours, *new),
        kept=tuple(pair for pair in pairs if pair.correlation > KEPT_ABOVE),
        changed=tuple(
            sorted(
                (pair for pair in pairs if pair.correlation <= KEPT_ABOVE),
                key=lambda pair: (pair.correlation, pair.old),
            )
        ),
        gone=tuple(sorted(set(live_old.tolist()) - {pair.old for pair in pairs})),
        new=tuple(sorted(set(live_new.tolist()) - {pair.new for pair in pairs})),
        retrained=theirs is not None,
    )


def _matched_across(
    features_old: NDArray[np.float32],
    features_new: NDArray[np.float32],
    live_old: NDArray[np.intp],
    live_new: NDArray[np.intp],
) -> list[tuple[int, int, float]]:
    """Pairs (old, new, correlation), matched one to one on the same states (Hungarian)."""
    if not len(live_old) or not len(live_new):
        return []
    a = features_old[:, live_old].astype(np.float64)
    b = features_new[:, live_new].astype(np.float64)
    a, b = (m - m.mean(0) for m in (a, b))
    norms = np.outer(np.linalg.norm(a, axis=0), np.linalg.norm(b, axis=0))
    correlation = np.divide(a.T @ b, norms, out=np.zeros_like(norms), where=norms > 0)
    rows, columns = linear_sum_assignment(-correlation)
    return [
        (int(live_old[i]), int(live_new[j]), float(correlation[i, j]))
        for i, j in zip(rows, columns, strict=True)
    ]


def _features(transcoder: Transcoder, x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(transcoder.encode(torch.from_numpy(x)).numpy(), np.float32)


def _correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    x, y = (v.astype(np.float64) - v.mean(dtype=np.float64) for v in (a, b))
    norm = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / norm if norm else float(np.array_equal(a, b))


def _fvu(transcoder: Transcoder, x: NDArray[np.float32], y: NDArray[np.float32]) -> float | None:
    spread = float(np.square(y - y.mean(0)).sum())
    if spread == 0.0:
        return None
    x_tensor = torch.from_numpy(x)
    out = transcoder.decode(transcoder.encode(x_tensor), x_tensor).numpy()
    return float(np.square(y - out).sum()) / spread


def describe(difference: PolicyDiff) -> list[str]:
    """The comparison in sentences, most important first."""
    behaviour = difference.behaviour
    if behaviour.agreement is not None and behaviour.kl is not None:
        first = (
            f"On {difference.states} states the two versions choose the same action in "
            f"{behaviour.agreement:.1%}; KL(old ‖ new) {behaviour.kl:.4f} nat."
        )
    else:
        first = (
            f"On {difference.states} states the actions of the two versions differ by "
            f"{behaviour.action_rmse:.4f} (root mean square)."
        )
    lines = [first]
    for layer in difference.layers:
        line = f"{layer.hook_point}: representation similarity (CKA) {layer.cka:.3f}"
        if layer.fvu_old is not None and layer.fvu_new is not None:
            line += (
                f"; the old transcoder leaves {layer.fvu_old:.4f} of the old version's variance "
                f"unexplained and {layer.fvu_new:.4f} of the new one's; {len(layer.kept)} features "
                f"kept, {len(layer.changed)} changed, {len(layer.gone)} gone, {len(layer.new)} new"
            )
        lines.append(line + ".")
        lines += [
            f"  feature {pair.old} → {pair.new}: correlation {pair.correlation:.2f}, on in "
            f"{pair.old_density:.1%} → {pair.new_density:.1%} of the states"
            for pair in layer.changed[:5]
        ]
    return lines
