"""The CPU kernels as functions of tensors: the same as those of `functional.scan` and `functional.trace`.

Importing this module imports numba. Tensors are read where they lie; none is copied that is contiguous. Long windows of
many neurons are cut into as many parts as torch has threads (`torch.set_num_threads`), in threads of our own which
sleep between calls.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
from array import array
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from ..functional.scan import Form, Record, Reverse, Scan, State, Values
from ..functional.trace import Stage
from . import loops, memory
from .forms import FIRINGS, SURROGATES, draws

ENTRIES_FOR_THREADS = 2**18  # steps times neurons and lanes, from which several threads are faster than one

_FIRINGS = {kind: code for code, kind in enumerate(FIRINGS)}
_SURROGATES = {kind: code for code, kind in enumerate(SURROGATES)}
_RESETS = {"subtract": loops.SUBTRACT, "zero": loops.ZERO, "none": loops.NONE}
_TYPES = {torch.float32: np.float32, torch.float64: np.float64}
_OWN = ("beta", "alpha", "threshold", "kappa", "rho")  # in the order of the table

DTYPES = frozenset(_TYPES)
BLOCK = loops.BLOCK
SUBTRACT = loops.SUBTRACT


@functools.cache
def compiled(name: str, dtype: torch.dtype) -> ctypes._FuncPointer:
    """A kernel as a function of the address of its table; compiled, or read from disk, when first asked for."""
    kernel = loops.KERNELS[name](_TYPES[dtype])
    return ctypes.CFUNCTYPE(None, ctypes.c_int64)(kernel.address)


@functools.cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, "tracetorch")


os.register_at_fork(after_in_child=_threads.cache_clear)  # a child has none of its parent's threads


def run(name: str, dtype: torch.dtype, table: Sequence[int]) -> None:
    """Run a kernel on its table."""
    entries = array("q", table)
    compiled(name, dtype)(entries.buffer_info()[0])


def run_in_parts(name: str, dtype: torch.dtype, table: list[int], at: int, unit: int, work: int) -> None:
    """Run a kernel whose table has the range that it works on at `at` and `at + 1`, cut at multiples of `unit`."""
    threads = torch.get_num_threads()
    if threads == 1 or work < ENTRIES_FOR_THREADS or table[at + 1] < 2 * unit:
        run(name, dtype, table)
        return
    units = -(-table[at + 1] // unit)
    borders = [min(table[at + 1], units * k // threads * unit) for k in range(threads + 1)]
    parts = []
    for begin, end in itertools.pairwise(borders):
        part = list(table)
        part[at], part[at + 1] = begin, end
        parts.append(_threads(threads).submit(run, name, dtype, part))
    for done in parts:
        done.result()


def address(tensor: Tensor | None) -> int:
    """Where a tensor lies; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()


def constants_of(form: Form) -> array[float]:
    """The numbers of a neuron: gain, width, most; 1 where the gain is 1 - beta instead."""
    emits = form.firing
    most = getattr(emits, "most", None)
    leaks = form.gain == "leak"
    return array("d", [1.0 if leaks else form.gain, emits.surrogate.width, most or np.inf, leaks])  # type: ignore[attr-defined, list-item]


def _parameters(values: Values) -> list[int]:
    """The addresses of a neuron's own parameters, each with the distance from a neuron's value to the next's."""
    table: list[int] = []
    for name in ("beta", "threshold", "alpha", "rho", "kappa"):
        value = values.get(name)
        table += (0, 0) if value is None else (value.data_ptr(), value.ndim)
    return [*table, 0]


