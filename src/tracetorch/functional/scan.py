"""Window scans of each neuron and their reverse scans: the reference, in plain torch.

Shapes: K steps in a window, B lanes, m neurons. `beta` and `threshold` are tensors of shape () or (m,).

LIF (leaky integrate-and-fire, subtractive reset, no gradient through the reset spike), for t = 1..K:

    p_t = beta * v_{t-1} + I_t                membrane before the reset, I_t = W x_t + b
    u_t = p_t - theta
    s_t = [u_t >= 0]                          output spike
    v_t = p_t - theta * s_t                   membrane after the reset

LI (leaky integrator, the readout):  v_t = beta * v_{t-1} + I_t, output v_t.

Reverse scan, given ls_t = dL/ds_t (LI: dL/dv_t), from t = K down with a_K = 0:

    g_t     = psi(u_t) * ls_t + a_t           = dL/dI_t   (LI: ls_t + a_t)
    a_{t-1} = beta * g_t                      = dL/dv_{t-1}

    dL/dbeta  =   sum_t g_t * v_{t-1}
    dL/dtheta = - sum_t (psi(u_t) * ls_t + a_t * s_t)

`a_0` is what is left over: the gradient with respect to the state that the window began with. Where a later window has
been run backwards already, its leftover takes the place of a_K = 0.

With recurrent weights U, `I_t = W x_t + b + U s_{t-1}`, and ls_t becomes `ls_t + U^T g_{t+1}`; what is left over then
has a second part, `dL/ds_0 = U^T g_1`.

All of it runs outside autograd: the reverse scans *are* the derivatives.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .surrogate import Surrogate


class LIFScan(NamedTuple):
    """What `lif` returns."""

    spk: Tensor  # (K, B, m) spikes
    u: Tensor  # (K, B, m) membrane before the reset, relative to the threshold
    mem: Tensor  # (B, m) membrane after the last step's reset


class Recurrence(NamedTuple):
    """What recurrent weights add to a scan."""

    weight: Tensor  # (m, m) U, from the column's neuron to the row's
    spk: Tensor | None  # (B, m) forwards: s_0; backwards: dL/ds_K from a later window; None for 0


class ReverseScan(NamedTuple):
    """What the reverse scans return."""

    g: Tensor  # (K, B, m) dL/dI
    mem: Tensor  # (B, m) a_0 = dL/dv_0, left over at the window's start
    beta: Tensor  # (B, m) dL/dbeta of each neuron in each lane, summed over the window
    threshold: Tensor | None  # (B, m) dL/dtheta likewise; None for neurons without a threshold
    spk: Tensor | None = None  # (B, m) dL/ds_0, with recurrent weights


@torch.no_grad()
def lif(
    current: Tensor,
    mem: Tensor,
    beta: Tensor,
    threshold: Tensor,
    surrogate: Surrogate,
    recurrence: Recurrence | None = None,
) -> LIFScan:
    """Run a window of LIF steps.

    Args:
        current: (K, B, m) input currents I, without what recurrent weights add.
        mem: (B, m) membrane that the window starts with.
        beta: () or (m,) membrane decay per step (dimensionless).
        threshold: () or (m,) firing threshold (dimensionless).
        surrogate: its `spike` decides what is emitted.
        recurrence: the recurrent weights, and the spikes of the step before the window.

    >>> from tracetorch.functional.surrogate import ArcTan
    >>> half, one = torch.tensor(0.5), torch.tensor(1.0)
    >>> lif(torch.full((3, 1, 1), 0.75), torch.zeros(1, 1), half, one, ArcTan()).spk.flatten()
    tensor([0., 1., 0.])
    """
    u = torch.empty_like(current)
    spk = torch.empty_like(current)
    before = None if recurrence is None else recurrence.spk
    for t in range(current.shape[0]):
        p = torch.addcmul(current[t], mem, beta)
        if recurrence is not None:
            p = p if before is None else torch.addmm(p, before, recurrence.weight.t())
        torch.sub(p, threshold, out=u[t])
        spk[t] = surrogate.spike(u[t])
        mem = torch.addcmul(p, spk[t], threshold, value=-1)
        before = spk[t]
    return LIFScan(spk, u, mem)


@torch.no_grad()
def lif_reverse(
    ls: Tensor | None,
    u: Tensor,
    mem: Tensor,
    beta: Tensor,
    threshold: Tensor,
    surrogate: Surrogate,
    ahead: Tensor | None = None,
    recurrence: Recurrence | None = None,
) -> ReverseScan:
    """Run a window of LIF steps backwards.

    Args:
        ls: (K, B, m) learning signal dL/ds; None for 0.
        u: (K, B, m) from the forward scan.
        mem: (B, m) membrane that the window started with.
        beta: () or (m,), as in the forward scan.
        threshold: () or (m,), as in the forward scan.
        surrogate: its `slope` is psi, its `spike` the same as in the forward scan.
        ahead: (B, m) a_K = dL/dv_K from a later window; None for 0.
        recurrence: the recurrent weights, and dL/ds_K from a later window.
    """
    slope = surrogate.slope(u)
    q = torch.zeros_like(slope) if ls is None else slope * ls
    g = _accumulate(q, beta, ahead) if recurrence is None else _accumulate_recurrent(q, slope, beta, ahead, recurrence)
    spk = surrogate.spike(u)
    # a_t = g_t - q_t, so q_t + a_t s_t = q_t (1 - s_t) + g_t s_t
    d_threshold = -torch.lerp(q, g, spk).sum(0)
    d_beta = _beta_gradient(g, lif_membrane(u, threshold, spk), mem)
    return ReverseScan(g, beta * g[0], d_beta, d_threshold, None if recurrence is None else g[0] @ recurrence.weight)


def lif_membrane(u: Tensor, threshold: Tensor, spk: Tensor) -> Tensor:
    """The membrane after the reset, (K, B, m), from what a window keeps: `v = u + theta (1 - s)`."""
    return torch.addcmul(u, 1 - spk, threshold)


@torch.no_grad()
def li(current: Tensor, mem: Tensor, beta: Tensor) -> Tensor:
    """Run a window of LI steps: (K, B, m) currents, (B, m) membrane -> (K, B, m) membranes.

    >>> li(torch.ones(3, 1, 1), torch.zeros(1, 1), torch.tensor(0.5)).flatten()
    tensor([1.0000, 1.5000, 1.7500])
    """
    out = torch.empty_like(current)
    for t in range(current.shape[0]):
        mem = torch.addcmul(current[t], mem, beta, out=out[t])
    return out


@torch.no_grad()
def li_reverse(ls: Tensor | None, out: Tensor, mem: Tensor, beta: Tensor, ahead: Tensor | None = None) -> ReverseScan:
    """Run a window of LI steps backwards.

    Args:
        ls: (K, B, m) learning signal dL/dv; None for 0.
        out: (K, B, m) membranes from the forward scan.
        mem: (B, m) membrane that the window started with.
        beta: () or (m,), as in the forward scan.
        ahead: (B, m) a_K = dL/dv_K from a later window; None for 0.
    """
    g = _accumulate(torch.zeros_like(out) if ls is None else ls, beta, ahead)
    return ReverseScan(g, beta * g[0], _beta_gradient(g, out, mem), None)


def previous(after: Tensor, first: Tensor) -> Tensor:
    """What was before each step: `first` (B, m), then `after` (K, B, m) without its last step."""
    return torch.cat([first[None], after[:-1]])


def _accumulate(q: Tensor, beta: Tensor, ahead: Tensor | None) -> Tensor:
    """`g_t = q_t + beta * g_{t+1}`, with `ahead` in the place of the last step's second term."""
    g = torch.empty_like(q)
    g[-1] = q[-1] if ahead is None else q[-1] + ahead
    for t in range(q.shape[0] - 2, -1, -1):
        torch.addcmul(q[t], g[t + 1], beta, out=g[t])
    return g


def _accumulate_recurrent(
    q: Tensor, slope: Tensor, beta: Tensor, ahead: Tensor | None, recurrence: Recurrence
) -> Tensor:
    """The same with `U^T g_{t+1}` added to ls_t; adds `psi_t * U^T g_{t+1}` to q in place."""
    g = torch.empty_like(q)
    back = recurrence.spk
    for t in range(q.shape[0] - 1, -1, -1):
        if back is not None:
            q[t].addcmul_(slope[t], back)
        a_t = ahead if t == q.shape[0] - 1 else beta * g[t + 1]
        g[t] = q[t] if a_t is None else q[t] + a_t
        back = g[t] @ recurrence.weight
    return g


def _beta_gradient(g: Tensor, after: Tensor, first: Tensor) -> Tensor:
    """`sum_t g_t * v_{t-1}`, (B, m)."""
    return (g * previous(after, first)).sum(0)
