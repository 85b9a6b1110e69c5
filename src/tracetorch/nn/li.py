"""The leaky integrator, the non-spiking readout."""

from __future__ import annotations

import torch
from torch import nn

from ..rules.base import Rule
from .constraint import OneOrEach, membrane_decay
from .layer import Layer
from .neuron import LINeuron


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
            parameters=lambda each: membrane_decay("LI", beta, tau, learn_beta, each),
            rule=rule,
            device=device,
            dtype=dtype,
        )
