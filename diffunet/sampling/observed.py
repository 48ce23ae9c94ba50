"""A model of x_0 given a linear observation of it, made from any trained model without training."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..objectives.base import Objective

NOISE = 0.02
"""Standard deviation assumed of the observation, for images in [-1, 1]: two and a half of 255 levels."""


class Observed(nn.Module):
    """A model whose estimates of x_0 also know y = A x_0 + N(0, noise²): MMPS (Rozet et al. 2024, algorithm 1).

    By Tweedie's second moment, V = Cov[x_0 | x_t] = (sigma² / alpha) d x̂_0 / d x_t. With it, Bayes' rule gives

        x̂_0 + V A^T (A V A^T + noise² I)^-1 (y - A x̂_0)

    which is exact for Gaussian data. The system is solved by GMRES, since the Jacobian of a network need not be
    symmetric: with conjugate gradients samples are not finite. Each iteration costs one backward pass to the input.

    With no iterations, x̂_0 is projected onto A x_0 = y instead, without gradients: A^+ y - A^+ A x̂_0 is added (Wang et
    al. 2022, "DDNM"). That is fast, needs no memory, and is biased; many rounds of a stochastic solver help.
    """

    def __init__(
        self,
        model: Callable[..., Tensor],
        objective: Objective,
        observe: Callable[[Tensor], Tensor],
        y: Tensor,
        *,
        noise: float = NOISE,
        iterations: int = 3,
        invert: Callable[[Tensor], Tensor] | None = None,
    ):
        """observe: A, from images (B, C, H, W) to values; y: (B, ...), the observed ones; invert: A^+ of values."""
        super().__init__()
        self.model = model
        self.objective = objective
        self.observe = observe
        self.y = y
        self.noise = noise
        self.iterations = iterations
        self.invert = invert

    def forward(self, x_t: Tensor, t: Tensor, **conditions: Tensor) -> Tensor:
        """Return the prediction, (B, C, H, W), in the terms of the objective. t: one number for the whole batch."""
        if not self.iterations:
            assert self.invert is not None
            clean = self._clean(x_t, t, conditions)
            return self.objective.prediction(clean + self.invert(self.y.to(clean) - self.observe(clean)), x_t, t)
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            clean = self._clean(x, t, conditions)
            zeros = torch.zeros_like(x, requires_grad=True)
            observed = self.observe(zeros)

        def covariance(values: Tensor) -> Tensor:
            """Return V A^T values, by two backward passes: through A, and through the network."""
            (image,) = torch.autograd.grad(observed, zeros, values.to(observed.dtype), retain_graph=True)
            (moved,) = torch.autograd.grad(clean, x, image, retain_graph=True)
            alpha, sigma = self.objective.levels(t)
            return sigma**2 / alpha * moved

        def system(values: Tensor) -> Tensor:
            return self.noise**2 * values + self.observe(covariance(values))

        residual = self.y.to(clean) - self.observe(clean.detach())
        moved = covariance(gmres(system, residual, self.iterations))
        return self.objective.prediction(clean.detach() + moved, x_t, t)

    def _clean(self, x_t: Tensor, t: Tensor, conditions: dict[str, Tensor]) -> Tensor:
        prediction = self.model(x_t, t, **conditions)[:, : x_t.shape[1]]  # ADM's learned variance follows
        return self.objective.clean(prediction.to(x_t.dtype), x_t, t)


def gmres(system: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """Return z, (B, ...), with the least |b - system(z)| of each example over the Krylov space (Saad & Schultz 1986).

    system: linear, and of one example at a time.
    """
    tiny = torch.finfo(b.dtype).tiny
    size = b[0].numel()
    norm = b.flatten(1).norm(dim=1)
    basis = b.new_zeros(len(b), iterations + 1, size)
    basis[:, 0] = b.flatten(1) / norm.clamp(min=tiny)[:, None]
    hessenberg = b.new_zeros(len(b), iterations + 1, iterations)
    for column in range(iterations):
        w = system(basis[:, column].reshape(b.shape)).flatten(1)
        found = basis[:, : column + 1]
        for _ in range(2):  # orthogonalized twice, against rounding
            projections = torch.einsum("bks,bs->bk", found, w)
            hessenberg[:, : column + 1, column] += projections
            w = w - torch.einsum("bks,bk->bs", found, projections)
        length = hessenberg[:, column + 1, column] = w.norm(dim=1)
        basis[:, column + 1] = w / length.clamp(min=tiny)[:, None]
    # Least squares by the normal equations of a few unknowns, in fp64; the space of an example may end early.
    h = hessenberg.to("cpu", torch.float64)
    gram = h.mT @ h
    ridge = (1e-12 * gram.diagonal(dim1=1, dim2=2).sum(1)).clamp(min=tiny)
    gram = gram + ridge[:, None, None] * torch.eye(iterations)
    coefficients = (norm.cpu()[:, None] * torch.linalg.solve(gram, h[:, 0])).to(b)
    return torch.einsum("bks,bk->bs", basis[:, :-1], coefficients).reshape(b.shape)