def spiking(current: Tensor, start: State, values: Values, form: Form) -> Scan:
    """`functional.scan.spiking`; u is written over the currents."""
    steps, lanes, m = current.shape
    dtype, size = current.dtype, lanes * m
    y = memory.empty(current.shape, dtype)
    after = State(*[None if part is None else torch.empty_like(part) for part in start])  # type: ignore[arg-type]
    cur = torch.empty_like(current) if start.cur is not None or form.gain == "leak" else None
    adapt = None if start.adapt is None else torch.empty_like(current)
    drawn = draws(form, current)
    constants = constants_of(form)
    states = [address(part) for pair in zip(start, after, strict=True) for part in pair]
    offset = [current, current, y, cur, adapt, drawn]
    head = [
        size,
        m,
        0,
        size,
        firing_code(form),
        _RESETS[form.reset],
        form.delayed,
        constants.buffer_info()[0],
    ]
    parameters = _parameters(values)
    if "recurrent" not in values:
        current_, u_, y_, cur_, adapt_, draws_ = map(address, offset)
        table = [steps, *head, current_, u_, y_, *states, cur_, adapt_, draws_, *parameters]
        run_in_parts("spiking", dtype, table, 3, loops.BLOCK, steps * size)
    else:
        assert start.spk is not None
        transposed, before, between = values["recurrent"].t(), start.spk, states
        step = size * current.element_size()
        pointers = [address(window) for window in offset]
        for t in range(steps):
            torch.addmm(current[t], before, transposed, out=current[t])
            current_, u_, y_, cur_, adapt_, draws_ = (p and p + t * step for p in pointers)
            table = [1, *head, current_, u_, y_, *between, cur_, adapt_, draws_, *parameters]
            run("spiking", dtype, table)
            before, between = y[t], [address(part) for part in after for _ in range(2)]
    return Scan(y, Record(current, None if form.firing.recomputable else y, cur, adapt), after)


def firing_code(form: Form) -> int:
    """The code of what a neuron emits."""
    return _FIRINGS[type(form.firing)]


def surrogate_code(form: Form) -> int:
    """The code of its pseudo-derivative."""
    return _SURROGATES[type(form.firing.surrogate)]


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
    u = record.u
    steps, (lanes, m) = len(u), u.shape[-2:]
    dtype, size, probes = u.dtype, lanes * m, 1 if u.ndim == 3 or ls is None else ls.shape[1]
    shape = (lanes, m) if u.ndim == 3 else (probes, lanes, m)
    ls_kind = 0 if ls is None else 1 if u.ndim == 3 else 2
    ls_step = 0 if ls is None else size if ls_kind == 1 else probes
    h = memory.empty((steps, *shape), dtype)
    needs_spk = "recurrent" in values or (form.attached and form.delayed)
    state = [start.mem, start.cur, start.adapt, start.spk if needs_spk else None]
    leftover = State(*[None if part is None else u.new_empty(shape) for part in state])  # type: ignore[arg-type]
    first = State(u.new_empty(shape), None if start.cur is None else u.new_empty(shape))
    own = {name: u.new_empty(shape) for name in wanted}
    constants = constants_of(form)
    head = [size, m, 0, size]
    middle = [
        firing_code(form),
        _RESETS[form.reset],
        form.delayed,
        form.attached,
        surrogate_code(form),
        constants.buffer_info()[0],
        ls_kind,
        ls_step,
        probes * size,
        address(ls),
        u.data_ptr(),
        *map(address, (record.y, record.cur, record.adapt, start.mem, start.cur, start.spk)),
    ]
    came = [0, 0, 0, 0] if ahead is None else [address(part) for part in ahead]
    if not needs_spk:
        came[3] = 0
    left = [address(part) for part in leftover]
    rest = [address(first.mem), address(first.cur), h.data_ptr()]
    sums = [address(own.get(name)) for name in _OWN]
    tail = [0, *_parameters(values)]
    if "recurrent" in values:
        _recurrent_reverse(h, values["recurrent"], leftover, own, (head, middle, came, left, rest, sums, tail), form)
    elif probes == 1:
        table = [*head, 0, steps, *middle, *came, *left, *rest, *sums, *tail]
        run_in_parts("spiking_reverse", dtype, table, 2, loops.BLOCK, steps * size)
    else:
        width = u.element_size()
        for probe in range(probes):
            here = probe * size * width
            shifted = list(middle)
            shifted[9] += probe * width
            moved = [[p and p + here for p in part] for part in (came, left, rest, sums)]
            table = [*head, 0, steps, *shifted, *(p for part in moved for p in part), *tail]
            run_in_parts("spiking_reverse", dtype, table, 2, loops.BLOCK, steps * size)
    return Reverse(h, first, leftover, own)


