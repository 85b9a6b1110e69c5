"""Memory of large windows, used again by the next ones.

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


def _references(array: np.ndarray) -> int:
    return sys.getrefcount(array)


def _references_of_the_only_one(arrays: list[np.ndarray]) -> int:
    for array in arrays:
        return _references(array)
    raise AssertionError


_UNUSED = _references_of_the_only_one([np.empty(1)])  # of an array that no tensor refers to, in the loop of `empty`
