"""A layer: a synapse, a neuron and a rule."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, Self, cast

import torch
from torch import Tensor, nn

from .. import _checks
from ..functional import scan
from ..functional.bank import Bank
from ..rules import InputTrace, Rule
from ..rules.base import ModelDecays, Neuron, Nodes, Segment, Tape, Traces, Values, Wanted, map_tensors, masked
from . import synapse as synapses
from .constraint import OneOrEach, Positive, UnitInterval, firing_threshold, membrane_decay
from .online import Online, PartBackward, Proposal, Rescaling
from .state import LayerState, flatten, restored
from .streaming import Call, Handed, LayerPlan, Plans, TapeKeeper, full_precision, marked, stale

DEFAULT_RULE = InputTrace()
INPUT_RATE = 0.1  # the input that initialisation assumes: Bernoulli spikes at this rate per step
RECURRENT_SHARE = 0.5  # of the membrane that initialisation aims at, from recurrent weights at the same rate
MAX_INITIAL_BETA = 0.999  # initialisation treats slower membranes, perfect integrators too, like this one


class RunnableNeuron(Neuron, Protocol):
    """What a layer needs of a neuron besides what rules need."""

    def rest(self, zeros: Tensor) -> Any:
        """The state of lanes that have seen nothing: all zero, in the shape of `zeros` (B, m); its first is `mem`."""

    def scan(self, values: Values, current: Tensor, start: Any) -> NeuronScan:
        """Run a window of steps (K, B, m) from the state `start`."""


class NeuronScan(NamedTuple):
    """A window of a neuron."""

    y: Tensor  # (K, B, m) output
    record: Any  # what the reverse scan needs: a NamedTuple of tensors
    state: Any  # after the window


class LayerStep(NamedTuple):
    """A layer's proposal."""

    state: LayerState
    record: Any
    segments: tuple[Segment, ...]  # empty where nothing is being learned
    plan: LayerPlan | None  # None there


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
        beta: the membrane's decay per step, in [0, 1]; one number, or one per neuron. 0.9 by default.
        tau: its time constant in steps instead, `beta = exp(-1 / tau)`.
        learn_beta: make beta a parameter.
        threshold: above 0; one number, or one per neuron. None for neurons without one.
        learn_threshold: make it a parameter.
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
        synapse: nn.Module | None,
        bias: bool,
        beta: OneOrEach | None,
        tau: OneOrEach | None,
        learn_beta: bool,
        threshold: OneOrEach | None,
        learn_threshold: bool,
        recurrent: bool,
        self_connections: bool,
        rule: Rule | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.neuron = neuron
        self._state: LayerState | None = None
        self._segments: tuple[Segment, ...] = ()
        self._plan: LayerPlan | None = None  # what the traces are written in
        self._banks: list[Bank] = []
        self._warned_of_range = False
        self._own_rule: Rule | None = None
        self._model_rule: Rule | None = None
        where = type(self).__name__
        self.synapse = synapses.made(where, in_features, out_features, synapse, bias, device, dtype)
        self.in_features, self.out_features = self._operations.features(self.synapse)
        _checks.floating(where, "the synapse's weight", self.weight)
        decay = membrane_decay(where, beta, tau, learn_beta, self.out_features)
        self._register("beta", decay, learn_beta, UnitInterval)
        if threshold is not None:
            self._register(
                "threshold", firing_threshold(where, threshold, self.out_features), learn_threshold, Positive
            )
        if not (self_connections or recurrent):
            raise ValueError(
                f"{where}: expected self_connections=False together with recurrent=True, got recurrent=False. "
                f"Without recurrent weights there are none to leave out."
            )
        self.self_connections = self_connections
        self.recurrent_weight: nn.Parameter | None
        square = (self.out_features, self.out_features)
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
        if learn:
            self.register_parameter(f"raw_{name}", nn.Parameter(constraint.raw(value).to(self.weight)))
        else:
            self.register_buffer(f"constant_{name}", value.to(self.weight), persistent)

    def _constrained(self, name: str, constraint: type[UnitInterval | Positive]) -> Tensor | None:
        """A copy of the value, so that a tape keeps what its window was run with; None where there is none."""
        raw = self._parameters.get(f"raw_{name}")
        if raw is not None:
            return constraint.value(raw.detach())
        constant = self._buffers.get(f"constant_{name}")
        return None if constant is None else constant.clone()

    @property
    def weight(self) -> Tensor:
        """The synapse's weight."""
        return cast(Tensor, self.synapse.weight)

    @property
    def beta(self) -> Tensor:
        """The membrane's decay per step, () or (m,), dimensionless; a value, the parameter is `raw_beta`."""
        return cast(Tensor, self._constrained("beta", UnitInterval))

    @property
    def threshold(self) -> Tensor | None:
        """The firing threshold, () or (m,), dimensionless; None for neurons without one. Parameter: `raw_threshold`."""
        return self._constrained("threshold", Positive)

    @property
    def mem(self) -> Tensor | None:
        """A copy of the membranes (B, m) after the latest step; None before the first."""
        return None if self._state is None else cast(Tensor, self._state.neuron.mem).clone()

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
        std = self._initial_std(self.in_features)
        with torch.no_grad():
            self.weight.normal_().mul_(std.expand(self.out_features)[:, None])
            if self.synapse.bias is not None:
                cast(Tensor, self.synapse.bias).zero_()
        if self.recurrent:
            self._reset_recurrent()

    @torch.no_grad()
    def _reset_recurrent(self) -> None:
        assert self.recurrent_weight is not None
        std = RECURRENT_SHARE * self._initial_std(self.out_features).expand(self.out_features)
        self.recurrent_weight.normal_().mul_(std[:, None])

    def _initial_std(self, inputs: int) -> Tensor:
        beta = self.beta.clamp(max=MAX_INITIAL_BETA)
        variance = INPUT_RATE * (1 - INPUT_RATE)
        per_input = variance / (1 - beta**2) + INPUT_RATE**2 / (1 - beta) ** 2
        return self._target(beta) / torch.sqrt(inputs * per_input)

    def _target(self, beta: Tensor) -> Tensor:
        """The root mean square that initialisation gives the membrane without reset."""
        return 1 - beta if self.threshold is None else self.threshold

    def extra_repr(self) -> str:
        """Decays and thresholds, and what is learned."""
        shown = []
        for name, value in (("beta", self.beta), ("threshold", self.threshold)):
            if value is not None:
                text = f"{value.item():.4g}" if value.numel() == 1 else f"{value.min():.4g}..{value.max():.4g}"
                shown.append(f"{name}={text}" + (" (learned)" if self.learns(name) else ""))
        shown += ["recurrent"] if self.recurrent else []
        return ", ".join([*shown, f"rule={self.rule}"])

    # -- what rules see (rules.base.LayerLike) ---------------------------------------------------------------------

    @property
    def _operations(self) -> synapses.SynapseOperations:
        return synapses.operations(type(self).__name__, self.synapse)

    def values(self) -> Values:
        """The constrained parameters as they are now."""
        recurrent = None if self.recurrent_weight is None else self.recurrent_weight.detach()
        if recurrent is not None and not self.self_connections:
            recurrent.fill_diagonal_(0)  # whatever was loaded; its gradient is zero too
        return Values(self.beta, self.threshold, self._constrained("decay", UnitInterval), recurrent)

    def learns(self, name: str) -> bool:
        """Whether `name` is a parameter of this layer, frozen or not."""
        return self._parameter(name) is not None

    def wants(self, name: str) -> bool:
        """Whether `name` is a parameter of this layer that is not frozen."""
        parameter = self._parameter(name)
        return parameter is not None and parameter.requires_grad

    def _parameter(self, name: str) -> nn.Parameter | None:
        if name in ("weight", "bias"):
            return cast(nn.Parameter | None, getattr(self.synapse, name))
        if name == "recurrent":
            return self.recurrent_weight
        return self._parameters.get(f"raw_{name}")

    def current(self, x: Tensor) -> Tensor:
        """The synapse: (..., n) -> (..., m)."""
        return self._operations.current(self.synapse, x)

    def weight_gradient(self, x: Tensor, g: Tensor) -> Tensor:
        """dL/dW for inputs (..., n) and dL/dI (..., m)."""
        return self._operations.weight_gradient(x, g)

    def transpose(self, g: Tensor) -> Tensor:
        """dL/dx (..., n) for dL/dI (..., m); through the fixed random matrix `feedback` where the rule has one."""
        weight = cast(Tensor, self.feedback) if self.rule.feedback == "random" else self.weight
        return self._operations.transpose(self.synapse, weight, g)

    def zeros(self, *shape: int) -> Tensor:
        """Zeros with the weights' dtype and device."""
        return torch.zeros(shape, dtype=self.weight.dtype, device=self.weight.device)

    def bank(self, own: Tensor, above: Tensor | None, beta: Tensor | None = None) -> Bank:
        """The bank of the kernels of `beta`, as it is now by default, in the nodes `own` for signals in `above`."""
        beta = self.beta if beta is None else beta
        for bank in self._banks:
            if bank.fits(own, beta, above):
                return bank
        self._check_range(own, above, beta)
        self._banks = [Bank(own, beta, above), *self._banks[:1]]
        return self._banks[0]

    def _check_range(self, own: Tensor, above: Tensor | None, beta: Tensor) -> None:
        """Warn, once per stream, where a learned beta, its own or one above, has left the range of the bank."""
        plan, inside = self._plan, own[(own > 0) & (own < 1)]
        if plan is None or plan.grid is None or self._warned_of_range or len(inside) == 0:
            return
        moved = beta.reshape(-1).double() if self.learns("beta") else own[:0]
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

    def _feature_shape(self) -> tuple[int, ...]:
        return (self.in_features,)

    def _hand_nodes(
        self,
        above: Handed | None,
        decays: Callable[[], ModelDecays],
        plans: Plans,
        grids: Mapping[int, Tensor | None] | None,
    ) -> Handed | None:
        rule, beta = self.rule, self.beta
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
        live = beta.double().reshape(-1)[: 1 if beta.numel() == 1 else 0]  # none where each neuron has its own
        own = live if grid is None else grid
        nodes = Nodes(own, None if above is None else above.nodes)
        plans[id(self)] = LayerPlan(
            grid, nodes, above is not None and above.live, above is not None and above.moving, fresh
        )
        if not rule.hands_adjoint:
            return None
        return Handed(own, fresh, grid is None, grid is None and self.learns("beta"))

    def _uses_adjoint(self) -> bool:
        return self.rule.uses_adjoint

    def _propose(self, x: Tensor, call: Call) -> tuple[Tensor, list[Proposal]]:
        self._check_features(x)
        self._check_lanes(x)
        steps, lanes = x.shape[:2]
        plan: LayerPlan | None = call.plans.get(id(self))
        leaving, staying = call.leaving(self._segments, steps)
        before = self._folded(leaving) if call.learning else self._state
        state = LayerState(self._rest(lanes), None) if before is None else before
        traces = None
        segments: tuple[Segment, ...] = ()
        values = self.values()
        run = self.neuron.scan(values, self.current(x), state.neuron)
        if call.learning:
            assert plan is not None
            traces = self._fresh_traces(lanes, plan.nodes) if plan.fresh else state.traces
            segments = (*staying, Segment(Tape(x, run.record, state.neuron, values, plan.nodes), steps, call))
        return run.y, [Proposal(self, LayerStep(LayerState(run.state, traces), run.record, segments, plan))]

    def _check_features(self, x: Tensor) -> None:
        if x.shape[2:] != self._feature_shape():
            raise ValueError(
                f"{type(self).__name__}: expected {self.in_features} inputs, got {tuple(x.shape[2:])} "
                f"from the module below. Make the sizes agree."
            )

    def _check_lanes(self, x: Tensor) -> None:
        if self._state is not None and self._state.neuron.mem.shape[0] != x.shape[1]:
            raise ValueError(
                f"{type(self).__name__}: expected {self._state.neuron.mem.shape[0]} lanes as in the calls before, "
                f"got {x.shape[1]}. Call reset() first to start other streams."
            )

    def _commit(self, step: LayerStep, call: Call) -> None:  # noqa: ARG002
        self._state, self._segments, self._plan = step.state, step.segments, step.plan
        if step.plan is not None and step.plan.fresh:
            self._warned_of_range = False

    def _backward(self, ls: list[Tensor | None], above: Tensor | None, wanted: Wanted, call: Call) -> PartBackward:
        latest = self._segments[-1] if self._segments else None
        if latest is None or latest.call is not call or latest.ended or self._state is None:
            raise stale(type(self).__name__)
        result = self.rule.backward(self, self._segments, self._state.traces, ls, above, wanted)
        updates = []
        for name, gradient in result.gradients.items():
            if name in _CONSTRAINTS:
                value = cast(Tensor, getattr(self._segments[-1].tape.values, name))
                gradient = gradient * _CONSTRAINTS[name].slope(value)
            if name == "recurrent" and not self.self_connections:
                gradient = gradient.clone().fill_diagonal_(0)
            updates.append((cast(nn.Parameter, self._parameter(name)), gradient))
        return PartBackward(result.ls_below, result.below, updates)

    def _calibrate(self, x: Tensor) -> tuple[Tensor, list[Rescaling]]:
        self._check_features(x)
        values, rest, bias = self.values(), self._rest(x.shape[1]), self.synapse.bias
        offset = 0 if bias is None else cast(Tensor, bias)
        current = self.current(x) - offset
        rescalings = []
        if self.wants("weight"):
            rms = scan.li(current, self.zeros(*current.shape[1:]), values.beta).square().mean((0, 1)).sqrt()
            target = self._target(values.beta.clamp(max=MAX_INITIAL_BETA)).expand_as(rms)
            factor = torch.where(rms > 0, target / rms, torch.ones_like(rms))
            current = current * factor
            rescalings.append(Rescaling(self.weight, factor))
        return self.neuron.scan(values, current + offset, rest).y, rescalings

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
        """The state with all tapes folded into the traces."""
        return self._folded(self._segments)

    def _folded(self, segments: Sequence[Segment]) -> LayerState | None:
        """The state with these tapes, the oldest, folded into the traces."""
        if self._state is None or not segments:
            return self._state
        traces = self._state.traces
        with full_precision(self.weight):
            for segment in segments:
                traces = segment.forget(self.rule.advance(self, traces, segment.tape))
        return self._state._replace(traces=traces)

    def _forget(self) -> None:
        self._segments = ()

    def _fold(self) -> None:
        self._state = self._advanced_state()
        self._forget()

    def _tape_tensors(self) -> list[Tensor]:
        tapes: list[Tape] = [segment.tape for segment in self._segments]
        return [tensor for tape in tapes for tensor in (tape.x, *tape.record, *tape.start)]

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
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._state = map_tensors(fn, state)
        if self._plan is not None:
            self._plan = map_tensors(lambda nodes: nodes.to(self.weight.device), self._plan)  # float64 whatever
        self._banks = []
        self._forget()
        self._end("the model was moved or converted after the latest")
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles hold the advanced state and no tape."""
        return super().__getstate__() | {
            "_state": self._advanced_state(),
            "_segments": (),
            "_banks": [],
        }


def _continues(before: LayerPlan, above: Handed | None) -> bool:
    """Whether traces written in the exponentials of `before` go on with what is handed down now."""
    then = before.nodes.above
    if above is None or then is None:
        return above is None and then is None
    if above.fresh or len(above.nodes) != len(then):
        return False
    return (above.live and before.above_live) or torch.equal(above.nodes, then)


_CONSTRAINTS: dict[str, type[UnitInterval | Positive]] = {
    "beta": UnitInterval,
    "threshold": Positive,
    "decay": UnitInterval,
}
