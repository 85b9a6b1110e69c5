"""The GPU kernels as functions of tensors: the same as those of `functional.scan` and `functional.trace`.

Importing this module imports triton. The N = B * m neurons of all lanes stand in a row, and each program runs all steps
of one block of them with their state in registers. What kind of neuron it is, is known when a kernel is compiled: what
a neuron has not costs nothing. Nothing here waits for the device.

Kernels are launched with `enable_fp_fusion=False`: a product fused with a sum is rounded once where the reference, on
the CPU, rounds twice, and a spike could be flipped. Divisions that spikes depend on are rounded to the nearest too.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..functional.scan import NOTHING, Form, Record, Reverse, Scan, State, Sums, Values, threshold_of
from ..functional.trace import Stage
from .forms import FIRINGS, SURROGATES, add_recurrent, draws

DTYPES = frozenset({torch.float32, torch.float64})
BLOCK = 128  # neurons of a program, one for each of its threads
OPTIONS = {"num_warps": BLOCK // 32, "enable_fp_fusion": False}
GROUP = 8  # traces of a bank that a program has at most


# -- parts of kernels: what is None, or in capitals, is known when they are compiled -----------------------------------


@triton.jit
def _given(pointer: tl.tensor, at: tl.tensor, mask: tl.tensor, zero: tl.tensor) -> tl.tensor:
    """What is there; `zero` where nothing is."""
    return zero if pointer is None else tl.load(pointer + at, mask=mask, other=0.0)


@triton.jit
def _put(pointer: tl.tensor, at: tl.tensor, block: tl.tensor, mask: tl.tensor) -> None:
    """Store where something is asked for."""
    if pointer is not None:
        tl.store(pointer + at, block, mask=mask)


@triton.jit
def _parameter(pointer: tl.tensor, step: tl.tensor, neuron: tl.tensor, mask: tl.tensor) -> tl.tensor:
    """A parameter of each neuron; step 0: the same for all."""
    return tl.load(pointer + neuron * step, mask=mask, other=1.0)


@triton.jit
def _divide(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """The quotient, rounded to the nearest."""
    return tl.div_rn(a, b) if a.dtype == tl.float32 else a / b


@triton.jit
def _emit(
    u: tl.tensor,
    theta: tl.tensor,
    drawn: tl.tensor,
    FIRING: tl.constexpr,
    MOST: tl.constexpr,
    WIDTH: tl.constexpr,
) -> tl.tensor:
    if FIRING == "spike":
        y = (u >= 0).to(u.dtype)
    elif FIRING == "strict":
        y = (u > 0).to(u.dtype)
    elif FIRING == "multi":
        y = tl.maximum(tl.floor(_divide(u, theta)) + 1, 0.0)
        if MOST is not None:
            y = tl.minimum(y, MOST)
    elif FIRING == "graded":
        y = (u + theta) * (u >= 0).to(u.dtype)
    else:
        odds = tl.exp(_divide(-u, tl.zeros_like(u) + WIDTH))
        y = (drawn < _divide(tl.zeros_like(u) + 1, 1 + odds)).to(u.dtype)
    return y


@triton.jit
def _count(y: tl.tensor, FIRING: tl.constexpr) -> tl.tensor:
    """The number of spikes."""
    s = y
    if FIRING == "graded":
        s = (y != 0).to(y.dtype)
    return s


@triton.jit
def _surrogate(u: tl.tensor, KIND: tl.constexpr, WIDTH: tl.constexpr) -> tl.tensor:
    r = tl.abs(u / WIDTH)
    if KIND == "arctan":
        psi = 1 / (1 + r * r)
    elif KIND == "fast sigmoid":
        psi = 1 / ((1 + r) * (1 + r))
    elif KIND == "triangle":
        psi = tl.maximum(1 - r, 0.0)
    else:
        psi = tl.exp(-r)
        if KIND != "exponential":
            psi = psi / ((1 + psi) * (1 + psi))  # f (1 - f)
            psi = 4 * psi if KIND == "sigmoid" else psi / WIDTH
    return psi


@triton.jit
def _slopes(
    u: tl.tensor,
    theta: tl.tensor,
    FIRING: tl.constexpr,
    MOST: tl.constexpr,
    KIND: tl.constexpr,
    WIDTH: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Psi, and the same of the number of spikes."""
    distance = u
    if FIRING == "multi":
        nearest = tl.maximum(tl.floor(_divide(u, theta) + 0.5), 0.0)  # of two, either: slopes are even
        if MOST is not None:
            nearest = tl.minimum(nearest, MOST - 1)
        distance = u - nearest * theta
    counted = _surrogate(distance, KIND, WIDTH)
    psi = counted
    if FIRING == "graded":
        psi = (u >= 0).to(u.dtype) + (u + theta) * counted
    return psi, counted


