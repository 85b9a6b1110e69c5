"""How a learned value is kept inside its range: value = function(raw), and raw is the parameter."""

from __future__ import annotations

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
    def slope(raw: Tensor) -> Tensor:
        """The derivative of the value with respect to raw."""
        value = UnitInterval.value(raw)
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
    def slope(raw: Tensor) -> Tensor:
        """The derivative of the value with respect to raw."""
        return torch.sigmoid(raw)
