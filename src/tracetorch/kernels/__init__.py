"""The scans and traces as one fused loop each, where there is one for the device, the dtype and the neuron.

Every function here has the signature of its namesake in `functional.scan` or `functional.trace`, which is the
reference, and what is run where there is no kernel: a surrogate of the user's own, another dtype, another device, no
numba for the CPU, no triton for a GPU. The choice is made here and nowhere else.
"""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from types import ModuleType

import torch
from torch import Tensor

from ..functional import scan, spikes, trace
from ..functional.scan import Form, Record, Reverse, Scan, State, Values
from ..functional.spikes import Spikes
from ..functional.trace import Stage
from .forms import is_usual, knows

__all__ = [
    "advance_bank",
    "advance_chain",
    "advance_matrix",
    "carry_advanced",
    "carry_matrix",
    "gradient_sum",
    "is_usual",
    "knows",
    "li",
    "li_reverse",
    "packed",
    "product",
    "recalled_reverse",
    "reference",
    "spikes_pay",
    "spiking",
    "spiking_reverse",
    "unpacked",
    "weight_gradient",
    "weights_kept",
]

WIDE = 128  # rows, from which it may pay to keep spikes as bits, for sparse products

wanted: ContextVar[bool] = ContextVar("tracetorch_kernels", default=True)
interprets: ContextVar[bool] = ContextVar("tracetorch_interprets", default=False)


@contextmanager
def reference() -> Iterator[None]:
    """Within this context the plain torch functions run, not the kernels: slower, and the same up to rounding.

    >>> import torch
    >>> with reference():
    ...     scan.li(torch.ones(2, 1, 1), torch.zeros(1, 1), torch.tensor(0.5)).flatten()
    tensor([1.0000, 1.5000])
    """
    before = wanted.set(False)
    try:
        yield
    finally:
        wanted.reset(before)


@contextmanager
def _interpreted() -> Iterator[None]:
    """Within this context the GPU kernels run on CPU tensors too, for tests: slowly, by triton's interpreter.

    The environment must hold TRITON_INTERPRET=1 before triton is imported; the context has no effect otherwise.
    """
    before = interprets.set(os.environ.get("TRITON_INTERPRET") == "1")
    try:
        yield
    finally:
        interprets.reset(before)


def kernels_for(tensor: Tensor) -> ModuleType | None:
    """The kernels for a tensor's device and dtype; None where there are none."""
    if not wanted.get():
        return None
    if tensor.is_cuda or (tensor.is_cpu and interprets.get()):
        return _of_dtype(_load("cuda", "triton", "GPU"), tensor)
    return cpu_for(tensor)


def cpu_for(tensor: Tensor) -> ModuleType | None:
    """Those of the CPU, which can do more; None for tensors that are elsewhere, or where there are none."""
    if not tensor.is_cpu or not wanted.get() or interprets.get():
        return None
    return _of_dtype(_load("cpu", "numba", "CPU"), tensor)


def _of_dtype(kernels: ModuleType | None, tensor: Tensor) -> ModuleType | None:
    return kernels if kernels is not None and tensor.dtype in kernels.DTYPES else None


@functools.cache
def _load(module: str, compiler: str, device: str) -> ModuleType | None:
    """A module of kernels; None, and a warning the first time, where what compiles them is not installed."""
    try:
        return importlib.import_module(f".{module}", __name__)
    except ImportError as error:
        warnings.warn(
            f"tracetorch: expected {compiler}, which its fast {device} kernels are compiled by, got {error!r}. All "
            f"works without it, several times slower. Install it with 'pip install {compiler}'.",
            stacklevel=3,
        )
        return None


def spiking(current: Tensor, start: State, values: Values, form: Form, given: Tensor | None = None) -> Scan:
    """See `functional.scan.spiking`; may use the memory of `current` for what it returns."""
    kernels = kernels_for(current)
    if kernels is None or not knows(form) or not _fit(current, values, start):
        return scan.spiking(current, start, values, form, given)
    given = None if given is None else given.contiguous()
    scanned: Scan = kernels.spiking(current.contiguous(), start, values, form, given)
    return scanned


