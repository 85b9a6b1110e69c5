"""MeanField: credit through all membranes above, with each layer's mean slope."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, cast

from torch import Tensor

from .. import kernels
from .adjoint import (
    AdjointRule,
    SlopeTraces,
    advance_slopes,
    advance_survival,
    check_integrators,
    faded,
    is_recurrent,
    layer_adjoint,
    mean_slope,
    own_part,
    signal_nodes,
    start_slopes,
    start_survival,
)
from .base import (
    MATRICES,
    Border,
    Gradients,
    LayerLike,
    ModelDecays,
    Nodes,
    Tape,
    Traces,
    map_gradients,
    map_numbers,
    own_parameters,
    sum_to_shape,
)


class MeanFieldTraces(NamedTuple):
    """Traces of MeanField."""

    drives: dict[str, Tensor]  # (B, G, ...) of x_t as "weight", s_{t-1} as "recurrent", 1, and each parameter's drive
    slopes: SlopeTraces | None  # None where there is no signal
    slope_drives: dict[str, Tensor]  # (B, H, m) of what psi makes of the signal, such as -psi_t (1 - s_t) for theta


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
        widths = {"weight": layer.in_features, "recurrent": m, "bias": 1} | dict.fromkeys(self._parameters(layer), m)
        return MeanFieldTraces(
            {name: layer.zeros(lanes, g, width) for name, width in widths.items() if layer.learns(name)}
            | start_survival(layer, lanes),
            start_slopes(layer, lanes, signal),
            {
                name: layer.zeros(lanes, len(signal), m)
                for name in self._parameters(layer)
                if signal is not None and name in layer.neuron.direct
            },
        )

    def advance(self, layer: LayerLike, traces: Traces, tape: Tape) -> MeanFieldTraces:
        """One window further."""
        old = cast(MeanFieldTraces, traces)
        own, signal = tape.nodes.own, signal_nodes(layer, tape.nodes, self.hops)
        drives = map_numbers(layer, tape)
        if "bias" in old.drives:
            drives["bias"] = tape.x.new_ones(len(tape.x), 1, 1)
        for name in self._parameters(layer):
            drives[name] = layer.neuron.drive(tape, name)
        slope_drives = {}
        for name, before in old.slope_drives.items():
            assert signal is not None
            slope_drives[name] = kernels.advance_bank(before, layer.neuron.slope_drive(tape, name), signal)
        return MeanFieldTraces(
            {name: kernels.advance_bank(old.drives[name], drive, own) for name, drive in drives.items()}
            | advance_survival(layer, old.drives, tape),
            advance_slopes(layer, old.slopes, tape, signal),
            slope_drives,
        )

    def _parameters(self, layer: LayerLike) -> list[str]:
        """The neuron's own learned parameters whose chain ends in the membrane."""
        chain = layer.neuron.chain(layer.values(), "input")
        return [
            name
            for name in own_parameters(layer, layer.learns)
            if layer.neuron.chain(layer.values(), name)[-1].state == chain[-1].state
        ]

    def carry(self, layer: LayerLike, traces: Traces, border: Border, wanted: bool) -> tuple[Gradients, Tensor | None]:
        """The adjoint times the traces; hands down `W^T Lambda`."""
        past = cast(MeanFieldTraces, traces)
        border = faded(border, past.drives)
        adjoint = layer_adjoint(layer, border, mean_slope(past.slopes), self.hops)
        gradients = map_gradients(
            layer, {name: past.drives[name] for name in MATRICES if name in past.drives}, adjoint.current
        )
        if layer.wants("bias"):
            gradients["bias"] = (adjoint.current * past.drives["bias"]).sum((0, 1))
        values = layer.values()
        for name in self._parameters(layer):
            if not layer.wants(name):
                continue
            entered = layer.neuron.chain(values, name)[0].state
            per_lane = (adjoint.states[entered] * past.drives[name]).sum(1)
            if adjoint.signal is not None and name in past.slope_drives:
                per_lane = per_lane + (adjoint.signal * past.slope_drives[name]).sum(1)
            gradients[name] = sum_to_shape(per_lane, values[name])
        if not wanted:
            return gradients, None
        return gradients, layer.transpose(own_part(layer, border) if self.paths == "own" else adjoint.current)
