"""MeanRate: the original traceTorch's rule, in which the past is one average step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

from torch import Tensor

from ..functional import trace
from .base import Backward, Gradients, LayerLike, Nodes, Rule, Segment, Tape, Traces, Wanted, sum_to_shape


class MeanRateTraces(NamedTuple):
    """The traces of MeanRate, all with the rule's own decay a."""

    inputs: Tensor  # (B, n)  z_t = a * z_{t-1} + x_t
    norm: Tensor | None  # (B, 1), (B, n) where a is learned: a * norm + 1, for the start-up correction
    outputs: Tensor | None  # (B, m)  a trace of the output, where the value is measured
    output_norm: Tensor | None  # (B, 1)


@dataclass(frozen=True, repr=False)
class MeanRate(Rule):
    """The past as one average step, with the neuron's firing rate in closed form.

        z = a * z + x        nrm = a * nrm + 1           at every step
        x_bar = z / nrm      I = W x_bar + b             at backward
        f = rate(I, beta, theta)                         the average output

    `ls` is summed over the window; the gradients of W, b, beta, theta are those of f, and each of the window's K steps
    hands dL/dx_bar / K to the layer below. The rule of Yegor-men's traceTorch. It is *not* the gradient of BPTT, with
    any window: it is the gradient of the estimate f.

    Keeps n numbers per lane, and 1 more for the start-up correction (n more where the decay is learned); m + 1 more
    where the value is measured.

    Args:
        decay: a, the decay of the trace per step, in [0, 1); its memory is 1 / (1 - a) steps.
        rate: which estimate a LIF uses: "sigmoid", the original's, or "balance" (see `functional.rate`). Readouts
            have one estimate of their own.
        value: "modelled" takes f from the estimate; "measured" takes the trace average of the output itself (a
            Softmax: of its probabilities), and only the slope is modelled.
        correct_start: divide by the normaliser nrm; without it, x_bar = z * (1 - a), which is too small at the start. A
            measured output is always corrected.
        learn_decay: make a a parameter per input, with the original's formula
            `dL/da_j = sum over lanes of (W^T dL/dI)_j * (-z_j)`. A heuristic: the output does not depend on a. The
            trace of a measured output keeps the decay given.
        feedback: "symmetric", or "random" for a fixed random matrix in place of W^T (see `Rule`).

    >>> MeanRate(rate="balance").value
    'modelled'
    """

    decay: float = 0.9
    rate: Literal["sigmoid", "balance"] = "balance"
    value: Literal["modelled", "measured"] = "modelled"
    correct_start: bool = True
    learn_decay: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.decay < 1 or (self.learn_decay and self.decay == 0):
            raise ValueError(
                f"MeanRate: expected decay in [0, 1), and above 0 where it is learned, got {self.decay}. "
                f"For a memory of n steps give 1 - 1 / n."
            )
        for name, allowed in (("rate", ("sigmoid", "balance")), ("value", ("modelled", "measured"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"MeanRate: expected {name} to be one of {allowed}, got {getattr(self, name)!r}.")

    def check(self, layer: LayerLike) -> None:
        """Refuse a readout that is a perfect integrator, whose average output has no limit, and recurrent weights.

        Raises:
            ValueError: a readout has beta = 1; recurrent weights, which the estimate knows nothing of.
        """
        values, neuron = layer.values(), layer.neuron
        if "recurrent" in values:
            raise ValueError(
                f"MeanRate: expected {neuron.name} without recurrent weights, which the estimate of its rate "
                f"leaves out, got some. Choose rule=InputTrace() for this layer."
            )
        if neuron.rate(self.rate) is None:
            raise ValueError(
                f"MeanRate: expected a neuron whose firing rate it has an estimate of (a LIF with a subtractive reset, "
                f"an LI, a Softmax), got {neuron.name} with others of its options. Choose rule=InputTrace() for this "
                f"layer."
            )
        if not neuron.spiking and bool((values["beta"] == 1).any()):
            raise ValueError(
                f"MeanRate: expected {neuron.name} to have beta below 1, got 1, with which its average output "
                f"I / (1 - beta) is infinite. Give a smaller beta, or choose rule=InputTrace() for this layer."
            )

    def decay_start(self, layer: LayerLike) -> tuple[Tensor, bool]:
        """The decay a: one for the layer, or one per input where it is learned."""
        shape = (layer.in_features,) if self.learn_decay else ()
        return layer.zeros(*shape) + self.decay, self.learn_decay

    def start(self, layer: LayerLike, lanes: int, nodes: Nodes) -> MeanRateTraces:  # noqa: ARG002
        """Zeros."""
        measured = self.value == "measured"
        return MeanRateTraces(
            inputs=layer.zeros(lanes, layer.in_features),
            norm=layer.zeros(lanes, layer.in_features if self.learn_decay else 1) if self.correct_start else None,
            outputs=layer.zeros(lanes, layer.out_features) if measured else None,
            output_norm=layer.zeros(lanes, 1) if measured else None,
        )

    def advance(self, layer: LayerLike, traces: Traces, tape: Tape) -> MeanRateTraces:
        """One window further."""
        old = cast(MeanRateTraces, traces)
        steps = tape.steps
        a, fixed = cast(Tensor, tape.decay), layer.zeros() + self.decay
        return MeanRateTraces(
            inputs=trace.advance(old.inputs, tape.x, a),
            norm=None if old.norm is None else trace.advance_ones(old.norm, steps, a),
            outputs=None if old.outputs is None else trace.advance(old.outputs, layer.neuron.output(tape), fixed),
            output_norm=None if old.output_norm is None else trace.advance_ones(old.output_norm, steps, fixed),
        )

    def backward(
        self,
        layer: LayerLike,
        segments: Sequence[Segment],
        traces: Traces,
        ls: Sequence[Tensor | None],
        above: Tensor | None,  # noqa: ARG002
        wanted: Wanted,
    ) -> Backward:
        """The gradients of the estimate f at the average input, the latest windows included."""
        past = cast(MeanRateTraces, traces)
        for segment in segments:
            past = segment.forget(self.advance(layer, past, segment.tape.opened()))
        tape: Tape = segments[-1].tape
        signals = [signal.sum(0) for signal in ls if signal is not None]
        beta, threshold, a = tape.values["beta"], tape.values.get("threshold"), tape.decay
        assert a is not None
        x_bar = past.inputs * (1 - a) if past.norm is None else trace.average(past.inputs, past.norm)
        current = layer.current(x_bar)
        estimate = layer.neuron.rate(self.rate)
        assert estimate is not None
        if past.outputs is None or past.output_norm is None:
            value = estimate.value(current, beta, threshold)
        else:
            value = trace.average(past.outputs, past.output_norm)
        d = estimate.gradients(sum(signals[1:], signals[0]), value, current, beta, threshold)

        gradients: Gradients = {}
        if layer.wants("weight"):
            gradients["weight"] = layer.weight_gradient(x_bar, d.current)
        if layer.wants("bias"):
            gradients["bias"] = d.current.sum(0)
        if layer.wants("beta"):
            gradients["beta"] = sum_to_shape(d.beta, beta)
        if layer.wants("threshold"):
            gradients["threshold"] = sum_to_shape(cast(Tensor, d.threshold), cast(Tensor, threshold))
        below = layer.transpose(d.current) if wanted.signal or layer.wants("decay") else None
        if layer.wants("decay"):
            assert below is not None
            gradients["decay"] = -(below * past.inputs).sum(0)
        ls_below: list[Tensor | None] = [None] * len(segments)
        if below is not None and wanted.signal:
            steps = segments[-1].steps
            ls_below[-1] = (below / steps).expand(steps, *below.shape)
        return Backward(gradients, ls_below, None)
