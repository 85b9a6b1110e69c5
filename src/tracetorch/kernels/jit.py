"""numba's decorators as the kernels use them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cfunc, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

Decorator = Callable[[Callable[..., Any]], Any]
loop: Decorator = njit(error_model="numpy")
summing: Decorator = njit(error_model="numpy", fastmath={"reassoc", "contract"})  # a sum taken in any order


def kernel(function: Callable[[int], None]) -> Any:
    """Compiled, or read from disk; compiled anew where there is no folder to keep it in, or that is damaged."""
    try:
        return cfunc(types.void(types.int64), cache=True, error_model="numpy")(function)
    except Exception:  # of many kinds; one that has nothing to do with the disk comes again
        return cfunc(types.void(types.int64), error_model="numpy")(function)


def _as_pointer(typing: Any, address: Any) -> Any:  # noqa: ARG001
    """An integer as a pointer."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


pointer: Any = intrinsic(_as_pointer)


def least_kept(real: Any) -> Any:
    """Of a floating-point type, what traces are set to 0 below: soon they would be computed ten times slower."""
    return real(np.finfo(real).tiny * 2**24)
