"""The contract between a layer and a learning rule.

A layer runs its synapse and its neuron over a window and keeps a `Tape` of it. A rule keeps *traces* of all earlier
windows and turns a learning signal into gradients. Most rules are their `carry` alone: what is done with the gradient
that is left over at the border, where the tapes begin. Rules see the small protocols of this file, never a module.

The *adjoint* of a layer is dL/dp of its steps before the border, a function of the lag k = 0, 1, ... (k = 0 is the last
step before it). Rules that hand one down write it as `sum_g c_g q_g^k` (see `functional.bank`): the coefficients
(B, G, m) with the decays q_g, the *nodes*.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from .. import kernels
from ..functional import rate
from ..functional.bank import Bank
from ..functional.scan import Reverse, Values
from ..functional.spikes import GradientSum, Spikes, joined
from ..functional.trace import Stage

Gradients = dict[str, Tensor]
"""Gradients of a layer's constrained parameters, by name, where present."""

MATRICES = ("weight", "recurrent")
"""The parameters that take what comes in by other neurons; all others belong to one neuron each."""

Traces = Any
"""What a rule keeps between windows: tensors whose first dimension is the lane, in dictionaries and NamedTuples.

Some of them may be `Pending`.
"""


class Pending:
    """A tensor of traces that is computed when it is first read."""

    owned: bool = False
    """Whether nothing else refers to the tensor that it is computed from, which may then be written over."""

    def value(self) -> Tensor:
        """The tensor."""
        raise NotImplementedError


class Nodes(NamedTuple):
    """The decays of the exponentials in which adjoints are written."""

    own: Tensor  # (G,) float64: this layer's adjoint, and its bank of traces
    above: Tensor | None  # (H,) float64: the adjoint that is handed down to this layer; None where nothing is


class ModelDecays(NamedTuple):
    """The membrane decays of all layers of a model."""

    inside: list[float]  # all of them that lie strictly between 0 and 1
    constant: list[float]  # those of the layers with one beta that is not learned; 0 and 1 of others too
    others: bool  # whether there are layers with a beta per neuron, or a learned one


class Recall(NamedTuple):
    """What a spiking neuron's record can be computed from, besides what the tape keeps."""

    current: Tensor  # (K, B, m) input currents
    emitted: Spikes  # (K, B, m)


class Tape(NamedTuple):
    """What a layer keeps of a window."""

    x: Tensor  # (K, B, n) input
    record: Any  # the neuron's own: what its reverse scan needs of the steps
    start: Any  # the neuron's state that the window began with
    values: Values
    nodes: Nodes
    decay: Tensor | None = None  # () or (n,): the rule's own trace decay, where it has one
    spikes: Spikes | None = None  # the input as bits too, where it is known to be all spikes

    @property
    def steps(self) -> int:
        """K."""
        return len(self.x) if self.spikes is None else self.spikes.shape[0]

    def recall(self) -> Recall | None:
        """None: the record is there; it is not with a tape that is kept in fewer bytes."""
        return None

    def opened(self) -> Tape:
        """Itself; a tape that is kept in fewer bytes opens to a `Tape`."""
        return self

    def tensors(self) -> list[Tensor]:
        """What is kept of the window."""
        return [tensor for tensor in (self.x, *self.record, *self.start) if tensor is not None]


class Segment(NamedTuple):
    """A tape, and which lanes were reset after its window."""

    tape: Any  # a layer's Tape, or what another part of a model keeps of a window
    steps: int
    call: Any = None  # the forward call that ran it
    reset: Tensor | None = None  # (B,) bool
    ended: bool = False  # whether the call can no longer be gone back to, since lanes were reset after it

    def forget(self, state: Any) -> Any:
        """The state after the reset."""
        return state if self.reset is None else masked(state, self.reset)


