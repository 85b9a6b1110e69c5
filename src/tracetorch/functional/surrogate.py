"""Surrogates: when a neuron fires, and the pseudo-derivative that stands in for the slope of that step.

    s = [u >= 0]                  the spike, u = membrane before the reset minus threshold
    psi(u) = surrogate'(u)        what the backward pass uses instead of the step's derivative

Every surrogate here has its peak psi(0) = 1 and a `width` in units of the membrane (dimensionless).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _checks


class Surrogate:
    """A firing function and its pseudo-derivative; subclasses write `slope` and may change `spike`."""

    def spike(self, u: Tensor) -> Tensor:
        """The spikes for `u` (any shape): 1 where u >= 0, else 0, in u's dtype."""
        return (u >= 0).to(u.dtype)

    def slope(self, u: Tensor) -> Tensor:
        """The pseudo-derivative psi(u), in u's shape (dimensionless)."""
        raise NotImplementedError


@dataclass(frozen=True)
class _WithWidth(Surrogate):
    width: float = 0.5

    def __post_init__(self) -> None:
        _checks.positive(type(self).__name__, "width", self.width)


@dataclass(frozen=True)
class ArcTan(_WithWidth):
    """`psi(u) = 1 / (1 + (u / width)^2)`, half of its peak at |u| = width. The default.

    The ATan surrogate of other libraries with alpha = 2 has the shape of width = 1/pi = 0.318.
    Fang et al. 2021, "Incorporating learnable membrane time constant", appendix.

    >>> ArcTan(width=0.5).slope(torch.tensor([0.0, 0.5, -0.5]))
    tensor([1.0000, 0.5000, 0.5000])
    """

    def slope(self, u: Tensor) -> Tensor:
        """`1 / (1 + (u / width)^2)`."""
        return (u / self.width).square_().add_(1).reciprocal_()


@dataclass(frozen=True)
class FastSigmoid(_WithWidth):
    """`psi(u) = 1 / (1 + |u| / width)^2`, a quarter of its peak at |u| = width.

    Zenke & Ganguli 2018, "SuperSpike", where width = 1 / slope.

    >>> FastSigmoid(width=1.0).slope(torch.tensor([0.0, 1.0]))
    tensor([1.0000, 0.2500])
    """

    def slope(self, u: Tensor) -> Tensor:
        """`1 / (1 + |u| / width)^2`."""
        return (u.abs() / self.width).add_(1).square_().reciprocal_()


@dataclass(frozen=True)
class Triangle(_WithWidth):
    """`psi(u) = max(0, 1 - |u| / width)`, zero from |u| = width on.

    Bellec et al. 2018, "Long short-term memory and learning-to-learn in networks of spiking neurons".

    >>> Triangle(width=1.0).slope(torch.tensor([0.0, 0.5, 2.0]))
    tensor([1.0000, 0.5000, 0.0000])
    """

    width: float = 1.0

    def slope(self, u: Tensor) -> Tensor:
        """`max(0, 1 - |u| / width)`."""
        return (1 - u.abs() / self.width).clamp_(min=0)


@dataclass(frozen=True)
class Sigmoid(_WithWidth):
    """`psi(u) = 4 sigmoid(u / width) (1 - sigmoid(u / width))`, the logistic function's slope with peak 1.

    >>> Sigmoid(width=0.25).slope(torch.tensor([0.0]))
    tensor([1.])
    """

    width: float = 0.25

    def slope(self, u: Tensor) -> Tensor:
        """`4 sigmoid(u / width) (1 - sigmoid(u / width))`."""
        s = torch.sigmoid(u / self.width)
        return 4 * s * (1 - s)


@dataclass(frozen=True)
class Exponential(_WithWidth):
    """`psi(u) = exp(-|u| / width)`, 1/e of its peak at |u| = width.

    Shrestha & Orchard 2018, "SLAYER: Spike layer error reassignment in time".

    >>> Exponential(width=0.5).slope(torch.tensor([0.0, -0.5]))
    tensor([1.0000, 0.3679])
    """

    def slope(self, u: Tensor) -> Tensor:
        """`exp(-|u| / width)`."""
        return torch.exp(-u.abs() / self.width)


@dataclass(frozen=True)
class Custom(Surrogate):
    """Any pair of functions: what is emitted for u, and the slope that the backward pass uses for it.

    Args:
        spike_function: u -> emitted values, same shape. It must give the same for the same u: the reverse scan asks
            it again.
        slope_function: u -> pseudo-derivative, same shape.

    >>> hard = Custom(lambda u: (u >= 0).to(u.dtype), lambda u: torch.exp(-u.abs()))
    >>> hard.spike(torch.tensor([-0.1, 0.0])), hard.slope(torch.tensor([0.0]))
    (tensor([0., 1.]), tensor([1.]))
    """

    spike_function: Callable[[Tensor], Tensor]
    slope_function: Callable[[Tensor], Tensor]

    def spike(self, u: Tensor) -> Tensor:
        """`spike_function(u)`."""
        return self.spike_function(u).to(u.dtype)

    def slope(self, u: Tensor) -> Tensor:
        """`slope_function(u)`."""
        return self.slope_function(u)
