"""Many transcoders of one shape as stacked parameters, with hand-written gradients.

Small models waste a machine on dispatch and on memory traffic, so models that share a shape are one
set of tensors with a leading axis: one Adam step moves them all, on CUDA one batched product serves
them all, and on a CPU they are visited one by one so that each model's intermediates stay in cache.
The gradients are written out because they are short, and because autograd would keep and reread
every [n, F] intermediate, which is what the time goes into.

Everything here is in normalised units: x centred and scaled, y centred and divided by the square
root of its total variance, so the mean squared error *is* the fraction of variance unexplained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interlatent_live.transcoders.config import Architecture, Target
from interlatent_live.transcoders.training.selection import batch_cuts, gate, keep_from, row_cuts
from interlatent_live.transcoders.training.sparse_step import (
    SPARSE_FEATURES,
    SPARSE_SHARE,
    sparse_step,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from interlatent_live.transcoders.config import TranscoderConfig
    from interlatent_live.transcoders.training.recipe import Recipe

_INITIAL_THRESHOLD = 0.1
REVIVAL_SHARE = 4
"""The auxiliary loss looks at one row in so many: dead features have time, steps have not."""


@dataclass(eq=False)
class StepStats:
    """What one step saw, per model, still on the device: no synchronisation is needed."""

    loss: Tensor
    """[M] fraction of variance unexplained on the batch (before auxiliary terms)."""
    l0: Tensor
    """[M] features on per row."""
    dead: Tensor
    """[M] features that have not fired within the dead window."""


class Stack:
    """M transcoders of one configuration in training.

    Args:
        config: the shared configuration; k, widths and skip hold for all.
        seeds: one per model; each decides that model's initial weights.
        recipe: how to train.
        device: where.
    """

    def __init__(
        self, config: TranscoderConfig, seeds: Sequence[int], recipe: Recipe, device: torch.device
    ) -> None:
        self.config = config
        self.recipe = recipe
        self.device = device
        self.models = len(seeds)
        self.parameters = _initial_parameters(config, seeds, device)
        for parameter in self.parameters.values():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer = torch.optim.Adam(
            list(self.parameters.values()),
            lr=recipe.rate(),
            betas=(recipe.beta1, recipe.beta2),
            fused=True,
        )
        self.since_fired = torch.zeros(self.models, config.n_features, device=device)
        """[M, F] steps since each feature last fired."""
        self.stats = StepStats(*(torch.zeros(self.models, device=device) for _ in range(3)))
        # On a CPU one model's [n, F] fits the cache and a stack's does not.
        self.chunk = self.models if device.type == "cuda" else 1
        self.sparse = (
            device.type == "cpu"
            and config.architecture in (Architecture.TOPK, Architecture.BATCHTOPK)
            and config.n_features >= SPARSE_FEATURES
            and (config.k or 0) <= SPARSE_SHARE * config.n_features
        )
        """Whether steps work on the support only; the results are the same up to rounding."""

    def chunks(self) -> list[slice]:
        """The models that are computed together, in order."""
        return [
            slice(begin, min(begin + self.chunk, self.models))
            for begin in range(0, self.models, self.chunk)
        ]

    def compute(
        self,
        models: slice,
        x: Tensor,
        y: Tensor,
        step: int,
        *,
        error_gradient: Callable[[Tensor], Tensor] | None = None,
        record: bool = False,
    ) -> None:
        """Write the gradients of one chunk for its batch; :meth:`advance` applies them.

        Args:
            models: a chunk of :meth:`chunks`.
            x: float [m, n, d_in] normalised.
            y: float [m, n, d_out] normalised.
            step: 0-based.
            error_gradient: further loss on e = ŷ − y [m, n, d_out]: its gradient, same shape.
            record: whether to fill :attr:`stats` for these models.
        """
        if self.sparse:
            self._compute_sparse(models, x, y, error_gradient=error_gradient, record=record)
        else:
            self._compute_dense(models, x, y, step, error_gradient=error_gradient, record=record)

    def _compute_dense(
        self,
        models: slice,
        x: Tensor,
        y: Tensor,
        step: int,
        *,
        error_gradient: Callable[[Tensor], Tensor] | None,
        record: bool,
    ) -> None:
        config, n = self.config, x.shape[1]
        W_enc, b_enc, W_dec, b_dec = (
            self.parameters[name][models] for name in ("W_enc", "b_enc", "W_dec", "b_dec")
        )
        low = torch.bfloat16 if self.recipe.bf16 else None
        pre = torch.baddbmm(b_enc, x, W_enc) if low is None else _product(x, W_enc, low) + b_enc
        features = self._activate(pre, models)
        self._age(models, features)
        base = b_dec - y
        if config.skip:
            base = base + _product(x, self.parameters["W_skip"][models], low)
        if config.architecture is Architecture.MATRYOSHKA:
            error, prefixes = self._nested_errors(features, W_dec, base)
            if error_gradient is not None:
                prefixes[-1] += error_gradient(error)
            d_features, total = self._nested_backward(models, features, W_dec, prefixes)
        else:
            error = _product(features, W_dec, low).add_(base)
            total = error * (2.0 / n)
            if error_gradient is not None:
                total += error_gradient(error)
            d_features = _product(total, W_dec.mT, low)
            self._store_product("W_dec", models, features.mT, total)
        if record:
            self._record(models, features, error)
        self._store("b_dec", models, total.sum(1, keepdim=True))
        if config.skip:
            self._store_product("W_skip", models, x.mT, total)
        if config.architecture is Architecture.RELU:
            d_features = self._l1(models, features, W_dec, d_features, step)
        if config.architecture is Architecture.JUMPRELU:
            self._threshold_gradient(models, pre, features, d_features)
        d_pre = gate(d_features, features)
        self._store_product("W_enc", models, x.mT, d_pre)
        self._store("b_enc", models, d_pre.sum(1, keepdim=True))
        if self.recipe.aux_weight > 0:
            self._revive(models, x, pre, error)

    def _compute_sparse(
        self,
        models: slice,
        x: Tensor,
        y: Tensor,
        *,
        error_gradient: Callable[[Tensor], Tensor] | None,
        record: bool,
    ) -> None:
        own = {name: parameter[models.start] for name, parameter in self.parameters.items()}
        pre = torch.addmm(own["b_enc"], x[0], own["W_enc"])
        k = self.config.k or 0
        if self.config.architecture is Architecture.TOPK:
            cuts = row_cuts(pre, k)
        else:
            cuts = batch_cuts(pre[None], k * len(pre))[0]
        further = None
        if error_gradient is not None:
            outer = error_gradient

            def further(error: Tensor) -> Tensor:
                return outer(error[None])[0]

        step = sparse_step(own, x[0], y[0], pre, cuts, error_gradient=further)
        for name, gradient in step.gradients.items():
            self._gradient(name)[models.start] = gradient
        since = self.since_fired[models.start]
        since += 1
        since.masked_fill_(step.fired, 0)
        if record:
            dead = since > self.recipe.dead_window
            self.stats.loss[models] = step.error.square().sum() / len(pre)
            self.stats.l0[models] = step.active / len(pre)
            self.stats.dead[models] = dead.sum().float()
        if self.recipe.aux_weight > 0:
            self._revive(models, x, pre[None], step.error[None])

    def advance(self, step: int) -> None:
        """Apply the gradients of ``step`` to every model."""
        rate = self.recipe.rate() * self.recipe.schedule(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()

    def _activate(self, pre: Tensor, models: slice) -> Tensor:
        config = self.config
        kind = config.architecture
        if kind is Architecture.RELU:
            return torch.relu(pre)
        if kind is Architecture.JUMPRELU:
            return pre.mul(pre > torch.exp(self.parameters["log_threshold"][models]))
        k = config.k or 0
        if kind is Architecture.TOPK:
            return keep_from(pre, row_cuts(pre, k))
        return keep_from(pre, batch_cuts(pre, k * pre.shape[1]))

    def _age(self, models: slice, features: Tensor) -> None:
        since = self.since_fired[models]
        since += 1
        since.masked_fill_(features.amax(1) > 0, 0)

    def _record(self, models: slice, features: Tensor, error: Tensor) -> None:
        rows = error.shape[1]
        self.stats.loss[models] = error.square().sum((1, 2)) / rows
        self.stats.l0[models] = (features > 0).sum((1, 2)).float() / rows
        dead = self.since_fired[models] > self.recipe.dead_window
        self.stats.dead[models] = dead.sum(1).float()

    def _gradient(self, name: str) -> Tensor:
        gradient = self.parameters[name].grad
        if gradient is None:  # pragma: no cover - allocated once in __init__
            raise AssertionError("gradient buffers are allocated with the stack")
        return gradient

    def _store(self, name: str, models: slice, value: Tensor) -> None:
        self._gradient(name)[models] = value

    def _store_product(self, name: str, models: slice, left: Tensor, right: Tensor) -> None:
        gradient = self._gradient(name)[models]
        if self.recipe.bf16:
            gradient.copy_(_product(left, right, torch.bfloat16))
        else:
            torch.bmm(left, right, out=gradient)

    def _add(self, name: str, models: slice, value: Tensor) -> None:
        self._gradient(name)[models] += value

    def _l1(
        self, models: slice, features: Tensor, W_dec: Tensor, d_features: Tensor, step: int
    ) -> Tensor:
        """L1 on f·‖W_dec row‖ (Conerly et al. 2024), so that shrinking f cannot cheat it."""
        n = features.shape[1]
        rise = self.recipe.l1_warmup * self.recipe.steps
        weight = (self.config.l1 or 0.0) * (min(1.0, (step + 1) / rise) if rise > 0 else 1.0)
        norms = torch.linalg.vector_norm(W_dec, dim=2, keepdim=True)
        mass = features.sum(1).unsqueeze(2) * (weight / n)
        self._add("W_dec", models, mass * W_dec / norms.clamp_min(1e-8))
        return d_features.add(norms.mT, alpha=weight / n)

    def _threshold_gradient(
        self, models: slice, pre: Tensor, features: Tensor, d_features: Tensor
    ) -> None:
        """Straight-through gradient of the thresholds (Rajamanoharan et al. 2024, eq. 11–12).

        The sparsity term is (L0 / k − 1)², which asks for a mean number of features rather than for
        a price per feature.
        """
        n, width, k = pre.shape[1], self.recipe.bandwidth, float(self.config.k or 1)
        theta = self.parameters["log_threshold"][models].exp()
        near = ((pre - theta).abs() < width / 2).float()
        l0 = (features > 0).sum((1, 2), keepdim=True) / n
        pressure = self.recipe.l0_weight * 2 * (l0 / k - 1) / k
        from_error = -(theta / width) * (d_features * near).sum(1, keepdim=True)
        from_l0 = -(pressure / width) * near.mean(1, keepdim=True)
        self._store("log_threshold", models, (from_error + from_l0) * theta)

    def _nested_errors(
        self, features: Tensor, W_dec: Tensor, base: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Full error, and each prefix's share of the gradient (mean over prefixes)."""
        widths = self.config.widths or ()
        scale = 2.0 / (base.shape[1] * len(widths))
        running, gradients, begin = base, [], 0
        for end in widths:
            running = running + torch.bmm(features[..., begin:end], W_dec[:, begin:end])
            gradients.append(running * scale)
            begin = end
        return running, gradients

    def _nested_backward(
        self, models: slice, features: Tensor, W_dec: Tensor, gradients: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """A block of features serves its own prefix and every wider one."""
        widths = self.config.widths or ()
        d_features = torch.empty_like(features)
        total = torch.zeros_like(gradients[0])
        d_W_dec = torch.empty_like(W_dec)
        for index in reversed(range(len(widths))):
            begin, end = (widths[index - 1] if index else 0), widths[index]
            total = total + gradients[index]
            d_features[..., begin:end] = torch.bmm(total, W_dec[:, begin:end].mT)
            d_W_dec[:, begin:end] = torch.bmm(features[..., begin:end].mT, total)
        self._store("W_dec", models, d_W_dec)
        return d_features, total

    def _revive(self, models: slice, x: Tensor, pre: Tensor, error: Tensor) -> None:
        """Auxiliary loss: the strongest dead features reconstruct the residual of some rows.

        Its gradient reaches only dead features' own weights. Unlike in Gao et al. 2024, §A.2, it is
        not divided by the residual's energy: Adam ignores the scale of a gradient but not a change
        of it, and a feature that falls dead when little is left to explain would be thrown far
        off by a gradient 1 / FVU times what its moments know.
        """
        rows = -(-x.shape[1] // REVIVAL_SHARE)
        x, pre, error = x[:, :rows], pre[:, :rows], error[:, :rows]
        dead = self.since_fired[models] > self.recipe.dead_window
        keep = (self.recipe.aux_k or max(1, self.config.d_out // 2)) * rows
        W_dec = self.parameters["W_dec"][models]
        strength = 2.0 * self.recipe.aux_weight / rows
        if pre.is_cuda:
            # Static shapes: asking how many are dead would wait for the device.
            offered = pre.masked_fill(~dead.unsqueeze(1), 0.0)
            revival = _revival_gradients(offered, W_dec, x, error, strength=strength, keep=keep)
            for name, value in revival.items():
                self._add(name, models, value)
            return
        (chosen,) = torch.nonzero(dead[0], as_tuple=True)
        if len(chosen) == 0:
            return
        offered, W_dec = pre.index_select(2, chosen), W_dec.index_select(1, chosen)
        revival = _revival_gradients(offered, W_dec, x, error, strength=strength, keep=keep)
        for name, value in revival.items():
            self._gradient(name)[models].index_add_(1 if name == "W_dec" else 2, chosen, value)


def _revival_gradients(
    offered: Tensor, W_dec: Tensor, x: Tensor, error: Tensor, *, strength: float, keep: int
) -> dict[str, Tensor]:
    """Gradients of strength/2 · ‖f W_dec + e‖² for the ``keep`` largest of the offered features."""
    features = keep_from(offered, batch_cuts(offered, keep))
    gradient = torch.bmm(features, W_dec).add_(error).mul_(strength)
    d_pre = gate(torch.bmm(gradient, W_dec.mT), features)
    return {
        "W_dec": torch.bmm(features.mT, gradient),
        "W_enc": torch.bmm(x.mT, d_pre),
        "b_enc": d_pre.sum(1, keepdim=True),
    }


def _product(left: Tensor, right: Tensor, low: torch.dtype | None) -> Tensor:
    """Batched product in float32, or in ``low`` with a float32 result."""
    if low is None:
        return torch.bmm(left, right)
    return torch.bmm(left.to(low), right.to(low)).float()


def _initial_parameters(
    config: TranscoderConfig, seeds: Sequence[int], device: torch.device
) -> dict[str, Tensor]:
    """Unit-norm encoder columns and small unit-direction decoder rows; tied for autoencoders.

    Biases start at 0 because x and y are centred, which is ``b_enc = −W_enc x̄``, ``b_dec = ȳ`` in
    the policy's units.
    """
    stacked: dict[str, list[Tensor]] = {}
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        W_enc = torch.randn(config.d_in, config.n_features, generator=generator)
        W_enc /= W_enc.norm(dim=0, keepdim=True)
        if config.target is Target.INPUT:
            W_dec = W_enc.T.clone()
        else:
            W_dec = torch.randn(config.n_features, config.d_out, generator=generator)
            W_dec /= W_dec.norm(dim=1, keepdim=True)
        W_dec *= 0.1 / config.d_in**0.5
        one = {
            "W_enc": W_enc,
            "b_enc": torch.zeros(1, config.n_features),
            "W_dec": W_dec,
            "b_dec": torch.zeros(1, config.d_out),
        }
        if config.skip:
            one["W_skip"] = torch.zeros(config.d_in, config.d_out)
        if config.architecture is Architecture.JUMPRELU:
            one["log_threshold"] = torch.full((1, config.n_features), _INITIAL_THRESHOLD).log()
        for name, tensor in one.items():
            stacked.setdefault(name, []).append(tensor)
    return {
        name: torch.stack(tensors).to(device).requires_grad_() for name, tensors in stacked.items()
    }
