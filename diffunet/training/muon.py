"""Muon: steps of the size of AdamW's along the orthogonalized momentum of each matrix, AdamW for everything else.

Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; the scale of a step is that of Liu et al.
2025, "Muon is scalable for LLM training", equation 4, so that learning rates of AdamW remain suitable.
"""

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
COEFFICIENTS, ITERATIONS = (3.4445, -4.7750, 2.0315), 5
"""Of the Newton-Schulz iteration, which moves all singular values into about [0.7, 1.2]."""
RMS = 0.2
"""Root mean square of the entries of a step, relative to the learning rate: about that of AdamW."""
SMALLEST = 16
"""Rows and columns that a matrix has at least; the first and the last convolution have fewer."""


class Muon(torch.optim.AdamW):
    """Optimizes a model: the weights of its convolutions and linear layers as matrices, the rest by fused AdamW.

    With `found_inf`, a tensor, set to 1, a step changes nothing, without a wait for the device.
    """

    def __init__(self, model: nn.Module, lr: float, betas: tuple[float, float], weight_decay: float):
        matrices = {id(weight): weight for weight in matrices_of(model)}
        others = [weight for weight in model.parameters() if weight.requires_grad and id(weight) not in matrices]
        groups = [
            {"params": others, "orthogonal": False},
            {"params": list(matrices.values()), "orthogonal": True},
        ]
        super().__init__(groups, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)

    @torch.no_grad()
    def step(self, closure=None):
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if not group["orthogonal"]]
            super().step(closure)
        finally:
            self.param_groups = groups
        broken = getattr(self, "found_inf", None)
        for group in groups:
            for weight in group["params"] if group["orthogonal"] else ():
                if weight.grad is not None:
                    self._move(weight, group, None if broken is None else broken.bool())

    def _move(self, weight: Tensor, group: dict, broken: Tensor | None) -> None:
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        momentum = state["momentum_buffer"]
        advanced = torch.lerp(momentum, weight.grad, 1 - MOMENTUM)
        direction = orthogonalized(torch.lerp(weight.grad, advanced, MOMENTUM).flatten(1)).reshape(weight.shape)
        size = group["lr"] * RMS * max(len(weight), weight[0].numel()) ** 0.5
        moved = weight * (1 - group["lr"] * group["weight_decay"]) - size * direction
        weight.copy_(moved if broken is None else torch.where(broken, weight, moved))
        momentum.copy_(advanced if broken is None else torch.where(broken, momentum, advanced))


def matrices_of(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights, of convolutions and linear layers, that are matrices of a size worth orthogonalizing."""
    layers = (nn.Linear, nn.modules.conv._ConvNd)
    weights = [module.weight for module in model.modules() if isinstance(module, layers)]
    return [w for w in weights if w.requires_grad and min(len(w), w[0].numel()) >= SMALLEST]


def orthogonalized(matrix: Tensor) -> Tensor:
    """Return the matrix (M, N) with all singular values near 1, in its dtype; on a GPU computed in bf16.

    The result is U V^T but for a factor of 0.7 to 1.2 along each singular vector.
    """
    a, b, c = COEFFICIENTS
    x = matrix.bfloat16() if matrix.device.type == "cuda" else matrix
    x = x / (x.norm() + 1e-7)
    tall = len(x) > x.shape[1]
    x = x.T if tall else x
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)
