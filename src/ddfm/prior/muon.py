"""Muon: momentum whose update of a convolution is orthogonalised, so that every direction of it learns at one rate."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024) for convolutions.

    A kernel (out, in, h, w) is the matrix (out, in h w); its update is the nearest matrix with orthonormal rows to
    Nesterov's momentum of the gradient. `torch.optim.Muon` is for matrices alone.

    Args:
        kernels: Parameters of four dimensions, with out <= in h w.
        lr: Learning rate: the spectral norm of a step.
        momentum: Share of the old gradients that is kept.
        weight_decay: As in AdamW, times the learning rate.
    """

    def __init__(
        self, kernels: Iterable[Tensor], lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.1
    ) -> None:
        super().__init__(kernels, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step of all kernels that have a gradient."""
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
    """About the nearest matrix with orthonormal rows, (n, m) with n <= m: all singular values come to 0.7 to 1.2.

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
