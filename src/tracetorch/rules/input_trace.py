"""InputTrace: the layer's own membrane carries credit into the past."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from .. import kernels
from ..functional import trace
from ..functional.scan import Values
from ..functional.trace import Stage
from .adjoint import (
    BankRule,
    advance_survival,
    are_nodes,
    continued,
    faded,
    faded_leftover,
    is_shared,
    own_part,
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
    map_inputs,
    own_parameters,
    sum_to_shape,
)

OwnTraces = dict[str, Tensor]
"""The derivatives of a layer's state with respect to its parameters, spikes held fixed, for those that it learns.

    "weight"      (B, S, n)  of the S stages of the input's chain, such as Z_t = beta * Z_{t-1} + x_t; where neurons
                             have decays of their own: (B, G, n) of the input alone, with the decays of the nodes
    "recurrent"   (B, S, m)  likewise of s_{t-1}
    "bias"        (B, S, 1)  likewise of 1; (B, S, m) where it is another number for each neuron
    others        (B, S, m)  of the stages that the parameter has a part in
    "survival"    (B, 2, m)  see `rules.adjoint.start_survival`
"""


def start_own(layer: LayerLike, lanes: int, nodes: Nodes) -> OwnTraces:
    """The traces of lanes that have seen nothing."""
    neuron, values = layer.neuron, layer.values()
    chain = neuron.chain(values, "input")
    stages = len(chain) if is_shared(chain) else len(nodes.own)
    one_number = is_shared(chain) and not neuron.resets_to_zero
    sizes = {
        "weight": (stages, layer.in_features),
        "recurrent": (stages, layer.out_features),
        "bias": (len(chain), 1 if one_number else layer.out_features),
    }
    for name in own_parameters(layer, layer.learns):
        sizes[name] = (len(neuron.chain(values, name)), layer.out_features)
    traces = {name: layer.zeros(lanes, *size) for name, size in sizes.items() if layer.learns(name)}
    return traces | start_survival(layer, lanes)


def advance_own(layer: LayerLike, old: OwnTraces, tape: Tape) -> OwnTraces:
    """The traces one window further, with the values that its steps were run with."""
    neuron, values = layer.neuron, tape.values
    kept = neuron.silent(tape) if neuron.resets_to_zero else None
    chain = neuron.chain(values, "input")
    new = advance_survival(layer, old, tape)
    for name, taken in map_inputs(layer, tape).items():
        if is_shared(chain):
            new[name] = kernels.advance_chain(old[name], taken, chain)
        else:
            new[name] = kernels.advance_bank(old[name], taken, tape.nodes.own)
    if "bias" in old:
        new["bias"] = _advance_bias(old["bias"], tape.steps, chain, kept)
    for name in own_parameters(layer, layer.learns):
        own = neuron.chain(values, name)
        ends = own[-1].state == chain[-1].state
        new[name] = kernels.advance_chain(old[name], neuron.drive(tape, name), own, kept if ends else None)
    return new


def _advance_bias(old: Tensor, steps: int, chain: tuple[Stage, ...], kept: Tensor | None) -> Tensor:
    only = chain[0]
    if len(chain) == 1 and kept is None and isinstance(only.gain, float) and only.gain == 1:
        return trace.advance_ones(old[:, 0], steps, only.decay)[:, None]
    return kernels.advance_chain(old, old.new_ones(steps, 1, 1).expand(-1, *old[:, 0].shape), chain, kept)


def own_carry(layer: LayerLike, past: OwnTraces, border: Border) -> Gradients:
    """dL/dstate times the layer's own traces; the matrices' do not know of resets to zero, see `faded`."""
    values, leftover = layer.values(), border.leftover
    inputs = {name: past[name] for name in MATRICES if name in past}
    gradients = map_gradients(layer, inputs, written(layer, faded_leftover(leftover, past), border.nodes, values))
    if layer.wants("bias"):
        gradients["bias"] = carried_by(leftover, past["bias"], layer.neuron.chain(values, "input")).sum(0)
    for name in own_parameters(layer, layer.wants):
        per_lane = carried_by(leftover, past[name], layer.neuron.chain(values, name))
        gradients[name] = sum_to_shape(per_lane, values[name])
    return gradients


def carried_by(leftover: Any, traces: Tensor, chain: tuple[Stage, ...]) -> Tensor:
    """`sum_s dL/dstate^s Z^s`, (B, m)."""
    stages: Iterator[Tensor] = (getattr(leftover, stage.state) * traces[:, s] for s, stage in enumerate(chain))
    return sum(stages, next(stages))


def written(layer: LayerLike, leftover: Any, nodes: Nodes, values: Values) -> Tensor:
    """dL/dstate (..., m) in the exponentials or stages of the matrices' traces: (..., G or S, m)."""
    chain = layer.neuron.chain(values, "input")
    if is_shared(chain):
        return torch.stack([getattr(leftover, stage.state) for stage in chain], -2)
    return continued(layer, leftover, nodes, values)[1].to(leftover.mem.dtype)


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
        chain = layer.neuron.chain(layer.values(), "input")
        if are_nodes(chain):
            return None
        edges = {0.0, 1.0} & {decay for stage in chain for decay in stage.decay.reshape(-1).tolist()}
        steady = len(chain) == 1 and not layer.learns(chain[0].parameter)
        return self._spaced(decays, sorted(edges), (1.0, 1.0) if steady else (1.5, 2.5))

    def start(self, layer: LayerLike, lanes: int, nodes: Nodes) -> OwnTraces:
        """Zeros."""
        return start_own(layer, lanes, nodes)

    def advance(self, layer: LayerLike, traces: Traces, tape: Tape) -> OwnTraces:
        """One window further."""
        return advance_own(layer, cast(OwnTraces, traces), tape)

    def carry(self, layer: LayerLike, traces: Traces, border: Border, wanted: bool) -> tuple[Gradients, Tensor | None]:
        """`a_0` times the layer's own traces; hands down `W^T C a_0`."""
        past = cast(OwnTraces, traces)
        below = layer.transpose(own_part(layer, faded(border, past))) if wanted else None
        return own_carry(layer, past, border), below
