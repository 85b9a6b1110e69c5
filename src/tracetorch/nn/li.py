"""The leaky integrator, the non-spiking readout."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..functional import rate, scan
from ..rules.base import MembraneState, Reverse, Rule, Tape, Values
from .constraint import OneOrEach
from .layer import Layer, NeuronScan


class LIRecord(NamedTuple):
    """What the reverse scan needs."""

    mem: Tensor  # (K, B, m) membrane after each step


class LINeuron:
    """The dynamics of `LI`."""

    name = "LI"

    def rest(self, zeros: Tensor) -> MembraneState:
        """Membranes at zero."""
        return MembraneState(zeros)

    def scan(self, values: Values, current: Tensor, start: MembraneState) -> NeuronScan:
        """A window of steps."""
        mem = scan.li(current, start.mem, values.beta)
        return NeuronScan(mem, LIRecord(mem), MembraneState(mem[-1].clone()))

    def reverse(self, tape: Tape, ls: Tensor | None, ahead: MembraneState | None = None) -> Reverse:
        """The window backwards."""
        beyond = None if ahead is None else ahead.mem
        g, mem, d_beta, *_ = scan.li_reverse(ls, tape.record.mem, tape.start.mem, tape.values.beta, beyond)
        return Reverse(g, MembraneState(mem), d_beta, None)

    def probe(self, tape: Tape, probe: Tensor) -> Reverse:
        """The window backwards for signals (K, H) that all neurons share."""
        mem = tape.record.mem[:, None]
        signals = probe[:, :, None, None].expand(*probe.shape, *mem.shape[2:])
        g, a_0, d_beta, *_ = scan.li_reverse(signals, mem, tape.start.mem[None], tape.values.beta)
        return Reverse(g, MembraneState(a_0), d_beta, None)

    def slope(self, tape: Tape) -> Tensor | None:
        """1: the output is the membrane."""
        return torch.ones_like(tape.record.mem)

    def drive(self, tape: Tape, name: str) -> Tensor:  # noqa: ARG002
        """`v_{t-1}`, for beta."""
        return scan.previous(tape.record.mem, tape.start.mem)

    def output(self, tape: Tape) -> Tensor:
        """The membranes."""
        mem: Tensor = tape.record.mem
        return mem

    def rate(self, name: str) -> rate.RateEstimate:  # noqa: ARG002
        """The membrane that a constant current settles at."""
        return rate.Linear()


class LI(Layer):
    """Leaky integrators: the readout whose output is its membrane.

        v_t = beta * v_{t-1} + W x_t + b          output: v_t

    Args:
        in_features: n.
        out_features: m.
        synapse: an `nn.Linear` to use as it is, instead of the two sizes.
        bias: whether the synapse made from the two sizes has a bias.
        beta: decay of the membrane per step, in [0, 1] (dimensionless): one number, or one per neuron (m,). 0.9.
        tau: its time constant in steps instead of beta: `beta = exp(-1 / tau)`.
        learn_beta: make beta a parameter, `raw_beta`, inside (0, 1).
        rule: the learning rule of this layer; by default the model's.
        device: of the parameters.
        dtype: of the parameters.

    Shapes: a step (B, n) -> (B, m); a window (K, B, n) -> (K, B, m).

    Raises:
        ValueError: beta outside [0, 1], tau not above 0, both beta and tau, sizes and a synapse.
        NotImplementedError: a synapse that is not known to be linear.

    >>> layer = LI(synapse=torch.nn.Linear(1, 1), beta=0.5)
    >>> layer.window(torch.zeros(5, 4, 1)).shape
    torch.Size([5, 4, 1])
    """

    def __init__(
        self,
        in_features: int | None = None,
        out_features: int | None = None,
        *,
        synapse: nn.Module | None = None,
        bias: bool = True,
        beta: OneOrEach | None = None,
        tau: OneOrEach | None = None,
        learn_beta: bool = False,
        rule: Rule | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_features,
            out_features,
            LINeuron(),
            synapse=synapse,
            bias=bias,
            beta=beta,
            tau=tau,
            learn_beta=learn_beta,
            threshold=None,
            learn_threshold=False,
            recurrent=False,
            self_connections=True,
            rule=rule,
            device=device,
            dtype=dtype,
        )