class Neuron(Protocol):
    """A neuron's dynamics; keeps nothing."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def spiking(self) -> bool:
        """Whether it has a threshold."""

    @property
    def direct(self) -> Collection[str]:
        """Its own parameters that have a part in a spike not by way of the membrane alone, such as its threshold."""

    @property
    def resets_to_zero(self) -> bool:
        """Whether a spike sets the membrane to zero, which ends what the membrane remembers."""

    def reverse(self, tape: Tape, ls: Tensor | None, wanted: Collection[str], ahead: Any = None) -> Reverse:
        """The reverse scan of the tape's window for `ls` (K, B, m), None for 0.

        `wanted` names the neuron's own parameters whose gradients are asked for; `ahead` is the leftover of the window
        after it, None for 0. All of the tape may have further dimensions before B, one of them of `ls` alone.
        """

    def chain(self, values: Values, name: str) -> tuple[Stage, ...]:
        """How the state depends on a parameter with the spikes held fixed: the stages that its `drive` passes.

        The name "input" stands for the current W x + b, and for the matrices and the bias with it.
        """

    def drive(self, tape: Tape, name: str) -> Tensor:
        """What each step adds (K, B, m) to the first stage of the chain of the neuron's own parameter `name`.

        For "recurrent": what the recurrent weights took.
        """

    def slope_drive(self, tape: Tape, name: str) -> Tensor:
        """What a signal dL/dy of 1 adds at each step (K, B, m) to the gradient of a `direct` parameter.

        Besides the adjoint of the membrane, psi times dL/dy and what that becomes, times `drive`.
        """

    def output(self, tape: Tape) -> Tensor:
        """The window's output (K, B, m) that a measured average is taken of."""

    def silent(self, tape: Tape) -> Tensor:
        """1 where no spike set the membrane to zero, else 0, (K, B, m)."""

    def slope(self, tape: Tape) -> Tensor | None:
        """Psi of each step (K, B, m): the slope of the output by the membrane; None where neurons share an output."""

    def rate(self, name: str) -> rate.RateEstimate | None:
        """The closed-form estimate of the average output, of the family `name` where there are several; None: none."""


class LayerLike(Protocol):
    """What a rule may see of a layer."""

    @property
    def in_features(self) -> int:
        """Inputs, n."""

    @property
    def out_features(self) -> int:
        """Neurons, m."""

    @property
    def neuron(self) -> Neuron:
        """Its dynamics."""

    def values(self) -> Values:
        """The constrained parameters of its neuron as they are now: () or (m,), "recurrent" (m, m)."""

    def learns(self, name: str) -> bool:
        """Whether `name` is a parameter of the layer, frozen or not."""

    def wants(self, name: str) -> bool:
        """Whether `name` is a parameter of the layer that is not frozen."""

    def current(self, x: Tensor | Spikes) -> Tensor:
        """The synapse: (..., n) -> (..., m), bias included."""

    def weight_gradient(self, x: Tensor | Spikes, g: Tensor) -> Tensor:
        """dL/dW for inputs (..., n) and dL/dI (..., m), summed over all leading dimensions."""

    def transpose(self, g: Tensor) -> Tensor:
        """dL/dx for dL/dI: (..., m) -> (..., n); through a fixed random matrix where the rule's feedback is that."""

    @property
    def fan_in(self) -> int | None:
        """How many weights F a neuron has; None where it is not known which inputs they take."""

    def patches(self, x: Tensor) -> Tensor:
        """(..., n) -> (..., m, F): what each neuron's weights take; (..., 1, F) where it is the same for all."""

    def fold(self, matrix: Tensor) -> Tensor:
        """A gradient (m, F) of each neuron's weights as that of the layer's: summed where neurons share them."""

    def zeros(self, *shape: int) -> Tensor:
        """Zeros with the layer's dtype and device."""

    def bank(self, own: Tensor, above: Tensor | None, decay: Tensor) -> Bank:
        """The bank of the kernels of `decay` () or (m,) in the nodes `own`, for signals in `above`."""


class Wanted(NamedTuple):
    """What is wanted below a layer."""

    signal: bool  # dL/dx of the tapes' steps
    adjoint: bool  # the adjoint of the time before


class Border(NamedTuple):
    """What a reverse pass leaves at the border, where the tapes begin."""

    first: Any  # dL/dp and dL/di of the first step after it, in the fields of the neuron's state
    leftover: Any  # dL/dstate at the border, likewise
    above: Tensor | None  # (B, H, m) dL/dy of the time before, in the nodes `above`; None where nothing is handed down
    nodes: Nodes


class Backward(NamedTuple):
    """What a rule returns."""

    gradients: Gradients
    ls_below: list[Tensor | None]  # (K, B, n) for each tape: the learning signal for the layer below, where wanted
    below: Tensor | None  # (B, G, n) the adjoint of the time before, in the nodes `own`; None: nothing is handed down


