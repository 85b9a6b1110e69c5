"""A layer: a synapse, a neuron and a rule."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, Self, cast

import torch
from torch import Tensor, nn

from .. import _checks, kernels
from ..functional import scan
from ..functional.bank import Bank
from ..functional.scan import Scan, Values
from ..functional.spikes import Spikes
from ..rules import InputTrace, Rule
from ..rules.base import (
    Gradients,
    ModelDecays,
    Neuron,
    Nodes,
    Segment,
    Tape,
    Traces,
    Wanted,
    map_tensors,
    masked,
    own_pending,
    settled,
)
from . import synapse as synapses
from .compact import compacted
from .constraint import Constrained, Positive, UnitInterval
from .online import Online, PartBackward, Proposal, Rescaling, fits, shown
from .row import Buffers
from .state import LayerState, flatten, restored
from .streaming import Call, Handed, LayerPlan, Plans, TapeKeeper, full_precision, marked, stale

DEFAULT_RULE = InputTrace()
_OF_A_SYNAPSE = ("current", "weight_gradient", "transpose", "values")
INPUT_RATE = 0.1  # the input that initialisation assumes: Bernoulli spikes at this rate per step
RECURRENT_SHARE = 0.5  # of the membrane that initialisation aims at, from recurrent weights at the same rate
KEPT_BANKS = 4  # of decays and nodes used lately
MAX_INITIAL_BETA = 0.999  # initialisation treats slower membranes, perfect integrators too, like this one


class RunnableNeuron(Neuron, Protocol):
    """What a layer needs of a neuron besides what rules need."""

    def rest(self, zeros: Tensor) -> Any:
        """The state of lanes that have seen nothing: all zero, in the shape of `zeros` (B, m); its first is `mem`."""

    def scan(self, values: Values, current: Tensor, start: Any) -> Scan:
        """Run a window of steps (K, B, m) from the state `start`."""

    def recall(self, values: Values, current: Tensor, start: Any, y: Tensor | None) -> Any:
        """The record of a window that was run before, where a spiking neuron emitted `y` (K, B, m)."""


class LayerStep(NamedTuple):
    """A layer's proposal."""

    state: LayerState
    record: Any
    segments: tuple[Segment, ...]  # empty where nothing is being learned
    plan: LayerPlan | None  # None there
    buffers: Buffers | None = None  # of its row, where it was run as one


def check_rule(where: str, rule: object) -> None:
    """Raise unless `rule` is a rule."""
    if not isinstance(rule, Rule):
        raise TypeError(f"{where}: expected rule to be a Rule such as InputTrace(), got {rule!r}. Give an instance.")


