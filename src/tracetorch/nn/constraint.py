"""Values that stay in their range: checked where they are given; learned ones are a function of a raw parameter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


class UnitInterval:
    """`value = sigmoid(raw)`, strictly inside (0, 1)."""

    @staticmethod
    def value(raw: Tensor) -> Tensor:
        """The constrained value; kept off 0 and 1, which the sigmoid reaches by rounding."""
        info = torch.finfo(raw.dtype)
        return torch.sigmoid(raw).clamp(info.tiny, 1 - info.eps)

    @staticmethod
    def raw(value: Tensor) -> Tensor:
        """The raw value of `value`."""
        return torch.logit(value.double()).to(value.dtype)

    @staticmethod
    def slope(value: Tensor) -> Tensor:
        """The derivative of the value with respect to raw, at the value."""
        return value * (1 - value)


class Positive:
    """`value = softplus(raw)`, strictly above 0."""

    @staticmethod
    def value(raw: Tensor) -> Tensor:
        """The constrained value; kept off 0, which softplus reaches by rounding."""
        return F.softplus(raw, threshold=50).clamp(min=torch.finfo(raw.dtype).tiny)

    @staticmethod
    def raw(value: Tensor) -> Tensor:
        """The raw value of `value`."""
        wide = value.double()
        return (wide + torch.log(-torch.expm1(-wide))).to(value.dtype)

    @staticmethod
    def slope(value: Tensor) -> Tensor:
        """The derivative of the value with respect to raw, at the value: `sigmoid(raw) = 1 - exp(-value)`."""
        return -torch.expm1(-value)


OneOrEach = float | Sequence[float] | Tensor
"""One number for the layer, or one per neuron."""


def one_or_each(where: str, name: str, value: OneOrEach, neurons: int) -> Tensor:
    """`value` as a float64 tensor of shape () or (m,).

    Raises:
        ValueError: it has another shape.
    """
    given = torch.as_tensor(value, dtype=torch.float64).detach().clone()
    if given.ndim and tuple(given.shape) != (neurons,):
        raise ValueError(
            f"{where}: expected {name} to be one number or one per neuron ({neurons},), got shape {tuple(given.shape)}."
        )
    return given


def membrane_decay(where: str, beta: OneOrEach | None, tau: OneOrEach | None, learned: bool, neurons: int) -> Tensor:
    """The decay per step that was given as beta or as a time constant in steps; 0.9 by default.

    Raises:
        ValueError: both are given; beta outside [0, 1], or on its edge where it is learned; tau not above 0.
    """
    if beta is not None and tau is not None:
        raise ValueError(f"{where}: expected beta or tau, got both. Give one; beta = exp(-1 / tau).")
    if tau is not None:
        steps = one_or_each(where, "tau", tau, neurons)
        if not bool((steps > 0).all()):
            raise ValueError(f"{where}: expected tau (steps) above 0, got {tau}. Give a time constant in steps.")
        value = torch.exp(-1 / steps)
    else:
        value = one_or_each(where, "beta", 0.9 if beta is None else beta, neurons)
    if not bool(((value >= 0) & (value <= 1)).all()):
        raise ValueError(
            f"{where}: expected beta in [0, 1], got {beta}. "
            f"beta is the membrane's decay per step; for a time constant in steps give tau=."
        )
    if learned and not bool(((value > 0) & (value < 1)).all()):
        raise ValueError(
            f"{where}: expected a learned beta strictly between 0 and 1, got {beta if tau is None else value}. "
            f"Start inside the interval, or leave out learn_beta."
        )
    return value


def firing_threshold(where: str, threshold: OneOrEach, neurons: int) -> Tensor:
    """The threshold that was given.

    Raises:
        ValueError: it is not above 0.
    """
    value = one_or_each(where, "threshold", threshold, neurons)
    if not bool(((value > 0) & torch.isfinite(value)).all()):
        raise ValueError(
            f"{where}: expected threshold above 0, got {threshold}. It is relative to the membrane; 1 is usual."
        )
    return value
