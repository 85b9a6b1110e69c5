"""The loops of the CPU kernels, compiled by numba on first use and kept on disk.

Every kernel takes one argument, the address of a table of 64-bit integers: sizes, codes and the addresses of arrays, 0
for those that there are not. `cpu.py` writes the tables. A table costs a microsecond; arrays as arguments cost ten.

The N = B * m neurons of all lanes stand in a row, and are run in blocks that stay in the first-level cache: all steps
of one block, then the next. Within a step each line of the mathematics (see `functional.scan`) is a loop of its own
over the block, which the compiler makes vector instructions of; what a neuron has not is a branch outside these loops.
No loop reads and writes the same window, so that the output may be put where the input was.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import carray  # type: ignore[attr-defined]

from ..functional.spikes import WORD
from .bits import unpack_word
from .jit import kernel as _kernel
from .jit import least_kept
from .jit import loop as _loop
from .jit import pointer as _pointer
from .jit import summing as _sum

BLOCK = 256  # neurons; some twenty arrays of that many float32 fit the first-level cache

# codes of `cpu.py`: what is emitted, its pseudo-derivative, the reset
SPIKE, STRICT, MULTI, GRADED, DRAWN = range(5)
ARCTAN, FAST_SIGMOID, TRIANGLE, SIGMOID, EXPONENTIAL, LOGISTIC = range(6)
SUBTRACT, ZERO, NONE = range(3)


@_loop
def _fill(block: Any, values: Any, step: int, start: int, n: int, m: int) -> None:
    """A parameter of each neuron of the block; step 0: the same for all."""
    if step == 0:
        for i in range(n):
            block[i] = values[0]
        return
    j = start % m
    for i in range(n):
        block[i] = values[j]
        j += 1
        if j == m:
            j = 0


@_loop
def load(block: Any, window: Any, at: int, n: int) -> None:
    """`block = window[at:]`, n entries."""
    part = window[at : at + n]  # not window[at + i]: that index might be negative, for all the compiler knows
    for i in range(n):
        block[i] = part[i]


@_loop
def store(window: Any, at: int, block: Any, n: int) -> None:
    """`window[at:] = block`, n entries."""
    part = window[at : at + n]
    for i in range(n):
        part[i] = block[i]


@_loop
def _emit(y: Any, u: Any, theta: Any, n: int, firing: int, most: float, width: float, draws: Any) -> None:
    one, zero = y.dtype.type(1), y.dtype.type(0)
    if firing == SPIKE:
        for i in range(n):
            y[i] = one if u[i] >= zero else zero
    elif firing == STRICT:
        for i in range(n):
            y[i] = one if u[i] > zero else zero
    elif firing == MULTI:
        for i in range(n):
            y[i] = min(max(np.floor(u[i] / theta[i]) + one, zero), most)
    elif firing == GRADED:
        for i in range(n):
            y[i] = u[i] + theta[i] if u[i] >= zero else zero
    else:
        for i in range(n):
            y[i] = one if draws[i] < one / (one + math.exp(-u[i] / width)) else zero


@_loop
def _count(s: Any, y: Any, n: int, firing: int) -> None:
    one, zero = s.dtype.type(1), s.dtype.type(0)
    if firing == GRADED:
        for i in range(n):
            s[i] = one if y[i] != zero else zero
    else:
        for i in range(n):
            s[i] = y[i]


@_loop
def surrogate(psi: Any, u: Any, n: int, kind: int, width: float) -> None:
    """psi(u), where u may be psi itself."""
    one, zero = psi.dtype.type(1), psi.dtype.type(0)
    narrow = one / width
    if kind == ARCTAN:
        for i in range(n):
            r = u[i] * narrow
            psi[i] = one / (one + r * r)
    elif kind == FAST_SIGMOID:
        for i in range(n):
            r = abs(u[i]) * narrow + one
            psi[i] = one / (r * r)
    elif kind == TRIANGLE:
        for i in range(n):
            psi[i] = max(zero, one - abs(u[i]) / width)
    elif kind == SIGMOID:
        for i in range(n):
            f = one / (one + math.exp(-u[i] / width))
            psi[i] = 4 * f * (one - f)
    elif kind == EXPONENTIAL:
        for i in range(n):
            psi[i] = math.exp(-abs(u[i]) / width)
    else:
        for i in range(n):
            f = one / (one + math.exp(-u[i] / width))
            psi[i] = f * (one - f) / width


@_loop
def _slopes(
    psi: Any, counted: Any, u: Any, theta: Any, n: int, firing: int, most: float, kind: int, width: float
) -> None:
    """Psi, and the same of the number of spikes."""
    one, zero = psi.dtype.type(1), psi.dtype.type(0)
    if firing == MULTI:
        for i in range(n):
            psi[i] = u[i] - min(max(np.rint(u[i] / theta[i]), zero), most - one) * theta[i]
        surrogate(psi, psi, n, kind, width)
    else:
        surrogate(psi, u, n, kind, width)
    for i in range(n):
        counted[i] = psi[i]
    if firing == GRADED:
        for i in range(n):
            psi[i] = (one if u[i] >= zero else zero) + (u[i] + theta[i]) * psi[i]


@_loop
def _reset(v: Any, p: Any, theta: Any, s: Any, n: int, reset: int) -> None:
    """The membrane after the reset; NONE where it is delayed too."""
    zero = v.dtype.type(0)
    if reset == SUBTRACT:
        for i in range(n):
            v[i] = p[i] - s[i] * theta[i]
    elif reset == ZERO:
        for i in range(n):
            v[i] = p[i] if s[i] == zero else zero
    else:
        for i in range(n):
            v[i] = p[i]


@_loop
def _plain_step(p: Any, v: Any, u: Any, y: Any, beta: Any, theta: Any, n: int, firing: int) -> None:
    """The usual neuron in one loop: one spike, subtracted at once."""
    one, zero = v.dtype.type(1), v.dtype.type(0)
    if firing == SPIKE:
        for i in range(n):
            q = p[i] + v[i] * beta[i]
            w = q - theta[i]
            u[i] = w
            y[i] = one if w >= zero else zero
            v[i] = w if w >= zero else q
    else:
        for i in range(n):
            q = p[i] + v[i] * beta[i]
            w = q - theta[i]
            u[i] = w
            y[i] = one if w > zero else zero
            v[i] = w if w > zero else q


@_loop
def _plain_known_step(p: Any, v: Any, u: Any, y: Any, beta: Any, theta: Any, n: int) -> None:
    """The same for outputs that are known."""
    for i in range(n):
        q = p[i] + v[i] * beta[i]
        u[i] = q - theta[i]
        v[i] = q - y[i] * theta[i]


def spiking(real: Any) -> Any:
    """The forward scan of spiking neurons, for one floating-point type."""

    @_kernel
    def run(address: int) -> None:
        a = carray(_pointer(address), 40, np.int64)
        steps, size, m, begin, end = a[0], a[1], a[2], a[3], a[4]
        firing, reset, delayed = a[5], a[6], a[7]
        constants = carray(_pointer(a[8]), 4, np.float64)
        gain, width, most = real(constants[0]), real(constants[1]), real(constants[2])
        leaks = constants[3] != 0
        current, u_out, y_out = (
            carray(_pointer(a[9]), steps * size, real),
            carray(_pointer(a[10]), steps * size, real),
            carray(_pointer(a[11]), steps * size, real),
        )
        mem_0, mem_1 = carray(_pointer(a[12]), size, real), carray(_pointer(a[13]), size, real)
        cur_0, cur_1 = carray(_pointer(a[14]), size, real), carray(_pointer(a[15]), size, real)
        adapt_0, adapt_1 = carray(_pointer(a[16]), size, real), carray(_pointer(a[17]), size, real)
        spk_0, spk_1 = carray(_pointer(a[18]), size, real), carray(_pointer(a[19]), size, real)
        cur_out, adapt_out = carray(_pointer(a[20]), steps * size, real), carray(_pointer(a[21]), steps * size, real)
        draws = carray(_pointer(a[22]), steps * size, real)
        has_cur, keeps_cur, adapts, known = a[14] != 0, a[20] != 0, a[16] != 0, a[34] != 0
        plain = firing <= STRICT and reset == SUBTRACT and not (adapts or delayed)
        given = [carray(_pointer(a[23 + 2 * k]), m, real) for k in range(5)]
        bias_ = carray(_pointer(a[33]), m, real)
        block = np.empty((15, BLOCK), real)
        beta, theta, alpha, rho, kappa = block[0], block[1], block[2], block[3], block[4]
        v, i_t, a_t, y, s, p, u, theta_t, before = (
            block[5],
            block[6],
            block[7],
            block[8],
            block[9],
            block[10],
            block[11],
            block[12],
            block[13],
        )
        offset = block[14]
        for start in range(begin, end, BLOCK):
            n = min(BLOCK, end - start)
            if a[33] != 0:
                _fill(offset, bias_, 1, start, n, m)
            _fill(beta, given[0], a[24], start, n, m)
            _fill(theta, given[1], a[26], start, n, m)
            load(v, mem_0, start, n)
            if has_cur:
                _fill(alpha, given[2], a[28], start, n, m)
                load(i_t, cur_0, start, n)
            if adapts:
                _fill(rho, given[3], a[30], start, n, m)
                _fill(kappa, given[4], a[32], start, n, m)
                load(a_t, adapt_0, start, n)
            if delayed:
                load(y, spk_0, start, n)
                _count(before, y, n, firing)
            for i in range(n):
                theta_t[i] = theta[i]
            for t in range(steps):
                at = t * size + start
                load(p, current, at, n)
                if a[33] != 0:
                    for i in range(n):
                        p[i] += offset[i]
                if has_cur:
                    for i in range(n):
                        i_t[i] = p[i] + i_t[i] * alpha[i]
                        p[i] = i_t[i]
                if keeps_cur:
                    store(cur_out, at, p, n)
                if leaks:
                    for i in range(n):
                        p[i] = p[i] * (real(1) - beta[i])
                elif gain != real(1):
                    for i in range(n):
                        p[i] = p[i] * gain
                if plain:
                    if known:
                        _plain_known_step(p, v, u_out[at : at + n], y_out[at : at + n], beta, theta, n)
                    else:
                        _plain_step(p, v, u_out[at : at + n], y_out[at : at + n], beta, theta, n, firing)
                    continue
                for i in range(n):
                    p[i] = p[i] + v[i] * beta[i]
                if adapts:
                    store(adapt_out, at, a_t, n)
                    for i in range(n):
                        theta_t[i] = theta[i] + a_t[i] * kappa[i]
                if delayed:
                    for i in range(n):
                        p[i] = p[i] - before[i] * theta_t[i]
                for i in range(n):
                    u[i] = p[i] - theta_t[i]
                store(u_out, at, u, n)
                if known:
                    load(y, y_out, at, n)
                else:
                    _emit(y, u, theta_t, n, firing, most, width, draws[at : at + n])
                    store(y_out, at, y, n)
                _count(s, y, n, firing)
                _reset(v, p, theta_t, s, n, NONE if delayed else reset)
                if delayed:
                    for i in range(n):
                        before[i] = s[i]
                if adapts:
                    for i in range(n):
                        a_t[i] = s[i] + a_t[i] * rho[i]
            store(mem_1, start, v, n)
            if has_cur:
                store(cur_1, start, i_t, n)
            if adapts:
                store(adapt_1, start, a_t, n)
            if a[19] != 0:
                store(spk_1, start, y_out[(steps - 1) * size + start :], n)

    return run


@_loop
def _plain_reverse_step(
    ls: Any, has_ls: bool, u: Any, dv: Any, g: Any, e: Any, beta: Any, psi: Any, n: int, kind: int, width: float
) -> None:
    """The usual neuron: g_t into `g`, psi_t * ls_t into `e`, the membrane's gradient before the step into `dv`."""
    zero = dv.dtype.type(0)
    if has_ls:
        surrogate(psi, u, n, kind, width)
        for i in range(n):
            e[i] = psi[i] * ls[i]
            g[i] = e[i] + dv[i]
            dv[i] = beta[i] * g[i]
    else:
        for i in range(n):
            e[i] = zero
            g[i] = dv[i]
            dv[i] = beta[i] * g[i]


