"""InputTrace: the layer's own membrane carries credit into the past."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, cast

from torch import Tensor

from ..functional import trace
from .adjoint import BankRule, own_part
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


class InputTraces(NamedTuple):
    """The derivatives of a layer's membrane with respect to its parameters; None where that is no parameter."""

    weight: Tensor | None  # (B, G, n)  Z_t = q_g * Z_{t-1} + x_t; with one beta per layer, q = beta alone
    recurrent: Tensor | None  # (B, G, m)  likewise of s_{t-1}
    bias: Tensor | None  # (B, 1) or (B, m)  N_t = beta * N_{t-1} + 1
    beta: Tensor | None  # (B, m)  beta * Zbeta_{t-1} + v_{t-1}
    threshold: Tensor | None  # (B, m)  beta * Ztheta_{t-1} - s_t


def start_own(layer: LayerLike, lanes: int, nodes: Nodes) -> InputTraces:
    """The traces of lanes that have seen nothing."""
    beta = layer.values().beta
    exponentials = 1 if beta.numel() == 1 else len(nodes.own)

    def zeros(name: str, *shape: int) -> Tensor | None:
        return layer.zeros(lanes, *shape) if layer.learns(name) else None

    return InputTraces(
        weight=zeros("weight", exponentials, layer.in_features),
        recurrent=zeros("recurrent", exponentials, layer.out_features),
        bias=zeros("bias", beta.numel()),
        beta=zeros("beta", layer.out_features),
        threshold=zeros("threshold", layer.out_features),
    )


def advance_own(layer: LayerLike, old: InputTraces, tape: Tape) -> InputTraces:
    """The traces one window further, with the membranes' own decays."""
    beta = tape.values.beta
    inputs = map_inputs(layer, tape)

    def banked(name: str, before: Tensor | None) -> Tensor | None:
        return None if before is None else trace.advance_bank(before, inputs[name], own_decays(tape))

    def driven(name: str, before: Tensor | None) -> Tensor | None:
        return None if before is None else trace.advance(before, layer.neuron.drive(tape, name), beta)

    return InputTraces(
        weight=banked("weight", old.weight),
        recurrent=banked("recurrent", old.recurrent),
        bias=None if old.bias is None else trace.advance_ones(old.bias, len(tape.x), beta.reshape(old.bias.shape[1:])),
        beta=driven("beta", old.beta),
        threshold=driven("threshold", old.threshold),
    )


def own_decays(tape: Tape) -> Tensor:
    """The decays of the traces in the bank, (G,) float64: the layer's one beta, or the nodes."""
    beta = tape.values.beta
    return beta.double().reshape(1) if beta.numel() == 1 else tape.nodes.own


def own_carry(layer: LayerLike, past: InputTraces, border: Border) -> Gradients:
    """`a_0` times the layer's own traces: with a bank, `sum_g (C_ig a_0) Z_g^T`."""
    a_0: Tensor = border.leftover.mem
    values = layer.values()
    inputs = {name: z for name, z in (("weight", past.weight), ("recurrent", past.recurrent)) if z is not None}
    written = a_0[:, None] if values.beta.numel() == 1 else own_part(layer, border)
    gradients = map_gradients(layer, inputs, written)
    if layer.wants("bias") and past.bias is not None:
        gradients["bias"] = (a_0 * past.bias).sum(0)
    if layer.wants("beta") and past.beta is not None:
        gradients["beta"] = sum_to_shape(a_0 * past.beta, values.beta)
    if layer.wants("threshold") and past.threshold is not None:
        gradients["threshold"] = sum_to_shape(a_0 * past.threshold, values.threshold)
    return gradients


@dataclass(frozen=True, repr=False)
class InputTrace(BankRule):
    """Credit through the window exactly, and beyond it through the layer's own membrane. The default.

    The layer keeps the derivative of its membrane with respect to its parameters,

        Z_t = beta * Z_{t-1} + x_t      N_t = beta * N_{t-1} + 1
        Zbeta_t = beta * Zbeta_{t-1} + v_{t-1}      Ztheta_t = beta * Ztheta_{t-1} - s_t

    and adds `a_0 Z_0^T`, `a_0 N_0`, `a_0 * Zbeta_0`, `a_0 * Ztheta_0` for the gradient a_0 = dL/dv_0 that is left over
    at the window's start. Equals BPTT (reset detached, parameters fixed since the reset) for one layer with state,
    under a memoryless linear head too, with any window; in deeper networks it lacks the credit that reaches a layer's
    past spikes through the membranes above, and with recurrent weights that which comes back through them. With windows
    of one step it is OTTT (Xiao et al. 2022, "Online training through time for spiking neural networks").

    With a beta per neuron an exact Z would have n * m numbers. A bank of G traces with fixed decays q_g, of which each
    neuron's kernel is made up, `beta_i^k ~ sum_g C_ig q_g^k`, takes its place; `layer.banks()` says how well.

    Keeps n + 1 numbers per lane (with a beta per neuron G n + m), with recurrent weights m (G m) more, and m more for
    each of beta and theta that is learned.

    Args:
        nodes: G, how many exponentials the bank has.
        span: the shortest and longest time constant of the bank, in steps; by default those of the model's layers when
            a stream begins, with a margin from 1/1.5 to 2.5 times where betas are learned.
        feedback: "symmetric", or "random" for a fixed random matrix in place of W^T (see `Rule`).

    >>> InputTrace()
    InputTrace()
    """

    def grid(self, layer: LayerLike, above: Tensor | None, decays: ModelDecays) -> Tensor | None:  # noqa: ARG002
        """A bank where the layer has a beta per neuron."""
        beta = layer.values().beta
        if beta.numel() == 1:
            return None
        edges = sorted({0.0, 1.0} & {*beta.tolist()})
        return self._spaced(decays, edges, (1.5, 2.5) if layer.learns("beta") else (1.0, 1.0))

    def start(self, layer: LayerLike, lanes: int, nodes: Nodes) -> InputTraces:
        """Zeros."""
        return start_own(layer, lanes, nodes)

    def advance(self, layer: LayerLike, traces: Traces, tape: Tape) -> InputTraces:
        """One window further."""
        return advance_own(layer, cast(InputTraces, traces), tape)

    def carry(self, layer: LayerLike, traces: Traces, border: Border, wanted: bool) -> tuple[Gradients, Tensor | None]:
        """`a_0` times the layer's own traces; hands down `W^T C a_0`."""
        below = layer.transpose(own_part(layer, border)) if wanted else None
        return own_carry(layer, cast(InputTraces, traces), border), below
