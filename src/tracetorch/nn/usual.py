"""The usual layer: a Linear, one membrane with one beta for all neurons, `InputTrace` or `Truncated`. See `row`."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from .. import kernels
from ..functional.scan import Record, State, Values
from ..functional.spikes import Spikes
from ..rules import InputTrace, Rule, Truncated
from ..rules.base import Nodes, Tape
from .neuron import LINeuron, MembraneRecord
from .spiking import SpikingNeuron
from .state import LayerState

if TYPE_CHECKING:
    from .layer import Layer


_OF_A_RULE = ("start", "advance", "carry", "backward", "grid", "decay_start", "check")


def is_usual(layer: Layer) -> bool:
    """Whether a layer is of the kind that is served here."""
    synapse, neuron, rule = layer.synapse, layer.neuron, layer.rule
    if not layer._is_plain() or len(layer._parameters) > 1 or layer.recurrent:  # besides `recurrent_weight`, None
        return False
    if type(neuron) is SpikingNeuron:
        good = neuron.parameters == {"beta", "threshold"} and kernels.is_usual(neuron.form)
    else:
        good = type(neuron) is LINeuron
    if not good or rule.feedback != "symmetric" or not any(_is_as(rule, known) for known in (InputTrace, Truncated)):
        return False
    weight, bias, values = cast(Tensor, synapse.weight), cast(Tensor | None, synapse.bias), layer.values()
    tensors = [weight, *values.values(), *([] if bias is None else [bias])]
    return (
        isinstance(weight, nn.Parameter)
        and (bias is None or isinstance(bias, nn.Parameter))
        and all(tensor.is_cpu and tensor.dtype == weight.dtype and tensor.is_contiguous() for tensor in tensors)
        and layer._shapes == ((weight.shape[1],), (weight.shape[0],))
        and values["beta"].numel() == 1
    )


def _is_as(rule: Rule, known: type[Rule]) -> bool:
    """Whether a rule does everything as that class does it."""
    return all(getattr(type(rule), name) is getattr(known, name) for name in _OF_A_RULE)


def make_a_row(layers: Sequence[Layer]) -> bool:
    """Whether all layers are usual, and each takes what the one before it gives."""
    if not all(map(is_usual, layers)):
        return False
    weights = [layer.weight for layer in layers]
    return all(a.shape[0] == b.shape[1] and a.dtype == b.dtype for a, b in pairwise(weights))


class Link:
    """What is known of one layer of a row, as long as its parts and values are the same (see `watch`)."""

    def __init__(self, layer: Layer, cpu: Any) -> None:
        synapse = cast(nn.Linear, layer.synapse)
        self.layer, self.attributes, self.synapse, self.neuron = layer, layer.__dict__, synapse, layer.neuron
        self.weight, self.bias = synapse.weight, cast(nn.Parameter | None, synapse.bias)
        self.traced = isinstance(layer.rule, InputTrace)
        self.m, self.n = self.weight.shape
        self.values: Values = layer.values()
        self.beta = self.values["beta"].item()
        self.w = self.weight.detach()  # the same memory
        self.transposed = self.w.t()
        self.addresses = self.w.data_ptr(), cpu.address(self.bias)
        self.form = layer.neuron.form if isinstance(layer.neuron, SpikingNeuron) else None
        self.constants = array("d", [1.0, 1.0, 1.0, 0.0])
        self.ls_at = cpu.LI_LS_AT if self.form is None else cpu.LS_AT  # in the reverse scan's table
        self.firing = self.surrogate_code = -1
        self.takes_spikes = True  # as far as is known: no input of other numbers came lately
        if self.form is not None:
            self.constants = cpu.constants_of(self.form)
            self.firing, self.surrogate_code = cpu.firing_code(self.form), cpu.surrogate_code(self.form)

    def may_add(self) -> bool:
        """Whether the parameters' gradients are such that a kernel may add to them."""
        for parameter in (self.weight, self.bias):
            if parameter is None:
                continue
            grad, dtype = parameter.grad, parameter.dtype
            if grad is None:
                if getattr(parameter, "grad_dtype", dtype) not in (dtype, None):
                    return False
            elif grad.dtype != dtype or grad.requires_grad or grad.layout != torch.strided or not grad.is_contiguous():
                return False
        return True

    def trains(self) -> bool:
        """Whether a parameter is not frozen."""
        return self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)

    # -- the kernels' tables ---------------------------------------------------------------------------------------

    def step_words(self, cpu: Any, place: Place, states: tuple[int, int], y: int, traces: list[int]) -> list[int]:
        """For a single step: `states` are the membranes before and after, `traces` what the fold takes."""
        theta = self.values.get("threshold", self.values["beta"])
        words = [len(place.mem), self.n, self.m, self.firing, 0, cpu.address(place.x), *self.addresses, *states]
        words += [place.kept.data_ptr(), y, self.values["beta"].data_ptr(), theta.data_ptr(), theta.ndim, *traces]
        return words + [0] * (cpu.STEP_TABLE - len(words))

    def step_back_words(self, cpu: Any, place: Place, scratch: Scratch) -> list[int]:
        """For a single step backwards; where gradients go is not known yet."""
        words = [len(place.mem), self.n, self.m, self.surrogate_code, self.constants.buffer_info()[0]]
        words += [cpu.address(place.x), cpu.address(place.trace("weight")), cpu.address(place.trace("bias"))]
        words += [self.addresses[0], place.kept.data_ptr(), scratch.ls.data_ptr(), self.values["beta"].data_ptr()]
        return words + [0] * (cpu.STEP_TABLE - len(words))

    def scan_job(self, cpu: Any, place: Place, states: tuple[int, int], y: int) -> Any:
        """The scan of a window, over the currents that stand where it writes."""
        steps, lanes, m = place.kept.shape
        size, u = lanes * m, place.kept.data_ptr()
        if self.form is None:
            table = cpu.li_table(steps, size, m, (u, u, y), states, self.values["beta"], self.addresses[1])
            return cpu.Job("li", place.kept.dtype, table, 3, steps * size)
        windows, parameters = cpu.Windows(u, u, y), cpu.parameters(self.values, self.addresses[1])
        table = cpu.spiking_table(steps, size, self.form, self.constants, windows, [*states, *[0] * 6], m, parameters)
        return cpu.Job("spiking", place.kept.dtype, table, 3, steps * size)

    def product_job(self, cpu: Any, place: Place) -> Any:
        """The currents of a window of few rows."""
        return cpu.inner_job(place.window, self.w, place.currents)

    def gradient_jobs(self, cpu: Any, place: Place, scratch: Scratch) -> list[Any]:
        """The gradient of the weights for a window of few rows; the last says where to."""
        trace = place.trace("weight")
        if scratch.taken is None or trace is None:
            return [cpu.outer_job(scratch.transposed, place.rows)]
        job = cpu.decayed_sum_job(place.window, trace, self.values["beta"], scratch.taken)  # of a single step
        return [job, cpu.outer_job(scratch.window.t(), scratch.taken)]

    def reverse_job(self, cpu: Any, place: Place, scratch: Scratch) -> Any:
        """The reverse scan of a window."""
        steps, lanes, m = place.kept.shape
        size, signal, u, out = lanes * m, scratch.ls.data_ptr(), place.kept.data_ptr(), scratch.window.data_ptr()
        left, total = scratch.leftover.data_ptr(), 0 if self.bias is None else scratch.total.data_ptr()
        if self.form is None:
            states = place.mem.data_ptr(), 0, left, 0
            table = cpu.li_reverse_table(steps, size, m, (signal, u, out), states, self.values["beta"], total)
            return cpu.Job("li_reverse", place.kept.dtype, table, 3, steps * size)
        places = cpu.Backwards(signal, u, out, leftover=(left, 0, 0, 0), total=total)
        parameters, whole = cpu.parameters(self.values), (0, steps)
        table = cpu.spiking_reverse_table(
            whole, size, self.form, self.constants, (1, size), size, places, m, parameters
        )
        return cpu.Job("spiking_reverse", place.kept.dtype, table, 2, steps * size)


