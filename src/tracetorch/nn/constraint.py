"""Values that stay in their range: checked where they are given; learned ones are a function of a raw parameter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

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
"""One number for the layer, or one per neuron, with a convolution per channel."""


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


class Constrained(NamedTuple):
    """A parameter that stays in a range."""

    value: Tensor  # () or (m,), with a convolution (C,); float64
    learn: bool
    constraint: type[UnitInterval | Positive]


def decay(
    where: str,
    names: tuple[str, str],
    value: OneOrEach | None,
    tau: OneOrEach | None,
    learned: bool,
    each: int,
    default: float | None = 0.9,
    decay_of: Callable[[Tensor], Tensor] = lambda tau: torch.exp(-1 / tau),
    below_one: bool = False,
) -> Tensor:
    """The decay per step that was given, or its time constant in steps.

    Args:
        where: what messages call the layer.
        names: of the decay, and of its time constant.
        value: the decay.
        tau: the time constant instead.
        learned: whether it must lie inside the interval.
        each: how many values there are where there is one for each neuron or channel.
        default: the decay where neither is given.
        decay_of: the decay of a time constant.
        below_one: whether 1 is refused.

    Raises:
        ValueError: both are given; a decay outside [0, 1], or on its edge where it is learned; tau not above 0.
    """
    name, tau_name = names
    if value is not None and tau is not None:
        raise ValueError(f"{where}: expected {name} or {tau_name}, got both. Give one; {name} = exp(-1 / {tau_name}).")
    if tau is not None:
        steps = one_or_each(where, tau_name, tau, each)
        if not bool((steps > 0).all()):
            raise ValueError(f"{where}: expected {tau_name} (steps) above 0, got {tau}. Give a time constant in steps.")
        found = decay_of(steps)
    else:
        found = one_or_each(where, name, default if value is None else value, each)  # type: ignore[arg-type]
    end = ")" if below_one else "]"
    if not bool(((found >= 0) & ((found < 1) if below_one else (found <= 1))).all()):
        raise ValueError(
            f"{where}: expected {name} in [0, 1{end}, got {value if tau is None else f'{tau_name}={tau}'}. "
            f"{name} is a decay per step; for a time constant in steps give {tau_name}=."
        )
    if learned and not bool(((found > 0) & (found < 1)).all()):
        raise ValueError(
            f"{where}: expected a learned {name} strictly between 0 and 1, got {value if tau is None else found}. "
            f"Start inside the interval, or leave out learn_{name}."
        )
    return found


def membrane_decay(
    where: str, beta: OneOrEach | None, tau: OneOrEach | None, learned: bool, each: int
) -> dict[str, Constrained]:
    """The parameters of a membrane without threshold."""
    value = decay(where, ("beta", "tau"), beta, tau, learned, each)
    return {"beta": Constrained(value, learned, UnitInterval)}


def firing_threshold(where: str, threshold: OneOrEach, learned: bool, each: int) -> Constrained:
    """The threshold that was given.

    Raises:
        ValueError: it is not above 0.
    """
    value = one_or_each(where, "threshold", threshold, each)
    if not bool(((value > 0) & torch.isfinite(value)).all()):
        raise ValueError(
            f"{where}: expected threshold above 0, got {threshold}. It is relative to the membrane; 1 is usual."
        )
    return Constrained(value, learned, Positive)


def adaptation_strength(where: str, kappa: OneOrEach | None, learned: bool, each: int) -> Constrained:
    """The rise of the threshold that was given.

    Raises:
        ValueError: it is below 0, or 0 where it is learned.
    """
    assert kappa is not None
    value = one_or_each(where, "kappa", kappa, each)
    if not bool((((value > 0) if learned else (value >= 0)) & torch.isfinite(value)).all()):
        least = "above 0 where it is learned" if learned else "of at least 0"
        raise ValueError(f"{where}: expected kappa {least}, got {kappa}. It is what the threshold rises by per spike.")
    return Constrained(value, learned, Positive)
