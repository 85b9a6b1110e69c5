"""The argument checks that several places share, and their wording.

Every message says where, what was expected, what came, and what to do.
"""

from __future__ import annotations

import math
import operator
from importlib import metadata

import torch
from torch import Tensor


def refuse_other_distribution(name: str = "tracetorch") -> None:
    """Raise where another distribution that installs the same import name is present.

    Raises:
        ImportError: the distribution `name` is installed in this environment.
    """
    try:
        version = metadata.distribution(name).version
    except metadata.PackageNotFoundError:
        return
    raise ImportError(
        f"tracetorch: expected this import name to belong to 'tracetorch-online' alone, but the distribution "
        f"'{name}' {version} is installed in the same environment and writes to the same folder. "
        f"Run 'pip uninstall {name} tracetorch-online' and then 'pip install tracetorch-online'."
    )


def positive(where: str, name: str, value: float) -> None:
    """Raise unless `value` is a finite number above 0."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{where}: expected {name} to be a finite number above 0, got {value}.")


def fraction(where: str, name: str, value: float) -> None:
    """Raise unless `value` lies in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{where}: expected {name} in [0, 1], got {value}.")


def at_least_one(where: str, name: str, value: int) -> None:
    """Raise unless `value` is a whole number of at least 1."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{where}: expected {name} to be a whole number of at least 1, got {value!r}.") from None
    if number < 1:
        raise ValueError(f"{where}: expected {name} to be a whole number of at least 1, got {value}.")


def is_tensor(where: str, name: str, value: object, remedy: str = "Give a tensor.") -> None:
    """Raise unless `value` is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{where}: expected {name} to be a torch.Tensor, got {type(value).__name__}. {remedy}")


def floating(where: str, name: str, value: Tensor) -> None:
    """Raise unless `value` is a real floating-point tensor."""
    is_tensor(where, name, value)
    if not value.is_floating_point():
        raise TypeError(
            f"{where}: expected {name} to be a floating-point tensor, got {value.dtype}. Convert it with .float()."
        )


def finite(where: str, name: str, value: Tensor) -> None:
    """Raise where `value` has an entry that is NaN or infinite."""
    # The sum is one cheap pass; only when it is not finite (which an overflow can cause too) are entries looked at.
    if math.isfinite(value.sum().item()):
        return
    bad = ~torch.isfinite(value)
    if bad.any():
        where_bad = tuple(bad.nonzero()[0].tolist())
        raise ValueError(
            f"{where}: expected finite numbers in {name}, got {int(bad.sum())} that are not, "
            f"the first ({value[where_bad].item()}) at index {where_bad}. "
            f"Look for a division by zero or an overflow where {name} is made."
        )


def same_shape(where: str, name: str, value: Tensor, shape: tuple[int, ...], remedy: str) -> None:
    """Raise unless `value` has the given shape."""
    if tuple(value.shape) != shape:
        raise ValueError(f"{where}: expected {name} of shape {shape}, got {tuple(value.shape)}. {remedy}")


def same_device(where: str, name: str, value: Tensor, like: Tensor) -> None:
    """Raise unless `value` is on the device of `like`, a weight."""
    if value.device != like.device:
        raise ValueError(
            f"{where}: expected {name} on {like.device} like the weights, got {value.device}. "
            f"Move it with {name}.to({str(like.device)!r})."
        )