class Place:
    """What a call leaves behind of one layer.

    The input of few rows (steps times lanes) follows the traces, as numbers: one product gives both parts of the
    gradient. That of many rows is kept by itself: as bits where it is all spikes, else as numbers.
    """

    def __init__(self, link: Link, steps: int, lanes: int) -> None:
        zeros, n, m = link.layer.zeros, link.n, link.m
        self.shape = steps, lanes, n
        self.wide = steps * lanes >= kernels.WIDE
        self.spikes: Spikes | None = None
        self.x: Tensor | None = None
        trace: Tensor | None = None
        if self.wide:
            trace = zeros(lanes, n) if link.traced else None
        else:
            front = lanes if link.traced else 0
            self.rows = zeros(front + steps * lanes, n)
            self.window = self.rows[front:]
            self.x = self.window.view(steps, lanes, n)
            trace = self.rows[:lanes] if link.traced else None
        self.traces: dict[str, Tensor] | tuple[()] = ()
        if trace is not None:
            self.traces = {"weight": trace.view(lanes, 1, n)}
            if link.bias is not None:
                self.traces["bias"] = zeros(lanes, 1, 1)
        self.mem, self.kept = zeros(lanes, m), zeros(steps, lanes, m)  # the membranes after it; u, for LI the membranes
        self.currents = self.kept.view(-1, m)
        self.record: Any = MembraneRecord(self.kept) if link.form is None else Record(self.kept)
        self.state = LayerState(State(self.mem), self.traces)

    def trace(self, name: str) -> Tensor | None:
        """A trace; None where there is none."""
        return self.traces.get(name) if isinstance(self.traces, dict) else None

    def numbers(self) -> Tensor:
        """The input as numbers, to be written to."""
        self.spikes = None
        if self.x is None:
            self.x = self.mem.new_zeros(self.shape)
        return self.x


