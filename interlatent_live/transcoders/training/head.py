"""What an error at a hook point does to the action: the head-weighted loss.

An error that the rest of the policy ignores is harmless and one that tips an argmax is not, though
both have the same norm. The loss adds λ‖J e‖² / Var(J y), where J is the action-centred Jacobian of
the rest of the policy at y, J y stands for the tail's centred outputs, and the squash of a bounded
continuous action multiplies each output by its derivative.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable


class HeadMetric(Protocol):
    """The second term of the loss for one hook point; ``y`` and ``e`` are in the policy's units."""

    def loss_and_gradient(self, y: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        """Mean over rows of ‖J e‖² / Var, and its gradient with respect to e.

        Args:
            y: float [n, d_out], what the module put out.
            error: float [n, d_out], ŷ − y.

        Returns:
            Scalar [] and gradient [n, d_out], the latter already divided by n.
        """
        ...


@dataclass(frozen=True, eq=False)
class LinearHead:
    """A constant J: the action-centred weights of a linear head.

    ``matrix`` is [d_out, A]; outputs are ``y @ matrix``. ``variance`` is Var(J y) over the data.
    """

    matrix: Tensor
    variance: float

    def mix(self, weight: float, y_scale: float) -> Tensor:
        """Symmetric T [d_out, d_out] with ‖e T‖² = ‖e‖² + weight · ‖J e y_scale‖² / Var(J y).

        With errors in units of ``y_scale``, training on targets y T with the plain squared error
        *is* the head-weighted loss, without its bad conditioning: values lie far from each other
        and advantages close together, so in y's own coordinates a few directions are stiff, and no
        learning rate suits both.
        """
        stiff = (self.matrix.double() @ self.matrix.double().T) * (weight * y_scale**2)
        identity = torch.eye(len(stiff), dtype=torch.float64, device=stiff.device)
        values, vectors = torch.linalg.eigh(identity + stiff / self.variance)
        mixed: Tensor = (vectors * values.sqrt()) @ vectors.T
        return mixed

    def loss_and_gradient(self, y: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        """As the protocol says; ``y`` does not matter."""
        del y
        moved = error @ self.matrix
        scale = 1.0 / (len(error) * self.variance)
        return moved.square().sum() * scale, (2 * scale) * (moved @ self.matrix.T)


@dataclass(frozen=True, eq=False)
class CurvedTail:
    """J at each row's own y, for tails with further layers or a squashed action.

    ``tail`` maps y [n, d_out] to what is compared, [n, A]: centred logits, or squashed actions
    divided by their standard deviation.
    """

    tail: Callable[[Tensor], Tensor]
    variance: float

    def averaged(self, y: Tensor) -> LinearHead:
        """The constant metric nearest to it: one whose JJᵀ is the mean of JᵀJ over y [n, d_out]."""
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            out = self.tail(y)
            rows = [
                torch.autograd.grad(out[:, place].sum(), y, retain_graph=True)[0]
                for place in range(out.shape[1])
            ]
        total = sum(row.double().T @ row.double() for row in rows) / len(y)
        values, vectors = torch.linalg.eigh(torch.as_tensor(total))
        return LinearHead((vectors * values.clamp_min(0).sqrt()).float(), self.variance)

    def loss_and_gradient(self, y: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        """As the protocol says.

        J e comes from differentiating Jᵀv twice, since v ↦ Jᵀv is linear: the forward mode of
        torch would do the same but compiles deprecated script at its first use.
        """
        scale = 1.0 / (len(error) * self.variance)
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            out = self.tail(y)
            probe = torch.zeros_like(out, requires_grad=True)
            (pulled,) = torch.autograd.grad(out, y, probe, create_graph=True)
            (moved,) = torch.autograd.grad(pulled, probe, error, retain_graph=True)
            (gradient,) = torch.autograd.grad(out, y, (2 * scale) * moved)
        return moved.square().sum() * scale, gradient
