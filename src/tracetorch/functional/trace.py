"""Traces: running, exponentially weighted sums over steps.

    z_t = decay * z_{t-1} + x_t               the trace
    n_t = decay * n_{t-1} + 1                 its normaliser: the trace of ones, per lane

`z_t` is a sum, not an average; an average is `z_t / n_t`, or `z_t * (1 - decay)` once the start no longer matters.
"""

from __future__ import annotations

import torch
from torch import Tensor


def advance(trace: Tensor, drive: Tensor, decay: Tensor) -> Tensor:
    """Advance a trace over a window: `decay^K * trace + sum_t decay^(K-t) * drive_t`.

    Args:
        trace: (B, n) the trace before the window.
        drive: (K, B, n) what is added at each step.
        decay: () or (n,) decay per step, in [0, 1] (dimensionless).

    Returns:
        (B, n) the trace after the window; a new tensor.

    >>> advance(torch.zeros(1, 1), torch.ones(3, 1, 1), torch.tensor(0.5))
    tensor([[1.7500]])
    """
    steps = drive.shape[0]
    if steps == 1:
        return torch.addcmul(drive[0], trace, decay)
    lags = torch.arange(steps - 1, -1, -1, dtype=trace.dtype, device=trace.device)
    if decay.ndim == 0:
        summed = torch.tensordot(decay**lags, drive, dims=1)
    else:
        summed = ((decay ** lags[:, None])[:, None] * drive).sum(0)
    return torch.addcmul(summed, trace, decay**steps)


def advance_ones(trace: Tensor, steps: int, decay: Tensor) -> Tensor:
    """Advance a trace of ones over `steps` steps: `decay^K * trace + (1 + decay + ... + decay^(K-1))`.

    Args:
        trace: (B, 1), or (B, n) where each of n entries has a decay of its own.
        steps: K.
        decay: () or (n,).

    >>> advance_ones(torch.zeros(1, 1), 3, torch.tensor(0.5))
    tensor([[1.7500]])
    """
    lags = torch.arange(steps, dtype=trace.dtype, device=trace.device)
    powers = decay**lags if decay.ndim == 0 else decay ** lags[:, None]
    return trace * decay**steps + powers.sum(0)


def advance_bank(traces: Tensor, drive: Tensor, nodes: Tensor) -> Tensor:
    """Advance one trace per node of a bank: `q_g^K * traces_g + sum_t q_g^(K-t) * drive_t`.

    Args:
        traces: (B, G, n) before the window.
        drive: (K, B, n) what is added at each step.
        nodes: (G,) decays per step, in [0, 1] (dimensionless).

    Returns:
        (B, G, n) after the window; a new tensor.

    >>> advance_bank(torch.zeros(1, 2, 1), torch.ones(3, 1, 1), torch.tensor([0.5, 1.0])).flatten()
    tensor([1.7500, 3.0000])
    """
    steps = drive.shape[0]
    decays = nodes.to(traces.dtype)
    if steps == 1:
        return torch.addcmul(drive[0, :, None], traces, decays[:, None])
    lags = torch.arange(steps - 1, -1, -1, dtype=nodes.dtype, device=nodes.device)
    powers = (nodes[:, None] ** lags).to(traces.dtype)
    summed = torch.tensordot(powers, drive, dims=1).transpose(0, 1)  # (G, B, n) -> (B, G, n)
    return torch.addcmul(summed, traces, (nodes**steps).to(traces.dtype)[:, None])


def average(trace: Tensor, normaliser: Tensor) -> Tensor:
    """The average that a trace holds, corrected for its start: `trace / normaliser`, 0 where the normaliser is 0.

    Args:
        trace: (B, n).
        normaliser: (B, 1) or (B, n), the trace of ones.

    >>> average(torch.tensor([[3.0], [0.0]]), torch.tensor([[1.5], [0.0]]))
    tensor([[2.],
            [0.]])
    """
    return torch.where(normaliser > 0, trace / normaliser.clamp(min=1e-30), torch.zeros_like(trace))
