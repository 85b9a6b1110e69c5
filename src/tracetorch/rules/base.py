"""The contract between a layer and a learning rule.

A layer runs its synapse and its neuron over a window and keeps a `Tape` of it. A rule keeps *traces* of all earlier
windows and turns a learning signal into gradients. Most rules are their `carry` alone: what is done with the gradient
that is left over at the window's start. Rules see the small protocols of this file, never a module.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor

from ..functional import rate

Gradients = dict[str, Tensor]
"""Gradients of a layer's constrained parameters: "weight", "bias", "beta", "threshold", "decay" where present."""

Traces = tuple[Any, ...]
"""What a rule keeps between windows: a NamedTuple of tensors whose first dimension is the lane (None if unused)."""


class Values(NamedTuple):
    """The constrained parameter values that a window was run with."""

    beta: Tensor  # () or (m,)
    threshold: Tensor | None  # () or (m,)
    decay: Tensor | None  # () or (n,): the rule's own trace decay, where it has one


class Tape(NamedTuple):
    """What a layer keeps of its latest window."""

    x: Tensor  # (K, B, n) input
    record: Any  # the neuron's own: what its reverse scan needs of the steps
    start: Any  # the neuron's state that the window began with
    values: Values


class MembraneState(NamedTuple):
    """The state of a neuron with one state variable; also the gradient with respect to it."""

    mem: Tensor  # (B, m)


class Reverse(NamedTuple):
    """A reverse scan of a window."""

    g: Tensor  # (K, B, m) dL/dI
    leftover: MembraneState  # dL/dstate at the window's start, in the fields of the state
    beta: Tensor  # (B, m), summed over the window
    threshold: Tensor | None  # (B, m), likewise


class Neuron(Protocol):
    """A neuron's dynamics; keeps nothing."""

    @property
    def name(self) -> str:
        """What messages call it."""

    def reverse(self, tape: Tape, ls: Tensor) -> Reverse:
        """The reverse scan of the tape's window for `ls` (K, B, m)."""

    def drive(self, tape: Tape, name: str) -> Tensor:
        """What each step adds, (K, B, m), to the trace of dv/dp for the neuron's own parameter p = `name`."""

    def output(self, tape: Tape) -> Tensor:
        """The window's output (K, B, m) that a measured average is taken of."""

    def rate(self, name: str) -> rate.RateEstimate:
        """The closed-form estimate of the average output, of the family `name` where the neuron has several."""


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
        """Its constrained parameters as they are now."""

    def learns(self, name: str) -> bool:
        """Whether `name` is a parameter of the layer, frozen or not."""

    def wants(self, name: str) -> bool:
        """Whether `name` is a parameter of the layer that is not frozen."""

    def current(self, x: Tensor) -> Tensor:
        """The synapse: (..., n) -> (..., m), bias included."""

    def weight_gradient(self, x: Tensor, g: Tensor) -> Tensor:
        """dL/dW for inputs (..., n) and dL/dI (..., m), summed over all leading dimensions."""

    def transpose(self, g: Tensor) -> Tensor:
        """dL/dx for dL/dI: (..., m) -> (..., n)."""

    def zeros(self, *shape: int) -> Tensor:
        """Zeros with the layer's dtype and device."""


class Backward(NamedTuple):
    """What a rule returns."""

    gradients: Gradients
    ls_below: Tensor | None  # (K, B, n) the learning signal for the layer below, where asked for
    below: Any  # the adjoint beyond the window for the layer below; None: nothing is handed down


class Rule:
    """Base of all rules. Subclasses are frozen dataclasses of hyper-parameters."""

    def check(self, layer: LayerLike) -> None:
        """Raise where this rule cannot serve `layer`."""

    def decay_start(self, layer: LayerLike) -> tuple[Tensor, bool] | None:  # noqa: ARG002
        """The rule's own trace decay, () or (n,), and whether it is learned; None for a rule without one."""
        return None

    def start(self, layer: LayerLike, lanes: int) -> Traces:  # noqa: ARG002
        """The traces of lanes that have seen nothing."""
        return ()

    def advance(self, layer: LayerLike, traces: Traces, tape: Tape) -> Traces:  # noqa: ARG002
        """The traces after the tape's window, with the values that it was run with."""
        return traces

    def carry(
        self,
        layer: LayerLike,  # noqa: ARG002
        traces: Traces,  # noqa: ARG002
        leftover: MembraneState,  # noqa: ARG002
        above: Any,  # noqa: ARG002
    ) -> tuple[Gradients, Any]:
        """What the time before the window adds to the gradients, and what is handed to the layer below.

        Args:
            layer: the layer.
            traces: the traces at the window's start.
            leftover: dL/dstate at the window's start.
            above: the sum of what the layers above handed down; None where they handed nothing.
        """
        return {}, None

    def backward(self, layer: LayerLike, tape: Tape, traces: Traces, ls: Tensor, above: Any, signal: bool) -> Backward:
        """The gradients for the learning signal `ls` (K, B, m) = dL/dy of the tape's window.

        Args:
            layer: the layer.
            tape: of its latest window.
            traces: as they were at the window's start.
            ls: the learning signal.
            above: see `carry`.
            signal: whether the layer below needs a learning signal.
        """
        reverse = layer.neuron.reverse(tape, ls)
        gradients: Gradients = {}
        if layer.wants("weight"):
            gradients["weight"] = layer.weight_gradient(tape.x, reverse.g)
        if layer.wants("bias"):
            gradients["bias"] = reverse.g.sum((0, 1))
        if layer.wants("beta"):
            gradients["beta"] = sum_to_shape(reverse.beta, tape.values.beta)
        if layer.wants("threshold"):
            gradients["threshold"] = sum_to_shape(reverse.threshold, tape.values.threshold)
        carried, below = self.carry(layer, traces, reverse.leftover, above)
        for name, carried_gradient in carried.items():
            gradients[name] += carried_gradient
        return Backward(gradients, layer.transpose(reverse.g) if signal else None, below)


def sum_to_shape(per_lane: Tensor | None, parameter: Tensor | None) -> Tensor:
    """Sum a gradient (B, m) over lanes, and over neurons where they share the parameter."""
    assert per_lane is not None
    assert parameter is not None
    return per_lane.sum(0) if parameter.ndim else per_lane.sum()