def spiking_reverse(
    ls: Tensor | None,
    record: Record,
    start: State,
    values: Values,
    form: Form,
    wanted: Collection[str] = (),
    ahead: State | None = None,
) -> Reverse:
    """See `functional.scan.spiking_reverse`."""
    kernels = kernels_for(record.u)
    if kernels is None or not knows(form) or not _fit(record.u, values, start):
        return scan.spiking_reverse(ls, record, start, values, form, wanted, ahead)
    ls = None if ls is None else ls.contiguous()
    ran: Reverse = kernels.spiking_reverse(ls, record, start, values, form, wanted, ahead)
    return ran


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
    """See `functional.scan.recalled_reverse`; may use the memory of `current` for what it returns."""
    kernels = cpu_for(current)
    alone = not wanted and values.keys() == {"beta", "threshold"} and (ls is None or ls.ndim == 3)
    if kernels is None or not alone or not is_usual(form) or not _fit(current, values, start):
        record = spiking(current, start, values, form, unpacked(emitted, current.dtype)).record
        return spiking_reverse(ls, record, start, values, form, wanted, ahead)
    ls = None if ls is None else ls.contiguous()
    ran: Reverse = kernels.recalled_reverse(ls, current.contiguous(), emitted, start, values, form, ahead)
    return ran


def li(current: Tensor, mem: Tensor, beta: Tensor) -> Tensor:
    """See `functional.scan.li`."""
    kernels = kernels_for(current)
    if kernels is None or not _fit(current, {"beta": beta}, State(mem)):
        return scan.li(current, mem, beta)
    out: Tensor = kernels.li(current.contiguous(), mem, beta)
    return out


def li_reverse(ls: Tensor | None, out: Tensor, start: State, beta: Tensor, ahead: State | None = None) -> Reverse:
    """See `functional.scan.li_reverse`."""
    kernels = kernels_for(out)
    if kernels is None or out.ndim != 3 or not _fit(out, {"beta": beta}, start):
        return scan.li_reverse(ls, out, start, beta, ahead)
    ran: Reverse = kernels.li_reverse(None if ls is None else ls.contiguous(), out, start, beta, ahead)
    return ran


def advance_chain(
    traces: Tensor, drive: Tensor | Spikes, chain: tuple[Stage, ...], kept: Tensor | None = None
) -> Tensor:
    """See `functional.trace.advance_chain`."""
    kernels = kernels_for(traces)
    if isinstance(drive, Spikes):
        only, cpu = chain[0], cpu_for(traces)
        plain = len(chain) == 1 and kept is None and not isinstance(only.gain, Tensor) and only.gain == 1
        if cpu is not None and plain and only.decay.ndim == 0:
            faded = torch.empty_like(traces, memory_format=torch.contiguous_format)
            cpu.fold_bits(drive, traces.contiguous(), faded, only.decay)
            return faded
        drive = unpacked(drive, traces.dtype)
    if kernels is None:
        return trace.advance_chain(traces, drive, chain, kept)
    kept = None if kept is None else kept.contiguous()
    new: Tensor = kernels.advance_chain(traces.contiguous(), _spread(drive, traces), chain, kept)
    return new


def advance_bank(traces: Tensor, drive: Tensor | Spikes, nodes: Tensor) -> Tensor:
    """See `functional.trace.advance_bank`."""
    kernels = kernels_for(traces)
    if isinstance(drive, Spikes):
        drive = unpacked(drive, traces.dtype)
    if kernels is None:
        return trace.advance_bank(traces, drive, nodes)
    new: Tensor = kernels.advance_bank(traces.contiguous(), _spread(drive, traces), nodes)
    return new


def advance_matrix(
    before: Tensor,
    g: Tensor,
    border: Tensor,
    taken: Tensor | Spikes,
    past: Tensor,
    decay: Tensor,
    *,
    overwrite: bool = False,
) -> Tensor:
    """See `functional.trace.advance_matrix`; with `overwrite` may use the memory of `before` for what it returns.

    Matrices lie in memory input by input, `matrix.mT` being contiguous: others are copied.
    """
    kernels = cpu_for(before)
    if kernels is None:
        return trace.advance_matrix(before, g, border, _numbers(taken, before), past, decay)
    g, border, past, decay = (tensor.contiguous() for tensor in (g, border, past, decay))
    lying, inputs = before.mT.contiguous().mT, _as_bits(taken)
    new: Tensor = kernels.advance_matrix(lying, g, border, inputs, past, decay, overwrite=overwrite)
    return new


