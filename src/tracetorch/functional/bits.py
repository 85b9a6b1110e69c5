"""Spikes as bits: windows whose entries are all 0 or 1, a 32nd of the size of floats, or less.

A window (K, ...) of S entries per step has the words (K, ceil(S / 64)), int64: entry i of a step is bit i % 64 of its
word i // 64. Bits beyond S are 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def packed(x: Tensor) -> Tensor | None:
    """The words of a window (K, ...); None where an entry is neither 0 nor 1.

    >>> packed(torch.tensor([[0.0, 1.0, 1.0]]))
    tensor([[6]])
    """
    ones = x != 0
    if not torch.equal(ones.to(x.dtype), x):
        return None
    steps = len(x)
    flat = ones.reshape(steps, -1)
    eights = F.pad(flat, (0, -flat.shape[1] % 64)).view(steps, -1, 8)
    values = 2 ** torch.arange(8, device=x.device, dtype=torch.uint8)
    return (eights * values).sum(-1, dtype=torch.uint8).view(torch.int64)


def unpacked(words: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The window of the shape given, (K, ...), floating point.

    >>> unpacked(torch.tensor([[6]]), (1, 3), torch.float32)
    tensor([[0., 1., 1.]])
    """
    places = torch.arange(8, device=words.device, dtype=torch.uint8)
    bits = (words.view(torch.uint8)[..., None] >> places) & 1
    return bits.view(len(words), -1)[:, : math.prod(shape[1:])].to(dtype).reshape(shape)
