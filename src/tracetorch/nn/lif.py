"""The leaky integrate-and-fire layer."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..functional import rate, scan
from ..functional.surrogate import ArcTan, Surrogate
from ..rules.base import MembraneState, Reverse, Rule, Tape, Values
from .constraint import OneOrEach
from .layer import Layer, NeuronScan


class LIFRecord(NamedTuple):
    """What the reverse scan needs: spike, slope and post-reset membrane all follow from u."""

    u: Tensor  # (K, B, m)


class SpikingState(NamedTuple):
    """The state of recurrent spiking neurons; also the gradient with respect to it."""

    mem: Tensor  # (B, m)
    spk: Tensor  # (B, m) the spikes of the latest step


class LIFNeuron:
    """The dynamics of `LIF`."""

    name = "LIF"

    def __init__(self, surrogate: Surrogate, recurrent: bool) -> None:
        self.surrogate = surrogate
        self.recurrent = recurrent

    def rest(self, zeros: Tensor) -> MembraneState | SpikingState:
        """Membranes at zero, no spikes."""
        return SpikingState(zeros, zeros.clone()) if self.recurrent else MembraneState(zeros)

    def scan(self, values: Values, current: Tensor, start: Any) -> NeuronScan:
        """A window of steps."""
        recurrence = None if values.recurrent is None else scan.Recurrence(values.recurrent, start.spk)
        spk, u, mem = scan.lif(
            current, start.mem, values.beta, cast(Tensor, values.threshold), self.surrogate, recurrence
        )
        state = SpikingState(mem, spk[-1].clone()) if self.recurrent else MembraneState(mem)
        return NeuronScan(spk, LIFRecord(u), state)

    def reverse(self, tape: Tape, ls: Tensor | None, ahead: Any = None) -> Reverse:
        """The window backwards."""
        beta, threshold, _, recurrent = tape.values
        recurrence = None
        if recurrent is not None:
            recurrence = scan.Recurrence(recurrent, None if ahead is None else ahead.spk)
        run = scan.lif_reverse(
            ls,
            tape.record.u,
            tape.start.mem,
            beta,
            cast(Tensor, threshold),
            self.surrogate,
            None if ahead is None else ahead.mem,
            recurrence,
        )
        leftover = MembraneState(run.mem) if run.spk is None else SpikingState(run.mem, run.spk)
        return Reverse(run.g, leftover, run.beta, run.threshold)

    def probe(self, tape: Tape, probe: Tensor) -> Reverse:
        """The window backwards for signals (K, H) that all neurons share."""
        run = scan.lif_reverse(
            probe[:, :, None, None],
            tape.record.u[:, None],
            tape.start.mem[None],
            tape.values.beta,
            cast(Tensor, tape.values.threshold),
            self.surrogate,
        )
        return Reverse(run.g, MembraneState(run.mem), run.beta, run.threshold)

    def drive(self, tape: Tape, name: str) -> Tensor:
        """`v_{t-1}` for beta, `-s_t` for the threshold, `s_{t-1}` for recurrent weights."""
        spk = self.output(tape)
        if name == "threshold":
            return -spk
        if name == "recurrent":
            return scan.previous(spk, tape.start.spk)
        after = scan.lif_membrane(tape.record.u, cast(Tensor, tape.values.threshold), spk)
        return scan.previous(after, tape.start.mem)

    def output(self, tape: Tape) -> Tensor:
        """The spikes."""
        return self.surrogate.spike(tape.record.u)

    def slope(self, tape: Tape) -> Tensor:
        """The surrogate's."""
        return self.surrogate.slope(tape.record.u)

    def rate(self, name: str) -> rate.RateEstimate:
        """The estimate of the firing rate named."""
        return rate.Sigmoid() if name == "sigmoid" else rate.Balance()


class LIF(Layer):
    """Leaky integrate-and-fire neurons with a subtractive reset.

        p_t = beta * v_{t-1} + W x_t + b          membrane before the reset; recurrent: + U s_{t-1}
        s_t = [p_t >= theta]                      output spike
        v_t = p_t - theta * s_t                   membrane after the reset; no gradient through this s_t

    Args:
        in_features: n.
        out_features: m.
        synapse: an `nn.Linear` to use as it is, instead of the two sizes.
        bias: whether the synapse made from the two sizes has a bias.
        beta: decay of the membrane per step, in [0, 1] (dimensionless): one number, or one per neuron (m,). 0.9.
        tau: its time constant in steps instead of beta: `beta = exp(-1 / tau)`.
        threshold: theta, above 0 (dimensionless): one number, or one per neuron (m,).
        recurrent: add weights U from each neuron's spike of the step before to all neurons, the parameter
            `recurrent_weight` (m, m), to row i from column j.
        self_connections: whether U has a diagonal; without it the diagonal counts as zero.
        learn_beta: make beta a parameter, `raw_beta`, inside (0, 1).
        learn_threshold: make theta a parameter, `raw_threshold`, above 0.
        surrogate: the pseudo-derivative of the spike.
        rule: the learning rule of this layer; by default the model's.
        device: of the parameters.
        dtype: of the parameters.

    Shapes: a step (B, n) -> (B, m); a window (K, B, n) -> (K, B, m).

    Raises:
        ValueError: beta outside [0, 1], tau or threshold not above 0, both beta and tau, sizes and a synapse.
        NotImplementedError: a synapse that is not known to be linear.

    >>> layer = LIF(2, 3, beta=0.5)
    >>> layer(torch.zeros(4, 2)).shape
    torch.Size([4, 3])
    """

    neuron: LIFNeuron

    def __init__(
        self,
        in_features: int | None = None,
        out_features: int | None = None,
        *,
        synapse: nn.Module | None = None,
        bias: bool = True,
        beta: OneOrEach | None = None,
        tau: OneOrEach | None = None,
        threshold: OneOrEach = 1.0,
        recurrent: bool = False,
        self_connections: bool = True,
        learn_beta: bool = False,
        learn_threshold: bool = False,
        surrogate: Surrogate | None = None,
        rule: Rule | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        surrogate = ArcTan() if surrogate is None else surrogate
        if not isinstance(surrogate, Surrogate):
            raise TypeError(
                f"LIF: expected surrogate to be a Surrogate such as surrogate.ArcTan(), got {surrogate!r}. "
                f"Wrap a pair of functions in surrogate.Custom(spike, slope)."
            )
        super().__init__(
            in_features,
            out_features,
            LIFNeuron(surrogate, recurrent),
            synapse=synapse,
            bias=bias,
            beta=beta,
            tau=tau,
            learn_beta=learn_beta,
            threshold=threshold,
            learn_threshold=learn_threshold,
            recurrent=recurrent,
            self_connections=self_connections,
            rule=rule,
            device=device,
            dtype=dtype,
        )

    @property
    def surrogate(self) -> Surrogate:
        """The firing function and its pseudo-derivative."""
        return self.neuron.surrogate