def _recurrent_reverse(
    h: Tensor, weight: Tensor, leftover: State, own: dict[str, Tensor], parts: tuple[list[int], ...], form: Form
) -> None:
    """Step by step: what comes back through U is a product of all neurons' gradients."""
    head, middle, came, left, rest, sums, tail = parts
    assert leftover.spk is not None
    of_step = {name: torch.empty_like(total) for name, total in own.items()}
    for total in own.values():
        total.zero_()
    sums = [address(of_step.get(name)) for name in _OWN]
    for t in range(len(h) - 1, -1, -1):
        run("spiking_reverse", h.dtype, [*head, t, t + 1, *middle, *came, *left, *rest, *sums, *tail])
        for name, total in own.items():
            total.add_(of_step[name])
        if form.attached and form.delayed:
            torch.addmm(leftover.spk, h[t], weight, out=leftover.spk)
        else:
            torch.mm(h[t], weight, out=leftover.spk)
        came = left


def li(current: Tensor, mem: Tensor, beta: Tensor) -> Tensor:
    """`functional.scan.li`."""
    steps, lanes, m = current.shape
    out = torch.empty_like(current)
    size = lanes * m
    table = [steps, size, m, 0, size, current.data_ptr(), out.data_ptr(), mem.data_ptr(), beta.data_ptr(), beta.ndim, 0]
    run_in_parts("li", current.dtype, table, 3, loops.BLOCK, steps * size)
    return out


def li_reverse(ls: Tensor | None, out: Tensor, start: State, beta: Tensor, ahead: State | None = None) -> Reverse:
    """`functional.scan.li_reverse`."""
    steps, lanes, m = out.shape
    size = lanes * m
    g, leftover, own = torch.empty_like(out), torch.empty_like(start.mem), torch.empty_like(start.mem)
    table = [steps, size, m, 0, size, address(ls), out.data_ptr(), start.mem.data_ptr(), beta.data_ptr(), beta.ndim]
    table += [0 if ahead is None else address(ahead.mem), g.data_ptr(), leftover.data_ptr(), own.data_ptr(), 0]
    run_in_parts("li_reverse", out.dtype, table, 3, loops.BLOCK, steps * size)
    return Reverse(g, State(g[0]), State(leftover), {"beta": own})


def advance_chain(traces: Tensor, drive: Tensor, chain: tuple[Stage, ...], kept: Tensor | None = None) -> Tensor:
    """`functional.trace.advance_chain`."""
    gains = [
        stage.gain if isinstance(stage.gain, Tensor) or stage.gain == 1 else traces.new_tensor(stage.gain)
        for stage in chain
    ]
    decays = [stage.decay for stage in chain]
    return _advance(traces, drive, decays, gains, kept, False)


def advance_bank(traces: Tensor, drive: Tensor, nodes: Tensor) -> Tensor:
    """`functional.trace.advance_bank`."""
    return _advance(traces, drive, list(nodes.to(traces.dtype)), [1.0] * len(nodes), None, True)


