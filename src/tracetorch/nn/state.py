"""State as plain data: nested NamedTuples of tensors whose first dimension is the lane."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor


class LayerState(NamedTuple):
    """What a layer keeps between two calls, apart from the tape of the latest."""

    neuron: Any  # a NamedTuple of (B, m) tensors, such as MembraneState(mem)
    traces: Any  # the rule's traces *before* the tape's window; None where nothing is being learned


def map_tensors(function: Callable[[Tensor], Tensor], state: Any) -> Any:
    """Apply `function` to every tensor of a nested NamedTuple."""
    if state is None:
        return None
    if isinstance(state, Tensor):
        return function(state)
    mapped = [map_tensors(function, value) for value in state]
    return type(state)(*mapped) if hasattr(state, "_fields") else tuple(mapped)


def flatten(state: Any, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a nested NamedTuple by dotted name: {"neuron.mem": ..., "traces.weight": ...}."""
    if state is None or state == ():
        return {}
    if isinstance(state, Tensor):
        return {prefix: state}
    named: dict[str, Tensor] = {}
    for field, value in state._asdict().items():
        named.update(flatten(value, f"{prefix}.{field}" if prefix else field))
    return named


def unflatten(template: Any, tensors: dict[str, Tensor], prefix: str = "") -> Any:
    """The inverse of `flatten`: `template` with its tensors replaced by those in `tensors`."""
    if template is None or template == ():
        return template
    if isinstance(template, Tensor):
        return tensors[prefix]
    return type(template)(
        *(
            unflatten(value, tensors, f"{prefix}.{field}" if prefix else field)
            for field, value in template._asdict().items()
        )
    )


def storage_bytes(tensors: list[Tensor]) -> int:
    """The bytes of the storages behind `tensors`, each storage once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
