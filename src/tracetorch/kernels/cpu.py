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
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..functional.scan import Form, Record, Reverse, Scan, State, Sums, Values
from ..functional.spikes import WORD, Spikes
from ..functional.spikes import GradientSum as SumOfGradients
from ..functional.trace import Stage
from . import bits, loops, matrices, memory, products, steps
from .forms import FIRINGS, SURROGATES, add_recurrent, draws

ENTRIES_FOR_THREADS = 2**18  # steps times neurons and lanes, from which several threads are faster than one

_FIRINGS = {kind: code for code, kind in enumerate(FIRINGS)}
_SURROGATES = {kind: code for code, kind in enumerate(SURROGATES)}
_RESETS = {"subtract": loops.SUBTRACT, "zero": loops.ZERO, "none": loops.NONE}
_TYPES = {torch.float32: np.float32, torch.float64: np.float64}
_OWN = ("beta", "alpha", "threshold", "kappa", "rho")  # in the order of the table

_KERNELS = loops.KERNELS | bits.KERNELS | matrices.KERNELS | products.KERNELS | steps.KERNELS

DTYPES = frozenset(_TYPES)
BLOCK = loops.BLOCK
ROWS_AT_ONCE = 256  # of spikes as numbers, for dense products: they stay in the second-level cache

# where things stand in tables: those of layers in a single step, y in a forward scan, the signal in reverse scans
STEP_HEAD, STEP_TABLE = steps.STEP_HEAD, steps.STEP_TABLE
STEP_FINITE, STEP_GIVEN, STEP_Y, STEP_LS, STEP_BELOW = 1, 4, 11, 10, 14
STEP_GRADIENTS = 12, 15  # of weight and bias, each before whether it is added to
Y_AT, LS_AT, LI_LS_AT = 11, 15, 5  # y stands at the same place for LI
BIAS_OUT = 5  # and after it whether it is added to
TAKE_FROM, TAKE_STRANGE = 2, 5
OUTER_OUT = 7  # and after it whether it is added to
FINITE_OF, FINITE = 1, 2

# What the sparse products take; 1 is what a dense one takes for one input of a row and 64 bytes of its outputs. For one
# spike and 64 bytes; for one input, active or not, and 512 bytes; to transpose the weights or their gradient, for one
# input and 64 bytes. Fitted to what `benchmarks/sparse.py` measured.
_PRODUCT, _GRADIENT = (1.75, 0.75, 26.0), (1.25, 1.0, 45.0)


@functools.cache
def compiled(name: str, dtype: torch.dtype) -> ctypes._FuncPointer:
    """A kernel as a function of the address of its table; compiled, or read from disk, when first asked for."""
    return ctypes.CFUNCTYPE(None, ctypes.c_int64)(_place_of(name, dtype))


@functools.cache
def _place_of(name: str, dtype: torch.dtype) -> int:
    return _KERNELS[name](_TYPES[dtype]).address  # type: ignore[no-any-return]


@functools.cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, "tracetorch")


os.register_at_fork(after_in_child=_threads.cache_clear)  # a child has none of its parent's threads


def run(name: str, dtype: torch.dtype, table: Sequence[int]) -> None:
    """Run a kernel on its table."""
    entries = array("q", table)
    compiled(name, dtype)(entries.buffer_info()[0])


