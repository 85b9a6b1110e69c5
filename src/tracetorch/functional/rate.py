"""Firing-rate estimates in closed form: the average output of a neuron that receives an average current.

Each estimate has a value `f(I, beta, theta)` and, given dL/df, the gradients with respect to I, beta and theta. The
slopes are written as functions of the *value* f, so that the same formula serves a value that was measured: it is
then the slope at the point of the curve where the estimate takes that value.

    Sigmoid   f = sigmoid(5 (I (2 - beta) / 2 - theta (1 - beta)))        the original traceTorch's
    Balance   f = F(I / theta - (1 - beta) / 2),                          from the balance of a subtractive reset
              F(x) = w (softplus(x / w) - softplus((x - 1) / w)),
              F'   = (1 - exp(-f / w) - exp((f - 1) / w) + exp(-1 / w)) / (1 - exp(-1 / w))
    Linear    f = I / (1 - beta)                                          LI
    Softmax   f = softmax(I / (1 - beta))                                 the stochastic softmax readout

Where `Balance` comes from: over a long time the mean membrane after the reset obeys v = beta v + I - theta f, so
that f = (I - (1 - beta) v) / theta. A firing neuron's membrane after the reset is spread over [0, theta), in the mean
theta / 2; with that f = I / theta - (1 - beta) / 2, clipped softly to [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _checks


class RateGradients(NamedTuple):
    """Gradients of an estimate; each (B, m)."""

    current: Tensor
    beta: Tensor
    threshold: Tensor | None


class RateEstimate:
    """One interface for all estimates."""

    def value(self, current: Tensor, beta: Tensor, threshold: Tensor | None) -> Tensor:
        """The estimated average output.

        Args:
            current: (B, m) average input current.
            beta: () or (m,) membrane decay (dimensionless).
            threshold: () or (m,) firing threshold (dimensionless); None for readouts.

        Returns:
            (B, m): spikes per step, a membrane for `Linear`, probabilities for `Softmax`.
        """
        raise NotImplementedError

    def gradients(
        self, signal: Tensor, value: Tensor, current: Tensor, beta: Tensor, threshold: Tensor | None
    ) -> RateGradients:
        """The gradients of a loss with dL/df = `signal` (B, m), at the value f = `value` (B, m)."""
        raise NotImplementedError


@dataclass(frozen=True)
class Sigmoid(RateEstimate):
    """`f = sigmoid(5 (I (2 - beta) / 2 - theta (1 - beta)))`.

    >>> Sigmoid().value(torch.tensor(0.5), torch.tensor(0.9), torch.tensor(1.0))
    tensor(0.7058)
    """

    def value(self, current: Tensor, beta: Tensor, threshold: Tensor | None) -> Tensor:
        """Spikes per step, see the class."""
        assert threshold is not None
        return torch.sigmoid(5 * (current * (2 - beta) / 2 - threshold * (1 - beta)))

    def gradients(
        self, signal: Tensor, value: Tensor, current: Tensor, beta: Tensor, threshold: Tensor | None
    ) -> RateGradients:
        """The logistic slope is `f (1 - f)`."""
        assert threshold is not None
        slope = signal * 5 * value * (1 - value)
        return RateGradients(slope * (2 - beta) / 2, slope * (threshold - current / 2), slope * (beta - 1))


@dataclass(frozen=True)
class Balance(RateEstimate):
    """`f = F(I / theta - (1 - beta) / 2)` with the soft clip F of width w (see the module).

    Args:
        width: w, the softness of the clip (spikes per step); towards 0 it is clip(x, 0, 1). The default keeps the value
            within 0.27 (1 - beta) + 0.01 of a LIF with a constant current, at rates of .05 to .95 and beta from 0.75
            on; a larger one leaves more slope to neurons far outside the clip.

    >>> Balance(width=1e-3).value(torch.tensor([0.2, 0.9]), torch.tensor(0.9), torch.tensor(1.0))
    tensor([0.1500, 0.8500])
    """

    width: float = 0.03

    def __post_init__(self) -> None:
        _checks.positive("Balance", "width", self.width)

    def value(self, current: Tensor, beta: Tensor, threshold: Tensor | None) -> Tensor:
        """Spikes per step, see the class."""
        assert threshold is not None
        x = (current / threshold - (1 - beta) / 2) / self.width
        zero = torch.zeros((), dtype=x.dtype, device=x.device)
        # logaddexp(x, 0) is softplus without torch's cut-off, which is off by 2e-9 at its edge
        return self.width * (torch.logaddexp(x, zero) - torch.logaddexp(x - 1 / self.width, zero))

    def gradients(
        self,
        signal: Tensor,
        value: Tensor,
        current: Tensor,
        beta: Tensor,  # noqa: ARG002
        threshold: Tensor | None,
    ) -> RateGradients:
        """`F'` as a function of f: no logarithm of f, hence nothing to guard at the ends."""
        assert threshold is not None
        ends = torch.exp(torch.tensor(-1 / self.width, dtype=value.dtype, device=value.device))
        f = value / self.width
        slope = signal * (ends - torch.expm1(-f) - torch.exp(f - 1 / self.width)) / (1 - ends)
        return RateGradients(slope / threshold, slope / 2, -slope * current / threshold**2)


@dataclass(frozen=True)
class Linear(RateEstimate):
    """`f = I / (1 - beta)`, the membrane that a leaky integrator settles at.

    >>> Linear().value(torch.tensor(0.5), torch.tensor(0.75), None)
    tensor(2.)
    """

    def value(self, current: Tensor, beta: Tensor, threshold: Tensor | None) -> Tensor:  # noqa: ARG002
        """The settled membrane, see the class."""
        return current / (1 - beta)

    def gradients(
        self,
        signal: Tensor,
        value: Tensor,
        current: Tensor,  # noqa: ARG002
        beta: Tensor,
        threshold: Tensor | None,  # noqa: ARG002
    ) -> RateGradients:
        """`df/dI = 1 / (1 - beta)`, `df/dbeta = f / (1 - beta)`."""
        d_current = signal / (1 - beta)
        return RateGradients(d_current, d_current * value, None)


@dataclass(frozen=True)
class Softmax(RateEstimate):
    """`f = softmax(I / (1 - beta))` over the neurons.

    >>> Softmax().value(torch.zeros(1, 2), torch.tensor(0.5), None)
    tensor([[0.5000, 0.5000]])
    """

    def value(self, current: Tensor, beta: Tensor, threshold: Tensor | None) -> Tensor:  # noqa: ARG002
        """Probabilities, see the class."""
        return torch.softmax(current / (1 - beta), dim=-1)

    def gradients(
        self,
        signal: Tensor,
        value: Tensor,
        current: Tensor,
        beta: Tensor,
        threshold: Tensor | None,  # noqa: ARG002
    ) -> RateGradients:
        """Through the softmax's Jacobian at f, then through the settled membrane."""
        d_current = softmax_signal(signal, value) / (1 - beta)
        return RateGradients(d_current, d_current * current / (1 - beta), None)


def softmax_signal(signal: Tensor, probs: Tensor) -> Tensor:
    """From dL/dpi to dL/dv through `pi = softmax(v)`: `pi * (signal - <pi, signal>)`, over the last dimension.

    >>> softmax_signal(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5]))
    tensor([ 0.2500, -0.2500])
    """
    return probs * (signal - (probs * signal).sum(-1, keepdim=True))
