"""Eligibility: credit through all membranes above, with the layer's own slopes exact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from .. import kernels
from ..functional.scan import Reverse
from ..functional.spikes import Spikes
from .adjoint import (
    AdjointRule,
    SlopeTraces,
    advance_slopes,
    check_integrators,
    faded,
    faded_leftover,
    is_recurrent,
    layer_adjoint,
    mean_slope,
    own_part,
    signal_nodes,
    start_slopes,
)
from .base import (
    MATRICES,
    Border,
    Gradients,
    LayerLike,
    Nodes,
    Pending,
    Tape,
    Traces,
    map_inputs,
    map_tensors,
    own_parameters,
    sum_to_shape,
)
from .input_trace import OwnTraces, advance_own, carried_by, own_carry, start_own, written

Window = tuple[Tensor, Tensor, Tensor | Spikes, Tensor, Tensor]
"""What a window adds to a matrix: g, border, taken, past and decay of `kernels.advance_matrix`."""


class Advancing(Pending):
    """A matrix whose latest window has yet to be added.

    Most of the time goes into reading and writing the matrices. The next thing that is asked for is as a rule what they
    make of a signal, for which they would be read once more.
    """

    def __init__(self, matrix: Tensor, *window: *Window) -> None:
        """As `kernels.advance_matrix` takes them."""
        self._matrix = matrix
        self._window: Window | None = window

    def value(self) -> Tensor:
        """The matrix, advanced."""
        if self._window:
            self._matrix = kernels.advance_matrix(self._matrix, *self._window, overwrite=self.owned)
            self._window = None
        return self._matrix

    def carry(self, signal: Tensor) -> Tensor:
        """`sum_h R_h * E_h`, (m, n)."""
        if not self._window:
            return kernels.carry_matrix(signal, self._matrix)
        carried, self._matrix = kernels.carry_advanced(signal, self._matrix, *self._window, overwrite=self.owned)
        self._window = None
        return carried


class EligibilityTraces(NamedTuple):
    """Traces of Eligibility.

    The matrices E_h = q_h E_h + psi_t * dp_t/dparameter, one for each node h of the signal: "weight" (B, H, m, n),
    "recurrent" (B, H, m, m), others (B, H, m).
    """

    own: OwnTraces
    matrices: dict[str, Tensor | Advancing]  # empty where nothing reaches the layer's outputs from the time before
    slopes: SlopeTraces | None  # None there


@dataclass(frozen=True, repr=False)
class Eligibility(AdjointRule):
    """Credit through the window exactly, and beyond it through all membranes above; the layer's own slopes are exact.

    The adjoint is continued as in `MeanField`, but what reaches a layer's past spikes meets an eligibility matrix for
    each exponential h of the signal R from above, not the product of two averages:

        E_h = q_h E_h + psi_t * dp_t/dW           dp_t/dW = beta Z_{t-1} + x_t   (likewise b, beta, theta)
        dL/dW += a_0 Z_0^T + sum_h R_h * E_h      the first term is `InputTrace`'s

    Only where the adjoint is handed further down are this layer's slopes averaged. Equals BPTT (reset detached,
    parameters fixed since the reset) for one hidden layer under a readout with one beta, through a fixed linear path,
    with any window, at any cadence; with one loss at the end of any number of steps too. There a single exponential,
    the readout's own beta, is the bank. Deeper down it is approximate, with betas per neuron up to the bank's error.

    With windows of one step it belongs to the family of e-prop (Bellec et al. 2020, doi:10.1038/s41467-020-17236-y)
    and OTPE (Summe et al. 2023, arXiv:2311.16151); the sum of exponentials, the window's reverse scan and the
    continuation through several layers are this library's.

    Keeps H n m numbers per lane (H = 1 below a readout with one beta, the bank's G elsewhere), and H m^2 more for
    recurrent weights, besides what `InputTrace` keeps. `model.state_bytes(lanes=B)` counts them before anything is run.

    Args:
        nodes: G, how many exponentials the bank has.
        span: the shortest and longest time constant of the bank, in steps; by default from those of the model's layers
            when a stream begins: from the shortest / 1.5 to 2.5 times the longest.
        hops: how often the adjoint before the border passes through recurrent weights; 0 leaves them out.
        paths: which of its adjoint a layer hands down: "all", or its "own" membranes' part alone.
        limit: bytes that the matrices of a convolution may take, which are its positions times its weights.
        feedback: "symmetric", or "random" for a fixed random matrix in place of W^T (see `Rule`).

    Raises:
        ValueError: when a stream begins: a Softmax below other layers; a convolution above the limit. At backward: a
            perfect integrator that feeds another and has layers below.

    >>> Eligibility(nodes=4)
    Eligibility(nodes=4)
    """

    limit: int = 2**30

    @property
    def only_own(self) -> bool:
        """Where it hands down no more than that: the layer's own gradients need no more either."""
        return self.paths == "own"

    def start(self, layer: LayerLike, lanes: int, nodes: Nodes) -> EligibilityTraces:
        """Zeros."""
        own = start_own(layer, lanes, nodes)
        signal = signal_nodes(layer, nodes, self.hops)
        if signal is None:
            return EligibilityTraces(own, {}, None)
        sources = {"weight": self._weights_of_a_neuron(layer, lanes * len(signal)), "recurrent": layer.out_features}
        names = [*MATRICES, "bias", *own_parameters(layer, layer.learns)]
        matrices: dict[str, Tensor | Advancing] = {}
        for name in names:
            if layer.learns(name):
                inputs = [sources[name]] if name in sources else []
                zeros = layer.zeros(lanes, len(signal), *inputs, layer.out_features)
                matrices[name] = zeros.mT if inputs else zeros  # so kernels have them, input by input in memory
        return EligibilityTraces(own, matrices, start_slopes(layer, lanes, signal))

    def _weights_of_a_neuron(self, layer: LayerLike, copies: int) -> int:
        """F, where as many numbers may be kept for each neuron."""
        kept = layer.fan_in
        if kept is None:
            raise ValueError(
                f"Eligibility: expected {layer.neuron.name} to have a synapse of which it is known which inputs each "
                f"neuron takes (a Linear or a convolution), got another. Give this layer rule=MeanField(), or "
                f"InputTrace() with a horizon."
            )
        size = copies * layer.out_features * kept * layer.zeros().element_size()
        if kept < layer.in_features and size > self.limit:
            raise ValueError(
                f"Eligibility: expected matrices of at most {self.limit:,} bytes for a convolution, got {size:,}: one "
                f"number for each position and weight, node and lane. Give this layer rule=MeanField(), or "
                f"InputTrace() with a longer horizon, or a larger limit."
            )
        return kept

    def advance(self, layer: LayerLike, traces: Traces, tape: Tape) -> EligibilityTraces:
        """One window further: the reverse scan with the probes `ls_t = q_h^(K-t)`, not summed over lanes."""
        old = cast(EligibilityTraces, traces)
        own = advance_own(layer, old.own, tape)
        signal = signal_nodes(layer, tape.nodes, self.hops)
        if old.slopes is None or signal is None:
            return EligibilityTraces(own, {}, None)
        probe = _probe(layer, tape, signal)
        leftover: Any = probe.leftover
        decay = (signal**tape.steps).to(probe.g.dtype)[:, None]
        matrices: dict[str, Tensor | Advancing] = {}
        inputs = map_inputs(layer, tape)
        if inputs:
            at_border = written(layer, faded_leftover(leftover, old.own), tape.nodes, tape.values)
            for name, taken in inputs.items():
                rows = (_tensor(old.matrices[name]), probe.g, at_border)
                if name == "recurrent" or layer.fan_in == layer.in_features:
                    matrices[name] = Advancing(*rows, taken, old.own[name], decay)
                else:
                    assert isinstance(taken, Tensor)
                    matrices[name] = _advance_patches(*rows, layer.patches(taken), layer.patches(old.own[name]), decay)
        added, sums = dict(probe.own), probe.sums
        if "bias" in old.own:
            added["bias"] = probe.g.sum(0) if sums is None else sums.total
        for name, within in added.items():
            chain = layer.neuron.chain(tape.values, "input" if name == "bias" else name)
            carried = within + carried_by(leftover, old.own[name], chain)
            matrices[name] = decay * _tensor(old.matrices[name]) + carried.transpose(0, 1)
        driven = None if sums is None else sums.driven
        return EligibilityTraces(own, matrices, advance_slopes(layer, old.slopes, tape, signal, driven))

    def carry(self, layer: LayerLike, traces: Traces, border: Border, wanted: bool) -> tuple[Gradients, Tensor | None]:
        """`a_0` times the own traces, and the signal times the eligibility matrices; hands down `W^T Lambda`."""
        past = cast(EligibilityTraces, traces)
        gradients = own_carry(layer, past.own, border)
        border = faded(border, past.own)
        if (wanted and not self.only_own) or is_recurrent(layer, self.hops):
            check_integrators("Eligibility", layer, signal_nodes(layer, border.nodes, self.hops))
            adjoint = layer_adjoint(layer, border, mean_slope(past.slopes), self.hops)
            signal = adjoint.signal
        else:
            adjoint, signal = None, border.above
        if signal is not None:
            self._add_signal(layer, gradients, signal, past.matrices)
        if not wanted:
            return gradients, None
        handed = own_part(layer, border) if adjoint is None or self.paths == "own" else adjoint.current
        return gradients, layer.transpose(handed)

    def _add_signal(
        self, layer: LayerLike, gradients: Gradients, signal: Tensor, matrices: Mapping[str, Tensor | Advancing]
    ) -> None:
        """`sum_h R_h * E_h`."""
        values = layer.values()
        for name, matrix in matrices.items():
            if not layer.wants(name):
                continue
            if name in MATRICES:
                each = matrix.carry(signal) if isinstance(matrix, Advancing) else kernels.carry_matrix(signal, matrix)
                gradients[name] += layer.fold(each) if name == "weight" else each
                continue
            per_lane = (signal * _tensor(matrix)).sum(1)
            gradients[name] += per_lane.sum(0) if name == "bias" else sum_to_shape(per_lane, values[name])


def _tensor(matrix: Tensor | Advancing) -> Tensor:
    return matrix.value() if isinstance(matrix, Advancing) else matrix


def _probe(layer: LayerLike, tape: Tape, signal: Tensor) -> Reverse:
    """The reverse scan for the signals `q_h^(K-t)`, each the same for all neurons, recurrent weights left out.

    Its results have H before B.
    """
    lags = torch.arange(tape.steps - 1, -1, -1, dtype=signal.dtype, device=signal.device)
    probes = (signal ** lags[:, None]).to(layer.zeros().dtype)[:, :, None, None]
    widened = tape._replace(
        record=map_tensors(lambda steps: steps[:, None], tape.record),
        start=map_tensors(lambda state: state[None], tape.start),
        values={name: value for name, value in tape.values.items() if name != "recurrent"},
    )
    return layer.neuron.reverse(widened, probes, own_parameters(layer, layer.learns))


def _advance_patches(
    before: Tensor, g: Tensor, at_border: Tensor, taken: Tensor, past: Tensor, decay: Tensor
) -> Tensor:
    """The same where neurons take other inputs: taken (K, B, m, F), past (B, G, m, F), before (B, H, m, F)."""
    within = torch.einsum("khbm,kbmf->bhmf", g, taken)
    return before * decay[..., None] + within + torch.einsum("hbgm,bgmf->bhmf", at_border, past)