def run_in_parts(name: str, dtype: torch.dtype, table: Sequence[int], at: int, unit: int, work: int) -> None:
    """Run a kernel whose table has the range that it works on at `at` and `at + 1`, cut at multiples of `unit`.

    The range must begin at one.
    """
    threads = torch.get_num_threads()
    if threads == 1 or work < ENTRIES_FOR_THREADS or table[at + 1] < 2 * unit:
        run(name, dtype, table)
        return
    first, units = table[at] // unit, -(-table[at + 1] // unit)
    borders = [min(table[at + 1], (first + (units - first) * k // threads) * unit) for k in range(threads + 1)]
    parts = []
    for begin, end in itertools.pairwise(borders):
        part = list(table)
        part[at], part[at + 1] = begin, end
        parts.append(_threads(threads).submit(run, name, dtype, part))
    for done in parts:
        done.result()


class Job:
    """A kernel and its table, to be run again and again: what changes is written into the table between runs.

    Args:
        name: the kernel.
        dtype: of its tensors.
        table: the table.
        at: where in it the range stands that it works on, as for `run_in_parts`; None where it is never cut.
        work: how much that is, likewise.
    """

    __slots__ = ("at", "dtype", "kernel", "name", "place", "table", "work")

    def __init__(
        self, name: str, dtype: torch.dtype, table: Sequence[int], at: int | None = None, work: int = 0
    ) -> None:
        self.name, self.dtype, self.at, self.work = name, dtype, at, work
        self.kernel = compiled(name, dtype)
        self.table = array("q", table)
        self.place = self.table.buffer_info()[0]

    def run(self) -> None:
        """Run it, in parts where that pays."""
        if self.at is None or self.work < ENTRIES_FOR_THREADS:
            self.kernel(self.place)
        else:
            run_in_parts(self.name, self.dtype, self.table, self.at, BLOCK, self.work)


class Chain:
    """Jobs that are run one after the other, in one call and by one thread.

    Args:
        jobs: the jobs; where one comes with the place of an integer in its table, those after it are not run if that is
            0 when it has run.
    """

    __slots__ = ("jobs", "kernel", "place", "table")

    def __init__(self, jobs: Sequence[Job | tuple[Job, int]]) -> None:
        each = [(job, None) if isinstance(job, Job) else job for job in jobs]
        self.jobs = [job for job, _ in each]
        words = [len(each)]
        for job, flag in each:
            words += [_place_of(job.name, job.dtype), job.place, 0 if flag is None else job.place + 8 * flag]
        self.kernel = compiled("chain", torch.float32)
        self.table = array("q", words)
        self.place = self.table.buffer_info()[0]


def inner_job(x: Tensor, weight: Tensor, out: Tensor) -> Job:
    """The product of few rows x (rows, n) and W^T (n, m), into `out`; all contiguous."""
    rows, n = x.shape
    return Job("inner", x.dtype, [rows, len(weight), n, *map(address, (x, weight, out))])


def outer_job(factors: Tensor, matrix: Tensor, out: Tensor | None = None) -> Job:
    """The product of factors (rows, terms), which may lie anyhow, and a contiguous matrix (terms, columns).

    Where no `out` is given, where to and whether to add to it is to be said.
    """
    (rows, terms), columns = factors.shape, matrix.shape[1]
    return Job(
        "outer",
        matrix.dtype,
        [rows, columns, terms, factors.data_ptr(), *factors.stride(), matrix.data_ptr(), address(out), 0],
    )


def decayed_sum_job(x: Tensor, decayed: Tensor, decay: Tensor, out: Tensor) -> Job:
    """`x + decay * decayed`, into `out`; all contiguous, `decay` one number."""
    return Job("decayed_sum", x.dtype, [x.numel(), *map(address, (x, decayed, decay, out))])


def finite_job(count: int, dtype: torch.dtype) -> Job:
    """Whether so many numbers are finite; where they are is to be said."""
    return Job("finite", dtype, [count, 0, 0])


def fold_job(steps: int, lanes: int, n: int, places: Sequence[int], beta: Tensor) -> Job:
    """The traces after a window; the addresses of its input, and of the traces of input and ones, before and after."""
    x, *traces = places
    table = [steps, lanes * n, lanes, 0, lanes * n, x, *traces[:2], beta.data_ptr(), *traces[2:]]
    return Job("fold", beta.dtype, table, 3, max(1, steps) * lanes * n)


def bias_job(total: Tensor, leftover: Tensor, ones: Tensor | None) -> Job:
    """The bias's gradient, of the steps' and the time before: (B, m) each, and (B,) ones; where to is to be said."""
    lanes, m = total.shape
    return Job("bias", total.dtype, [lanes, m, *map(address, (total, leftover, ones)), 0, 0])


def is_finite(x: Tensor) -> bool:
    """Whether all entries of a contiguous tensor are finite."""
    job = finite_job(x.numel(), x.dtype)
    job.table[FINITE_OF] = x.data_ptr()
    job.run()
    return bool(job.table[FINITE])


def address(tensor: Tensor | None) -> int:
    """Where a tensor lies; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()


def constants_of(form: Form) -> array[float]:
    """The numbers of a neuron: gain, width, most; 1 where the gain is 1 - beta instead."""
    emits = form.firing
    most = getattr(emits, "most", None)
    leaks = form.gain == "leak"
    return array("d", [1.0 if leaks else form.gain, emits.surrogate.width, most or np.inf, leaks])  # type: ignore[attr-defined, list-item]


def parameters(values: Values, bias: int = 0) -> list[int]:
    """The addresses of a neuron's own parameters, each with the distance from a neuron's value to the next's."""
    table: list[int] = []
    for name in ("beta", "threshold", "alpha", "rho", "kappa"):
        value = values.get(name)
        table += (0, 0) if value is None else (value.data_ptr(), value.ndim)
    return [*table, bias]


class Windows(NamedTuple):
    """The addresses of what a forward scan reads and writes of each step, 0 for what there is not."""

    current: int
    u: int
    y: int
    cur: int = 0
    adapt: int = 0
    draws: int = 0
    given: int = 0  # whether y is there already


def spiking_table(
    steps: int,
    size: int,
    form: Form,
    constants: array[float],
    windows: Windows,
    states: Sequence[int],
    m: int,
    values: list[int],
) -> list[int]:
    """The table of the forward scan.

    Args:
        steps: K.
        size: neurons of all lanes, B * m.
        form: the kind of neuron.
        constants: its numbers, which must live as long as the table.
        windows: what there is of each step.
        states: the addresses of mem, cur, adapt and spk, each before and after.
        m: neurons.
        values: of `parameters`.
    """
    kind = [firing_code(form), _RESETS[form.reset], form.delayed, constants.buffer_info()[0]]
    current, u, y, *others, given = windows
    return [steps, size, m, 0, size, *kind, current, u, y, *states, *others, *values, given]


def spiking(current: Tensor, start: State, values: Values, form: Form, given: Tensor | None = None) -> Scan:
    """`functional.scan.spiking`; u is written over the currents."""
    steps, lanes, m = current.shape
    dtype, size = current.dtype, lanes * m
    y = memory.empty(current.shape, dtype) if given is None else given
    after = State(*[None if part is None else torch.empty_like(part) for part in start])  # type: ignore[arg-type]
    cur = torch.empty_like(current) if start.cur is not None or form.gain == "leak" else None
    adapt = None if start.adapt is None else torch.empty_like(current)
    drawn = draws(form, current) if given is None else None
    constants, own_values = constants_of(form), parameters(values)
    states = [address(part) for pair in zip(start, after, strict=True) for part in pair]
    u = current.data_ptr()
    windows = Windows(u, u, y.data_ptr(), address(cur), address(adapt), address(drawn), given is not None)
    if given is not None and "recurrent" in values:
        assert start.spk is not None
        add_recurrent(current, given, start.spk, values["recurrent"])
    if given is not None or "recurrent" not in values:
        table = spiking_table(steps, size, form, constants, windows, states, m, own_values)
        run_in_parts("spiking", dtype, table, 3, BLOCK, steps * size)
    else:
        assert start.spk is not None
        transposed, before, between = values["recurrent"].t(), start.spk, states
        step = size * current.element_size()
        for t in range(steps):
            torch.addmm(current[t], before, transposed, out=current[t])
            here = Windows(*(p and p + t * step for p in windows))
            run("spiking", dtype, spiking_table(1, size, form, constants, here, between, m, own_values))
            before, between = y[t], [address(part) for part in after for _ in range(2)]
    return Scan(y, Record(current, None if form.firing.recomputable and given is None else y, cur, adapt), after)


def firing_code(form: Form) -> int:
    """The code of what a neuron emits."""
    return _FIRINGS[type(form.firing)]


def surrogate_code(form: Form) -> int:
    """The code of its pseudo-derivative."""
    return _SURROGATES[type(form.firing.surrogate)]


class Backwards(NamedTuple):
    """The addresses of what a reverse scan reads and writes, 0 for what there is not."""

    ls: int
    u: int
    out: int
    record: Sequence[int] = (0, 0, 0)  # y, cur, adapt
    start: Sequence[int] = (0, 0, 0)  # mem, cur, spk
    ahead: Sequence[int] = (0, 0, 0, 0)
    leftover: Sequence[int] = (0, 0, 0, 0)
    first: Sequence[int] = (0, 0)
    own: Sequence[int] = (0, 0, 0, 0, 0)
    total: int = 0
    driven: int = 0  # of a probe


def spiking_reverse_table(
    steps: tuple[int, int],
    size: int,
    form: Form,
    constants: array[float],
    signal: tuple[int, int],
    out_step: int,
    places: Backwards,
    m: int,
    values: list[int],
) -> list[int]:
    """The table of the reverse scan.

    Args:
        steps: the first, and the one after the last.
        size: neurons of all lanes, B * m.
        form: the kind of neuron.
        constants: its numbers, which must live as long as the table.
        signal: 0 for none, 1 for one each neuron, 2 for one for all; and the distance from a step's to the next's.
        out_step: the same of what comes out.
        places: where things are.
        m: neurons.
        values: of `parameters`.
    """
    kind = [firing_code(form), _RESETS[form.reset], form.delayed, form.attached, surrogate_code(form)]
    head = [size, m, 0, size, *steps, *kind, constants.buffer_info()[0], *signal, out_step, places.ls, places.u]
    head += [*places.record, *places.start, *places.ahead, *places.leftover, *places.first, places.out, *places.own]
    return [*head, places.total, *values, places.driven]


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
    signal = (0, 0) if ls is None else (1, size) if u.ndim == 3 else (2, probes)
    h = memory.empty((steps, *shape), dtype)
    needs_spk = "recurrent" in values or (form.attached and form.delayed)
    state = [start.mem, start.cur, start.adapt, start.spk if needs_spk else None]
    leftover = State(*[None if part is None else u.new_empty(shape) for part in state])  # type: ignore[arg-type]
    first = State(u.new_empty(shape), None if start.cur is None else u.new_empty(shape))
    own = {name: u.new_empty(shape) for name in wanted}
    sums = Sums(u.new_empty(shape), u.new_empty(shape)) if signal[0] == 2 else None
    constants, own_values = constants_of(form), parameters(values)
    came = [0, 0, 0, 0] if ahead is None else [address(part) for part in ahead]
    if not needs_spk:
        came[3] = 0
    places = Backwards(
        address(ls),
        u.data_ptr(),
        h.data_ptr(),
        [address(part) for part in (record.y, record.cur, record.adapt)],
        [address(part) for part in (start.mem, start.cur, start.spk)],
        came,
        [address(part) for part in leftover],
        [address(first.mem), address(first.cur)],
        [address(own.get(name)) for name in _OWN],
        *(() if sums is None else map(address, sums)),
    )

    def table(steps: tuple[int, int], places: Backwards) -> list[int]:
        return spiking_reverse_table(steps, size, form, constants, signal, probes * size, places, m, own_values)

    if "recurrent" in values:
        _recurrent_reverse(h, values["recurrent"], leftover, own, places, table, form)
        return Reverse(h, first, leftover, own)
    width = u.element_size()
    for probe in range(probes):
        here = probe * size * width
        ahead_, left, firsts, of_own = (
            [p and p + here for p in part] for part in (places.ahead, places.leftover, places.first, places.own)
        )
        of_probe = places._replace(
            ls=places.ls and places.ls + probe * width,
            out=places.out + here,
            ahead=ahead_,
            leftover=left,
            first=firsts,
            own=of_own,
            total=places.total and places.total + here,
            driven=places.driven and places.driven + here,
        )
        run_in_parts("spiking_reverse", dtype, table((0, steps), of_probe), 2, BLOCK, steps * size)
    return Reverse(h, first, leftover, own, sums)


def recalled_reverse(
    ls: Tensor | None, current: Tensor, emitted: Spikes, start: State, values: Values, form: Form, ahead: State | None
) -> Reverse:
    """`functional.scan.recalled_reverse` of a usual neuron, for its currents alone; g is written over these."""
    steps, lanes, m = current.shape
    size, constants = lanes * m, constants_of(form)
    first, leftover = torch.empty_like(start.mem), torch.empty_like(start.mem)
    table = [steps, size, m, 0, size, surrogate_code(form), constants.buffer_info()[0]]
    tensors = (current, emitted.words, ls, start.mem, None if ahead is None else ahead.mem, leftover, first)
    table += [*map(address, tensors), *parameters(values)[:4]]
    run_in_parts("recalled_reverse", current.dtype, table, 3, BLOCK, steps * size)
    return Reverse(current, State(first), State(leftover), {})


def _recurrent_reverse(
    h: Tensor,
    weight: Tensor,
    leftover: State,
    own: dict[str, Tensor],
    places: Backwards,
    table: Callable[[tuple[int, int], Backwards], list[int]],
    form: Form,
) -> None:
    """Step by step: what comes back through U is a product of all neurons' gradients."""
    assert leftover.spk is not None
    of_step = {name: torch.empty_like(total) for name, total in own.items()}
    for total in own.values():
        total.zero_()
    places = places._replace(own=[address(of_step.get(name)) for name in _OWN])
    for t in range(len(h) - 1, -1, -1):
        run("spiking_reverse", h.dtype, table((t, t + 1), places))
        for name, total in own.items():
            total.add_(of_step[name])
        if form.attached and form.delayed:
            torch.addmm(leftover.spk, h[t], weight, out=leftover.spk)
        else:
            torch.mm(h[t], weight, out=leftover.spk)
        places = places._replace(ahead=places.leftover)


def li_table(
    steps: int,
    size: int,
    m: int,
    windows: tuple[int, int, int],
    states: tuple[int, int],
    beta: Tensor,
    bias: int = 0,
) -> list[int]:
    """The table of leaky integration.

    Args:
        steps: K.
        size: neurons of all lanes, B * m.
        m: neurons.
        windows: the addresses of the currents, of the membranes, and of where they are written once more.
        states: the addresses of the membranes before and after.
        beta: the decay.
        bias: the address of what is added to the currents.
    """
    current, out, again = windows
    return [steps, size, m, 0, size, current, out, states[0], beta.data_ptr(), beta.ndim, bias, again, states[1]]


def li_reverse_table(
    steps: int,
    size: int,
    m: int,
    windows: tuple[int, int, int],
    states: tuple[int, int, int, int],
    beta: Tensor,
    total: int = 0,
) -> list[int]:
    """The table of its reverse scan.

    Args:
        steps: K.
        size: neurons of all lanes, B * m.
        m: neurons.
        windows: the addresses of ls, of the membranes and of what comes out.
        states: the addresses of the membranes before, dL/dmem ahead, the leftover, and beta's gradient.
        beta: the decay.
        total: the address of the sum over the steps.
    """
    ls, mem, out = windows
    before, ahead, leftover, own = states
    where = [ls, mem, before, beta.data_ptr(), beta.ndim, ahead, out, leftover, own, total]
    return [steps, size, m, 0, size, *where]


def li(current: Tensor, mem: Tensor, beta: Tensor) -> Tensor:
    """`functional.scan.li`."""
    steps, lanes, m = current.shape
    out = torch.empty_like(current)
    size = lanes * m
    table = li_table(steps, size, m, (current.data_ptr(), out.data_ptr(), 0), (mem.data_ptr(), 0), beta)
    run_in_parts("li", current.dtype, table, 3, BLOCK, steps * size)
    return out


def li_reverse(ls: Tensor | None, out: Tensor, start: State, beta: Tensor, ahead: State | None = None) -> Reverse:
    """`functional.scan.li_reverse`."""
    steps, lanes, m = out.shape
    size = lanes * m
    g, leftover, own = torch.empty_like(out), torch.empty_like(start.mem), torch.empty_like(start.mem)
    windows = (address(ls), out.data_ptr(), g.data_ptr())
    states = (address(start.mem), 0 if ahead is None else address(ahead.mem), address(leftover), address(own))
    table = li_reverse_table(steps, size, m, windows, states, beta)
    run_in_parts("li_reverse", out.dtype, table, 3, BLOCK, steps * size)
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
    taken: Tensor | Spikes,
    past: Tensor,
    decay: Tensor,
    *,
    signal: Tensor | None = None,
    carried: Tensor | None = None,
    overwrite: bool = False,
) -> Tensor:
    """`functional.trace.advance_matrix`, where asked written over `before`; of both, `.mT` is contiguous.

    With a signal (B, H, m), what `carry_matrix` makes of it is written to `carried` (m, n) on the way.
    """
    lanes, h, m, n = before.shape
    rows = before.mT
    new = rows if overwrite else memory.empty(rows.shape, rows.dtype)
    name, inputs = ("advance_matrix_bits", taken.words) if isinstance(taken, Spikes) else ("advance_matrix", taken)
    table = [len(g), lanes, h, m, n, border.shape[2], 0, n]
    table += [address(tensor) for tensor in (rows, g, border, inputs, past, decay, new, signal, carried)]
    run_in_parts(name, before.dtype, table, 6, WORD, len(g) * before.numel())
    return new.mT


def carry_advanced(
    signal: Tensor,
    before: Tensor,
    g: Tensor,
    border: Tensor,
    taken: Tensor | Spikes,
    past: Tensor,
    decay: Tensor,
    *,
    overwrite: bool = False,
) -> tuple[Tensor, Tensor]:
    """`functional.trace.carry_advanced`, where asked written over `before`: the matrices are read once."""
    carried = memory.empty(before.shape[2:], before.dtype)
    new = advance_matrix(before, g, border, taken, past, decay, signal=signal, carried=carried, overwrite=overwrite)
    return carried, new


def carry_matrix(signal: Tensor, matrix: Tensor) -> Tensor:
    """`functional.trace.carry_matrix`; `matrix.mT` is contiguous."""
    lanes, h, m, n = matrix.shape
    out = memory.empty((m, n), matrix.dtype)
    table = [lanes * h, m, n, 0, n, signal.data_ptr(), matrix.data_ptr(), out.data_ptr()]
    run_in_parts("carry_matrix", matrix.dtype, table, 3, 8, matrix.numel())
    return out


class CrossEntropy:
    """`-log softmax(y)[target]`, weighted, the mean over lanes, and its gradient, for tensors of one kind.

    Args:
        y: (K, B, m), (B, m) or (m,).
        target: of the leading dimensions, or without the first of them.
        weights: one for each step, or each step and lane, of y's dtype; by default 1 / K.
    """

    def __init__(self, y: Tensor, target: Tensor, weights: Tensor | None) -> None:
        m, rows = y.shape[-1], y.numel() // y.shape[-1]
        lanes = y.shape[-2] if y.ndim > 1 else 1
        self.share = array("d", [1 / lanes if weights is not None else 1 / rows])
        rows_each = rows if weights is None else rows // weights.numel()
        table = [rows, target.numel(), m, rows_each, 0, 0, 0, 0, self.share.buffer_info()[0], 0, 0, 0, 0]
        self.job = Job("cross_entropy", y.dtype, table)
        self.job.table[9] = self.job.place + 8 * 11  # the least and the greatest class
        self.losses, self.signals = memory.Stock((), y.dtype), memory.Stock(y.shape, y.dtype)

    def of(self, y: Tensor, target: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor, int, int]:
        """Loss, gradient, the least and the greatest class. All are contiguous; one call at a time."""
        loss, ls, table = self.losses.take(), self.signals.take(), self.job.table
        table[4], table[5], table[6], table[7] = y.data_ptr(), ls.data_ptr(), target.data_ptr(), address(weights)
        table[10] = loss.data_ptr()
        self.job.run()
        return loss, ls, table[11], table[12]


def taken(x: Tensor, copy: Tensor) -> bool:
    """Copy x into `copy`; whether all entries are finite. Both contiguous."""
    job = take_job(copy)
    job.table[TAKE_FROM] = x.data_ptr()
    job.run()
    return not job.table[TAKE_STRANGE]


def take_job(copy: Tensor) -> Job:
    """What copies an input to a tensor; where from is to be said, and whether something was not finite is said there.

    That is said by a number which must be 0 before, and is in the table.
    """
    job = Job("taken", copy.dtype, [0, copy.numel(), 0, copy.data_ptr(), 0, 0], 0, copy.numel() // 4)
    job.table[4] = job.place + 8 * TAKE_STRANGE
    return job


def packed(x: Tensor) -> Spikes | None:
    """`functional.spikes.packed`, of a contiguous window."""
    steps, lanes, n = x.shape
    in_step = -(-lanes * n // WORD)
    words = _words(steps, in_step)
    total, unit = words.numel(), 16 * BLOCK
    strange, counts = array("q", [0]), array("q", bytes(8 * (total // unit + 1)))
    table = [0, min(unit, total), lanes * n, unit, x.data_ptr(), words.data_ptr()]
    table += [strange.buffer_info()[0], counts.buffer_info()[0]]
    run("pack", x.dtype, table)
    if not strange[0] and total > unit:
        table[:2] = unit, total
        run_in_parts("pack", x.dtype, table, 0, unit, x.numel() // 4)
    return None if strange[0] else Spikes(words, (steps, lanes, n), sum(counts))


def _words(rows: int, columns: int) -> Tensor:
    return memory.empty((rows, columns), torch.float64).view(torch.int64)


def unpack(spikes: Spikes, begin: int, end: int, out: Tensor) -> None:
    """The rows from `begin` to `end` as numbers, into `out` (end - begin, n), contiguous; row t B + lane."""
    table = [*spikes.shape[1:], begin, end, spikes.words.data_ptr(), out.data_ptr()]
    run("unpack", out.dtype, table)


def unpacked(spikes: Spikes, dtype: torch.dtype) -> Tensor:
    """`functional.spikes.unpacked`."""
    out = memory.empty(spikes.shape, dtype)
    unpack(spikes, 0, spikes.rows, out)
    return out


def fold_bits(
    spikes: Spikes, old: Tensor, new: Tensor, decay: Tensor, ones: Tensor | None = None, advanced: Tensor | None = None
) -> None:
    """The traces (B, n) after a window, and those of ones, (B,), from `old` and `ones` into `new` and `advanced`.

    All contiguous, of one type; `decay` is one number. `old` may be `new`.
    """
    steps, lanes, n = spikes.shape
    tensors = (spikes.words, old, new, decay, ones, advanced)
    table = [steps, lanes * n, lanes, 0, lanes * n, *map(address, tensors)]
    run_in_parts("fold_bits", old.dtype, table, 3, BLOCK, steps * lanes * n // 4)


def product(spikes: Spikes, weight: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """`functional.spikes.product`, by the way that is faster; all contiguous."""
    (steps, lanes, n), m = spikes.shape, len(weight)
    if out is None:
        out = memory.empty((steps, lanes, m), weight.dtype)
    if sparse_pays(spikes.rows, n, m, spikes.ones, weight.dtype):
        gather(spikes, weight, out, bias)
        return out
    rows = out.view(-1, m)
    for begin, end, x in _numbers(spikes, weight.dtype):
        if bias is None:
            torch.mm(x, weight.t(), out=rows[begin:end])
        else:
            torch.addmm(bias, x, weight.t(), out=rows[begin:end])
    return out


def weight_gradient(spikes: Spikes, g: Tensor, out: Tensor | None = None, add: bool = False) -> Tensor:
    """`functional.spikes.weight_gradient`, likewise; it may be added to what `out` holds."""
    n, m = spikes.shape[2], g.shape[-1]
    if out is None:
        out = memory.empty((m, n), g.dtype)
    if sparse_gradient_pays(spikes.rows, n, m, spikes.ones, g.dtype):
        gather_t(spikes, g, out, add)
        return out
    rows = g.view(-1, m)
    for begin, end, x in _numbers(spikes, g.dtype):
        if begin or add:
            out.addmm_(rows[begin:end].t(), x)
        else:
            torch.mm(rows[begin:end].t(), x, out=out)
    return out


def _numbers(spikes: Spikes, dtype: torch.dtype) -> Iterator[tuple[int, int, Tensor]]:
    """The rows as numbers, block by block."""
    n = spikes.shape[2]
    room = memory.empty((min(ROWS_AT_ONCE, spikes.rows), n), dtype)
    for begin in range(0, spikes.rows, ROWS_AT_ONCE):
        end = min(begin + ROWS_AT_ONCE, spikes.rows)
        unpack(spikes, begin, end, room)
        yield begin, end, room[: end - begin]


_known_panels: ContextVar[tuple[int, list[Tensor]] | None] = ContextVar("tracetorch_panels", default=None)


@contextmanager
def weights_kept(weight: Tensor) -> Iterator[None]:
    """Within this context the weight does not change: what `gather` makes of it is made once."""
    before = _known_panels.set((weight.data_ptr(), []))
    try:
        yield
    finally:
        _known_panels.reset(before)


def gather(spikes: Spikes, weight: Tensor, out: Tensor, bias: Tensor | None = None) -> None:
    """The product of the rows of spikes and W^T, (K B, m), into `out`; weight (m, n); all contiguous."""
    m, n = weight.shape
    panels = _panels(weight)
    table = [spikes.shape[1], n, m, 0, spikes.rows, spikes.words.data_ptr(), _aligned(panels), out.data_ptr()]
    run_in_parts("gather", weight.dtype, [*table, address(bias)], 3, 1, spikes.ones * m // 16)


def _panels(weight: Tensor) -> Tensor:
    """The weights as `gather` reads them."""
    address_, known = _known_panels.get() or (0, [])
    if weight.data_ptr() == address_ and known:
        return known[0]
    m, n = weight.shape
    blocks, padded = -(-n // WORD), -(-m // bits.VECTOR) * bits.VECTOR
    panels = memory.empty((blocks * (WORD + 1) * padded + bits.VECTOR,), weight.dtype)
    run_in_parts("panels", weight.dtype, [n, m, 0, n, weight.data_ptr(), _aligned(panels)], 2, WORD, weight.numel())
    if weight.data_ptr() == address_:
        known.append(panels)
    return panels


def _aligned(panels: Tensor) -> int:
    """The first address in a tensor at the border of a vector."""
    return -(-panels.data_ptr() // bits.VECTOR) * bits.VECTOR


def gather_t(spikes: Spikes, g: Tensor, out: Tensor, add: bool = False) -> None:
    """The product of g^T and the rows of spikes, into `out` (m, n), or added to it; g (K B, m), both contiguous."""
    _gather_t(spikes, g, add, out.data_ptr(), 0)


def _gather_t(spikes: Spikes, g: Tensor, add: bool, out: int, sums: int) -> None:
    """The same, by addresses: into `out`, or, where that is 0, added to sums as the kernel keeps them."""
    rows, n, m = spikes.rows, spikes.shape[2], g.shape[-1]
    turned = _words(-(-rows // WORD), n)
    table = [rows, spikes.shape[1], n, 0, n, spikes.words.data_ptr(), turned.data_ptr()]
    run_in_parts("turn", torch.float32, table, 3, WORD, rows * n // 4)
    table = [rows, n, m, 0, n, add, turned.data_ptr(), g.data_ptr(), out, sums]
    run_in_parts("gather_t", g.dtype, table, 3, WORD, spikes.ones * m // 16)


class GradientSum(SumOfGradients):
    """`functional.spikes.GradientSum`: what comes the sparse way is transposed once, at the end."""

    def __init__(self) -> None:
        self._shape = (0, 0)  # m, n
        self._dense: Tensor | None = None  # (m, n), of what came the dense way
        self._sums: Tensor | None = None  # of what came the sparse way, as its kernel keeps them

    def add(self, spikes: Spikes, g: Tensor) -> None:
        """Add a window's."""
        n, m = spikes.shape[2], g.shape[-1]
        self._shape = m, n
        if not sparse_gradient_pays(spikes.rows, n, m, spikes.ones, g.dtype):
            self._dense = weight_gradient(spikes, g, self._dense, self._dense is not None)
            return
        if self._sums is None:
            padded = -(-m // bits.VECTOR) * bits.VECTOR
            self._sums = memory.empty((n * padded + bits.VECTOR,), g.dtype).zero_()
        _gather_t(spikes, g, False, 0, _aligned(self._sums))

    def total(self) -> Tensor:
        """(m, n); nothing can be added any more."""
        dense, sums = self._dense, self._sums
        if sums is None:
            assert dense is not None
            return dense
        m, n = self._shape
        out = memory.empty((m, n), sums.dtype) if dense is None else dense
        table = [n, m, 0, n, dense is not None, _aligned(sums), out.data_ptr()]
        run_in_parts("turn_back", out.dtype, table, 2, WORD, out.numel())
        return out


def sparse_pays(rows: int, n: int, m: int, ones: int, dtype: torch.dtype) -> bool:
    """Whether `gather` is faster than a dense product of (rows, n), of which so many are 1, and (n, m)."""
    return _pays(rows, n, m, ones, dtype, _PRODUCT)


def sparse_gradient_pays(rows: int, n: int, m: int, ones: int, dtype: torch.dtype) -> bool:
    """Whether `gather_t` is faster than a dense product of (m, rows) and (rows, n), of which so many are 1."""
    return _pays(rows, n, m, ones, dtype, _GRADIENT)


def _pays(rows: int, n: int, m: int, ones: int, dtype: torch.dtype, costs: tuple[float, float, float]) -> bool:
    spike, look, turn = costs
    vectors = -(-m * dtype.itemsize // bits.VECTOR)
    return (spike * ones + turn * n) * vectors + look * rows * n * -(-vectors // 8) < rows * n * vectors
