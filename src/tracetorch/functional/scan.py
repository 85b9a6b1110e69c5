"""Window scans of each neuron and their reverse scans: the reference, in plain torch.

Shapes: K steps in a window, B lanes, m neurons. Parameter values are tensors of shape () or (m,), by name.

Spiking neurons, for t = 1..K; what a neuron has not is left out (no alpha: i_t = J_t; no kappa: theta_t = theta):

    J_t     = W x_t + b (+ U s_{t-1})                    current, with recurrent weights U
    i_t     = alpha * i_{t-1} + J_t                      synaptic current
    p_t     = beta * v_{t-1} + gain * i_t                membrane before the reset
    theta_t = theta + kappa * a_{t-1}                    adaptive threshold
    u_t     = p_t - theta_t
    s_t     = fire(u_t)                                  output spikes (see `firing`)
    v_t     = p_t - theta_t * s_t                        reset "subtract"; "zero": p_t * [s_t = 0]; "none": p_t
    a_t     = rho * a_{t-1} + s_t                        adaptation

A "subtract" that is *delayed* takes theta_t * s_{t-1} from p_t instead, where beta has no part in it.

LI (leaky integrator, the readout):  v_t = beta * v_{t-1} + J_t, output v_t.

The reverse scan, given ls_t = dL/ds_t (LI: dL/dv_t), from t = K down; d. stands for dL/d. by way of later steps, which
is 0 for t = K, or what is left over of a later window that has been run backwards already:

    e_t  = psi(u_t) * (ls_t + ds_t + da_t)               = dL/du_t, by way of the spike; the reset detached
    g_t  = e_t + dv_t                                    = dL/dp_t;  "zero": dv_t * [s_t = 0]
    c_t  = -e_t - dv_t * s_t                             = dL/dtheta_t;  delayed: -e_t - g_t * s_{t-1};  else: -e_t
    h_t  = gain * g_t + di_t                             = dL/di_t = dL/dJ_t

    dv_{t-1} = beta * g_t     di_{t-1} = alpha * h_t     da_{t-1} = rho * da_t + kappa * c_t     ds_{t-1} = U^T h_t

    dL/dbeta = sum_t g_t * v_{t-1}      dL/dalpha = sum_t h_t * i_{t-1}      dL/dtheta = sum_t c_t
    dL/dkappa = sum_t c_t * a_{t-1}     dL/drho = sum_t da_t * a_{t-1}

With the reset *attached*, ls_t + ... also holds what the reset makes of the spike: -theta_t * dv_t ("zero":
-p_t * dv_t), delayed: ds_{t-1} -= theta_t * g_t. With gain = 1 - beta, dL/dbeta also holds -g_t * i_t. For LI,
e_t = ls_t.

All of it runs outside autograd: the reverse scans *are* the derivatives.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from .firing import Firing
from .spikes import Spikes, unpacked

Values = Mapping[str, Tensor]
"""Parameter values by name: "beta", "threshold", "alpha", "rho", "kappa", () or (m,); "recurrent", (m, m)."""


class State(NamedTuple):
    """The state of a neuron, and the gradient with respect to it; None for what it has not."""

    mem: Tensor  # (B, m) v, the membrane after the reset
    cur: Tensor | None = None  # (B, m) i, the synaptic current
    adapt: Tensor | None = None  # (B, m) a, the adaptation of the threshold
    spk: Tensor | None = None  # (B, m) the latest output, where recurrent weights or a delayed reset need it


@dataclass(frozen=True)
class Form:
    """What kind of spiking neuron it is, apart from its parameters."""

    firing: Firing
    reset: Literal["subtract", "zero", "none"] = "subtract"
    delayed: bool = False
    attached: bool = False
    gain: float | Literal["leak"] = 1.0  # "leak": 1 - beta

    def gain_of(self, values: Values) -> Tensor | float:
        """The factor on the current."""
        return 1 - values["beta"] if self.gain == "leak" else self.gain


NOTHING = State(None)  # type: ignore[arg-type]
"""No gradient at all: what is left over where there is no later window."""


class Record(NamedTuple):
    """What a window keeps for its reverse scan; None for what follows from the rest."""

    u: Tensor  # (K, B, m) membrane before the reset, relative to the threshold
    y: Tensor | None = None  # (K, B, m) output, where it cannot be computed again
    cur: Tensor | None = None  # (K, B, m) i_t
    adapt: Tensor | None = None  # (K, B, m) a_{t-1}


class Scan(NamedTuple):
    """A window of a neuron."""

    y: Tensor  # (K, B, m) output
    record: Any  # what the reverse scan needs: a `Record`, or another NamedTuple of tensors
    state: Any  # after the window, such as a `State`


class Sums(NamedTuple):
    """What a reverse scan for probes sums over the window, (H, B, m)."""

    total: Tensor  # dL/dJ
    driven: Tensor  # psi_t dL/dy_t, the probe's own


class Reverse(NamedTuple):
    """A reverse scan of a window."""

    g: Tensor  # (K, B, m) dL/dJ
    first: State  # dL/dp and dL/di (by way of later currents) of the first step
    leftover: State  # dL/dstate at the window's start
    own: dict[str, Tensor]  # (B, m) the gradient of each parameter asked for, summed over the window
    sums: Sums | None = None  # for probes, where they are summed


@torch.no_grad()
def spiking(current: Tensor, start: State, values: Values, form: Form, given: Tensor | None = None) -> Scan:
    """Run a window of spiking neurons.

    Args:
        current: (K, B, m) input currents W x_t + b.
        start: the state that the window starts with.
        values: the parameters' values.
        form: the kind of neuron.
        given: (K, B, m) what they emit, whatever their membranes: for a window that was run before.

    >>> from tracetorch.functional.firing import Spike
    >>> values = {"beta": torch.tensor(0.5), "threshold": torch.tensor(1.0)}
    >>> spiking(torch.full((3, 1, 1), 0.75), State(torch.zeros(1, 1)), values, Form(Spike())).y.flatten()
    tensor([0., 1., 0.])
    """
    beta, theta, alpha, kappa = values["beta"], values["threshold"], values.get("alpha"), values.get("kappa")
    recurrent, gain, firing = values.get("recurrent"), form.gain_of(values), form.firing
    plain = isinstance(gain, float) and gain == 1
    u, y = torch.empty_like(current), torch.empty_like(current) if given is None else given
    cur = torch.empty_like(current) if alpha is not None or form.gain == "leak" else None
    adapt = None if kappa is None else torch.empty_like(current)
    mem = start.mem
    i_t, a_t, before = (cast(Tensor, part) for part in start[1:])  # where the neuron has them
    for t in range(len(current)):
        j_t = current[t] if recurrent is None else torch.addmm(current[t], before, recurrent.t())
        i_t = j_t if alpha is None else torch.addcmul(j_t, i_t, alpha)
        if cur is not None:
            cur[t] = i_t
        p_t = torch.addcmul(i_t if plain else i_t * gain, mem, beta)
        theta_t = theta
        if adapt is not None:
            adapt[t] = a_t
            theta_t = torch.addcmul(theta, a_t, values["kappa"])
        if form.delayed:
            p_t = torch.addcmul(p_t, firing.count(before), theta_t, value=-1)
        torch.sub(p_t, theta_t, out=u[t])
        if given is None:
            y[t] = firing.emit(u[t], theta_t)
        before = y[t]
        spikes = firing.count(before)
        mem = _after_reset(p_t, theta_t, spikes, form)
        if adapt is not None:
            a_t = torch.addcmul(spikes, a_t, values["rho"])
    state = State(
        mem,
        None if alpha is None else i_t,
        None if adapt is None else a_t,
        None if start.spk is None else before.clone(),
    )
    return Scan(y, Record(u, None if firing.recomputable and given is None else y, cur, adapt), state)


def _after_reset(p: Tensor, theta: Tensor, spikes: Tensor, form: Form) -> Tensor:
    """The membrane after the reset."""
    if form.reset == "zero":
        return p * (spikes == 0)
    if form.reset == "none" or form.delayed:
        return p
    return torch.addcmul(p, spikes, theta, value=-1)


class Steps(NamedTuple):
    """What was in each step of a window, (K, B, m), from its record."""

    theta: Tensor  # the threshold, also () or (m,) where it does not adapt
    y: Tensor
    spikes: Tensor

    def membrane(self, record: Record, form: Form) -> Tensor:
        """The membranes after the reset."""
        return _after_reset(record.u + self.theta, self.theta, self.spikes, form)


def threshold_of(record: Record, values: Values) -> Tensor:
    """The threshold of each step of a window (K, B, m); () or (m,) where it does not adapt."""
    theta = values["threshold"]
    if record.adapt is None:
        return theta
    return torch.addcmul(theta, record.adapt, values["kappa"])  # as in the forward scan, to the last bit


def steps_of(record: Record, values: Values, form: Form) -> Steps:
    """What was in each step of a window."""
    theta = threshold_of(record, values)
    y = form.firing.emit(record.u, theta) if record.y is None else record.y
    return Steps(theta, y, form.firing.count(y))


@torch.no_grad()
def spiking_reverse(
    ls: Tensor | None,
    record: Record,
    start: State,
    values: Values,
    form: Form,
    wanted: Collection[str] = (),
    ahead: State | None = None,
) -> Reverse:
    """Run a window of spiking neurons backwards.

    Args:
        ls: (K, B, m) learning signal dL/dy; None for 0.
        record: of the forward scan.
        start: the state that the window started with.
        values: as in the forward scan.
        form: as in the forward scan.
        wanted: the parameters whose gradients are asked for.
        ahead: what is left over of a later window; None for 0.
    """
    steps = steps_of(record, values, form)
    before = None
    if form.delayed:
        before = previous(steps.spikes, form.firing.count(cast(Tensor, start.spk)))
    window = _Window(record, steps, before, values, form)
    run = window.run_backwards(ls, NOTHING if ahead is None else ahead)
    first = State(run.g[0], None if run.leftover.cur is None else run.h[0] - form.gain_of(values) * run.g[0])
    own = {name: window.gradient(name, run, start) for name in wanted}
    sums = None
    if ls is not None and ls.ndim > 3:
        sums = Sums(run.h.sum(0), (form.firing.slope(record.u, steps.theta) * ls).sum(0))
    return Reverse(run.h, first, run.leftover, own, sums)


def recalled_reverse(
    ls: Tensor | None,
    current: Tensor,
    emitted: Spikes,
    start: State,
    values: Values,
    form: Form,
    wanted: Collection[str] = (),
    ahead: State | None = None,
) -> Reverse:
    """Run a window backwards that was run before, of which there are the currents and the spikes that were emitted.

    Args:
        ls: (K, B, m) learning signal dL/dy; None for 0.
        current: (K, B, m) input currents.
        emitted: the output, (K, B, m).
        start: the state that the window started with.
        values: the parameters' values.
        form: the kind of neuron.
        wanted: the parameters whose gradients are asked for.
        ahead: what is left over of a later window; None for 0.
    """
    record = spiking(current, start, values, form, unpacked(emitted, current.dtype)).record
    return spiking_reverse(ls, record, start, values, form, wanted, ahead)


class _Run(NamedTuple):
    """The quantities of a reverse scan (see the module), (K, B, m)."""

    e: Tensor
    g: Tensor
    h: Tensor
    leftover: State
    c: Tensor | None = None  # where the threshold adapts
    da: Tensor | None = None  # likewise


class _Window(NamedTuple):
    """What a reverse scan looks at."""

    record: Record
    steps: Steps
    before: Tensor | None  # (K, B, m) s_{t-1}, where the reset is delayed
    values: Values
    form: Form

    def run_backwards(self, ls: Tensor | None, ahead: State) -> _Run:
        record, values, form = self.record, self.values, self.form
        psi = form.firing.slope(record.u, self.steps.theta)
        e = torch.zeros_like(psi) if ls is None else psi * ls
        if "recurrent" in values or "kappa" in values or form.attached or form.reset == "zero":
            return self._run_coupled(e, psi, ahead)
        g = accumulate(e, values["beta"], ahead.mem)
        h = g if form.gain == 1 else form.gain_of(values) * g
        alpha = values.get("alpha")
        if alpha is None:
            return _Run(e, g, h, State(values["beta"] * g[0]))
        h = accumulate(h, alpha, ahead.cur)
        return _Run(e, g, h, State(values["beta"] * g[0], alpha * h[0]))

    def _run_coupled(self, e: Tensor, psi: Tensor, ahead: State) -> _Run:
        """Step by step, where past spikes or membranes have a part in it; completes e in place."""
        record, steps, values, form = self.record, self.steps, self.values, self.form
        beta, alpha, recurrent = values["beta"], values.get("alpha"), values.get("recurrent")
        adaptive, gain = record.adapt is not None, form.gain_of(values)
        count_psi = form.firing.count_slope(record.u, steps.theta)
        g, h = torch.empty_like(e), torch.empty_like(e)
        c, das = (torch.empty_like(e), torch.zeros_like(e)) if adaptive else (None, None)
        dv, di, da, dy = ahead
        for t in range(len(e) - 1, -1, -1):
            theta_t = steps.theta[t] if adaptive else steps.theta
            if dy is not None:
                e[t].addcmul_(psi[t], dy)
            if das is not None and da is not None:
                das[t] = da
                e[t].addcmul_(count_psi[t], da)
            g[t] = e[t]
            if dv is not None:
                if form.attached and form.reset != "none" and not form.delayed:
                    removed = theta_t if form.reset == "subtract" else record.u[t] + theta_t
                    e[t] -= count_psi[t] * removed * dv
                g[t] = e[t] + (dv * (steps.spikes[t] == 0) if form.reset == "zero" else dv)
            h[t] = gain * g[t] if di is None else gain * g[t] + di
            dv, di = beta * g[t], None if alpha is None else alpha * h[t]
            dy = None if recurrent is None else h[t] @ recurrent
            if form.attached and form.delayed:
                dy = -theta_t * g[t] if dy is None else dy - theta_t * g[t]
            if c is not None:
                c[t] = self._threshold_gradient(e[t], g[t], t)
                da = values["kappa"] * c[t] if da is None else values["rho"] * da + values["kappa"] * c[t]
        assert dv is not None
        return _Run(e, g, h, State(dv, di, da, dy), c, das)

    def _threshold_gradient(self, e: Tensor, g: Tensor, t: int | slice) -> Tensor:
        """c_t, of a step or of several."""
        if self.form.reset != "subtract":
            return -e
        if self.before is not None:
            return -torch.addcmul(e, g, self.before[t])
        return -torch.lerp(e, g, self.steps.spikes[t])  # g_t = e_t + dv_t

    def gradient(self, name: str, run: _Run, start: State) -> Tensor:
        """The gradient of a parameter, (B, m)."""
        if name == "beta":
            d_beta = run.g * previous(self.steps.membrane(self.record, self.form), start.mem)
            if self.form.gain == "leak":
                d_beta = d_beta - run.g * cast(Tensor, self.record.cur)
            return d_beta.sum(0)
        if name == "alpha":
            return (run.h * previous(cast(Tensor, self.record.cur), cast(Tensor, start.cur))).sum(0)
        c = self._threshold_gradient(run.e, run.g, slice(None)) if run.c is None else run.c
        if name == "threshold":
            return c.sum(0)
        assert self.record.adapt is not None
        return ((c if name == "kappa" else cast(Tensor, run.da)) * self.record.adapt).sum(0)


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
def li_reverse(ls: Tensor | None, out: Tensor, start: State, beta: Tensor, ahead: State | None = None) -> Reverse:
    """Run a window of LI steps backwards.

    Args:
        ls: (K, B, m) learning signal dL/dv; None for 0.
        out: (K, B, m) membranes from the forward scan.
        start: what the window started with.
        beta: () or (m,), as in the forward scan.
        ahead: what is left over of a later window; None for 0.
    """
    g = accumulate(torch.zeros_like(out) if ls is None else ls, beta, None if ahead is None else ahead.mem)
    own = {"beta": (g * previous(out, start.mem)).sum(0)}
    return Reverse(g, State(g[0]), State(beta * g[0]), own)


def previous(after: Tensor, first: Tensor) -> Tensor:
    """What was before each step: `first` (B, m), then `after` (K, B, m) without its last step."""
    return torch.cat([first[None], after[:-1]])


def accumulate(q: Tensor, decay: Tensor, ahead: Tensor | None) -> Tensor:
    """`g_t = q_t + decay * g_{t+1}`, with `ahead` in the place of the last step's second term."""
    g = torch.empty_like(q)
    g[-1] = q[-1] if ahead is None else q[-1] + ahead
    for t in range(q.shape[0] - 2, -1, -1):
        torch.addcmul(q[t], g[t + 1], decay, out=g[t])
    return g