class Layer(Online):
    """Base of all layers with state: subclasses name their neuron.

    Args:
        in_features: n.
        out_features: m.
        neuron: the dynamics.
        synapse: the linear map from n inputs to m currents, used as it is; instead of the two sizes.
        bias: whether the synapse that is made from the two sizes has a bias.
        parameters: the neuron's own parameters by name, given the number m of neurons, with a convolution that of its
            output channels.
        recurrent: add weights from the neurons' own previous outputs, the parameter `recurrent_weight` (m, m).
        self_connections: whether these have a diagonal.
        rule: the layer's learning rule; by default the model's.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(
        self,
        in_features: int | None,
        out_features: int | None,
        neuron: RunnableNeuron,
        *,
        synapse: nn.Module | None = None,
        bias: bool = True,
        parameters: Callable[[int], dict[str, Constrained]],
        recurrent: bool = False,
        self_connections: bool = True,
        rule: Rule | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.neuron = neuron
        self._state: LayerState | None = None
        self._segments: tuple[Segment, ...] = ()
        self._plan: LayerPlan | None = None  # what the traces are written in
        self._banks: list[Bank] = []
        self._warned_of_range = False
        self._own_rule: Rule | None = None
        self._known_synapse: synapses.Synapse | None = None  # as it was last looked at
        self._known_values: tuple[list[tuple[str, Tensor, int]], dict[str, Tensor]] | None = None  # likewise
        self._model_rule: Rule | None = None
        where = type(self).__name__
        self.synapse = synapses.made(where, in_features, out_features, synapse, bias, device, dtype)
        known = self._synapse
        _checks.floating(where, "the synapse's weight", self.weight)
        self._shapes: tuple[tuple[int, ...], tuple[int, ...]] | None = None  # of a step's input and output, in a lane
        if None not in known.input_shape:
            shape = cast(tuple[int, ...], known.input_shape)
            self._shapes = shape, known.output_shape(shape)
        self._constraints: dict[str, type[UnitInterval | Positive]] = {}
        for name, (value, learn, constraint) in parameters(known.channels).items():
            self._register(name, value, learn, constraint)
        if not (self_connections or recurrent):
            raise ValueError(
                f"{where}: expected self_connections=False together with recurrent=True, got recurrent=False. "
                f"Without recurrent weights there are none to leave out."
            )
        self.self_connections = self_connections
        self.recurrent_weight: nn.Parameter | None
        if recurrent and (self._shapes is None or len(self._shapes[1]) > 1):
            raise ValueError(
                f"{where}: expected recurrent weights between neurons in a row, got a {type(self.synapse).__name__}, "
                f"whose neurons stand in channels. Flatten before a recurrent layer, or leave out recurrent."
            )
        square = (known.channels, known.channels)
        self.register_parameter("recurrent_weight", nn.Parameter(self.weight.new_empty(square)) if recurrent else None)
        if synapse is None:
            self.reset_parameters()
        elif recurrent:
            self._reset_recurrent()
        if rule is not None:
            self.rule = rule

    # -- parameters ------------------------------------------------------------------------------------------------

    def _register(
        self, name: str, value: Tensor, learn: bool, constraint: type[UnitInterval | Positive], persistent: bool = True
    ) -> None:
        """Make `value` a constant, or a parameter `raw_<name>` that is kept in its range."""
        self._constraints[name] = constraint
        if learn:
            self.register_parameter(f"raw_{name}", nn.Parameter(constraint.raw(value).to(self.weight)))
        else:
            self.register_buffer(f"constant_{name}", value.to(self.weight), persistent)

    def _constrained(self, name: str) -> Tensor | None:
        """A copy of the value, so that a tape keeps what its window was run with; None where there is none."""
        raw = self._parameters.get(f"raw_{name}")
        if raw is not None:
            return self._constraints[name].value(raw.detach())
        constant = self._buffers.get(f"constant_{name}")
        return None if constant is None else constant.clone()

    @property
    def weight(self) -> Tensor:
        """The synapse's weight."""
        return cast(Tensor, self.synapse.weight)

    @property
    def beta(self) -> Tensor:
        """The membrane's decay per step, () or (m,), dimensionless; a value, the parameter is `raw_beta`.

        With a convolution (C,) where each channel has its own.
        """
        return cast(Tensor, self._constrained("beta"))

    @property
    def threshold(self) -> Tensor | None:
        """The firing threshold, likewise, dimensionless; None for neurons without one. Parameter: `raw_threshold`."""
        return self._constrained("threshold")

    @property
    def alpha(self) -> Tensor | None:
        """The synaptic current's decay per step, likewise; None for neurons without one. Parameter: `raw_alpha`."""
        return self._constrained("alpha")

    @property
    def rho(self) -> Tensor | None:
        """The adaptation's decay per step, likewise; None for neurons without one. Parameter: `raw_rho`."""
        return self._constrained("rho")

    @property
    def kappa(self) -> Tensor | None:
        """What a spike raises the threshold by, likewise; None where it is fixed. Parameter: `raw_kappa`."""
        return self._constrained("kappa")

    @property
    def in_features(self) -> int:
        """Inputs, n: of a convolution C * H * W.

        Raises:
            RuntimeError: a convolution that has not been called yet.
        """
        return math.prod(self._known_shapes()[0])

    @property
    def out_features(self) -> int:
        """Neurons, m, likewise."""
        return math.prod(self._known_shapes()[1])

    def _known_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if self._shapes is None:
            raise RuntimeError(
                f"{type(self).__name__}: expected to know the size of its input, got a {type(self.synapse).__name__} "
                f"that takes any. Call the layer, or its model, once before."
            )
        return self._shapes

    @property
    def mem(self) -> Tensor | None:
        """A copy of the membranes (B, m), (B, C, ...), after the latest step; None before the first."""
        if self._state is None:
            return None
        return _spread(cast(Tensor, self._state.neuron.mem).clone(), 1, self._known_shapes()[1])

    @property
    def rule(self) -> Rule:
        """The layer's learning rule: its own, or the model's, or InputTrace().

        Setting it drops the traces. A rule with a learned decay adds the parameter `raw_decay`: set it before the
        optimizer is made.
        """
        return self._own_rule or self._model_rule or DEFAULT_RULE

    @rule.setter
    def rule(self, rule: Rule) -> None:
        check_rule(type(self).__name__, rule)
        rule.check(self)
        self._own_rule = rule
        self._put_rule_in_force()

    @property
    def recurrent(self) -> bool:
        """Whether the layer has recurrent weights."""
        return self.recurrent_weight is not None

    def _inherit(self, rule: Rule) -> None:
        """Take the rule of the model where the layer has none of its own."""
        if rule != self._model_rule:
            self._model_rule = rule
            if self._own_rule is None:
                self._put_rule_in_force()

    def _put_rule_in_force(self) -> None:
        self._constraints.pop("decay", None)
        for name in ("raw_decay", "constant_decay"):
            if hasattr(self, name):
                delattr(self, name)
        decay = self.rule.decay_start(self)
        if decay is not None:
            self._register("decay", *decay, UnitInterval, persistent=False)  # the rule knows its constant
        if self.rule.feedback == "random" and not hasattr(self, "feedback"):
            scale = self.weight.detach().square().mean().sqrt()
            self.register_buffer("feedback", torch.randn_like(self.weight).detach() * scale)
        elif self.rule.feedback != "random" and hasattr(self, "feedback"):
            del self.feedback
        self._banks = []
        self._drop_traces()
        self._end("its rule was changed after the latest")

    def reset_parameters(self) -> None:
        """Draw the weights anew, and set the biases to zero.

        Zero mean, and the standard deviation with which the membrane without reset has a root mean square of the
        threshold (for a readout: of 1 - beta) when the inputs are independent spikes at a rate of 0.1 per step:
        `target / sqrt(n (var / (1 - beta^2) + mean^2 / (1 - beta)^2))`. Recurrent weights are drawn for half of that.
        """
        synapse = self._synapse
        std = self._initial_std(synapse.fan_in)
        with torch.no_grad():
            self.weight.normal_().mul_(synapse.per_channel(std.expand(synapse.channels)))
            if self.synapse.bias is not None:
                cast(Tensor, self.synapse.bias).zero_()
        if self.recurrent:
            self._reset_recurrent()

    @torch.no_grad()
    def _reset_recurrent(self) -> None:
        assert self.recurrent_weight is not None
        std = RECURRENT_SHARE * self._initial_std(self.out_features).expand(self.out_features)
        self.recurrent_weight.normal_().mul_(std[:, None])

    def _initial_std(self, inputs: float) -> Tensor:
        decays, gain = [], torch.ones(())
        for stage in self.neuron.chain(self._stored(), "input"):
            decays.append(stage.decay.clamp(max=MAX_INITIAL_BETA))
            gain = gain * stage.gain
        mean = gain / math.prod(1 - decay for decay in decays)
        variance = gain**2 / math.prod(1 - decay**2 for decay in decays)
        if len(decays) == 2:  # of an integrator of an integrator's output, in closed form
            both = decays[0] * decays[1]
            variance = variance * (1 + both) / (1 - both)
        per_input = INPUT_RATE * (1 - INPUT_RATE) * variance + INPUT_RATE**2 * mean**2
        return self._target(decays[-1]) / torch.sqrt(inputs * per_input)

    def _target(self, beta: Tensor) -> Tensor:
        """The root mean square that initialisation gives the membrane without reset."""
        return 1 - beta if self.threshold is None else self.threshold

    def extra_repr(self) -> str:
        """Decays and thresholds, and what is learned."""
        shown = []
        for name, value in self._stored().items():
            text = f"{value.item():.4g}" if value.numel() == 1 else f"{value.min():.4g}..{value.max():.4g}"
            shown.append(f"{name}={text}" + (" (learned)" if self.learns(name) else ""))
        shown += ["recurrent"] if self.recurrent else []
        return ", ".join([*shown, f"rule={self.rule}"])

    # -- what rules see (rules.base.LayerLike) ---------------------------------------------------------------------

    @property
    def _synapse(self) -> synapses.Synapse:
        known, module = self._known_synapse, self._modules.get("synapse") or self.synapse
        if known is None or known.module is not module or known.weight is not module.weight:
            known = self._known_synapse = synapses.Synapse(type(self).__name__, module)
        return known

    def _stored(self) -> dict[str, Tensor]:
        """The neuron's own parameters as they are now, () or one per neuron or channel."""
        names = [name for name in self._constraints if name != "decay"]
        return {name: cast(Tensor, self._constrained(name)) for name in names}

    def values(self) -> dict[str, Tensor]:
        """The constrained parameters as they are now, () or one per neuron; the same object where all are constant."""
        constant = len(self._parameters) == 1 and self.recurrent_weight is None
        known = self._known_values
        if constant and known is not None:
            seen, buffers = known[0], self._buffers
            same = len(seen) == len(buffers)
            for name, was, version in seen if same else ():
                now = buffers.get(name)
                if now is not was or now._version != version:
                    same = False
            if same:
                return known[1]
        values = self._values_now()
        if constant and self._shapes is not None:
            seen = [(name, b, b._version) for name, b in self._buffers.items() if b is not None]
            self._known_values = seen, values
        return values

    def _values_now(self) -> dict[str, Tensor]:
        values = {name: self._each(value) for name, value in self._stored().items()}
        if self.recurrent_weight is not None:
            recurrent = self.recurrent_weight.detach()
            if not self.self_connections:
                recurrent.fill_diagonal_(0)  # whatever was loaded; its gradient is zero too
            values["recurrent"] = recurrent
        return values

    def _each(self, value: Tensor) -> Tensor:
        """One value per channel as one per neuron."""
        if value.ndim == 0 or self._shapes is None:
            return value
        return value.repeat_interleave(self.out_features // len(value))

    def learns(self, name: str) -> bool:
        """Whether `name` is a parameter of this layer, frozen or not."""
        return self._parameter(name) is not None

    def wants(self, name: str) -> bool:
        """Whether `name` is a parameter of this layer that is not frozen."""
        parameter = self._parameter(name)
        return parameter is not None and parameter.requires_grad

    def _parameter(self, name: str) -> nn.Parameter | None:
        if name in ("weight", "bias"):
            return cast(nn.Parameter | None, getattr(self._modules["synapse"], name))
        if name == "recurrent":
            return self.recurrent_weight
        return self._parameters.get(f"raw_{name}")

    def current(self, x: Tensor | Spikes) -> Tensor:
        """The synapse: (..., n) -> (..., m)."""
        if isinstance(x, Spikes):
            return synapses.product(self.synapse, x)
        rows = self.synapse(x.reshape(-1, *self._known_shapes()[0]))
        return cast(Tensor, rows.reshape(*x.shape[:-1], -1))

    def weight_gradient(self, x: Tensor | Spikes, g: Tensor) -> Tensor:
        """dL/dW for inputs (..., n) and dL/dI (..., m)."""
        if isinstance(x, Spikes):
            return kernels.weight_gradient(x, g)
        shape, out = self._known_shapes()
        return self._synapse.operations.weight_gradient(self.synapse, x.reshape(-1, *shape), g.reshape(-1, *out))

    def transpose(self, g: Tensor) -> Tensor:
        """dL/dx (..., n) for dL/dI (..., m); through the fixed random matrix `feedback` where the rule has one."""
        weight = cast(Tensor, self.feedback) if self.rule.feedback == "random" else self.weight
        shape, out = self._known_shapes()
        x = self._synapse.operations.transpose(self.synapse, weight, g.reshape(-1, *out), shape)
        return x.reshape(*g.shape[:-1], -1)

    @property
    def fan_in(self) -> int | None:
        """How many weights a neuron has; None where it is not known which inputs they take."""
        synapse = self._synapse
        return None if synapse.patches is None else self.weight.numel() // synapse.channels

    def patches(self, x: Tensor) -> Tensor:
        """(..., n) -> (..., m, F): what each neuron's weights take; (..., 1, F) where it is the same for all."""
        of_rows = cast(Callable[[nn.Module, Tensor], Tensor], self._synapse.patches)
        rows = of_rows(self.synapse, x.reshape(-1, *self._known_shapes()[0]))
        return rows.reshape(*x.shape[:-1], *rows.shape[1:])

    def fold(self, matrix: Tensor) -> Tensor:
        """A gradient (m, F) of each neuron's weights as that of the layer's."""
        return self._synapse.fold(matrix)

    def zeros(self, *shape: int) -> Tensor:
        """Zeros with the weights' dtype and device."""
        return torch.zeros(shape, dtype=self.weight.dtype, device=self.weight.device)

    def bank(self, own: Tensor, above: Tensor | None, decay: Tensor) -> Bank:
        """The bank of the kernels of `decay` () or (m,) in the nodes `own`, for signals in `above`."""
        for bank in self._banks:
            if bank.fits(own, decay, above):
                return bank
        self._check_range(own, above, decay)
        self._banks = [Bank(own, decay, above), *self._banks[: KEPT_BANKS - 1]]
        return self._banks[0]

    def _check_range(self, own: Tensor, above: Tensor | None, beta: Tensor) -> None:
        """Warn, once per stream, where a learned decay, its own or one above, has left the range of the bank."""
        plan, inside = self._plan, own[(own > 0) & (own < 1)]
        if plan is None or plan.grid is None or self._warned_of_range or len(inside) == 0:
            return
        moved = beta.reshape(-1).double() if self._moves() else own[:0]
        if plan.above_moving and above is not None:
            moved = torch.cat([moved, above])
        if len(moved) and (moved.min() < inside.min() or moved.max() > inside.max()):
            self._warned_of_range = True
            warnings.warn(
                f"{type(self).__name__}: expected learned betas to stay in the range of the bank, {inside.min():.4f} "
                f"to {inside.max():.4f}, got {moved.min():.4f} to {moved.max():.4f}, which its exponentials fit "
                f"less and less. Call reset() to have them chosen anew, or give the rule a wider span.",
                stacklevel=2,
            )

    # -- a call (nn.online.Part) -----------------------------------------------------------------------------------

    def _feature_shape(self, known: bool = False) -> tuple[int | None, ...]:
        return self._shapes[0] if known and self._shapes is not None else self._synapse.input_shape

    def _moves(self) -> bool:
        """Whether a decay is learned with which its state remembers."""
        return any(self.learns(stage.parameter) for stage in self.neuron.chain(self._stored(), "input"))

    def _decays(self) -> list[Tensor]:
        """The decays per step with which its state remembers its input, each () or one per neuron or channel."""
        return [stage.decay for stage in self.neuron.chain(self._stored(), "input")]

    def _hand_nodes(
        self,
        above: Handed | None,
        decays: Callable[[], ModelDecays],
        plans: Plans,
        grids: Mapping[int, Tensor | None] | None,
    ) -> Handed | None:
        rule, now = self.rule, self._decays()
        if not rule.uses_adjoint:
            above = None
        before = self._plan if self._state is not None and self._state.traces is not None else None
        grid = None if before is None else before.grid
        fresh = before is None or grids is not None or not _continues(before, above)
        if grids is not None:
            grid = grids[id(self)]
        elif fresh:
            grid = rule.grid(self, None if above is None else above.nodes, decays())
            grid = None if grid is None else grid.to(self.weight.device)
        if grid is not None:
            own = grid
        elif all(decay.numel() == 1 for decay in now):
            own = torch.stack([decay.double().reshape(()) for decay in now])
        else:
            own = self.weight.new_empty(0, dtype=torch.float64)  # each neuron has its own
        nodes = Nodes(own, None if above is None else above.nodes)
        plans[id(self)] = LayerPlan(
            grid, nodes, above is not None and above.live, above is not None and above.moving, fresh
        )
        if not rule.hands_adjoint:
            return None
        return Handed(own, fresh, grid is None, grid is None and self._moves())

    def _uses_adjoint(self) -> bool:
        return self.rule.uses_adjoint

    def _propose(self, x: Tensor, call: Call) -> tuple[Tensor, list[Proposal]]:
        self._check_lanes(x)
        self._take_shape(x)
        plan: LayerPlan | None = call.plans.get(id(self))
        if call.learning and not call.horizon and not call.compact and plan is not None and plan.nodes.above is None:
            row = self._as_row()
            proposed = None if row is None else row.propose(x, call, plan)
            if proposed is not None:
                y, (new, record, tapes, buffers) = proposed
                return y, [Proposal(self, LayerStep(new, record, tapes, plan, buffers))]
        steps, lanes = x.shape[:2]
        x = x.flatten(2)
        leaving, staying = call.leaving(self._segments, steps)
        before = self._folded(leaving) if call.learning else self._state
        state = LayerState(self._rest(lanes), None) if before is None else before
        traces = None
        segments: tuple[Segment, ...] = ()
        values = self.values()
        spikes = self._as_spikes(x, call)
        run = self.neuron.scan(values, self.current(x if spikes is None else spikes), state.neuron)
        if call.learning:
            assert plan is not None
            traces = self._fresh_traces(lanes, plan.nodes) if plan.fresh else state.traces
            tape = Tape(x, run.record, state.neuron, values, plan.nodes, self._constrained("decay"), spikes)
            kept = compacted(self, tape, run.y) if call.compact else tape
            segments = (*staying, Segment(kept, steps, call))
        step = LayerStep(LayerState(run.state, traces), run.record, segments, plan)
        return _spread(run.y, 2, self._known_shapes()[1]), [Proposal(self, step)]

    def _members(self) -> list[Layer]:
        return [self]

    def _as_spikes(self, x: Tensor, call: Call) -> Spikes | None:
        """The window as bits, where that pays and it is all spikes."""
        if not self._is_plain() or not (call.compact or kernels.spikes_pay(x)):
            return None
        return kernels.packed(x)

    def _is_plain(self) -> bool:
        """Whether it is a Linear that does what it says, and the class uses it as all layers do."""
        ours = all(getattr(type(self), name) is getattr(Layer, name) for name in _OF_A_SYNAPSE)
        return ours and synapses.takes_spikes(self.synapse)

    def _take_shape(self, x: Tensor) -> None:
        """Check the shape of a step's input, and keep it: a convolution takes any size, but one at a time.

        Raises:
            ValueError: another number of inputs or channels, or another size while a stream goes on.
        """
        shape = tuple(x.shape[2:])
        if self._shapes is not None and shape == self._shapes[0]:
            return
        where = type(self).__name__
        expected = self._feature_shape()
        if not fits(shape, expected):
            inputs = f"{expected[0]} inputs" if len(expected) == 1 else f"inputs of shape {shown(expected)}"
            raise ValueError(f"{where}: expected {inputs}, got {shape} from the module below. Make the sizes agree.")
        if self._state is not None and self._shapes is not None:
            raise ValueError(
                f"{where}: expected inputs of shape {self._shapes[0]} as in the calls before, got {shape}. "
                f"Call reset() first to start other streams."
            )
        try:
            self._shapes = shape, self._synapse.output_shape(shape)
        except RuntimeError as error:
            raise ValueError(f"{where}: expected an input that {self.synapse} takes, got {shape}. {error}") from error

    def _check_lanes(self, x: Tensor) -> None:
        if self._state is not None and self._state.neuron.mem.shape[0] != x.shape[1]:
            raise ValueError(
                f"{type(self).__name__}: expected {self._state.neuron.mem.shape[0]} lanes as in the calls before, "
                f"got {x.shape[1]}. Call reset() first to start other streams."
            )

    def _commit(self, step: LayerStep, call: Call) -> None:  # noqa: ARG002
        self._state, self._segments, self._plan = step.state, step.segments, step.plan
        if step.buffers is not None and self._row is not None:
            self._row.latest = step.buffers
        else:
            own_pending(step.state.traces)
        if step.plan is not None and step.plan.fresh:
            self._warned_of_range = False

    def _backward(self, ls: list[Tensor | None], above: Tensor | None, wanted: Wanted, call: Call) -> PartBackward:
        latest = self._segments[-1] if self._segments else None
        if latest is None or latest.call is not call or latest.ended or self._state is None:
            raise stale(type(self).__name__)
        row = self._as_row() if self._row is not None and above is None and not wanted.adjoint else None
        if row is not None and row.ran(latest):
            signal, updates = row.gradients(ls[0], wanted.signal)
            return PartBackward([signal], None, updates)
        shape = self._known_shapes()[0]
        flat = [None if signal is None else signal.flatten(2) for signal in ls]
        above = None if above is None else above.flatten(2)
        with kernels.weights_kept(self.weight):
            result = self.rule.backward(self, self._segments, self._state.traces, flat, above, wanted)
        updates = [(cast(nn.Parameter, self._parameter(name)), g) for name, g in self._raw(result.gradients)]
        ls_below = [None if signal is None else _spread(signal, 2, shape) for signal in result.ls_below]
        return PartBackward(ls_below, None if result.below is None else _spread(result.below, 2, shape), updates)

    def _raw(self, gradients: Gradients) -> Iterator[tuple[str, Tensor]]:
        """The gradients of the parameters as they are kept: one per channel, and of raw values."""
        tape: Tape = self._segments[-1].tape
        for name, gradient in gradients.items():
            parameter = cast(Tensor, self._parameter(name))
            if name in self._constraints:
                value = cast(Tensor, tape.decay if name == "decay" else tape.values[name])
                gradient = gradient * self._constraints[name].slope(value)
            if name == "recurrent" and not self.self_connections:
                gradient = gradient.clone().fill_diagonal_(0)
            if gradient.shape != parameter.shape:  # of each neuron
                gradient = gradient.view(len(parameter), -1).sum(1)
            yield name, gradient

    def _calibrate(self, x: Tensor) -> tuple[Tensor, list[Rescaling]]:
        before = self._shapes
        self._take_shape(x)
        values, rest, bias = self.values(), self._rest(x.shape[1]), self.synapse.bias
        offset = self.zeros() if bias is None else self._each(cast(Tensor, bias))
        current = self.current(x.flatten(2)) - offset
        rescalings = []
        if self.wants("weight"):
            synapse, free = self._synapse, current
            for stage in self.neuron.chain(values, "input"):
                free = scan.li(free * stage.gain, self.zeros(*current.shape[1:]), stage.decay)
            rms = free.square().mean((0, 1)).view(synapse.channels, -1).mean(1).sqrt()
            target = self._target(self.beta.clamp(max=MAX_INITIAL_BETA)).expand_as(rms)
            factor = torch.where(rms > 0, target / rms, torch.ones_like(rms))
            current = current * self._each(factor)
            rescalings.append(Rescaling(self.weight, synapse.per_channel(factor)))
        y = _spread(self.neuron.scan(values, current + offset, rest).y, 2, self._known_shapes()[1])
        if self._state is not None:
            self._shapes = before
        return y, rescalings

    def _trains(self) -> bool:
        synapse = cast(nn.Module, self._modules["synapse"])._parameters
        return any(p is not None and p.requires_grad for own in (synapse, self._parameters) for p in own.values())

    def _a_weight(self) -> Tensor:
        return self._modules["synapse"].weight  # type: ignore[union-attr, return-value]

    def _windows_kept(self) -> int:
        return len(self._segments)

    # -- state (nn.streaming) --------------------------------------------------------------------------------------

    def _layers(self) -> dict[str, Layer]:
        return {"": self}

    def _parts(self) -> list[TapeKeeper]:
        return [self]

    def _rest(self, lanes: int) -> Any:
        return self.neuron.rest(self.zeros(lanes, self.out_features))

    def _fresh_traces(self, lanes: int, nodes: Nodes) -> Traces:
        self.rule.check(self)
        return self.rule.start(self, lanes, nodes)

    def _drop_traces(self) -> None:
        if self._state is not None:
            self._state = self._state._replace(traces=None)
        self._forget()

    def _advanced_state(self) -> LayerState | None:
        """The state with all tapes folded into the traces, none of which is pending."""
        state = self._folded(self._segments)
        return None if state is None else state._replace(traces=settled(state.traces))

    def _folded(self, segments: Sequence[Segment]) -> LayerState | None:
        """The state with these tapes, the oldest, folded into the traces."""
        if self._state is None or not segments:
            return self._state
        traces = self._state.traces
        with full_precision(self.weight):
            for segment in segments:
                traces = segment.forget(self.rule.advance(self, traces, segment.tape.opened()))
        return self._state._replace(traces=traces)

    def _forget(self) -> None:
        self._segments = ()

    def _fold(self) -> None:
        self._state = self._advanced_state()
        self._forget()

    def _tape_tensors(self) -> list[Tensor]:
        return [tensor for segment in self._segments for tensor in segment.tape.tensors()]

    def _reset_lanes(self, mask: Tensor) -> None:
        if self._state is None:
            return
        if self._segments:  # the traces forget when the latest tape has been folded in
            self._segments = marked(self._segments, mask)
            self._state = self._state._replace(neuron=masked(self._state.neuron, mask))
        else:
            self._state = masked(self._state, mask)

    def _state_tensors(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in flatten(self._advanced_state()).items()}

    def _state_from(self, where: str, tensors: dict[str, Tensor], lanes: int | None, nodes: Nodes) -> LayerState | None:
        """The state that `_state_tensors` wrote, checked against this layer."""
        if not tensors:
            return None
        template = LayerState(self._rest(lanes or 0), self.rule.start(self, lanes or 0, nodes))
        return restored(f"{where} ({type(self).__name__})", template, tensors)

    def _state_bytes_per_lane(self, nodes: Nodes) -> int:
        state = LayerState(self._rest(1), self.rule.start(self, 1, nodes))
        return sum(tensor.nbytes for tensor in flatten(state).values())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or convert the state with the parameters: `.to()`, `.double()`, `.cuda()`."""
        state = self._advanced_state()
        super()._apply(fn, recurse)
        self._state = map_tensors(fn, state)
        if self._plan is not None:
            self._plan = map_tensors(lambda nodes: nodes.to(self.weight.device), self._plan)  # float64 whatever
        self._banks, self._known_values = [], None
        self._forget()
        self._end("the model was moved or converted after the latest")
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles hold the advanced state and no tape."""
        return super().__getstate__() | {
            "_state": map_tensors(torch.clone, self._advanced_state()),
            "_segments": (),
            "_banks": [],
            "_known_synapse": None,
            "_known_values": None,
        }


def _continues(before: LayerPlan, above: Handed | None) -> bool:
    """Whether traces written in the exponentials of `before` go on with what is handed down now."""
    then = before.nodes.above
    if above is None or then is None:
        return above is None and then is None
    if above.fresh or len(above.nodes) != len(then):
        return False
    return (above.live and before.above_live) or torch.equal(above.nodes, then)


def _spread(tensor: Tensor, leading: int, shape: tuple[int, ...]) -> Tensor:
    """The dimensions after the leading ones as `shape`."""
    return tensor.reshape(*tensor.shape[:leading], *shape)
