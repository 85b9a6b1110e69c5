"""Truncated: the past before the window is a constant."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Rule


@dataclass(frozen=True, repr=False)
class Truncated(Rule):
    """Truncated BPTT: exact inside the window, nothing from before it. Keeps no traces.

    With windows of one step this is SLTT (Meng et al. 2023, "Towards memory- and time-efficient backpropagation for
    training spiking neural networks"). Equals BPTT where one window holds the whole sequence, at any depth.

    Args:
        feedback: "symmetric", or "random" for a fixed random matrix in place of W^T (see `Rule`).

    >>> Truncated()
    Truncated()
    """
