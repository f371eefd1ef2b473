"""Muon with its Newton-Schulz iteration in fp32.

`torch.optim.Muon` iterates in bf16, which is about ten times slower on CPUs without bf16 units.
Method: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024).
"""

import torch


class Muon32(torch.optim.Optimizer):
    """Momentum, made orthogonal: for the weight matrices of hidden layers; use AdamW for all other parameters."""

    def __init__(self, params, lr=0.02, momentum=0.95, weight_decay=0.01, iterations=5):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay, iterations=iterations))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for weight in (weight for weight in group["params"] if weight.grad is not None):
                momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                momentum.lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonal(weight.grad.lerp(momentum, group["momentum"]), group["iterations"])
                rows, columns = weight.shape
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update, alpha=-group["lr"] * max(1, rows / columns) ** 0.5)


def orthogonal(matrix, iterations):
    """The nearest matrix whose singular values are all about one, by a quintic Newton-Schulz iteration."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(iterations):
        gram = wide @ wide.T
        wide = 3.4445 * wide + (-4.7750 * gram + 2.0315 * gram @ gram) @ wide
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T
