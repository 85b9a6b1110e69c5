"""InputTrace: the layer's own membrane carries credit into the past."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from torch import Tensor

from ..functional import trace
from .base import Gradients, LayerLike, MembraneState, Rule, Tape, Traces, sum_to_shape


class InputTraces(NamedTuple):
    """The derivatives of a layer's membrane with respect to its parameters."""

    weight: Tensor  # (B, n)  Z_t = beta * Z_{t-1} + x_t
    bias: Tensor  # (B, 1)  N_t = beta * N_{t-1} + 1
    beta: Tensor | None  # (B, m)  beta * Zbeta_{t-1} + v_{t-1}, where beta is learned
    threshold: Tensor | None  # (B, m)  beta * Ztheta_{t-1} - s_t, where theta is learned


@dataclass(frozen=True)
class InputTrace(Rule):
    """Credit through the window exactly, and beyond it through the layer's own membrane. The default.

    The layer keeps the derivative of its membrane with respect to its parameters,

        Z_t = beta * Z_{t-1} + x_t      N_t = beta * N_{t-1} + 1
        Zbeta_t = beta * Zbeta_{t-1} + v_{t-1}      Ztheta_t = beta * Ztheta_{t-1} - s_t

    and adds `a_0 Z_0^T`, `a_0 N_0`, `a_0 * Zbeta_0`, `a_0 * Ztheta_0` for the gradient a_0 = dL/dv_0 that is left over
    at the window's start. Equals BPTT (reset detached, parameters fixed since the reset) for one layer with state,
    under a memoryless linear head too, with any window; in deeper networks it lacks the credit that reaches a layer's
    past spikes through the membranes above. With windows of one step it is OTTT (Xiao et al. 2022, "Online training
    through time for spiking neural networks").

    Keeps n + 1 numbers per lane, and m more for each of beta and theta that is learned. Needs one beta per layer.

    >>> InputTrace()
    InputTrace()
    """

    def check(self, layer: LayerLike) -> None:
        """Refuse a beta per neuron: the exact trace would have n * m numbers.

        Raises:
            ValueError: the layer has one beta per neuron.
        """
        beta = layer.values().beta
        if beta.numel() > 1:
            raise ValueError(
                f"InputTrace: expected {layer.neuron.name} to have one beta for the whole layer, got one per neuron "
                f"({tuple(beta.shape)}). Give a single beta or tau, or choose rule=Truncated() or rule=MeanRate()."
            )

    def start(self, layer: LayerLike, lanes: int) -> InputTraces:
        """Zeros."""
        per_neuron = (lanes, layer.out_features)
        return InputTraces(
            weight=layer.zeros(lanes, layer.in_features),
            bias=layer.zeros(lanes, 1),
            beta=layer.zeros(*per_neuron) if layer.learns("beta") else None,
            threshold=layer.zeros(*per_neuron) if layer.learns("threshold") else None,
        )

    def advance(self, layer: LayerLike, traces: Traces, tape: Tape) -> InputTraces:
        """One window further, all with the membrane's own decay."""
        old = cast(InputTraces, traces)
        decay = tape.values.beta

        def advanced(name: str, before: Tensor | None) -> Tensor | None:
            return None if before is None else trace.advance(before, layer.neuron.drive(tape, name), decay)

        return InputTraces(
            weight=trace.advance(old.weight, tape.x, decay),
            bias=trace.advance_ones(old.bias, len(tape.x), decay),
            beta=advanced("beta", old.beta),
            threshold=advanced("threshold", old.threshold),
        )

    def carry(
        self,
        layer: LayerLike,
        traces: Traces,
        leftover: MembraneState,
        above: Any,  # noqa: ARG002
    ) -> tuple[Gradients, Any]:
        """`a_0` times the layer's own traces."""
        past = cast(InputTraces, traces)
        a_0 = leftover.mem
        values = layer.values()
        gradients: Gradients = {}
        if layer.wants("weight"):
            gradients["weight"] = layer.weight_gradient(past.weight, a_0)
        if layer.wants("bias"):
            gradients["bias"] = (a_0 * past.bias).sum(0)
        if layer.wants("beta") and past.beta is not None:
            gradients["beta"] = sum_to_shape(a_0 * past.beta, values.beta)
        if layer.wants("threshold") and past.threshold is not None:
            gradients["threshold"] = sum_to_shape(a_0 * past.threshold, values.threshold)
        return gradients, None
