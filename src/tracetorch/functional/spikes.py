"""Spikes as bits: windows whose entries are all 0 or 1, in a 32nd of the bytes of floats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

WORD = 64  # bits


class Spikes(NamedTuple):
    """A window (K, B, n) of zeros and ones, each a bit.

    Of the B n entries of a step, entry i is bit `i % 64` of its word `i // 64`; bits beyond them are 0.
    """

    words: Tensor  # (K, ceil(B n / 64)) int64
    shape: tuple[int, int, int]  # (K, B, n)
    ones: int

    @property
    def rows(self) -> int:
        """K times B."""
        return self.shape[0] * self.shape[1]


def packed(x: Tensor) -> Spikes | None:
    """A window (K, B, n) as bits; None where an entry is neither 0 nor 1.

    >>> packed(torch.tensor([[[0.0, 1.0, 1.0]]]))
    Spikes(words=tensor([[6]]), shape=(1, 1, 3), ones=2)
    """
    is_one = x != 0
    if not torch.equal(is_one.to(x.dtype), x):
        return None
    steps, lanes, n = x.shape
    eights = F.pad(is_one.reshape(steps, -1), (0, -lanes * n % WORD)).view(steps, -1, 8)
    values = 2 ** torch.arange(8, device=x.device, dtype=torch.uint8)
    words = (eights * values).sum(-1, dtype=torch.uint8).view(torch.int64)
    return Spikes(words, (steps, lanes, n), int(is_one.sum()))


def unpacked(spikes: Spikes, dtype: torch.dtype) -> Tensor:
    """The window (K, B, n), floating point.

    >>> unpacked(packed(torch.tensor([[[0.0, 1.0, 1.0]]])), torch.float32)
    tensor([[[0., 1., 1.]]])
    """
    places = torch.arange(8, device=spikes.words.device, dtype=torch.uint8)
    bits = (spikes.words.view(torch.uint8)[..., None] >> places) & 1
    return bits.view(len(spikes.words), -1)[:, : math.prod(spikes.shape[1:])].to(dtype).reshape(spikes.shape)


def joined(windows: Sequence[Spikes]) -> Spikes:
    """Windows (K, B, n), one after the other, as one."""
    if len(windows) == 1:
        return windows[0]
    _, lanes, n = windows[0].shape
    steps = sum(window.shape[0] for window in windows)
    words = torch.cat([window.words for window in windows])
    return Spikes(words, (steps, lanes, n), sum(window.ones for window in windows))


def product(spikes: Spikes, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`W x + b`, (K, B, m), for weights (m, n)."""
    return F.linear(unpacked(spikes, weight.dtype), weight, bias)


def weight_gradient(spikes: Spikes, g: Tensor) -> Tensor:
    """`sum g x^T` over steps and lanes, (m, n), for g (K, B, m)."""
    return g.flatten(0, 1).t() @ unpacked(spikes, g.dtype).flatten(0, 1)


class GradientSum:
    """The sum of the `weight_gradient` of one window or more, which come one by one."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None

    def add(self, spikes: Spikes, g: Tensor) -> None:
        """Add a window's."""
        gradient = weight_gradient(spikes, g)
        self._sum = gradient if self._sum is None else self._sum.add_(gradient)

    def total(self) -> Tensor:
        """(m, n); nothing can be added any more."""
        assert self._sum is not None
        return self._sum
