"""MeanField: credit through all membranes above, with each layer's mean slope."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, cast

from torch import Tensor

from ..functional import trace
from .adjoint import (
    AdjointRule,
    SlopeTraces,
    advance_slopes,
    check_integrators,
    is_recurrent,
    layer_adjoint,
    mean_slope,
    own_part,
    signal_nodes,
    start_slopes,
)
from .base import (
    Border,
    Gradients,
    LayerLike,
    ModelDecays,
    Nodes,
    Tape,
    Traces,
    map_gradients,
    map_inputs,
    sum_to_shape,
)


class MeanFieldTraces(NamedTuple):
    """Traces of MeanField; None where there is no such parameter, or no signal."""

    weight: Tensor | None  # (B, G, n) of x_t
    recurrent: Tensor | None  # (B, G, m) of s_{t-1}
    bias: Tensor | None  # (B, G, 1) of 1
    beta: Tensor | None  # (B, G, m) of v_{t-1}
    threshold: Tensor | None  # (B, G, m) of -s_t
    slopes: SlopeTraces | None
    unfired: Tensor | None  # (B, H, m) of psi_t (1 - s_t), where theta is learned


@dataclass(frozen=True, repr=False)
class MeanField(AdjointRule):
    """Credit through the window exactly, and beyond it through all membranes above, with mean slopes.

    The adjoint before the window, as a function of the lag, is kept as a sum of G exponentials and handed down from
    layer to layer (see `rules.adjoint`):

        Lambda_g = C_ig a_0 + sum_h psibar_h R_h D_i[h, g]          R: from above, W_up^T Lambda_up
        psibar_h = (sum_k q_h^k psi(k)) / (sum_k q_h^k)             the mean slope, at each time scale

        dL/dW += Lambda_g z_g^T    dL/db += Lambda_g n_g    dL/dbeta += Lambda_g * w_g
        dL/dtheta += - R_h * P_h - Lambda_g * S_g + R_h * PS_h

    with traces z of x, n of 1, w of v_{t-1}, S of s, P of psi and PS of psi * s, one for each exponential. Equals BPTT
    (reset detached, parameters fixed since the reset) where the slopes do not change in time, with any window; its one
    approximation, the bank's small error aside, is the mean slope, which loses how slope and input vary together.
    It serves rates and stationary input best. Where nothing is above, it is `InputTrace`.

    Keeps G (n + 1) + H (m + 1) numbers per lane, H being the nodes of the signal from above, and G m more for each of
    recurrent weights, learned beta and learned theta (for theta H m too).

    Args:
        nodes: G, how many exponentials the bank has.
        span: the shortest and longest time constant of the bank, in steps; by default from those of the model's layers
            when a stream begins: from the shortest / 1.5 to 2.5 times the longest.
        hops: how often the adjoint before the border passes through recurrent weights; 0 leaves them out.
        paths: which of its adjoint a layer hands down: "all", or its "own" membranes' part alone.
        feedback: "symmetric", or "random" for a fixed random matrix in place of W^T (see `Rule`).

    Raises:
        ValueError: when a stream begins: a Softmax below other layers; perfect integrators one below the other.

    >>> MeanField(nodes=4)
    MeanField(nodes=4)
    """

    def grid(self, layer: LayerLike, above: Tensor | None, decays: ModelDecays) -> Tensor | None:
        """As for all adjoint rules.

        Raises:
            ValueError: a Softmax below other layers; a perfect integrator that feeds another.
        """
        nodes = super().grid(layer, above, decays)
        check_integrators("MeanField", layer, nodes if is_recurrent(layer, self.hops) else above)
        return nodes

    def start(self, layer: LayerLike, lanes: int, nodes: Nodes) -> MeanFieldTraces:
        """Zeros."""
        signal = signal_nodes(layer, nodes, self.hops)
        g, m = len(nodes.own), layer.out_features

        def zeros(name: str, width: int) -> Tensor | None:
            return layer.zeros(lanes, g, width) if layer.learns(name) else None

        return MeanFieldTraces(
            weight=zeros("weight", layer.in_features),
            recurrent=zeros("recurrent", m),
            bias=zeros("bias", 1),
            beta=zeros("beta", m),
            threshold=zeros("threshold", m),
            slopes=start_slopes(layer, lanes, signal),
            unfired=layer.zeros(lanes, len(signal), m) if signal is not None and layer.learns("threshold") else None,
        )

    def advance(self, layer: LayerLike, traces: Traces, tape: Tape) -> MeanFieldTraces:
        """One window further."""
        old = cast(MeanFieldTraces, traces)
        own, signal = tape.nodes.own, signal_nodes(layer, tape.nodes, self.hops)
        inputs = map_inputs(layer, tape)

        def advanced(name: str) -> Tensor | None:
            before = getattr(old, name)
            if before is None:
                return None
            if name == "bias":
                drive = before.new_ones(len(tape.x), 1, 1)
            else:
                drive = inputs[name] if name in inputs else layer.neuron.drive(tape, name)
            return trace.advance_bank(before, drive, own)

        unfired = None
        if old.unfired is not None and signal is not None:
            psi = layer.neuron.slope(tape)
            assert psi is not None
            unfired = trace.advance_bank(old.unfired, psi * (1 - layer.neuron.output(tape)), signal)
        return MeanFieldTraces(
            weight=advanced("weight"),
            recurrent=advanced("recurrent"),
            bias=advanced("bias"),
            beta=advanced("beta"),
            threshold=advanced("threshold"),
            slopes=advance_slopes(layer, old.slopes, tape, signal),
            unfired=unfired,
        )

    def carry(self, layer: LayerLike, traces: Traces, border: Border, wanted: bool) -> tuple[Gradients, Tensor | None]:
        """The adjoint times the traces; hands down `W^T Lambda`."""
        past = cast(MeanFieldTraces, traces)
        adjoint = layer_adjoint(layer, border, mean_slope(past.slopes), self.hops)
        inputs = {name: z for name, z in (("weight", past.weight), ("recurrent", past.recurrent)) if z is not None}
        gradients = map_gradients(layer, inputs, adjoint.own)
        if layer.wants("bias") and past.bias is not None:
            gradients["bias"] = (adjoint.own * past.bias).sum((0, 1))
        values = layer.values()
        if layer.wants("beta") and past.beta is not None:
            gradients["beta"] = sum_to_shape((adjoint.own * past.beta).sum(1), values.beta)
        if layer.wants("threshold") and past.threshold is not None:
            per_lane = (adjoint.own * past.threshold).sum(1)
            if adjoint.signal is not None and past.unfired is not None:
                per_lane = per_lane - (adjoint.signal * past.unfired).sum(1)
            gradients["threshold"] = sum_to_shape(per_lane, values.threshold)
        if not wanted:
            return gradients, None
        return gradients, layer.transpose(own_part(layer, border) if self.paths == "own" else adjoint.own)