@_loop
def _emitted(y: Any, s: Any, u: Any, theta: Any, n: int, firing: int, most: float, recorded: bool, ys: Any) -> None:
    """What was emitted in a step of the record, and how many spikes that is."""
    if recorded:
        for i in range(n):
            y[i] = ys[i]
    else:
        _emit(y, u, theta, n, firing, most, most, ys)
    _count(s, y, n, firing)


@_loop
def _threshold(theta_t: Any, theta: Any, kappa: Any, adapt: Any, n: int, adapts: bool) -> None:
    """The threshold of a step."""
    if adapts:
        for i in range(n):
            theta_t[i] = theta[i] + adapt[i] * kappa[i]
    else:
        for i in range(n):
            theta_t[i] = theta[i]


def spiking_reverse(real: Any) -> Any:
    """The reverse scan of spiking neurons, for one floating-point type."""

    @_kernel
    def run(address: int) -> None:
        a = carray(_pointer(address), 60, np.int64)
        size, m, begin, end, first, last = a[0], a[1], a[2], a[3], a[4], a[5]
        firing, reset, delayed, attached, kind = a[6], a[7], a[8] != 0, a[9] != 0, a[10]
        constants = carray(_pointer(a[11]), 4, np.float64)
        gain, most = real(constants[0]), real(constants[2])
        width = real(constants[1])
        leaks = constants[3] != 0
        ls_kind, ls_step, out_step = a[12], a[13], a[14]
        everything = last * size
        ls = carray(_pointer(a[15]), last * max(ls_step, size), real)
        us, ys = carray(_pointer(a[16]), everything, real), carray(_pointer(a[17]), everything, real)
        curs, adapts_ = carray(_pointer(a[18]), everything, real), carray(_pointer(a[19]), everything, real)
        mem_0, cur_0, spk_0 = (
            carray(_pointer(a[20]), size, real),
            carray(_pointer(a[21]), size, real),
            carray(_pointer(a[22]), size, real),
        )
        out = carray(_pointer(a[33]), last * max(out_step, size), real)
        recorded, has_cur, adapts = a[17] != 0, a[21] != 0, a[19] != 0
        wants_beta, wants_alpha, wants_theta, wants_kappa = a[34] != 0, a[35] != 0, a[36] != 0, a[37] != 0
        wants_c = wants_theta or wants_kappa or adapts
        plain = firing <= STRICT and reset == SUBTRACT and not (adapts or delayed or attached)
        plain = plain and a[26] == 0 and not wants_beta
        plainest = plain and ls_kind >= 1 and gain == real(1) and not (has_cur or leaks or wants_theta or wants_alpha)
        plain = plain and ls_kind <= 1
        block = np.zeros((28, BLOCK), real)
        beta, theta, alpha, rho, kappa = block[0], block[1], block[2], block[3], block[4]
        dv, di, da, dy = block[5], block[6], block[7], block[8]
        e, g, h, u, theta_t, y, s, psi, counted = (
            block[9],
            block[10],
            block[11],
            block[12],
            block[13],
            block[14],
            block[15],
            block[16],
            block[17],
        )
        d_beta, d_alpha, d_theta, d_kappa, d_rho = block[18], block[19], block[20], block[21], block[22]
        before, s_before, c, total, driven = block[23], block[24], block[25], block[26], block[27]
        for start in range(begin, end, BLOCK):
            n = min(BLOCK, end - start)
            block[5:9] = 0
            block[18:23] = 0
            block[26:28] = 0
            _fill(beta, carray(_pointer(a[40]), m, real), a[41], start, n, m)
            _fill(theta, carray(_pointer(a[42]), m, real), a[43], start, n, m)
            if has_cur:
                _fill(alpha, carray(_pointer(a[44]), m, real), a[45], start, n, m)
            if adapts:
                _fill(rho, carray(_pointer(a[46]), m, real), a[47], start, n, m)
                _fill(kappa, carray(_pointer(a[48]), m, real), a[49], start, n, m)
            if a[23] != 0:
                load(dv, carray(_pointer(a[23]), size, real), start, n)
            if a[24] != 0:
                load(di, carray(_pointer(a[24]), size, real), start, n)
            if a[25] != 0:
                load(da, carray(_pointer(a[25]), size, real), start, n)
            has_dy = a[26] != 0
            if has_dy:
                load(dy, carray(_pointer(a[26]), size, real), start, n)
            for t in range(last - 1, first - 1, -1):
                at = t * size + start
                if plainest:
                    row = t * out_step + start
                    sent = out[row : row + n]
                    surrogate(psi, us[at : at + n], n, kind, width)
                    if ls_kind == 2:
                        probe = ls[t * ls_step]
                        for i in range(n):
                            e[i] = psi[i] * probe
                            driven[i] += e[i]
                            g[i] = e[i] + dv[i]
                            sent[i] = g[i]
                            total[i] += g[i]
                            dv[i] = beta[i] * g[i]
                        continue
                    signal = ls[t * ls_step + start : t * ls_step + start + n]
                    for i in range(n):
                        g[i] = psi[i] * signal[i] + dv[i]
                        sent[i] = g[i]
                        total[i] += g[i]
                        dv[i] = beta[i] * g[i]
                    continue
                if plain:
                    w = us[at : at + n]
                    _plain_reverse_step(ls[t * ls_step + start :], ls_kind == 1, w, dv, g, e, beta, psi, n, kind, width)
                    if wants_theta and recorded:
                        load(s, ys, at, n)
                    elif wants_theta:
                        for i in range(n):
                            s[i] = real(1) if w[i] > real(0) or (firing == SPIKE and w[i] == real(0)) else real(0)
                else:
                    load(u, us, at, n)
                    _threshold(theta_t, theta, kappa, adapts_[at : at + n], n, adapts)
                    _emitted(y, s, u, theta_t, n, firing, most, recorded, ys[at : at + n])
                    _slopes(psi, counted, u, theta_t, n, firing, most, kind, width)
                    if ls_kind == 1:
                        signal = ls[t * ls_step + start : t * ls_step + start + n]
                        for i in range(n):
                            e[i] = psi[i] * signal[i]
                    else:
                        probe = ls[t * ls_step] if ls_kind == 2 else real(0)
                        for i in range(n):
                            e[i] = psi[i] * probe
                            driven[i] += e[i]
                    if has_dy:
                        for i in range(n):
                            e[i] += psi[i] * dy[i]
                    if adapts:
                        for i in range(n):
                            e[i] += counted[i] * da[i]
                    if attached and not delayed and reset == SUBTRACT:
                        for i in range(n):
                            e[i] -= counted[i] * theta_t[i] * dv[i]
                    elif attached and not delayed and reset == ZERO:
                        for i in range(n):
                            e[i] -= counted[i] * (u[i] + theta_t[i]) * dv[i]
                    if reset == ZERO:
                        for i in range(n):
                            g[i] = e[i] + (dv[i] if s[i] == real(0) else real(0))
                    else:
                        for i in range(n):
                            g[i] = e[i] + dv[i]
                    for i in range(n):
                        dv[i] = beta[i] * g[i]
                if leaks:
                    for i in range(n):
                        h[i] = (real(1) - beta[i]) * g[i] + di[i]
                else:
                    for i in range(n):
                        h[i] = gain * g[i] + di[i]
                store(out, t * out_step + start, h, n)
                if a[39] != 0:
                    for i in range(n):
                        total[i] += h[i]
                if wants_alpha:
                    if t > 0:
                        load(before, curs, at - size, n)
                    else:
                        load(before, cur_0, start, n)
                    for i in range(n):
                        d_alpha[i] += h[i] * before[i]
                if t == first and has_cur and a[32] != 0:
                    store(carray(_pointer(a[32]), size, real), start, di, n)
                if has_cur:
                    for i in range(n):
                        di[i] = alpha[i] * h[i]
                if wants_beta or (delayed and wants_c):
                    if t > 0:
                        load(u, us, at - size, n)
                        _threshold(before, theta, kappa, adapts_[at - size : at - size + n], n, adapts)
                        _emitted(y, s_before, u, before, n, firing, most, recorded, ys[at - size : at - size + n])
                        if wants_beta:
                            for i in range(n):
                                u[i] = u[i] + before[i]
                            _reset(before, u, before, s_before, n, NONE if delayed else reset)
                    else:
                        load(before, mem_0, start, n)
                        if delayed:
                            load(y, spk_0, start, n)
                            _count(s_before, y, n, firing)
                    if wants_beta:
                        for i in range(n):
                            d_beta[i] += g[i] * before[i]
                        if leaks:
                            load(before, curs, at, n)
                            for i in range(n):
                                d_beta[i] -= g[i] * before[i]
                has_dy = attached and delayed
                if has_dy:
                    for i in range(n):
                        dy[i] = -theta_t[i] * g[i]
                if wants_c:
                    if reset != SUBTRACT:
                        for i in range(n):
                            c[i] = -e[i]
                    elif delayed:
                        for i in range(n):
                            c[i] = -(e[i] + g[i] * s_before[i])
                    else:
                        for i in range(n):
                            c[i] = -(e[i] + s[i] * (g[i] - e[i]))
                    for i in range(n):
                        d_theta[i] += c[i]
                if adapts:
                    past = adapts_[at : at + n]
                    for i in range(n):
                        d_kappa[i] += c[i] * past[i]
                        d_rho[i] += da[i] * past[i]
                        da[i] = rho[i] * da[i] + kappa[i] * c[i]
            if a[31] != 0:
                store(carray(_pointer(a[31]), size, real), start, g, n)
            for k in range(4):
                if a[27 + k] != 0:
                    store(carray(_pointer(a[27 + k]), size, real), start, block[5 + k], n)
            for k in range(5):
                if a[34 + k] != 0:
                    store(carray(_pointer(a[34 + k]), size, real), start, block[18 + k], n)
            if a[39] != 0:
                store(carray(_pointer(a[39]), size, real), start, total, n)
            if a[51] != 0:
                store(carray(_pointer(a[51]), size, real), start, driven, n)

    return run


