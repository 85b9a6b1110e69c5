"""Firing: what a neuron emits for its membrane, and the pseudo-derivative of that.

    y = emit(u, theta)            u = membrane before the reset minus the threshold theta
    s = count(y)                  how many spikes that is: what the reset and an adaptation go by
    psi = slope(u, theta)         stands in for dy/du;  count_slope for ds/du

All are elementwise. The slopes treat a threshold as what u contains of it: dy/dtheta = -psi.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _checks
from .surrogate import ArcTan, Surrogate


class Firing:
    """How a neuron fires; subclasses write `emit` and may change the rest.

    Args:
        surrogate: the pseudo-derivative of a spike; by default `ArcTan()`.
    """

    recomputable: bool = True
    """Whether `emit` gives the same for the same u, so that a window need not keep what was emitted."""

    def __init__(self, surrogate: Surrogate | None = None) -> None:
        surrogate = ArcTan() if surrogate is None else surrogate
        if not isinstance(surrogate, Surrogate):
            raise TypeError(
                f"{type(self).__name__}: expected surrogate to be a Surrogate such as surrogate.ArcTan(), got "
                f"{surrogate!r}. Wrap a pair of functions in surrogate.Custom(spike, slope)."
            )
        self.surrogate = surrogate

    def emit(self, u: Tensor, theta: Tensor) -> Tensor:
        """The output of a step (any shape); `theta` broadcasts to it."""
        raise NotImplementedError

    def count(self, y: Tensor) -> Tensor:
        """The number of spikes in an output."""
        return y

    def slope(self, u: Tensor, theta: Tensor) -> Tensor:  # noqa: ARG002
        """The pseudo-derivative of the output by u."""
        return self.surrogate.slope(u)

    def count_slope(self, u: Tensor, theta: Tensor) -> Tensor:
        """The pseudo-derivative of the number of spikes by u."""
        return self.slope(u, theta)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Spike(Firing):
    """One spike where u >= 0: the surrogate's own `spike`. The default.

    >>> Spike().emit(torch.tensor([-1.0, 0.0, 1.0]), torch.tensor(1.0))
    tensor([0., 1., 1.])
    """

    def emit(self, u: Tensor, theta: Tensor) -> Tensor:  # noqa: ARG002
        """`[u >= 0]`."""
        return self.surrogate.spike(u)


class StrictSpike(Firing):
    """One spike where u > 0, as in snnTorch and Norse; it differs from `Spike` at equality alone.

    >>> StrictSpike().emit(torch.tensor([-1.0, 0.0, 1.0]), torch.tensor(1.0))
    tensor([0., 0., 1.])
    """

    def emit(self, u: Tensor, theta: Tensor) -> Tensor:  # noqa: ARG002
        """`[u > 0]`."""
        return (u > 0).to(u.dtype)


class MultiSpike(Firing):
    """As many spikes in one step as the membrane holds thresholds: `floor(p / theta)`, at most `most`; 0 below 0.

    Its pseudo-derivative is the surrogate's, centred on the nearest multiple of theta at which the count changes.
    sinabs's neurons fire so.

    Args:
        surrogate: the pseudo-derivative of one more spike; by default `ArcTan()`.
        most: the largest count; None for no limit.

    >>> p, theta = torch.tensor([-3.0, 0.5, 1.0, 2.5]), torch.tensor(1.0)
    >>> MultiSpike().emit(p - theta, theta)
    tensor([0., 0., 1., 2.])
    """

    def __init__(self, surrogate: Surrogate | None = None, most: int | None = None) -> None:
        super().__init__(surrogate)
        if most is not None:
            _checks.at_least_one("MultiSpike", "most", most)
        self.most = most

    def emit(self, u: Tensor, theta: Tensor) -> Tensor:
        """`clamp(floor(u / theta) + 1, 0, most)`."""
        return (torch.floor(u / theta) + 1).clamp(min=0, max=self.most)

    def slope(self, u: Tensor, theta: Tensor) -> Tensor:
        """The surrogate at the distance from the nearest change of the count."""
        nearest = torch.round(u / theta).clamp(min=0, max=None if self.most is None else self.most - 1)
        return self.surrogate.slope(u - nearest * theta)


class Graded(Firing):
    """A spike that carries the membrane: `y = p` where p >= theta, else 0. It counts as one spike.

    Its pseudo-derivative is that of the product, `[u >= 0] + p psi(u)`.

    >>> p, theta = torch.tensor([0.5, 2.5]), torch.tensor(1.0)
    >>> Graded().emit(p - theta, theta)
    tensor([0.0000, 2.5000])
    """

    def emit(self, u: Tensor, theta: Tensor) -> Tensor:
        """`p [u >= 0]`."""
        return (u + theta) * self.surrogate.spike(u)

    def count(self, y: Tensor) -> Tensor:
        """1 where something was emitted."""
        return (y != 0).to(y.dtype)

    def slope(self, u: Tensor, theta: Tensor) -> Tensor:
        """`[u >= 0] + p psi(u)`."""
        return self.surrogate.spike(u) + (u + theta) * self.surrogate.slope(u)

    def count_slope(self, u: Tensor, theta: Tensor) -> Tensor:  # noqa: ARG002
        """The surrogate's."""
        return self.surrogate.slope(u)


@dataclass(frozen=True)
class _Logistic(Surrogate):
    width: float

    def slope(self, u: Tensor) -> Tensor:
        f = torch.sigmoid(u / self.width)
        return f * (1 - f) / self.width


class EscapeNoise(Firing):
    """A spike with the probability `sigmoid(u / width)`: a Bernoulli draw for each neuron, lane and step.

    Its derivative is that of the probability, `f (1 - f) / width`: the gradient of the expected output, passed straight
    through the draw. Gerstner & Kistler 2002, "Spiking Neuron Models", section 5.3.

    Args:
        width: of the soft threshold, above 0, in units of the membrane; towards 0 it is a hard one.
        generator: what is drawn with; by default torch's global one. Where several layers draw, give each its own:
            then what is drawn does not depend on how the steps are cut into windows.

    >>> EscapeNoise(0.1).emit(torch.tensor([-10.0, 10.0]), torch.tensor(1.0))
    tensor([0., 1.])
    """

    recomputable = False

    def __init__(self, width: float = 0.2, generator: torch.Generator | None = None) -> None:
        _checks.positive("EscapeNoise", "width", width)
        super().__init__(_Logistic(width))
        self.width = width
        self.generator = generator

    def emit(self, u: Tensor, theta: Tensor) -> Tensor:  # noqa: ARG002
        """`[draw < sigmoid(u / width)]`."""
        return (self.draws(u[None])[0] < torch.sigmoid(u / self.width)).to(u.dtype)

    def draws(self, like: Tensor) -> Tensor:
        """What is drawn for a window (K, ...): step by step, so that it is the same however steps are cut."""
        device = like.device if self.generator is None else self.generator.device
        draws = torch.empty(like.shape, dtype=like.dtype, device=device)
        for draw in draws:
            draw.uniform_(generator=self.generator)
        return draws.to(like.device)

    def __repr__(self) -> str:
        return f"EscapeNoise(width={self.width})"
