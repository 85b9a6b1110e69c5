"""A single step of a row of usual layers for few lanes; like `loops.py`, each kernel takes the address of one table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import carray  # type: ignore[attr-defined]

from .jit import kernel as _kernel
from .jit import least_kept
from .jit import loop as _loop
from .jit import pointer as _pointer
from .loops import SPIKE, copied, strangeness, surrogate
from .products import add_outer, multiply

STEP_HEAD, STEP_TABLE = 4, 24  # integers in the tables


@_loop
def _advance_once(a: Any, past: Any, old: Any, new: Any, beta: float, least: float, n: int) -> None:
    """The traces after one more step; where none was taken, or none is there yet, as they were, or zero."""
    zero = new.dtype.type(0)
    if a[16] == 0:
        for j in range(n):
            new[j] = past[j] if a[15] != 0 else zero
    elif a[15] == 0:
        for j in range(n):
            new[j] = old[j]
    else:
        for j in range(n):
            z = past[j] + old[j] * beta
            new[j] = z if abs(z) > least else zero


def step(real: Any) -> Any:
    """One step of a row of usual layers for few lanes: the traces of the step before, the product, the neuron.

    The table: how many layers; whether the input is finite, which is written; then each layer's own.
    """
    least, size = least_kept(real), np.dtype(real).itemsize

    @_kernel
    def run(address: int) -> None:
        head = carray(_pointer(address), STEP_HEAD, np.int64)
        for layer in range(head[0]):
            a = carray(_pointer(address + 8 * (STEP_HEAD + layer * STEP_TABLE)), STEP_TABLE, np.int64)
            lanes, n, m, firing = a[0], a[1], a[2], a[3]
            x = carray(_pointer(a[5]), lanes * n, real)
            bias_ = carray(_pointer(a[7]), m, real)
            mem_0, mem_1 = carray(_pointer(a[8]), lanes * m, real), carray(_pointer(a[9]), lanes * m, real)
            u, y = carray(_pointer(a[10]), lanes * m, real), carray(_pointer(a[11]), lanes * m, real)
            beta = carray(_pointer(a[12]), 1, real)[0]
            theta = carray(_pointer(a[13]), m, real)
            theta_step = a[14]
            zero, one = real(0), real(1)
            if a[4] != 0:
                given = carray(_pointer(a[4]), lanes * n, real)
                head[1] = copied(given, x, lanes * n) == zero
            multiply((lanes, m, n), a[5], a[6], a[10], zero, size, real)
            for lane in range(lanes):
                for i in range(m):
                    at = lane * m + i
                    p = u[at] + mem_0[at] * beta
                    if a[7] != 0:
                        p += bias_[i]
                    if firing < 0:
                        mem_1[at] = p
                        u[at] = p
                        y[at] = p
                        continue
                    w = p - theta[i * theta_step]
                    fires = w >= zero if firing == SPIKE else w > zero
                    u[at] = w
                    y[at] = one if fires else zero
                    mem_1[at] = w if fires else p
            if a[17] != 0:
                _advance_once(
                    a,
                    carray(_pointer(a[15]), lanes * n, real),
                    carray(_pointer(a[16]), lanes * n, real),
                    carray(_pointer(a[17]), lanes * n, real),
                    beta,
                    least,
                    lanes * n,
                )
            if a[19] != 0:
                ones, advanced = carray(_pointer(a[18]), lanes, real), carray(_pointer(a[19]), lanes, real)
                for lane in range(lanes):
                    count = ones[lane] if a[18] != 0 else zero
                    advanced[lane] = one + count * beta if a[15] != 0 else count

    return run


def step_reverse(real: Any) -> Any:
    """The same backwards: the gradients of weights and bias, and dL/dx.

    The table: how many layers, from the last to the first; whether the learning signal is finite, which is written,
    and where it is not then nothing else; whether to look; then each layer's own.
    """
    size = np.dtype(real).itemsize

    @_kernel
    def run(address: int) -> None:
        head = carray(_pointer(address), STEP_HEAD, np.int64)
        for layer in range(head[0]):
            a = carray(_pointer(address + 8 * (STEP_HEAD + layer * STEP_TABLE)), STEP_TABLE, np.int64)
            lanes, n, m, kind = a[0], a[1], a[2], a[3]
            width = real(carray(_pointer(a[4]), 4, np.float64)[1])
            x, z, ones = (
                carray(_pointer(a[5]), lanes * n, real),
                carray(_pointer(a[6]), lanes * n, real),
                carray(_pointer(a[7]), lanes, real),
            )
            u, ls = carray(_pointer(a[9]), lanes * m, real), carray(_pointer(a[10]), lanes * m, real)
            beta = carray(_pointer(a[11]), 1, real)[0]
            d_bias, zero = carray(_pointer(a[15]), m, real), real(0)
            if layer == 0 and head[2] != 0:
                head[1] = strangeness(ls, lanes * m) == zero
                if head[1] == 0:
                    return
            g, taken_ = np.empty(lanes * m, real), np.empty(lanes * n, real)
            if kind >= 0:
                surrogate(g, u, lanes * m, kind, width)
                for i in range(lanes * m):
                    g[i] *= ls[i]
            else:
                for i in range(lanes * m):
                    g[i] = ls[i]
            if a[6] != 0:
                for j in range(lanes * n):
                    taken_[j] = x[j] + beta * z[j]
            else:
                for j in range(lanes * n):
                    taken_[j] = x[j]
            if a[12] != 0:
                factors = (g.ctypes.data, size, m * size)
                add_outer((m, n, lanes), factors, taken_.ctypes.data, a[12], a[13], zero, size, real)
            if a[15] != 0:
                if a[16] == 0:
                    for i in range(m):
                        d_bias[i] = zero
                for lane in range(lanes):
                    count = real(1) + (beta * ones[lane] if a[7] != 0 else zero)
                    for i in range(m):
                        d_bias[i] += count * g[lane * m + i]
            if a[14] != 0:
                factors = (g.ctypes.data, m * size, size)
                add_outer((lanes, n, m), factors, a[8], a[14], 0, zero, size, real)
            g[0] = taken_[0] = zero  # so that numba does not let go of them before: for it an address is no use

    return run


KERNELS: dict[str, Callable[[Any], Any]] = {kernel.__name__: kernel for kernel in (step, step_reverse)}
