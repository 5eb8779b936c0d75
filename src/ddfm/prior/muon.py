"""Muon: momentum with orthogonalised updates of convolution kernels, so that all directions learn at the same rate."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024) for convolutions.

    A kernel (out, in, h, w) is treated as a matrix (out, in h w); its update is the matrix with orthonormal rows that
    is nearest to the Nesterov momentum of the gradient. `torch.optim.Muon` supports only matrices.

    Args:
        kernels: Four-dimensional parameters, with out <= in h w.
        lr: Learning rate: the spectral norm of a step.
        momentum: Fraction of the old momentum that is kept.
        weight_decay: As in AdamW, times the learning rate.
    """

    def __init__(
        self, kernels: Iterable[Tensor], lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.1
    ) -> None:
        super().__init__(kernels, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update all kernels that have a gradient."""
        for group in self.param_groups:
            for kernel in group["params"]:
                if kernel.grad is None:
                    continue
                state = self.state[kernel]
                if not state:
                    state["momentum"] = torch.zeros_like(kernel)
                state["momentum"].lerp_(kernel.grad, 1 - group["momentum"])
                update = kernel.grad.lerp(state["momentum"], group["momentum"])
                kernel.mul_(1 - group["lr"] * group["weight_decay"])
                kernel.sub_(orthogonal(update.flatten(1)).view_as(kernel), alpha=group["lr"])


def orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """Approximately the nearest matrix with orthonormal rows, (n, m) with n <= m: singular values become 0.7 to 1.2.

    Newton-Schulz iterations with Jordan's coefficients, on the (n, n) Gram matrix, which is smaller than the matrix.
    """
    matrix = matrix / (matrix.norm() + 1e-7)
    gram = matrix @ matrix.T
    product = torch.eye(len(matrix), device=matrix.device)
    for _ in range(steps):
        polynomial = 2.0315 * gram @ gram - 4.775 * gram
        polynomial.diagonal().add_(3.4445)
        product = polynomial @ product
        gram = polynomial @ gram @ polynomial
    return product @ matrix
