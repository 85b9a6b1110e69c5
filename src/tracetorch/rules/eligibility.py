"""Eligibility: credit through all membranes above, with the layer's own slopes exact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor

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
from .base import Border, Gradients, LayerLike, Nodes, Tape, Traces, map_inputs, sum_to_shape
from .input_trace import InputTraces, advance_own, own_carry, start_own


class EligibilityMatrices(NamedTuple):
    """E_h = q_h E_h + psi_t * dp_t/dparameter, one for each node h of the signal; None where that is no parameter."""

    weight: Tensor | None  # (B, H, m, n)
    recurrent: Tensor | None  # (B, H, m, m)
    bias: Tensor | None  # (B, H, m)
    beta: Tensor | None  # (B, H, m)
    threshold: Tensor | None  # (B, H, m)
    slopes: SlopeTraces


class EligibilityTraces(NamedTuple):
    """Traces of Eligibility."""

    own: InputTraces
    signal: EligibilityMatrices | None  # None where nothing reaches the layer's outputs from the time before


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
        feedback: "symmetric", or "random" for a fixed random matrix in place of W^T (see `Rule`).

    Raises:
        ValueError: when a stream begins: a Softmax below other layers. At backward: a perfect integrator that feeds
            another and has layers below.

    >>> Eligibility(nodes=4)
    Eligibility(nodes=4)
    """

    @property
    def only_own(self) -> bool:
        """Where it hands down no more than that: the layer's own gradients need no more either."""
        return self.paths == "own"

    def start(self, layer: LayerLike, lanes: int, nodes: Nodes) -> EligibilityTraces:
        """Zeros."""
        own = start_own(layer, lanes, nodes)
        signal = signal_nodes(layer, nodes, self.hops)
        slopes = start_slopes(layer, lanes, signal)
        if signal is None or slopes is None:
            return EligibilityTraces(own, None)
        h, m = len(signal), layer.out_features

        def zeros(name: str, *shape: int) -> Tensor | None:
            return layer.zeros(lanes, h, m, *shape) if layer.learns(name) else None

        matrices = EligibilityMatrices(
            weight=zeros("weight", layer.in_features),
            recurrent=zeros("recurrent", m),
            bias=zeros("bias"),
            beta=zeros("beta"),
            threshold=zeros("threshold"),
            slopes=slopes,
        )
        return EligibilityTraces(own, matrices)

    def advance(self, layer: LayerLike, traces: Traces, tape: Tape) -> EligibilityTraces:
        """One window further: the reverse scan with the probes `ls_t = q_h^(K-t)`, not summed over lanes."""
        old = cast(EligibilityTraces, traces)
        own = advance_own(layer, old.own, tape)
        signal = signal_nodes(layer, tape.nodes, self.hops)
        if old.signal is None or signal is None:
            return EligibilityTraces(own, None)
        steps = len(tape.x)
        lags = torch.arange(steps - 1, -1, -1, dtype=signal.dtype, device=signal.device)
        probe = layer.neuron.probe(tape, (signal ** lags[:, None]).to(tape.x.dtype))
        decay = (signal**steps).to(tape.x.dtype)[:, None]
        a_0: Tensor = probe.leftover.mem
        inputs = map_inputs(layer, tape)
        kernels = None
        if tape.values.beta.numel() > 1:
            kernels = layer.bank(tape.nodes.own, tape.nodes.above, tape.values.beta).kernels.to(a_0.dtype)

        def matrix(name: str) -> Tensor | None:
            before, z_0 = getattr(old.signal, name), getattr(old.own, name)
            return None if before is None else _advance_matrix(before, probe.g, inputs[name], a_0, z_0, decay, kernels)

        def vector(name: str, added: Tensor | None) -> Tensor | None:
            before, z_0 = getattr(old.signal, name), getattr(old.own, name)
            if before is None or added is None:
                return None
            after: Tensor = decay * before + (added + a_0 * z_0).transpose(0, 1)
            return after

        return EligibilityTraces(
            own,
            EligibilityMatrices(
                weight=matrix("weight"),
                recurrent=matrix("recurrent"),
                bias=vector("bias", probe.g.sum(0)),
                beta=vector("beta", probe.beta),
                threshold=vector("threshold", probe.threshold),
                slopes=cast(SlopeTraces, advance_slopes(layer, old.signal.slopes, tape, signal)),
            ),
        )

    def carry(self, layer: LayerLike, traces: Traces, border: Border, wanted: bool) -> tuple[Gradients, Tensor | None]:
        """`a_0` times the own traces, and the signal times the eligibility matrices; hands down `W^T Lambda`."""
        past = cast(EligibilityTraces, traces)
        gradients = own_carry(layer, past.own, border)
        slopes = None if past.signal is None else past.signal.slopes
        if (wanted and not self.only_own) or is_recurrent(layer, self.hops):
            check_integrators("Eligibility", layer, signal_nodes(layer, border.nodes, self.hops))
            adjoint = layer_adjoint(layer, border, mean_slope(slopes), self.hops)
            signal = adjoint.signal
        else:
            adjoint, signal = None, border.above
        values = layer.values()
        if past.signal is not None and signal is not None:
            for name in ("weight", "recurrent"):
                if layer.wants(name):
                    gradients[name] += torch.einsum("bhm,bhmn->mn", signal, getattr(past.signal, name))
            for name, parameter in (("bias", None), ("beta", values.beta), ("threshold", values.threshold)):
                if layer.wants(name):
                    per_lane = (signal * getattr(past.signal, name)).sum(1)
                    gradients[name] += per_lane.sum(0) if parameter is None else sum_to_shape(per_lane, parameter)
        if not wanted:
            return gradients, None
        handed = own_part(layer, border) if adjoint is None or self.paths == "own" else adjoint.own
        return gradients, layer.transpose(handed)


def _advance_matrix(
    before: Tensor, g: Tensor, inputs: Tensor, a_0: Tensor, z_0: Tensor, decay: Tensor, kernels: Tensor | None
) -> Tensor:
    """`q_h^K E_h + sum_t g_t x_t^T + a_0 Z_0^T` for each lane, as one batched product.

    Args:
        before: (B, H, m, n) E_h before the window.
        g: (K, H, B, m) from the probes.
        inputs: (K, B, n).
        a_0: (H, B, m) left over of the probes.
        z_0: (B, G, n) the layer's own traces before the window.
        decay: (H, 1) q_h^K.
        kernels: (m, G) C; None where the layer has one beta.
    """
    lanes, h, m, n = before.shape
    written = a_0[None] if kernels is None else a_0[None] * kernels.t()[:, None, None]
    rows = torch.cat([g, written]).permute(2, 1, 3, 0).reshape(lanes, h * m, -1)
    columns = torch.cat([inputs.transpose(0, 1), z_0], 1)
    kept = (before * decay[..., None]).view(lanes, h * m, n)
    return torch.baddbmm(kept, rows, columns).view(lanes, h, m, n)
