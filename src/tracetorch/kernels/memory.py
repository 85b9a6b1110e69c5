"""Memory of large windows, used again by the next ones; small tensors, made ahead.

A fresh tensor of some megabytes is mapped page by page as it is written to, which takes longer than a scan of it. What
is handed out here is an ordinary tensor, on memory that is taken again as soon as no tensor refers to it.
"""

from __future__ import annotations

import math
import sys
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

SMALLEST = 2**18  # bytes, from which it pays
SIZES, COPIES = 8, 6  # how many different sizes are kept, and how many of each

SMALL, AHEAD = 2**12, 32  # bytes, up to which tensors are made ahead, and how many

_BITS = {torch.float32: np.float32, torch.float64: np.float64}
_kept: OrderedDict[tuple[torch.dtype, int], list[np.ndarray]] = OrderedDict()  # the size used last comes last


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor on the CPU, float32 or float64."""
    size = math.prod(shape)
    if size * dtype.itemsize < SMALLEST:
        return torch.empty(shape, dtype=dtype, device="cpu")
    arrays = _kept.get((dtype, size))
    if arrays is None:
        arrays = _kept[dtype, size] = []
        if len(_kept) > SIZES:
            _kept.popitem(last=False)
    else:
        _kept.move_to_end((dtype, size))
    for array in arrays:
        if _references(array) == _UNUSED:
            return torch.from_numpy(array).view(shape)
    array = np.empty(size, _BITS[dtype])
    if len(arrays) < COPIES:
        arrays.append(array)
    return torch.from_numpy(array).view(shape)


def empty_like(tensor: Tensor) -> Tensor:
    """The same, of the kind of a contiguous tensor."""
    small = tensor.nbytes < SMALLEST
    return torch.empty_like(tensor, requires_grad=False) if small else empty(tensor.shape, tensor.dtype)


class Stock:
    """Uninitialised tensors of one kind, each handed out once.

    Small ones are made many at a time: between kernels, where nothing of torch is in the nearest caches, a single one
    takes several times as long.
    """

    __slots__ = ("ahead", "dtype", "shape")

    def __init__(self, shape: Sequence[int], dtype: torch.dtype) -> None:
        self.shape, self.dtype = shape, dtype
        self.ahead: list[Tensor] = []

    def take(self) -> Tensor:
        """A tensor that nobody else has; to be called outside of inference mode."""
        try:
            return self.ahead.pop()
        except IndexError:
            small = math.prod(self.shape) * self.dtype.itemsize <= SMALL
            first = empty(self.shape, self.dtype)
            self.ahead += [torch.empty_like(first) for _ in range(AHEAD - 1 if small else 0)]
            return first


def _references(array: np.ndarray) -> int:
    return sys.getrefcount(array)


def _references_of_the_only_one(arrays: list[np.ndarray]) -> int:
    for array in arrays:
        return _references(array)
    raise AssertionError


_UNUSED = _references_of_the_only_one([np.empty(1)])  # of an array that no tensor refers to, in the loop of `empty`
