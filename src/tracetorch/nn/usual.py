"""The usual layer in a few calls: a Linear, one membrane with one beta for all neurons, `InputTrace` or `Truncated`.

What it computes, and what it keeps, is what `Layer` and `rules` compute and keep for any layer, and either may go on
from where the other stopped. It is here because of small windows, where a step is so little work that the calls of
torch and Python around it are most of its time: the general way takes some fifty for each layer, this one about eight,
and for a single step of a few lanes two.

The membranes, traces and records of a layer are written in two sets of buffers by turns. What was committed last is
never written to, so that a refused call leaves everything as it was.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..functional.firing import Spike, StrictSpike
from ..functional.scan import Record, State, Values
from ..kernels import memory
from ..rules import InputTrace, Rule, Truncated
from ..rules.base import Segment, Tape, map_tensors
from .neuron import LINeuron, MembraneRecord
from .spiking import SpikingNeuron
from .state import LayerState

if TYPE_CHECKING:
    from .layer import Layer
    from .streaming import Call, LayerPlan

FUSED_LANES = 4  # up to which a single step's products are part of the same call; from there on torch's are faster


class Buffers(NamedTuple):
    """What one call leaves behind."""

    mem: Tensor  # (B, m) the membranes after it
    kept: Tensor  # (K, B, m) u, for LI the membranes
    traces: dict[str, Tensor] | tuple[()]  # of the input, (B, 1, n), and of ones, (B, 1, 1)
    record: Any  # kept, as the neuron has it
    state: Any
    table: array[int]  # of the kernel for a single step forwards; what differs from call to call is 0
    reverse_table: array[int]


def is_usual(layer: Layer, values: Values) -> bool:
    """Whether a layer is of the kind that is served here."""
    synapse, neuron, rule = layer.synapse, layer.neuron, layer.rule
    if type(synapse) is not nn.Linear or synapse._forward_hooks or synapse._forward_pre_hooks:
        return False
    if type(neuron) is SpikingNeuron:
        form = neuron.form
        plain = form.reset == "subtract" and not form.delayed and not form.attached and form.gain == 1
        good = neuron.parameters == {"beta", "threshold"} and plain and type(form.firing) in (Spike, StrictSpike)
    else:
        good = type(neuron) is LINeuron
    carry = type(rule).carry
    learned = any(layer.learns(name) for name in values)
    return (
        good
        and not learned
        and values["beta"].numel() == 1
        and rule.feedback == "symmetric"
        and (carry is InputTrace.carry or (carry is Rule.carry and isinstance(rule, Truncated)))
        and synapse.weight.is_contiguous()
    )


class Usual:
    """What is known of a usual layer as long as its parts and values are the same, and its buffers.

    Args:
        layer: one for which `is_usual` holds.
        values: its neuron's parameters.
        cpu: the kernels.
    """

    def __init__(self, layer: Layer, values: Values, cpu: Any) -> None:
        synapse = cast(nn.Linear, layer.synapse)
        self.synapse = synapse
        self.weight = cast(nn.Parameter, synapse.weight)
        self.bias = cast(nn.Parameter | None, synapse.bias)
        self.neuron, self.rule, self.values, self.cpu = layer.neuron, layer.rule, values, cpu
        self.n, self.m, self.dtype = synapse.in_features, synapse.out_features, synapse.weight.dtype
        theta = values.get("threshold", values["beta"])
        self.beta_and_theta = [values["beta"].data_ptr(), values["beta"].ndim, theta.data_ptr(), theta.ndim]
        self.traced = isinstance(self.rule, InputTrace)
        self.form = layer.neuron.form if isinstance(layer.neuron, SpikingNeuron) else None
        self.constants = array("d", [1.0, 1.0, 1.0, 0.0])
        self.firing = self.surrogate_code = -1
        self.surrogate: Any = None
        if self.form is not None:
            self.surrogate = self.form.firing.surrogate
            self.constants = cpu.constants_of(self.form)
            self.firing, self.surrogate_code = cpu.firing_code(self.form), cpu.surrogate_code(self.form)
        self.kernel_of_step, self.kernel_of_step_back = (
            cpu.compiled(name, self.dtype) for name in ("step", "step_reverse")
        )
        self.shape = (0, 0)
        self.sets: list[Buffers] = []
        self.latest = 0  # which set was committed last

    def serves(self, layer: Layer, values: Values) -> bool:
        """Whether the layer is as it was."""
        synapse = layer._modules["synapse"]
        return (
            synapse is self.synapse
            and values is self.values
            and layer.neuron is self.neuron
            and (self.form is None or self.form.firing.surrogate is self.surrogate)
            and layer.rule is self.rule
            and synapse._parameters["weight"] is self.weight
            and synapse._parameters["bias"] is self.bias
            and not synapse._forward_hooks
            and not synapse._forward_pre_hooks
        )

    def _make_buffers(self, layer: Layer, steps: int, lanes: int) -> None:
        self.shape, self.sets = (steps, lanes), []
        for _ in range(2):
            mem, kept = layer.zeros(lanes, self.m), layer.zeros(steps, lanes, self.m)
            traces: dict[str, Tensor] | tuple[()] = ()
            if self.traced:
                traces = {"weight": layer.zeros(lanes, 1, self.n)}
                if self.bias is not None:
                    traces["bias"] = layer.zeros(lanes, 1, 1)
            record = MembraneRecord(kept) if self.form is None else Record(kept)
            tables = self._step_tables(lanes, mem, kept, traces)
            self.sets.append(Buffers(mem, kept, traces, record, State(mem), *tables))
        self.rest = State(layer.zeros(lanes, self.m))
        self.no_traces = map_tensors(torch.zeros_like, traces)
        self.g, self.leftover, self.total = torch.zeros_like(kept), torch.zeros_like(mem), torch.zeros_like(mem)

    def _step_tables(self, lanes: int, mem: Tensor, kept: Tensor, traces: Any) -> tuple[array[int], array[int]]:
        beta, _, *theta = self.beta_and_theta
        forwards = [lanes, self.n, self.m, self.firing, 0, 0, 0, 0, mem.data_ptr(), kept.data_ptr(), 0, beta, *theta]
        new = [0, 0] if not self.traced else [traces["weight"].data_ptr(), self.cpu.address(traces.get("bias"))]
        forwards += [0, 0, new[0], 0, new[1]]
        constants = self.constants.buffer_info()[0]
        backwards = [lanes, self.n, self.m, self.surrogate_code, constants, 0, 0, 0, 0, kept.data_ptr(), 0, beta]
        return array("q", forwards), array("q", [*backwards, 0, 0, 0])

    # -- forwards --------------------------------------------------------------------------------------------------

    def propose(self, layer: Layer, x: Tensor, call: Call, plan: LayerPlan) -> tuple[Tensor, Any]:
        """A window (K, B, n): the output, and what is to be committed: state, record, segments."""
        steps, lanes = x.shape[0], x.shape[1]
        if (steps, lanes) != self.shape:
            self._make_buffers(layer, steps, lanes)
        buffers = self.sets[1 - self.latest]
        before, segments = layer._state, layer._segments
        old = segments[0] if segments else None
        if old is not None and (len(segments) > 1 or old.reset is not None or plan.fresh or not self._made(old.tape)):
            before, segments = layer._advanced_state(), ()
        mem = (self.rest if before is None else before.neuron).mem
        traces = self.no_traces if before is None or plan.fresh else before.traces
        past = segments[0].tape.x if segments and self.traced else None
        advanced = traces if past is None else buffers.traces
        y = memory.empty((steps, lanes, self.m), self.dtype)
        if steps == 1 and lanes <= FUSED_LANES:
            self._step(x, past, mem, traces, buffers, y)
        else:
            if past is not None:
                self._fold(past, traces, buffers.traces)
            self._window(x, mem, buffers, y)
        start = self.rest if before is None else before.neuron
        tape = Tape(x, buffers.record, start, self.values, plan.nodes)
        return y, (LayerState(buffers.state, advanced), buffers.record, (Segment(tape, steps, call),))

    def _made(self, tape: Tape) -> bool:
        """Whether the tape can be folded here: it was run with these values."""
        return tape.values is self.values and tape.x.ndim == 3 and tape.x.is_contiguous()

    def _step(self, x: Tensor, past: Tensor | None, mem: Tensor, traces: Any, buffers: Buffers, y: Tensor) -> None:
        table = buffers.table
        table[4], table[5], table[6] = x.data_ptr(), self.weight.data_ptr(), self.cpu.address(self.bias)
        table[7], table[10] = mem.data_ptr(), y.data_ptr()
        table[14] = table[17] = 0
        if past is not None and past.shape[0] > 1:
            self._fold(past, traces, buffers.traces)
        elif past is not None:
            table[14], table[15] = past.data_ptr(), traces["weight"].data_ptr()
            if self.bias is not None:
                table[17] = traces["bias"].data_ptr()
        self.kernel_of_step(table.buffer_info()[0])

    def _trace_addresses(self, past: Tensor, old: Any, new: Any) -> list[int]:
        addresses = [past.data_ptr(), old["weight"].data_ptr(), new["weight"].data_ptr()]
        return [*addresses, old["bias"].data_ptr(), new["bias"].data_ptr()] if "bias" in old else [*addresses, 0, 0]

    def _fold(self, past: Tensor, old: Any, new: Any) -> None:
        """The traces after the window before this one."""
        steps, lanes, n = past.shape
        x, weight_0, weight_1, ones_0, ones_1 = self._trace_addresses(past, old, new)
        table = [steps, lanes * n, lanes, 0, lanes * n, x, weight_0, weight_1, self.beta_and_theta[0], ones_0, ones_1]
        self.cpu.run_in_parts("fold", self.dtype, table, 3, self.cpu.BLOCK, steps * lanes * n)

    def _window(self, x: Tensor, mem: Tensor, buffers: Buffers, y: Tensor) -> None:
        steps, lanes, n = x.shape
        size, kept = lanes * self.m, buffers.kept
        rows, out = x.view(-1, n), kept.view(-1, self.m)
        torch.mm(rows, self.weight.t(), out=out)
        if self.form is None:
            beta, beta_step, *_ = self.beta_and_theta
            u = kept.data_ptr()
            table = [steps, size, self.m, 0, size, u, u, mem.data_ptr(), beta, beta_step, self.cpu.address(self.bias)]
            self.cpu.run_in_parts("li", self.dtype, table, 3, self.cpu.BLOCK, steps * size)
            y.copy_(kept)
            buffers.mem.copy_(kept[-1])
            return
        u, constants = kept.data_ptr(), self.constants.buffer_info()[0]
        table = [steps, size, self.m, 0, size, self.firing, self.cpu.SUBTRACT, 0, constants, u, u, y.data_ptr()]
        table += [
            mem.data_ptr(),
            buffers.mem.data_ptr(),
            *[0] * 9,
            *self.beta_and_theta,
            *[0] * 6,
            self.cpu.address(self.bias),
        ]
        self.cpu.run_in_parts("spiking", self.dtype, table, 3, self.cpu.BLOCK, steps * size)

    def committed(self, state: LayerState) -> None:
        """The set of buffers that this state is in must not be written to."""
        if state.neuron is self.sets[1 - self.latest].state:
            self.latest = 1 - self.latest

    def ran(self, segment: Segment) -> bool:
        """Whether this is the tape of the latest call, and its backward is served here."""
        return bool(self.sets) and segment.tape.record is self.sets[self.latest].record and segment.tape.x.ndim == 3

    # -- backwards -------------------------------------------------------------------------------------------------

    def backward(
        self, tape: Tape, traces: Any, ls: Tensor | None, wanted: bool
    ) -> tuple[Tensor | None, list[tuple[nn.Parameter, Tensor]]]:
        """dL/dx of the tape's window where it is wanted, and the gradients of weight and bias."""
        x, weight, bias = tape.x, self.weight, self.bias
        steps, lanes, n = x.shape
        ls = torch.zeros_like(self.g) if ls is None else ls.contiguous()
        d_weight = memory.empty(weight.shape, self.dtype) if weight.requires_grad else None
        d_bias = torch.empty_like(bias) if bias is not None and bias.requires_grad else None
        if steps == 1 and lanes <= FUSED_LANES:
            below = torch.empty_like(x) if wanted else None
            self._step_reverse(tape, traces, ls, d_weight, d_bias, below)
        else:
            self._window_reverse(tape, ls, d_bias is not None)
            rows = self.g.view(-1, self.m)
            if d_weight is not None:
                torch.mm(rows.t(), x.view(-1, n), out=d_weight)
                if self.traced:
                    torch.addmm(d_weight, self.leftover.t(), traces["weight"].view(-1, n), out=d_weight)
            if d_bias is not None:
                ones = traces["bias"].data_ptr() if self.traced else 0
                table = [lanes, self.m, self.total.data_ptr(), self.leftover.data_ptr(), ones, d_bias.data_ptr()]
                self.cpu.run("bias", self.dtype, table)
            below = None
            if wanted:
                below = memory.empty(x.shape, self.dtype)
                torch.mm(rows, weight, out=below.view(-1, n))
        updates: list[tuple[nn.Parameter, Tensor]] = []
        if d_weight is not None:
            updates.append((self.weight, d_weight))
        if d_bias is not None:
            updates.append((cast(nn.Parameter, bias), d_bias))
        return below, updates

    def _step_reverse(
        self, tape: Tape, traces: Any, ls: Tensor, d_weight: Tensor | None, d_bias: Tensor | None, below: Tensor | None
    ) -> None:
        table = self.sets[self.latest].reverse_table
        table[5], table[8], table[10] = tape.x.data_ptr(), self.weight.data_ptr(), ls.data_ptr()
        if self.traced:
            table[6] = traces["weight"].data_ptr()
            table[7] = 0 if self.bias is None else traces["bias"].data_ptr()
        table[12], table[13], table[14] = self.cpu.address(d_weight), self.cpu.address(d_bias), self.cpu.address(below)
        self.kernel_of_step_back(table.buffer_info()[0])

    def _window_reverse(self, tape: Tape, ls: Tensor, wants_total: bool) -> None:
        kept = tape.record[0]
        steps, lanes, m = kept.shape
        size, g, left = lanes * m, self.g.data_ptr(), self.leftover.data_ptr()
        total = self.total.data_ptr() if wants_total else 0
        if self.form is None:
            beta, beta_step, *_ = self.beta_and_theta
            table = [steps, size, m, 0, size, ls.data_ptr(), kept.data_ptr(), 0, beta, beta_step, 0, g, left, 0, total]
            self.cpu.run_in_parts("li_reverse", self.dtype, table, 3, self.cpu.BLOCK, steps * size)
            return
        constants = self.constants.buffer_info()[0]
        table = [size, m, 0, size, 0, steps, self.firing, self.cpu.SUBTRACT, 0, 0, self.surrogate_code, constants]
        table += [1, size, size, ls.data_ptr(), kept.data_ptr(), *[0] * 10, left, *[0] * 5, g, *[0] * 5, total]
        table += [*self.beta_and_theta, *[0] * 6]
        self.cpu.run_in_parts("spiking_reverse", self.dtype, table, 2, self.cpu.BLOCK, steps * size)