def _advance(
    traces: Tensor,
    drive: Tensor,
    decays: list[Tensor],
    gains: Sequence[Tensor | float],
    kept: Tensor | None,
    side_by_side: bool,
) -> Tensor:
    lanes, stages, n = traces.shape
    new = torch.empty_like(traces)
    each = array("q")
    for decay, gain in zip(decays, gains, strict=True):
        each.extend((decay.data_ptr(), decay.ndim))
        each.extend((gain.data_ptr(), gain.ndim) if isinstance(gain, Tensor) else (0, 0))
    table = [len(drive), lanes, n, stages, side_by_side, 0, lanes, drive.data_ptr(), address(kept)]
    table += [traces.data_ptr(), new.data_ptr(), each.buffer_info()[0]]
    run_in_parts("advance", traces.dtype, table, 5, 1, len(drive) * lanes * n)
    return new


def advance_matrix(
    before: Tensor,
    g: Tensor,
    border: Tensor,
    taken: Tensor,
    past: Tensor,
    decay: Tensor,
    *,
    signal: Tensor | None = None,
    carried: Tensor | None = None,
    overwrite: bool = False,
) -> Tensor:
    """`functional.trace.advance_matrix`, where asked written over `before`.

    With a signal (B, H, m), what `carry_matrix` makes of it is written to `carried` (m, n) on the way.
    """
    lanes, h, m, n = before.shape
    new = before if overwrite else memory.empty(before.shape, before.dtype)
    table = [len(g), lanes, h, m, n, border.shape[2], 0, m]
    table += [address(tensor) for tensor in (before, g, border, taken, past, decay, new, signal, carried)]
    run_in_parts("advance_matrix", before.dtype, table, 6, loops.ROWS, len(g) * before.numel())
    return new


def carry_advanced(signal: Tensor, before: Tensor, *window: Tensor, overwrite: bool = False) -> tuple[Tensor, Tensor]:
    """`functional.trace.carry_advanced`, where asked written over `before`: the matrices are read once."""
    carried = memory.empty(before.shape[2:], before.dtype)
    new = advance_matrix(before, *window, signal=signal, carried=carried, overwrite=overwrite)
    return carried, new


def carry_matrix(signal: Tensor, matrix: Tensor) -> Tensor:
    """`functional.trace.carry_matrix`."""
    lanes, h, m, n = matrix.shape
    out = memory.empty((m, n), matrix.dtype)
    table = [lanes * h, m, n, 0, m, signal.data_ptr(), matrix.data_ptr(), out.data_ptr()]
    run_in_parts("carry_matrix", matrix.dtype, table, 3, 8, matrix.numel())
    return out


def cross_entropy(y: Tensor, target: Tensor, scale: Tensor | float) -> tuple[Tensor, Tensor, int, int]:
    """`-log softmax(y)[target]`, summed with the factors `scale`, and its gradient; the least and the greatest class.

    Args:
        y: (..., m), contiguous.
        target: of the leading dimensions, or without the first of them; contiguous.
        scale: one factor, or one for each row of y, contiguous.
    """
    m, rows = y.shape[-1], y.numel() // y.shape[-1]
    targets = target.numel()  # rows beyond them have the same again
    loss, ls = y.new_empty(()), torch.empty_like(y)
    factor = array("f" if y.dtype == torch.float32 else "d", [scale]) if isinstance(scale, float) else None
    factors = scale.data_ptr() if isinstance(scale, Tensor) else factor.buffer_info()[0]  # type: ignore[union-attr]
    classes = array("q", [0, 0])
    table = [rows, targets, m, factor is not None, y.data_ptr(), ls.data_ptr(), target.data_ptr(), factors]
    run("cross_entropy", y.dtype, [*table, classes.buffer_info()[0], loss.data_ptr()])
    return loss, ls, classes[0], classes[1]


def taken(x: Tensor, copy: Tensor) -> bool:
    """Copy x into `copy`; whether all entries are finite. Both contiguous."""
    strange = array("q", [0])
    table = [0, x.numel(), x.data_ptr(), copy.data_ptr(), strange.buffer_info()[0]]
    run_in_parts("taken", x.dtype, table, 0, BLOCK, x.numel() // 4)
    return not strange[0]
