"""Encoders: from values to spikes over time. Time comes first; all draw from a `generator`, by default torch's.

Shapes: values (...), typically (B, n), become (steps, ...).
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks


def bernoulli(
    x: Tensor,
    steps: int,
    *,
    intensity: tuple[float, float] = (0.0, 1.0),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Rate coding: at each step a spike with probability `low + (high - low) * x`.

    Args:
        x: (...) values in [0, 1].
        steps: K.
        intensity: (low, high), the probabilities of x = 0 and x = 1, each in [0, 1].
        generator: what the spikes are drawn with.

    Returns:
        (K, ...) zeros and ones, x's dtype.

    Raises:
        TypeError: x is not floating point.
        ValueError: a value or an intensity outside [0, 1], steps below 1.

    >>> bernoulli(torch.tensor([0.0, 1.0]), 2)
    tensor([[0., 1.],
            [0., 1.]])
    """
    where = "encode.bernoulli"
    _checks.at_least_one(where, "steps", steps)
    _unit_values(where, x)
    low, high = intensity
    _checks.fraction(where, "intensity[0]", low)
    _checks.fraction(where, "intensity[1]", high)
    probability = (low + (high - low) * x).expand(steps, *x.shape)
    return torch.bernoulli(probability, generator=generator)


def poisson(rate: Tensor, steps: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Counts of a Poisson process: at each step 0, 1, 2, ... events, `rate` of them in the mean.

    For binary spikes (at least one event) use `poisson(...).clamp(max=1)`.

    Args:
        rate: (...) events per step, at least 0.
        steps: K.
        generator: what the counts are drawn with.

    Returns:
        (K, ...) counts, rate's dtype.

    Raises:
        TypeError: rate is not floating point.
        ValueError: a rate that is negative or not finite, steps below 1.

    >>> poisson(torch.zeros(2), 1)
    tensor([[0., 0.]])
    """
    where = "encode.poisson"
    _checks.at_least_one(where, "steps", steps)
    _checks.floating(where, "rate", rate)
    _checks.finite(where, "rate", rate)
    if not bool((rate >= 0).all()):
        raise ValueError(f"{where}: expected rates of at least 0, got {rate.min().item()}.")
    return torch.poisson(rate.expand(steps, *rate.shape), generator=generator)


def latency(x: Tensor, steps: int, *, jitter: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
    """One spike per value, the sooner the larger it is: at step `round((1 - x) (K - 1))`, none for x = 0.

    Args:
        x: (...) values in [0, 1].
        steps: K.
        jitter: standard deviation of the spike's time (steps), which stays inside the window.
        generator: what the jitter is drawn with.

    Returns:
        (K, ...) zeros and ones, x's dtype.

    Raises:
        TypeError: x is not floating point.
        ValueError: a value outside [0, 1], a negative jitter, steps below 1.

    >>> latency(torch.tensor([1.0, 0.5, 0.0]), 3)
    tensor([[1., 0., 0.],
            [0., 1., 0.],
            [0., 0., 0.]])
    """
    where = "encode.latency"
    _checks.at_least_one(where, "steps", steps)
    _unit_values(where, x)
    if not jitter >= 0:
        raise ValueError(f"{where}: expected jitter (steps) of at least 0, got {jitter}.")
    time = (1 - x) * (steps - 1)
    if jitter:
        noise = torch.empty_like(x).normal_(generator=generator)
        time = (time + jitter * noise).clamp(0, steps - 1)
    step = torch.arange(steps, device=x.device).view(-1, *[1] * x.ndim)
    return ((time.round() == step) & (x > 0)).to(x.dtype)


def delta(x: Tensor, threshold: float, *, noise: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
    """Send on delta: a spike of +1 or -1 when x has moved by `threshold` from where the last spike left it.

        e_t = x_t - level_{t-1}
        s_t = sign(e_t) [|e_t| >= threshold]
        level_t = level_{t-1} + threshold * s_t          level_0 = x_1, so that the first step is silent

    Args:
        x: (K, ...) values over time.
        threshold: the move that is worth a spike, above 0, in units of x.
        noise: standard deviation of a noise added to e_t at each step, in units of x.
        generator: what the noise is drawn with.

    Returns:
        (K, ...) of -1, 0, 1, x's dtype; at most one spike per step and value.

    Raises:
        TypeError: x is not floating point.
        ValueError: a threshold not above 0, a negative noise, no steps.

    >>> delta(torch.tensor([0.0, 1.0, 1.0, -1.0]), threshold=1.0)
    tensor([ 0.,  1.,  0., -1.])
    """
    where = "encode.delta"
    _checks.floating(where, "x", x)
    _checks.positive(where, "threshold", threshold)
    if not noise >= 0:
        raise ValueError(f"{where}: expected noise of at least 0, got {noise}.")
    if not x.ndim or not len(x):
        raise ValueError(f"{where}: expected x of shape (K, ...) with at least one step, got {tuple(x.shape)}.")
    level = x[0]
    spikes = torch.zeros_like(x)
    for t in range(1, x.shape[0]):
        moved = x[t] - level
        if noise:
            moved = moved + noise * torch.empty_like(moved).normal_(generator=generator)
        spikes[t] = torch.sign(moved) * (moved.abs() >= threshold)
        level = level + threshold * spikes[t]
    return spikes


def _unit_values(where: str, x: Tensor) -> None:
    _checks.floating(where, "x", x)
    if not bool(((x >= 0) & (x <= 1)).all()):
        raise ValueError(
            f"{where}: expected values in [0, 1], got {x.min().item()} to {x.max().item()}. "
            f"Scale x first; pixels of 0 to 255 are divided by 255."
        )
