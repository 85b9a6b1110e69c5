"""The dynamics of other libraries' neurons, as options of ours: `LIF(..., like="snntorch")`.

Read in, and tested against spike trains recorded from, snnTorch 1.0.0 (`Leaky`, `Synaptic`), SpikingJelly 2.0.0
(`LIFNode`), Norse 1.1.0 (`LIFBoxCell`; with a synaptic current `LIFCell`) and sinabs 3.1.3 (`LIF`).

                fires        reset                 gain       tau is          reset's gradient
    snntorch     u > 0       subtract, one step    1          exp(-1 / tau)   detached
                             later
    spikingjelly u >= 0      zero                  1 - beta   1 - 1 / tau     attached
    norse        u > 0       zero                  1 - beta   1 - 1 / tau     attached
    sinabs       several     subtract              1 - beta   exp(-1 / tau)   attached
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..functional.firing import Firing, MultiSpike, Spike, StrictSpike
from ..functional.surrogate import ArcTan, Exponential, FastSigmoid, Sigmoid

Library = Literal["snntorch", "spikingjelly", "norse", "sinabs"]


@dataclass(frozen=True)
class Preset:
    """The defaults that a library has, as our options."""

    firing: Callable[[], Firing] = Spike
    reset: Literal["subtract", "zero", "none"] = "subtract"
    reset_delay: bool = False
    reset_gradient: Literal["detached", "attached"] = "detached"
    gain: float | Literal["leak"] = 1.0
    beta: float = 0.9
    alpha: float = 0.8  # where there is a synaptic current
    euler: bool = False  # whether a time constant tau means a decay of 1 - 1 / tau, not exp(-1 / tau)

    def decay(self, tau: Tensor) -> Tensor:
        """The decay per step of a time constant in steps."""
        return 1 - 1 / tau if self.euler else torch.exp(-1 / tau)


OWN = Preset()
PRESETS: dict[str, Preset] = {
    "snntorch": Preset(lambda: StrictSpike(ArcTan(1 / torch.pi)), reset_delay=True),
    "spikingjelly": Preset(
        lambda: Spike(Sigmoid(0.25)), reset="zero", reset_gradient="attached", gain="leak", beta=0.5, euler=True
    ),
    "norse": Preset(
        lambda: StrictSpike(FastSigmoid(0.01)), reset="zero", reset_gradient="attached", gain="leak", euler=True
    ),
    "sinabs": Preset(
        lambda: MultiSpike(Exponential(0.5)), reset_gradient="attached", gain="leak", beta=math.exp(-1 / 20)
    ),
}


def preset(where: str, like: str | None) -> Preset:
    """The preset of that name; our own defaults for None.

    Raises:
        ValueError: there is none.
    """
    if like is None:
        return OWN
    if like not in PRESETS:
        raise ValueError(f"{where}: expected like to be one of {', '.join(map(repr, PRESETS))}, got {like!r}.")
    return PRESETS[like]
