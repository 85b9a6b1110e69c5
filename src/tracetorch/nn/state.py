"""State as plain data: nested NamedTuples of tensors whose first dimension is the lane."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor

from .. import _checks
from ..rules.base import Pending


class LayerState(NamedTuple):
    """What a layer keeps between two calls, apart from its tapes."""

    neuron: Any  # a NamedTuple of (B, m) tensors, such as MembraneState(mem)
    traces: Any  # the rule's traces *before* the oldest tape's window; None where nothing is being learned


def flatten(state: Any, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a nested NamedTuple by dotted name: {"neuron.mem": ..., "traces.weight": ...}."""
    if state is None or state == ():
        return {}
    if isinstance(state, Tensor):
        return {prefix: state}
    if isinstance(state, Pending):
        return {prefix: state.value()}
    named: dict[str, Tensor] = {}
    for field, value in _items(state):
        named.update(flatten(value, f"{prefix}.{field}" if prefix else field))
    return named


def unflatten(template: Any, tensors: dict[str, Tensor], prefix: str = "") -> Any:
    """The inverse of `flatten`: `template` with its tensors replaced by those in `tensors`."""
    if template is None or template == ():
        return template
    if isinstance(template, Tensor):
        return tensors[prefix]
    values = {
        field: unflatten(value, tensors, f"{prefix}.{field}" if prefix else field) for field, value in _items(template)
    }
    return values if isinstance(template, dict) else type(template)(**values)


def _items(state: Any) -> Iterable[tuple[str, Any]]:
    items: Iterable[tuple[str, Any]] = (state if isinstance(state, dict) else state._asdict()).items()
    return items


def restored(where: str, template: LayerState, tensors: dict[str, Tensor]) -> LayerState:
    """The state that `flatten` wrote to `tensors`, in the shapes, dtype and device of `template`.

    Raises:
        ValueError: other names or shapes than the template's (traces may all be missing), or entries not finite.
        TypeError: an entry that is not a floating-point tensor.
    """
    for name, tensor in tensors.items():
        _checks.floating(where, name, tensor)
        _checks.finite(where, name, tensor)
    if not any(name.startswith("traces.") for name in tensors):  # saved in eval mode
        template = template._replace(traces=None)
    expected = {name: tuple(tensor.shape) for name, tensor in flatten(template).items()}
    came = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if came != expected:
        raise ValueError(
            f"{where}: expected tensors of the shapes {expected}, got {came}. "
            f"Build the model as it was when the state was saved."
        )
    like = template.neuron[0]
    state: LayerState = unflatten(
        template, {name: tensor.to(like, copy=True).contiguous() for name, tensor in tensors.items()}
    )
    return state