def recalled_reverse(real: Any) -> Any:
    """The usual neuron forwards, for outputs that are known as bits, and backwards; g is written over the currents.

    Its membranes stay in the cache: they are those of one block.
    """

    @_kernel
    def run(address: int) -> None:
        a = carray(_pointer(address), 19, np.int64)
        steps, size, m, begin, end, kind = a[0], a[1], a[2], a[3], a[4], a[5]
        width = real(carray(_pointer(a[6]), 4, np.float64)[1])
        window, ls = carray(_pointer(a[7]), steps * size, real), carray(_pointer(a[9]), steps * size, real)
        mem_0, ahead = carray(_pointer(a[10]), size, real), carray(_pointer(a[11]), size, real)
        leftover, first = carray(_pointer(a[12]), size, real), carray(_pointer(a[13]), size, real)
        betas, thetas = carray(_pointer(a[14]), m, real), carray(_pointer(a[16]), m, real)
        in_step = -(-size // WORD)
        block, u = np.zeros((7, BLOCK), real), np.empty((steps, BLOCK), real)
        beta, theta, v, y, psi, g, dv = block[0], block[1], block[2], block[3], block[4], block[5], block[6]
        for start in range(begin, end, BLOCK):
            n = min(BLOCK, end - start)
            _fill(beta, betas, a[15], start, n, m)
            _fill(theta, thetas, a[17], start, n, m)
            load(v, mem_0, start, n)
            for t in range(steps):
                words = carray(_pointer(a[8] + (t * in_step + start // WORD) * 8), -(-n // WORD), np.uint64)
                for k in range(len(words)):
                    unpack_word(words[k], y[k * WORD :].ctypes.data, real(0))
                at = t * size + start
                _plain_known_step(window[at : at + n], v, u[t], y, beta, theta, n)
            dv[:] = 0
            if a[11] != 0:
                load(dv, ahead, start, n)
            for t in range(steps - 1, -1, -1):
                at = t * size + start
                signal, sent = ls[at : at + n], window[at : at + n]
                if a[9] != 0:
                    surrogate(psi, u[t], n, kind, width)
                    for i in range(n):
                        g[i] = psi[i] * signal[i] + dv[i]
                        sent[i] = g[i]
                        dv[i] = beta[i] * g[i]
                else:
                    for i in range(n):
                        g[i] = dv[i]
                        sent[i] = g[i]
                        dv[i] = beta[i] * g[i]
            store(first, start, g, n)
            store(leftover, start, dv, n)
        y[0] = real(0)  # so that numba does not let go of it before: for it an address is no use

    return run


def li(real: Any) -> Any:
    """Leaky integration forwards: `v_t = beta * v_{t-1} + J_t`."""

    @_kernel
    def run(address: int) -> None:
        a = carray(_pointer(address), 13, np.int64)
        steps, size, m, begin, end = a[0], a[1], a[2], a[3], a[4]
        current, out = carray(_pointer(a[5]), steps * size, real), carray(_pointer(a[6]), steps * size, real)
        again, mem_1 = carray(_pointer(a[11]), steps * size, real), carray(_pointer(a[12]), size, real)
        mem_0, given = carray(_pointer(a[7]), size, real), carray(_pointer(a[8]), m, real)
        block = np.empty((4, BLOCK), real)
        beta, v, j, offset = block[0], block[1], block[2], block[3]
        for start in range(begin, end, BLOCK):
            n = min(BLOCK, end - start)
            _fill(beta, given, a[9], start, n, m)
            load(v, mem_0, start, n)
            if a[10] != 0:
                _fill(offset, carray(_pointer(a[10]), m, real), 1, start, n, m)
            for t in range(steps):
                load(j, current, t * size + start, n)
                if a[10] != 0:
                    for i in range(n):
                        j[i] += offset[i]
                for i in range(n):
                    v[i] = j[i] + v[i] * beta[i]
                store(out, t * size + start, v, n)
                if a[11] != 0:
                    store(again, t * size + start, v, n)
            if a[12] != 0:
                store(mem_1, start, v, n)

    return run


def li_reverse(real: Any) -> Any:
    """Leaky integration backwards: `g_t = ls_t + beta * g_{t+1}`."""

    @_kernel
    def run(address: int) -> None:
        a = carray(_pointer(address), 16, np.int64)
        steps, size, m, begin, end = a[0], a[1], a[2], a[3], a[4]
        everything = steps * size
        ls, mem = carray(_pointer(a[5]), everything, real), carray(_pointer(a[6]), everything, real)
        mem_0, given = carray(_pointer(a[7]), size, real), carray(_pointer(a[8]), m, real)
        ahead, out = carray(_pointer(a[10]), size, real), carray(_pointer(a[11]), everything, real)
        leftover, own = carray(_pointer(a[12]), size, real), carray(_pointer(a[13]), size, real)
        block = np.empty((6, BLOCK), real)
        beta, dv, g, before, total, summed = block[0], block[1], block[2], block[3], block[4], block[5]
        for start in range(begin, end, BLOCK):
            n = min(BLOCK, end - start)
            _fill(beta, given, a[9], start, n, m)
            block[1:] = 0
            if a[10] != 0:
                load(dv, ahead, start, n)
            for t in range(steps - 1, -1, -1):
                at = t * size + start
                if a[5] != 0:
                    load(g, ls, at, n)
                    for i in range(n):
                        g[i] += dv[i]
                else:
                    for i in range(n):
                        g[i] = dv[i]
                store(out, at, g, n)
                if a[14] != 0:
                    for i in range(n):
                        summed[i] += g[i]
                if a[13] != 0:
                    if t > 0:
                        load(before, mem, at - size, n)
                    else:
                        load(before, mem_0, start, n)
                    for i in range(n):
                        total[i] += g[i] * before[i]
                for i in range(n):
                    dv[i] = beta[i] * g[i]
            store(leftover, start, dv, n)
            if a[13] != 0:
                store(own, start, total, n)
            if a[14] != 0:
                store(carray(_pointer(a[14]), size, real), start, summed, n)

    return run


def advance(real: Any) -> Any:
    """Traces of a window's inputs, each entering the next, or all of them side by side."""

    @_kernel
    def run(address: int) -> None:
        a = carray(_pointer(address), 12, np.int64)
        steps, lanes, width, stages, side_by_side, begin, end = a[0], a[1], a[2], a[3], a[4] != 0, a[5], a[6]
        drive = carray(_pointer(a[7]), steps * lanes * width, real)
        kept = carray(_pointer(a[8]), steps * lanes * width, real)
        old = carray(_pointer(a[9]), lanes * stages * width, real)
        new = carray(_pointer(a[10]), lanes * stages * width, real)
        each = carray(_pointer(a[11]), 4 * stages, np.int64)  # decay and its step, gain and its step
        z, decay, gain = (
            np.empty((stages, BLOCK), real),
            np.empty((stages, BLOCK), real),
            np.empty((stages, BLOCK), real),
        )
        x = np.empty(BLOCK, real)
        for lane in range(begin, end):
            for start in range(0, width, BLOCK):
                n = min(BLOCK, width - start)
                for s in range(stages):
                    load(z[s], old, (lane * stages + s) * width + start, n)
                    _fill(decay[s], carray(_pointer(each[4 * s]), width, real), each[4 * s + 1], start, n, width)
                    if each[4 * s + 2] != 0:
                        _fill(gain[s], carray(_pointer(each[4 * s + 2]), width, real), each[4 * s + 3], start, n, width)
                for t in range(steps):
                    at = (t * lanes + lane) * width + start
                    if not side_by_side:
                        load(x, drive, at, n)
                    entering = drive[at : at + n]
                    for s in range(stages):
                        zs, ds, gs = z[s], decay[s], gain[s]
                        if side_by_side:
                            for i in range(n):
                                zs[i] = entering[i] + zs[i] * ds[i]
                            continue
                        if each[4 * s + 2] != 0:
                            for i in range(n):
                                x[i] *= gs[i]
                        for i in range(n):
                            zs[i] = x[i] + zs[i] * ds[i]
                            x[i] = zs[i]
                    if a[8] != 0:
                        zs, kept_t = z[stages - 1], kept[at : at + n]
                        for i in range(n):
                            zs[i] *= kept_t[i]
                for s in range(stages):
                    store(new, (lane * stages + s) * width + start, z[s], n)

    return run


def fold(real: Any) -> Any:
    """`advance` for one trace with one decay, and the trace of ones of each lane; all steps of all lanes in a row.

    Traces that are not there (address 0) are zero; with no steps they are copied.
    """
    least = least_kept(real)

    @_kernel
    def run(address: int) -> None:
        a = carray(_pointer(address), 12, np.int64)
        steps, size, lanes, begin, end = a[0], a[1], a[2], a[3], a[4]
        x, old, new = (
            carray(_pointer(a[5]), steps * size, real),
            carray(_pointer(a[6]), size, real),
            carray(_pointer(a[7]), size, real),
        )
        decay = carray(_pointer(a[8]), 1, real)[0]
        whole = 8 * BLOCK  # what is read of one step at a time: long enough for memory, short enough for the cache
        for start in range(begin, end, whole):
            n = min(whole, end - start)
            z, before = new[start : start + n], old[start : start + n]
            for i in range(n):
                z[i] = before[i] if a[6] != 0 else real(0)
            for t in range(steps):
                entering = x[t * size + start : t * size + start + n]
                for i in range(n):
                    z[i] = entering[i] + z[i] * decay
            for i in range(n):
                z[i] = z[i] if abs(z[i]) > least else real(0)
        if a[10] != 0 and begin == 0:
            ones, advanced = carray(_pointer(a[9]), lanes, real), carray(_pointer(a[10]), lanes, real)
            for lane in range(lanes):
                count = ones[lane] if a[9] != 0 else real(0)
                for _ in range(steps):
                    count = real(1) + count * decay
                advanced[lane] = count

    return run


def bias(real: Any) -> Any:
    """`sum over lanes of (sum_t g_t + a_0 N_0)`; may be added to what is there."""

    @_kernel
    def run(address: int) -> None:
        a = carray(_pointer(address), 7, np.int64)
        lanes, m = a[0], a[1]
        total, out = carray(_pointer(a[2]), lanes * m, real), carray(_pointer(a[5]), m, real)
        leftover, ones = carray(_pointer(a[3]), lanes * m, real), carray(_pointer(a[4]), lanes, real)
        if a[6] == 0:
            for i in range(m):
                out[i] = real(0)
        for lane in range(lanes):
            part = total[lane * m : lane * m + m]
            for i in range(m):
                out[i] += part[i]
            if a[4] != 0:
                count, past = ones[lane], leftover[lane * m : lane * m + m]
                for i in range(m):
                    out[i] += count * past[i]

    return run


@_sum
def copied(x: Any, copy: Any, n: int) -> Any:
    """`copy = x`; 0 where all entries are finite, else NaN."""
    strange = x.dtype.type(0)
    for i in range(n):
        strange += x[i] - x[i]
        copy[i] = x[i]
    return strange


@_sum
def strangeness(x: Any, n: int) -> Any:
    """0 where all entries are finite, else NaN."""
    strange = x.dtype.type(0)
    for i in range(n):
        strange += x[i] - x[i]
    return strange


def cross_entropy(real: Any) -> Any:
    """`-log softmax(y)[target]`, weighted and summed, and its gradient."""

    @_kernel
    def run(address: int) -> None:
        a = carray(_pointer(address), 11, np.int64)
        rows, targets, m, rows_each = a[0], a[1], a[2], a[3]
        share = real(carray(_pointer(a[8]), 1, np.float64)[0])
        y, signal = carray(_pointer(a[4]), rows * m, real), carray(_pointer(a[5]), rows * m, real)
        target, weights = carray(_pointer(a[6]), targets, np.int64), carray(_pointer(a[7]), rows, real)
        classes = carray(_pointer(a[9]), 2, np.int64)  # the least and the greatest that came
        loss, least, greatest = 0.0, m, -1
        for row in range(rows):
            index = target[row % targets]
            least, greatest = min(least, index), max(greatest, index)
            if index < 0 or index >= m:
                continue
            scale = share * weights[row // rows_each] if a[7] != 0 else share
            logits, out = y[row * m : row * m + m], signal[row * m : row * m + m]
            top = logits[0]
            for i in range(1, m):
                top = max(top, logits[i])
            total = real(0)
            for i in range(m):
                out[i] = math.exp(logits[i] - top)
                total += out[i]
            loss -= scale * (logits[index] - top - math.log(total))
            factor = scale / total
            for i in range(m):
                out[i] *= factor
            out[index] -= scale
        classes[0], classes[1] = least, greatest
        carray(_pointer(a[10]), 1, real)[0] = loss

    return run


def finite(real: Any) -> Any:
    """Whether all entries are finite, which is written."""

    @_kernel
    def run(address: int) -> None:
        a = carray(_pointer(address), 3, np.int64)
        a[2] = strangeness(carray(_pointer(a[1]), a[0], real), a[0]) == real(0)

    return run


def taken(real: Any) -> Any:
    """A copy of an input, and whether it is finite."""

    @_kernel
    def run(address: int) -> None:
        a = carray(_pointer(address), 5, np.int64)
        begin, end = a[0], a[1]
        x, copy = carray(_pointer(a[2]), end, real), carray(_pointer(a[3]), end, real)
        found = carray(_pointer(a[4]), 1, np.int64)
        if copied(x[begin:end], copy[begin:end], end - begin) != real(0):
            found[0] = 1

    return run


KERNELS: dict[str, Callable[[Any], Any]] = {
    kernel.__name__: kernel
    for kernel in (
        spiking,
        spiking_reverse,
        recalled_reverse,
        li,
        li_reverse,
        advance,
        fold,
        bias,
        cross_entropy,
        finite,
        taken,
    )
}