def packed(x: Tensor) -> Spikes | None:
    """See `functional.spikes.packed`."""
    kernels = cpu_for(x)
    return spikes.packed(x) if kernels is None else kernels.packed(x.contiguous())


def unpacked(window: Spikes, dtype: torch.dtype) -> Tensor:
    """See `functional.spikes.unpacked`."""
    kernels = cpu_for(window.words.new_empty(0, dtype=dtype))
    return spikes.unpacked(window, dtype) if kernels is None else kernels.unpacked(window, dtype)


def product(window: Spikes, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """See `functional.spikes.product`."""
    kernels = cpu_for(weight)
    if kernels is None:
        return spikes.product(window, weight, bias)
    y: Tensor = kernels.product(window, weight.contiguous(), None if bias is None else bias.contiguous())
    return y


def weights_kept(weight: Tensor) -> AbstractContextManager[None]:
    """A context in which a weight does not change, so that what kernels make of it for products is made once."""
    kernels = cpu_for(weight)
    return nullcontext() if kernels is None else kernels.weights_kept(weight)


def weight_gradient(window: Spikes, g: Tensor) -> Tensor:
    """See `functional.spikes.weight_gradient`."""
    kernels = cpu_for(g)
    return spikes.weight_gradient(window, g) if kernels is None else kernels.weight_gradient(window, g.contiguous())


def gradient_sum(like: Tensor) -> spikes.GradientSum:
    """See `functional.spikes.GradientSum`; for gradients of the dtype of `like`, on its device."""
    kernels = cpu_for(like)
    return spikes.GradientSum() if kernels is None else kernels.GradientSum()


def carry_matrix(signal: Tensor, matrix: Tensor) -> Tensor:
    """See `functional.trace.carry_matrix`."""
    kernels = cpu_for(matrix)
    if kernels is None or not matrix.mT.is_contiguous():
        return trace.carry_matrix(signal, matrix)
    summed: Tensor = kernels.carry_matrix(signal.contiguous(), matrix)
    return summed


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
    """See `functional.trace.carry_advanced`; with `overwrite` may use the memory of `before` for what it returns."""
    kernels = cpu_for(before)
    if kernels is None:
        return trace.carry_advanced(signal, before, g, border, _numbers(taken, before), past, decay)
    signal, g, border, past, decay = (tensor.contiguous() for tensor in (signal, g, border, past, decay))
    lying, inputs = before.mT.contiguous().mT, _as_bits(taken)
    both: tuple[Tensor, Tensor] = kernels.carry_advanced(
        signal, lying, g, border, inputs, past, decay, overwrite=overwrite
    )
    return both


def spikes_pay(x: Tensor) -> bool:
    """Whether it may pay to keep a window (K, B, n) as bits, for the products: there are many rows, and kernels."""
    return x.shape[0] * x.shape[1] >= WIDE and cpu_for(x) is not None


def _fit(like: Tensor, values: Values, start: State) -> bool:
    """Whether a kernel can read all of them: it takes them to be of one dtype, on one device, and of the right size."""
    states = [part for part in start if part is not None]
    own = [value for name, value in values.items() if name != "recurrent"]
    return (
        all(tensor.dtype == like.dtype and tensor.device == like.device for tensor in (*states, *values.values()))
        and all(part.shape[-2:] == like.shape[-2:] and part.is_contiguous() for part in states)
        and all(value.ndim == 0 or value.shape == like.shape[-1:] for value in own)
    )


def _numbers(taken: Tensor | Spikes, like: Tensor) -> Tensor:
    return unpacked(taken, like.dtype) if isinstance(taken, Spikes) else taken


def _as_bits(taken: Tensor | Spikes) -> Tensor | Spikes:
    """Inputs as bits where they are spikes, of which there are fewer to add."""
    if isinstance(taken, Spikes):
        return taken
    taken = taken.contiguous()
    spikes = packed(taken)
    return taken if spikes is None else spikes


def _spread(drive: Tensor, traces: Tensor) -> Tensor:
    """What drives (B, S, n) traces at each step, in full: (K, B, n)."""
    return drive.expand(-1, traces.shape[0], traces.shape[2]).contiguous()