@triton.jit
def _after_reset(p: tl.tensor, theta: tl.tensor, s: tl.tensor, RESET: tl.constexpr) -> tl.tensor:
    v = p
    if RESET == "subtract":
        v = p - s * theta
    elif RESET == "zero":
        v = tl.where(s == 0, p, 0.0)
    return v


# -- kernels -----------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["steps"])
def _spiking(
    window: tl.tensor,  # J, over which u is written
    ys: tl.tensor,
    curs: tl.tensor,
    adapts: tl.tensor,
    draws: tl.tensor,
    mem_0: tl.tensor,
    cur_0: tl.tensor,
    adapt_0: tl.tensor,
    spk_0: tl.tensor,
    mem_1: tl.tensor,
    cur_1: tl.tensor,
    adapt_1: tl.tensor,
    spk_1: tl.tensor,
    betas: tl.tensor,
    thetas: tl.tensor,
    alphas: tl.tensor,
    rhos: tl.tensor,
    kappas: tl.tensor,
    beta_step: tl.tensor,
    theta_step: tl.tensor,
    alpha_step: tl.tensor,
    rho_step: tl.tensor,
    kappa_step: tl.tensor,
    steps: tl.tensor,
    size: tl.tensor,
    m: tl.tensor,
    FIRING: tl.constexpr,
    MOST: tl.constexpr,
    WIDTH: tl.constexpr,
    RESET: tl.constexpr,
    DELAYED: tl.constexpr,
    LEAKS: tl.constexpr,
    GAIN: tl.constexpr,
    GIVEN: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    here = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = here < size
    neuron = here % m
    beta, theta = _parameter(betas, beta_step, neuron, mask), _parameter(thetas, theta_step, neuron, mask)
    v = tl.load(mem_0 + here, mask=mask, other=0.0)
    y = tl.zeros_like(v)
    if cur_0 is not None:
        alpha = _parameter(alphas, alpha_step, neuron, mask)
        i_t = tl.load(cur_0 + here, mask=mask, other=0.0)
    if adapt_0 is not None:
        rho, kappa = _parameter(rhos, rho_step, neuron, mask), _parameter(kappas, kappa_step, neuron, mask)
        a_t = tl.load(adapt_0 + here, mask=mask, other=0.0)
    if DELAYED:
        s_before = _count(tl.load(spk_0 + here, mask=mask, other=0.0), FIRING)
    at = here.to(tl.int64)
    for _ in range(steps):
        p = tl.load(window + at, mask=mask, other=0.0)
        if cur_0 is not None:
            i_t = p + i_t * alpha
            p = i_t
        _put(curs, at, p, mask)
        if LEAKS:
            p = p * (1 - beta)
        elif GAIN != 1:
            p = p * GAIN
        p = p + v * beta
        theta_t = theta
        if adapt_0 is not None:
            tl.store(adapts + at, a_t, mask=mask)
            theta_t = theta + a_t * kappa
        if DELAYED:
            p = p - s_before * theta_t
        u = p - theta_t
        tl.store(window + at, u, mask=mask)
        if GIVEN:
            y = tl.load(ys + at, mask=mask, other=0.0)
        else:
            y = _emit(u, theta_t, _given(draws, at, mask, u), FIRING, MOST, WIDTH)
            tl.store(ys + at, y, mask=mask)
        s = _count(y, FIRING)
        if DELAYED:
            v = p
            s_before = s
        else:
            v = _after_reset(p, theta_t, s, RESET)
        if adapt_0 is not None:
            a_t = s + a_t * rho
        at += size
    tl.store(mem_1 + here, v, mask=mask)
    if cur_0 is not None:
        tl.store(cur_1 + here, i_t, mask=mask)
    if adapt_0 is not None:
        tl.store(adapt_1 + here, a_t, mask=mask)
    _put(spk_1, here, y, mask)


@triton.jit
def _look(
    us: tl.tensor,
    ys: tl.tensor,
    adapts: tl.tensor,
    at: tl.tensor,
    mask: tl.tensor,
    theta: tl.tensor,
    kappa: tl.tensor,
    FIRING: tl.constexpr,
    MOST: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """What was in a step of the record: u, the adaptation, the threshold, the number of spikes."""
    u = tl.load(us + at, mask=mask, other=0.0)
    past = _given(adapts, at, mask, u)
    theta_t = theta
    if adapts is not None:
        theta_t = theta + past * kappa
    y = tl.load(ys + at, mask=mask, other=0.0) if ys is not None else _emit(u, theta_t, u, FIRING, MOST, 1.0)
    return u, past, theta_t, _count(y, FIRING)


@triton.jit(do_not_specialize=["first", "last"])
def _spiking_reverse(
    ls: tl.tensor,
    us: tl.tensor,
    ys: tl.tensor,
    curs: tl.tensor,
    adapts: tl.tensor,
    mem_0: tl.tensor,
    cur_0: tl.tensor,
    spk_0: tl.tensor,
    ahead_mem: tl.tensor,
    ahead_cur: tl.tensor,
    ahead_adapt: tl.tensor,
    ahead_spk: tl.tensor,
    left_mem: tl.tensor,
    left_cur: tl.tensor,
    left_adapt: tl.tensor,
    left_spk: tl.tensor,
    first_mem: tl.tensor,
    first_cur: tl.tensor,
    hs: tl.tensor,
    own_beta: tl.tensor,
    own_alpha: tl.tensor,
    own_threshold: tl.tensor,
    own_kappa: tl.tensor,
    own_rho: tl.tensor,
    betas: tl.tensor,
    thetas: tl.tensor,
    alphas: tl.tensor,
    rhos: tl.tensor,
    kappas: tl.tensor,
    beta_step: tl.tensor,
    theta_step: tl.tensor,
    alpha_step: tl.tensor,
    rho_step: tl.tensor,
    kappa_step: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    size: tl.tensor,
    m: tl.tensor,
    probes: tl.tensor,
    PROBED: tl.constexpr,
    ADDS: tl.constexpr,
    FIRING: tl.constexpr,
    MOST: tl.constexpr,
    KIND: tl.constexpr,
    WIDTH: tl.constexpr,
    RESET: tl.constexpr,
    DELAYED: tl.constexpr,
    ATTACHED: tl.constexpr,
    LEAKS: tl.constexpr,
    GAIN: tl.constexpr,
    WANTS_C: tl.constexpr,
    LOOKS_BACK: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    here = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = here < size
    neuron = here % m
    probe = tl.program_id(1).to(tl.int64)
    own = here + probe * size
    beta, theta = _parameter(betas, beta_step, neuron, mask), _parameter(thetas, theta_step, neuron, mask)
    mem = tl.load(mem_0 + here, mask=mask, other=0.0)
    zero = tl.zeros_like(mem)
    kappa = zero
    if cur_0 is not None:
        alpha = _parameter(alphas, alpha_step, neuron, mask)
    if adapts is not None:
        rho, kappa = _parameter(rhos, rho_step, neuron, mask), _parameter(kappas, kappa_step, neuron, mask)
    dv, di = _given(ahead_mem, own, mask, zero), _given(ahead_cur, own, mask, zero)
    da, ds = _given(ahead_adapt, own, mask, zero), _given(ahead_spk, own, mask, zero)
    g, di_first = zero, zero
    d_beta, d_alpha, d_theta, d_kappa, d_rho = zero, zero, zero, zero, zero
    if ADDS:
        d_beta, d_alpha = _given(own_beta, own, mask, zero), _given(own_alpha, own, mask, zero)
        d_theta, d_kappa = _given(own_threshold, own, mask, zero), _given(own_kappa, own, mask, zero)
        d_rho = _given(own_rho, own, mask, zero)
    end = (last - 1).to(tl.int64) * size
    at = here + end
    out = own + end * probes
    signals = (last - 1) * probes + probe
    for _ in range(last - first):
        u, past, theta_t, s = _look(us, ys, adapts, at, mask, theta, kappa, FIRING, MOST)
        psi, counted = _slopes(u, theta_t, FIRING, MOST, KIND, WIDTH)
        e = zero
        if PROBED:
            e = psi * tl.load(ls + signals)
        elif ls is not None:
            e = psi * tl.load(ls + at, mask=mask, other=0.0)
        if left_spk is not None:
            e = e + psi * ds
        if adapts is not None:
            e = e + counted * da
        if ATTACHED and not DELAYED:
            if RESET == "subtract":
                e = e - counted * theta_t * dv
            elif RESET == "zero":
                e = e - counted * (u + theta_t) * dv
        g = e + tl.where(s == 0, dv, 0.0) if RESET == "zero" else e + dv
        dv = beta * g
        di_first = di
        h = (1 - beta) * g + di if LEAKS else GAIN * g + di
        tl.store(hs + out, h, mask=mask)
        earlier = mask & (at >= size)
        if cur_0 is not None:
            di = alpha * h
        if own_alpha is not None:
            cur_before = tl.load(curs + (at - size), mask=earlier, other=0.0)
            d_alpha += h * tl.where(at >= size, cur_before, tl.load(cur_0 + here, mask=mask, other=0.0))
        s_before = s
        if LOOKS_BACK:
            u_before, _, theta_before, s_before = _look(us, ys, adapts, at - size, earlier, theta, kappa, FIRING, MOST)
            if own_beta is not None:
                v = u_before + theta_before
                if not DELAYED:
                    v = _after_reset(v, theta_before, s_before, RESET)
                d_beta += g * tl.where(at >= size, v, mem)
                if LEAKS:
                    d_beta -= g * tl.load(curs + at, mask=mask, other=0.0)
            if DELAYED:
                s_first = _count(tl.load(spk_0 + here, mask=mask, other=0.0), FIRING)
                s_before = tl.where(at >= size, s_before, s_first)
        if ATTACHED and DELAYED:
            ds = -theta_t * g
        if WANTS_C:
            if RESET != "subtract":
                c = -e
            elif DELAYED:
                c = -(e + g * s_before)
            else:
                c = -(e + s * (g - e))
            d_theta += c
            if adapts is not None:
                d_kappa += c * past
                d_rho += da * past
                da = rho * da + kappa * c
        at -= size
        out -= probes * size
        signals -= probes
    _put(first_mem, own, g, mask)
    _put(first_cur, own, di_first, mask)
    _put(left_mem, own, dv, mask)
    _put(left_cur, own, di, mask)
    _put(left_adapt, own, da, mask)
    _put(left_spk, own, ds, mask)
    _put(own_beta, own, d_beta, mask)
    _put(own_alpha, own, d_alpha, mask)
    _put(own_threshold, own, d_theta, mask)
    _put(own_kappa, own, d_kappa, mask)
    _put(own_rho, own, d_rho, mask)


@triton.jit(do_not_specialize=["steps"])
def _li(
    current: tl.tensor,
    out: tl.tensor,
    mem_0: tl.tensor,
    betas: tl.tensor,
    beta_step: tl.tensor,
    steps: tl.tensor,
    size: tl.tensor,
    m: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    here = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = here < size
    beta = _parameter(betas, beta_step, here % m, mask)
    v = tl.load(mem_0 + here, mask=mask, other=0.0)
    at = here.to(tl.int64)
    for _ in range(steps):
        v = tl.load(current + at, mask=mask, other=0.0) + v * beta
        tl.store(out + at, v, mask=mask)
        at += size


@triton.jit(do_not_specialize=["steps"])
def _li_reverse(
    ls: tl.tensor,
    mems: tl.tensor,
    mem_0: tl.tensor,
    ahead: tl.tensor,
    gs: tl.tensor,
    leftover: tl.tensor,
    own: tl.tensor,
    betas: tl.tensor,
    beta_step: tl.tensor,
    steps: tl.tensor,
    size: tl.tensor,
    m: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    here = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = here < size
    beta = _parameter(betas, beta_step, here % m, mask)
    mem = tl.load(mem_0 + here, mask=mask, other=0.0)
    zero = tl.zeros_like(mem)
    dv = _given(ahead, here, mask, zero)
    total = zero
    at = here + (steps - 1).to(tl.int64) * size
    for _ in range(steps):
        g = _given(ls, at, mask, zero) + dv
        tl.store(gs + at, g, mask=mask)
        before = tl.load(mems + (at - size), mask=mask & (at >= size), other=0.0)
        total += g * tl.where(at >= size, before, mem)
        dv = beta * g
        at -= size
    tl.store(leftover + here, dv, mask=mask)
    tl.store(own + here, total, mask=mask)


@triton.jit(do_not_specialize=["steps"])
def _chain(
    drive: tl.tensor,
    kept: tl.tensor,
    old: tl.tensor,
    new: tl.tensor,
    out: tl.tensor,  # what the last of the stages was in each step; None where it is not asked for
    decays: tl.tensor,
    gains: tl.tensor,
    decays_2: tl.tensor,  # None where there is one stage alone
    gains_2: tl.tensor,
    decay_step: tl.tensor,
    gain_step: tl.tensor,
    decay_step_2: tl.tensor,
    gain_step_2: tl.tensor,
    steps: tl.tensor,
    size: tl.tensor,
    n: tl.tensor,
    stages: tl.tensor,
    stage: tl.tensor,
    GAIN: tl.constexpr,
    GAIN_2: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    here = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = here < size
    entry = here % n
    own = (here // n).to(tl.int64) * stages * n + stage * n + entry
    decay = _parameter(decays, decay_step, entry, mask)
    z = tl.load(old + own, mask=mask, other=0.0)
    if gains is not None:
        gain = _parameter(gains, gain_step, entry, mask)
    if decays_2 is not None:
        decay_2 = _parameter(decays_2, decay_step_2, entry, mask)
        z_2 = tl.load(old + own + n, mask=mask, other=0.0)
        if gains_2 is not None:
            gain_2 = _parameter(gains_2, gain_step_2, entry, mask)
    at = here.to(tl.int64)
    for _ in range(steps):
        x = tl.load(drive + at, mask=mask, other=0.0)
        if gains is not None:
            x = x * gain
        elif GAIN != 1:
            x = x * GAIN
        z = x + z * decay
        x = z
        if decays_2 is not None:
            if gains_2 is not None:
                x = x * gain_2
            elif GAIN_2 != 1:
                x = x * GAIN_2
            z_2 = x + z_2 * decay_2
            x = z_2
        _put(out, at, x, mask)
        if kept is not None:
            remains = tl.load(kept + at, mask=mask, other=0.0)
            if decays_2 is not None:
                z_2 = z_2 * remains
            else:
                z = z * remains
        at += size
    tl.store(new + own, z, mask=mask)
    if decays_2 is not None:
        tl.store(new + own + n, z_2, mask=mask)


@triton.jit(do_not_specialize=["steps"])
def _bank(
    drive: tl.tensor,
    old: tl.tensor,
    new: tl.tensor,
    nodes: tl.tensor,
    steps: tl.tensor,
    size: tl.tensor,
    n: tl.tensor,
    count: tl.tensor,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    here = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    node = tl.program_id(1) * GROUP + tl.arange(0, GROUP)
    mask, there = here < size, node < count
    both = there[:, None] & mask[None, :]
    first = (here // n).to(tl.int64) * count * n + here % n
    own = first[None, :] + (node * n)[:, None]
    decay = tl.load(nodes + node, mask=there, other=0.0)[:, None]
    z = tl.load(old + own, mask=both, other=0.0)
    at = here.to(tl.int64)
    for _ in range(steps):
        z = tl.load(drive + at, mask=mask, other=0.0)[None, :] + z * decay
        at += size
    tl.store(new + own, z, mask=both)


# -- functions of tensors ----------------------------------------------------------------------------------------------


def _launch(kernel: Any, like: Tensor, size: int, rows: int = 1, /, **arguments: Any) -> None:
    """Run a kernel on `size` entries, `rows` times over."""
    with torch.cuda.device_of(like):  # type: ignore[no-untyped-call]
        grid = (triton.cdiv(size, BLOCK), rows)
        kernel[grid](**arguments, size=size, BLOCK=BLOCK, **OPTIONS)


def _kind(form: Form) -> dict[str, Any]:
    """What both scans know of a neuron when they are compiled."""
    leaks, most = form.gain == "leak", getattr(form.firing, "most", None)
    return {
        "FIRING": FIRINGS[type(form.firing)],
        "MOST": None if most is None else float(most),
        "RESET": form.reset,
        "DELAYED": form.delayed,
        "LEAKS": leaks,
        "GAIN": 1.0 if leaks else float(form.gain),
    }


def _parameters(values: Values) -> dict[str, Any]:
    """A neuron's own parameters, each with the distance from a neuron's value to the next's."""
    names = {"beta": "beta", "theta": "threshold", "alpha": "alpha", "rho": "rho", "kappa": "kappa"}
    given = {short: values.get(name) for short, name in names.items()}
    pointers = {f"{short}s": value for short, value in given.items()}
    return pointers | {f"{short}_step": 0 if value is None else value.ndim for short, value in given.items()}


def _states(state: State, tail: str = "{}") -> dict[str, Tensor | None]:
    return {tail.format(name): part for name, part in state._asdict().items()}


def spiking(current: Tensor, start: State, values: Values, form: Form, given: Tensor | None = None) -> Scan:
    """`functional.scan.spiking`; u is written over the currents."""
    steps, lanes, m = current.shape
    y = torch.empty_like(current) if given is None else given
    after = State(*[None if part is None else torch.empty_like(part) for part in start])  # type: ignore[arg-type]
    cur = torch.empty_like(current) if start.cur is not None or form.gain == "leak" else None
    adapt = None if start.adapt is None else torch.empty_like(current)
    windows = {"window": current, "ys": y, "curs": cur, "adapts": adapt, "draws": None}
    if given is None:
        windows["draws"] = draws(form, current)
    elif "recurrent" in values:
        add_recurrent(current, given, cast(Tensor, start.spk), values["recurrent"])
    same = (
        {"m": m, "WIDTH": getattr(form.firing, "width", None), "GIVEN": given is not None}
        | _kind(form)
        | _parameters(values)
    )
    same |= _states(after, "{}_1")
    if given is not None or "recurrent" not in values:
        _launch(_spiking, y, lanes * m, **windows, **_states(start, "{}_0"), **same, steps=steps)
    else:
        transposed, before = values["recurrent"].t(), start
        for t in range(steps):
            of_step = {name: None if window is None else window[t] for name, window in windows.items()}
            torch.addmm(current[t], before.spk, transposed, out=current[t])  # type: ignore[arg-type]
            _launch(_spiking, y, lanes * m, **of_step, **_states(before, "{}_0"), **same, steps=1)
            before = after
    return Scan(y, Record(current, None if form.firing.recomputable and given is None else y, cur, adapt), after)


def spiking_reverse(
    ls: Tensor | None,
    record: Record,
    start: State,
    values: Values,
    form: Form,
    wanted: Collection[str] = (),
    ahead: State | None = None,
) -> Reverse:
    """`functional.scan.spiking_reverse`, with one more dimension of `ls`, (K, H, 1, 1), alone too."""
    u, recurrent = record.u, values.get("recurrent")
    steps, (lanes, m) = len(u), u.shape[-2:]
    probed = u.ndim > 3 and ls is not None
    probes = ls.shape[1] if probed else 1  # type: ignore[union-attr]
    shape = (lanes, m) if u.ndim == 3 else (probes, lanes, m)
    h = u.new_empty(steps, *shape)
    ahead = NOTHING if ahead is None else ahead
    if recurrent is None and not (form.attached and form.delayed):  # there is no gradient by way of the output
        ahead, start_spk = ahead._replace(spk=None), None
    else:
        start_spk = start.spk
    had = (start.mem, start.cur, start.adapt, start_spk)
    leftover = State(*[None if part is None else u.new_empty(shape) for part in had])  # type: ignore[arg-type]
    first = State(u.new_empty(shape), None if start.cur is None else u.new_empty(shape))
    own = {name: u.new_empty(shape) if recurrent is None else u.new_zeros(shape) for name in wanted}
    wants_c = record.adapt is not None or "threshold" in own
    same = {
        "ls": ls,
        "us": u,
        "ys": record.y,
        "curs": record.cur,
        "adapts": record.adapt,
        "mem_0": start.mem,
        "cur_0": start.cur,
        "spk_0": start.spk,
        "first_mem": first.mem,
        "first_cur": first.cur,
        "hs": h,
        "m": m,
        "probes": probes,
        "PROBED": probed,
        "ADDS": recurrent is not None,
        "KIND": SURROGATES[type(form.firing.surrogate)],
        "WIDTH": form.firing.surrogate.width,  # type: ignore[attr-defined]
        "ATTACHED": form.attached,
        "WANTS_C": wants_c,
        "LOOKS_BACK": "beta" in own or (form.delayed and wants_c),
    }
    same |= {f"own_{name}": own.get(name) for name in ("beta", "alpha", "threshold", "kappa", "rho")}
    same |= _states(leftover, "left_{}") | _kind(form) | _parameters(values)
    if recurrent is None:
        _launch(_spiking_reverse, u, lanes * m, probes, **same, **_states(ahead, "ahead_{}"), first=0, last=steps)
        sums = None
        if probed:
            assert ls is not None
            psi = form.firing.slope(u, threshold_of(record, values))
            sums = Sums(h.sum(0), (psi * ls).sum(0))
        return Reverse(h, first, leftover, own, sums)
    for t in range(steps - 1, -1, -1):  # what comes back through U is a product of all neurons' gradients
        _launch(_spiking_reverse, u, lanes * m, **same, **_states(ahead, "ahead_{}"), first=t, last=t + 1)
        assert leftover.spk is not None
        if form.attached and form.delayed:
            torch.addmm(leftover.spk, h[t], recurrent, out=leftover.spk)
        else:
            torch.mm(h[t], recurrent, out=leftover.spk)
        ahead = leftover
    return Reverse(h, first, leftover, own)


def li(current: Tensor, mem: Tensor, beta: Tensor) -> Tensor:
    """`functional.scan.li`."""
    steps, lanes, m = current.shape
    out = torch.empty_like(current)
    given = {"current": current, "out": out, "mem_0": mem, "betas": beta, "beta_step": beta.ndim}
    _launch(_li, out, lanes * m, **given, steps=steps, m=m)
    return out


def li_reverse(ls: Tensor | None, out: Tensor, start: State, beta: Tensor, ahead: State | None = None) -> Reverse:
    """`functional.scan.li_reverse`."""
    steps, lanes, m = out.shape
    g, leftover, own = torch.empty_like(out), torch.empty_like(start.mem), torch.empty_like(start.mem)
    given = {"ls": ls, "mems": out, "mem_0": start.mem, "ahead": None if ahead is None else ahead.mem}
    given |= {"gs": g, "leftover": leftover, "own": own, "betas": beta}
    _launch(_li_reverse, out, lanes * m, **given, beta_step=beta.ndim, steps=steps, m=m)
    return Reverse(g, State(g[0]), State(leftover), {"beta": own})


def advance_chain(traces: Tensor, drive: Tensor, chain: tuple[Stage, ...], kept: Tensor | None = None) -> Tensor:
    """`functional.trace.advance_chain`, two stages at a time."""
    lanes, stages, n = traces.shape
    new = torch.empty_like(traces)
    for stage in range(0, stages, 2):
        ends = stage + 2 >= stages
        out = None if ends else torch.empty_like(drive)
        given = {"drive": drive, "kept": kept if ends else None, "old": traces, "new": new, "out": out}
        given |= _stage(chain[stage], "") | _stage(chain[stage + 1] if stage + 1 < stages else None, "_2")
        _launch(_chain, new, lanes * n, **given, steps=len(drive), n=n, stages=stages, stage=stage)
        drive = drive if out is None else out
    return new


def _stage(stage: Stage | None, tail: str) -> dict[str, Any]:
    decay, gain = (None, 1.0) if stage is None else (stage.decay, stage.gain)
    given = gain if isinstance(gain, Tensor) else None
    return {
        f"decays{tail}": decay,
        f"decay_step{tail}": 0 if decay is None else decay.ndim,
        f"gains{tail}": given,
        f"gain_step{tail}": 0 if given is None else given.ndim,
        f"GAIN{tail}": 1.0 if given is not None else float(gain),
    }


def advance_bank(traces: Tensor, drive: Tensor, nodes: Tensor) -> Tensor:
    """`functional.trace.advance_bank`."""
    lanes, count, n = traces.shape
    new = torch.empty_like(traces)
    given = {"drive": drive, "old": traces, "new": new, "nodes": nodes.to(traces.dtype), "count": count, "n": n}
    group = min(GROUP, triton.next_power_of_2(count))
    _launch(_bank, new, lanes * n, triton.cdiv(count, group), **given, steps=len(drive), GROUP=group)
    return new
