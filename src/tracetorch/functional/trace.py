"""Traces: running, exponentially weighted sums over steps.

    z_t = decay * z_{t-1} + x_t               the trace
    n_t = decay * n_{t-1} + 1                 its normaliser: the trace of ones, per lane

`z_t` is a sum, not an average; an average is `z_t / n_t`, or `z_t * (1 - decay)` once the start no longer matters.

A *chain* is a trace of a trace of ..., as the state of a neuron with a synaptic current is:

    z^1_t = d_1 z^1_{t-1} + gain_1 x_t          z^2_t = d_2 z^2_{t-1} + gain_2 z^1_t          ...
"""

from __future__ import annotations

from typing import NamedTuple

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


class Stage(NamedTuple):
    """A link of a chain."""

    state: str  # the field of the neuron's state that it is the derivative of
    parameter: str  # the name of the decay
    decay: Tensor  # () or (m,), in [0, 1]
    gain: Tensor | float = 1.0  # on what comes in

    def scaled(self, entering: Tensor) -> Tensor:
        """What comes in, times the gain."""
        return entering if isinstance(self.gain, float) and self.gain == 1 else self.gain * entering


def advance_chain(traces: Tensor, drive: Tensor, chain: tuple[Stage, ...], kept: Tensor | None = None) -> Tensor:
    """Advance a chain of traces over a window.

    Args:
        traces: (B, S, n) the trace of each stage before the window.
        drive: (K, B, n) what enters the first stage at each step.
        chain: the S stages; a decay () is for all n.
        kept: (K, B, n) what remains of the last stage after each step, 0 where it was set to zero; None for all.

    Returns:
        (B, S, n) after the window; a new tensor.

    >>> both = (Stage("cur", "alpha", torch.tensor(0.5)), Stage("mem", "beta", torch.tensor(0.0), 2.0))
    >>> advance_chain(torch.zeros(1, 2, 1), torch.ones(3, 1, 1), both).flatten()
    tensor([1.7500, 3.5000])
    """
    if kept is not None:
        for x_t, kept_t in zip(drive, kept, strict=True):
            traces = _one_step(traces, x_t, chain)
            traces[:, -1] *= kept_t
        return traces
    if len(drive) == 1:
        return _one_step(traces, drive[0], chain)
    if len(chain) == 1:
        return advance(traces[:, 0], chain[0].scaled(drive), chain[0].decay)[:, None]
    transition, response = _linear_system(traces, chain)
    responses = [response]  # A^k b, of an input k steps ago
    for _ in range(len(drive) - 1):
        responses.append((transition @ responses[-1][..., None])[..., 0])
    power = torch.linalg.matrix_power(transition, len(drive))
    stacked = torch.stack(responses[::-1])
    if stacked.ndim == 2:
        return torch.einsum("ks,kbn->bsn", stacked, drive) + torch.einsum("st,btn->bsn", power, traces)
    return torch.einsum("kns,kbn->bsn", stacked, drive) + torch.einsum("nst,btn->bsn", power, traces)


def _one_step(traces: Tensor, x_t: Tensor, chain: tuple[Stage, ...]) -> Tensor:
    after, entering = [], x_t
    for s, stage in enumerate(chain):
        entering = torch.addcmul(stage.scaled(entering), traces[:, s], stage.decay)
        after.append(entering)
    return torch.stack(after, 1)


def _linear_system(traces: Tensor, chain: tuple[Stage, ...]) -> tuple[Tensor, Tensor]:
    """A (S, S) and b (S,), or (n, S, S) and (n, S), of `z_t = A z_{t-1} + b x_t`."""
    shape = max((stage.decay.shape for stage in chain), key=len)
    rows: list[Tensor] = []
    entries: list[Tensor] = []
    for s, stage in enumerate(chain):  # each row is gain times the one before, and its own decay
        own = torch.zeros(*shape, len(chain), dtype=traces.dtype, device=traces.device)
        own[..., s] = stage.decay
        gain = torch.as_tensor(stage.gain, dtype=traces.dtype, device=traces.device).expand(shape)
        rows.append(own if s == 0 else own + gain[..., None] * rows[-1])
        entries.append(gain if s == 0 else gain * entries[-1])
    return torch.stack(rows, -2), torch.stack(entries, -1)


def advance_matrix(before: Tensor, g: Tensor, border: Tensor, taken: Tensor, past: Tensor, decay: Tensor) -> Tensor:
    """Advance matrices over a window: `decay_h before_h + sum_t g_t x_t^T + border past^T` for each lane.

    Args:
        before: (B, H, m, n) before the window.
        g: (K, H, B, m) the rows that each step adds.
        border: (H, B, S, m) the rows that the S traces at the window's start add.
        taken: (K, B, n) the inputs of each step.
        past: (B, S, n) the traces at the window's start.
        decay: (H, 1), over the whole window (dimensionless).

    Returns:
        (B, H, m, n) after the window; a new tensor.
    """
    lanes, h, m, n = before.shape
    rows = torch.cat([g.permute(2, 1, 3, 0), border.permute(1, 0, 3, 2)], -1).reshape(lanes, h * m, -1)
    columns = torch.cat([taken.transpose(0, 1), past], 1)
    kept = (before * decay[..., None]).reshape(lanes, h * m, n)
    return torch.baddbmm(kept, rows, columns).view(lanes, h, m, n)


def carry_matrix(signal: Tensor, matrix: Tensor) -> Tensor:
    """What matrices make of a signal: `sum over lanes and nodes of signal * matrix`.

    Args:
        signal: (B, H, m).
        matrix: (B, H, m, n).

    Returns:
        (m, n).

    >>> carry_matrix(torch.ones(2, 1, 1), torch.ones(2, 1, 1, 3))
    tensor([[2., 2., 2.]])
    """
    return torch.einsum("bhm,bhmn->mn", signal, matrix)


def carry_advanced(
    signal: Tensor, before: Tensor, g: Tensor, border: Tensor, taken: Tensor, past: Tensor, decay: Tensor
) -> tuple[Tensor, Tensor]:
    """Both in one: `carry_matrix` of the matrices that `advance_matrix` makes, and these."""
    matrix = advance_matrix(before, g, border, taken, past, decay)
    return carry_matrix(signal, matrix), matrix


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
