"""Synapses: linear maps, each with its parameter gradient and its transpose.

A synapse is an ordinary torch module. What the library needs of it is one row of `_OPERATIONS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _checks


class SynapseOperations(NamedTuple):
    """What a layer does with its synapse; n inputs, m outputs, leading dimensions of any number."""

    features: Callable[[Any], tuple[int, int]]  # module -> (n, m)
    current: Callable[[Any, Tensor], Tensor]  # module, x (..., n) -> W x + b (..., m)
    weight_gradient: Callable[[Tensor, Tensor], Tensor]  # x (..., n), g (..., m) -> dL/dW, summed over the leading
    transpose: Callable[[Any, Tensor, Tensor], Tensor]  # module, W or another, g (..., m) -> W^T g (..., n)


_OPERATIONS: dict[type[nn.Module], SynapseOperations] = {
    nn.Linear: SynapseOperations(
        features=lambda module: (module.in_features, module.out_features),
        current=lambda module, x: F.linear(x, module.weight, module.bias),
        weight_gradient=lambda x, g: g.flatten(0, -2).t() @ x.flatten(0, -2),
        transpose=lambda module, weight, g: g @ weight,  # noqa: ARG005
    )
}


def operations(where: str, synapse: nn.Module) -> SynapseOperations:
    """The operations of a synapse.

    Raises:
        TypeError: `synapse` is not a module.
        NotImplementedError: no operations are known for its exact type.
    """
    if not isinstance(synapse, nn.Module):
        raise TypeError(
            f"{where}: expected synapse to be a torch.nn.Module, got {type(synapse).__name__}. "
            f"Give synapse=nn.Linear(n, m), or just the two sizes."
        )
    # The exact type: a subclass may compute something that is not linear.
    found = _OPERATIONS.get(type(synapse))
    if found is None:
        known = ", ".join(f"nn.{kind.__name__}" for kind in _OPERATIONS)
        raise NotImplementedError(
            f"{where}: expected a synapse whose gradient and transpose are known ({known}), "
            f"got {type(synapse).__name__}. A synapse is a linear map; "
            f"put a module that is not one between layers, in tt.Sequential."
        )
    if not isinstance(synapse.weight, nn.Parameter):
        raise TypeError(
            f"{where}: expected the synapse's weight to be a Parameter, got {type(synapse.weight).__name__}, as "
            f"pruning makes it, whose gradient cannot be computed here. Remove it first."
        )
    return found


def made(
    where: str,
    in_features: int | None,
    out_features: int | None,
    synapse: nn.Module | None,
    bias: bool,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> nn.Module:
    """The synapse that was given, or an `nn.Linear` of the two sizes.

    Raises:
        ValueError: neither or both were given.
    """
    if synapse is None and in_features is not None and out_features is not None:
        _checks.at_least_one(where, "in_features", in_features)
        _checks.at_least_one(where, "out_features", out_features)
        return nn.Linear(in_features, out_features, bias=bias, device=device, dtype=dtype)
    if synapse is not None and in_features is None and out_features is None:
        return synapse
    raise ValueError(
        f"{where}: expected in_features and out_features, or synapse=, got in_features={in_features}, "
        f"out_features={out_features} and {'no' if synapse is None else 'a'} synapse. "
        f"Give the two sizes, or the synapse alone."
    )