class PlaceTape(NamedTuple):
    """The tape of a call: a `Tape` when it is opened."""

    place: Place
    start: State  # of use until the next call proposes anything: its membranes are the other set's
    values: Values
    nodes: Nodes
    decay: None = None

    @property
    def x(self) -> Tensor:
        """(K, B, n) input."""
        place = self.place
        x = place.x if place.spikes is None else kernels.unpacked(place.spikes, place.mem.dtype)
        assert x is not None
        return x

    @property
    def record(self) -> Any:
        """The neuron's own."""
        return self.place.record

    def opened(self) -> Tape:
        """The tape."""
        return Tape(self.x, self.record, self.start, self.values, self.nodes, None, self.place.spikes)

    def tensors(self) -> list[Tensor]:
        """What is kept of the window."""
        x = self.place.x if self.place.spikes is None else self.place.spikes.words
        return [tensor for tensor in (x, *self.place.record, *self.start) if tensor is not None]


class Scratch:
    """What a pass writes of one layer, and nobody reads afterwards.

    Args:
        link: the layer.
        steps: K.
        lanes: B.
        other: one for another number of steps and lanes, whose memory is used too where it is large enough.
    """

    def __init__(self, link: Link, steps: int, lanes: int, other: Scratch | None = None) -> None:
        zeros, m = link.layer.zeros, link.m
        size = (lanes + steps * lanes) * m
        self.memory: Tensor = zeros(2, size) if other is None or other.memory.shape[1] < size else other.memory
        rows = self.memory[0, :size].view(-1, m)  # what is left over at the start, then dL/dp
        self.leftover, self.window = rows[:lanes], rows[lanes:]
        self.transposed = (rows if link.traced else self.window).t()
        self.total = zeros(lanes, m)  # of the steps' dL/dp
        self.taken = zeros(lanes, link.n) if steps == 1 and link.traced else None  # what a single step's weights took
        self.ls_rows = self.memory[1, : steps * lanes * m].view(-1, m)
        self.ls = self.ls_rows.view(steps, lanes, m)  # in a forward pass of many rows what the layer emits