@dataclass(frozen=True, kw_only=True, repr=False)
class Rule:
    """Base of all rules. Subclasses are frozen dataclasses of hyper-parameters.

    Args:
        feedback: "symmetric" hands signals down through the layer's weights; "random" through a fixed random matrix
            of the weights' shape and scale, drawn when the rule is set and kept in `state_dict()` (feedback alignment,
            Lillicrap et al. 2016, doi:10.1038/ncomms13276). Recurrent weights are not replaced.
    """

    feedback: Literal["symmetric", "random"] = "symmetric"

    def __post_init__(self) -> None:
        if self.feedback not in ("symmetric", "random"):
            raise ValueError(
                f"{type(self).__name__}: expected feedback to be 'symmetric' or 'random', got {self.feedback!r}."
            )

    def __repr__(self) -> str:
        """The rule with what differs from its defaults."""
        given = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        ]
        return f"{type(self).__name__}({', '.join(given)})"

    @property
    def uses_adjoint(self) -> bool:
        """Whether the rule makes something of the adjoint that is handed down to it."""
        return False

    @property
    def hands_adjoint(self) -> bool:
        """Whether the rule hands an adjoint down."""
        return False

    def check(self, layer: LayerLike) -> None:
        """Raise where this rule cannot serve `layer`."""

    def grid(self, layer: LayerLike, above: Tensor | None, decays: ModelDecays) -> Tensor | None:  # noqa: ARG002
        """The nodes of the layer's own adjoint, (G,) float64, chosen when a stream begins.

        Args:
            layer: the layer.
            above: (H,) the nodes of the adjoint that is handed down to the layer; None where nothing is.
            decays: of all layers of the model.

        Returns:
            None where the layer's one beta, as it is at each window, is the only node.
        """
        return None

    def decay_start(self, layer: LayerLike) -> tuple[Tensor, bool] | None:  # noqa: ARG002
        """The rule's own trace decay, () or (n,), and whether it is learned; None for a rule without one."""
        return None

    def start(self, layer: LayerLike, lanes: int, nodes: Nodes) -> Traces:  # noqa: ARG002
        """The traces of lanes that have seen nothing."""
        return ()

    def advance(self, layer: LayerLike, traces: Traces, tape: Tape) -> Traces:  # noqa: ARG002
        """The traces after the tape's window, with the values that it was run with."""
        return traces

    def carry(
        self,
        layer: LayerLike,  # noqa: ARG002
        traces: Traces,  # noqa: ARG002
        border: Border,  # noqa: ARG002
        wanted: bool,  # noqa: ARG002
    ) -> tuple[Gradients, Tensor | None]:
        """What the time before the border adds to the gradients, and the adjoint that is handed to the layer below.

        Args:
            layer: the layer.
            traces: at the border.
            border: what the reverse pass left there.
            wanted: whether the layer below makes something of an adjoint.
        """
        return {}, None

    def backward(
        self,
        layer: LayerLike,
        segments: Sequence[Segment],
        traces: Traces,
        ls: Sequence[Tensor | None],
        above: Tensor | None,
        wanted: Wanted,
    ) -> Backward:
        """The gradients for the learning signals `ls` = dL/dy of the segments' windows.

        Args:
            layer: the layer.
            segments: the tapes of its latest windows, the oldest first, which `opened` gives.
            traces: as they were at the first one's start.
            ls: (K, B, m) for each; None for 0.
            above: (B, H, m) what the layers above handed down; None where they handed nothing.
            wanted: below the layer.
        """
        latest, own = segments[-1].tape, own_parameters(layer, layer.wants)
        gradients: Gradients = {}
        ls_below: list[Tensor | None] = []
        runs: list[Reverse] = []
        parts = _parts(segments)
        sums: dict[str, GradientSum] | None = {} if len(parts) > 1 else None
        for begin, end in parts:
            part = [segment._replace(tape=segment.tape.opened()) for segment in segments[begin:end]]
            runs = _reverse(layer.neuron, part, ls[begin:end], own, runs[0].leftover if runs else None)
            g = _together([run.g for run in runs])
            found = map_gradients(layer, _inputs(layer, [segment.tape for segment in part]), g, sums)
            if layer.wants("bias"):
                found["bias"] = g.sum((0, 1))
            for name in own:
                found[name] = sum_to_shape(_sum([run.own[name] for run in runs]), latest.values[name])
            _add(gradients, found)
            below_part: list[Tensor | None] = [None] * len(part)
            if wanted.signal:
                below_part = list(torch.split(layer.transpose(g), [segment.steps for segment in part]))
            ls_below = below_part + ls_below
        _add(gradients, {name: total.total() for name, total in (sums or {}).items()})
        border = Border(runs[0].first, runs[0].leftover, above, latest.nodes)
        carried, below = self.carry(layer, traces, border, wanted.adjoint)
        _add(gradients, carried)
        return Backward(gradients, ls_below, below)


def _parts(segments: Sequence[Segment]) -> list[tuple[int, int]]:
    """The segments as ranges whose tapes are opened together, from the last to the first.

    Those that are open anyway come together; others one by one, so that there is never more than one of them.
    """
    parts = []
    end = len(segments)
    while end > 0:
        begin = end - 1
        if isinstance(segments[begin].tape, Tape):
            while begin > 0 and isinstance(segments[begin - 1].tape, Tape):
                begin -= 1
        parts.append((begin, end))
        end = begin
    return parts


def _add(gradients: Gradients, found: Gradients) -> None:
    for name, gradient in found.items():
        if name in gradients:
            gradients[name] += gradient
        else:
            gradients[name] = gradient


def own_parameters(layer: LayerLike, asked: Callable[[str], bool]) -> list[str]:
    """The neuron's own parameters for which `layer.learns` or `layer.wants` holds, as asked."""
    return [name for name in layer.values() if name not in MATRICES and asked(name)]


def _reverse(
    neuron: Neuron, segments: Sequence[Segment], ls: Sequence[Tensor | None], wanted: list[str], ahead: Any
) -> list[Reverse]:
    """The reverse scans of the segments, from the last to the first, each going on from the one after it."""
    runs: list[Reverse] = []
    for segment, signal in zip(reversed(segments), reversed(ls), strict=True):
        runs.append(neuron.reverse(segment.tape, signal, wanted, segment.forget(ahead)))
        ahead = runs[-1].leftover
    return runs[::-1]


def _inputs(layer: LayerLike, tapes: list[Tape]) -> dict[str, Tensor | Spikes]:
    """What the layer's matrices took, (K, B, ...), over all tapes."""
    taken = [map_inputs(layer, tape) for tape in tapes]
    inputs: dict[str, Tensor | Spikes] = {}
    for name in taken[0]:
        parts = [each[name] for each in taken]
        windows = [part for part in parts if isinstance(part, Spikes)]
        if len(windows) == len(parts):
            inputs[name] = joined(windows)
        else:
            inputs[name] = _together([tape.x for tape in tapes] if windows else cast(list[Tensor], parts))
    return inputs


def _sum(parts: list[Tensor]) -> Tensor:
    return sum(parts[1:], parts[0])


def _together(windows: list[Tensor]) -> Tensor:
    return windows[0] if len(windows) == 1 else torch.cat(windows)


def map_inputs(layer: LayerLike, tape: Tape) -> dict[str, Tensor | Spikes]:
    """The inputs of a window to each matrix that the layer has as a parameter: x to W, s_{t-1} to U."""
    inputs: dict[str, Tensor | Spikes] = {}
    if layer.learns("weight"):
        inputs["weight"] = tape.x if tape.spikes is None else tape.spikes
    if layer.learns("recurrent"):
        inputs["recurrent"] = layer.neuron.drive(tape, "recurrent")
    return inputs


def map_numbers(layer: LayerLike, tape: Tape) -> dict[str, Tensor]:
    """The same, never as bits."""
    return {name: tape.x if isinstance(x, Spikes) else x for name, x in map_inputs(layer, tape).items()}


def map_gradients(
    layer: LayerLike,
    inputs: Mapping[str, Tensor | Spikes],
    g: Tensor,
    sums: dict[str, GradientSum] | None = None,
) -> Gradients:
    """`sum g input^T` over all leading dimensions, for those of the matrices that are wanted.

    With `sums`, what spikes give is added to these, and is not returned.
    """
    gradients: Gradients = {}
    for name, taken in inputs.items():
        if not layer.wants(name):
            continue
        if sums is not None and isinstance(taken, Spikes):
            sums.setdefault(name, kernels.gradient_sum(g)).add(taken, g.contiguous())
        elif name == "weight" or isinstance(taken, Spikes):
            gradients[name] = layer.weight_gradient(taken, g)
        else:
            gradients[name] = g.flatten(0, -2).t() @ taken.flatten(0, -2)
    return gradients


def sum_to_shape(per_lane: Tensor, parameter: Tensor) -> Tensor:
    """Sum a gradient (B, m) over lanes, and over neurons where they share the parameter."""
    return per_lane.sum(0) if parameter.ndim else per_lane.sum()


def map_tensors(function: Callable[[Tensor], Tensor], state: Any) -> Any:
    """Apply `function` to every tensor of nested NamedTuples, tuples and dictionaries."""
    if state is None or isinstance(state, bool):
        return state
    if isinstance(state, dict):
        return {name: map_tensors(function, value) for name, value in state.items()}
    if isinstance(state, Tensor):
        return function(state)
    if isinstance(state, Pending):
        return function(state.value())
    mapped = [map_tensors(function, value) for value in state]
    return type(state)(*mapped) if hasattr(state, "_fields") else tuple(mapped)


def settled(traces: Traces) -> Traces:
    """The traces with what is pending computed."""
    return map_tensors(lambda tensor: tensor, traces)


def own_pending(traces: Traces) -> None:
    """The traces take the place of those that they were made of: what is pending may be written over these."""
    if isinstance(traces, Pending):
        traces.owned = True
    elif isinstance(traces, (dict, tuple)):
        for part in traces.values() if isinstance(traces, dict) else traces:
            own_pending(part)


def masked(state: Any, mask: Tensor) -> Any:
    """The state with the lanes of a (B,) mask set to zero, which is how all state starts."""
    return map_tensors(lambda tensor: tensor.masked_fill(mask.view(-1, *[1] * (tensor.ndim - 1)), 0), state)
