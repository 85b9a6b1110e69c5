"""Compact tapes: spikes as bits, and the state that the window began with; the rest is computed again when needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from .. import kernels
from ..functional.scan import Values
from ..functional.spikes import Spikes
from ..rules.base import Nodes, Tape

if TYPE_CHECKING:
    from .layer import Layer


class CompactTape(NamedTuple):
    """A `Tape` of few bytes.

    `opened` computes the membranes again, for the weights as they are then and the spikes as they were: exact while the
    weights are those that the window was run with.
    """

    layer: Layer
    x: Spikes | Tensor  # (K, B, n), numbers where it is not all spikes
    y: Spikes | None  # (K, B, m) what the neurons emitted, where they are spiking
    start: Any
    values: Values
    nodes: Nodes
    decay: Tensor | None

    def opened(self) -> Tape:
        """The tape."""
        layer, x, dtype = self.layer, self.x, self.layer.weight.dtype
        if isinstance(x, Spikes):
            x = kernels.unpacked(x, dtype)
        y = None if self.y is None else kernels.unpacked(self.y, dtype)
        record = layer.neuron.recall(self.values, layer.current(x), self.start, y)
        return Tape(x, record, self.start, self.values, self.nodes, self.decay)

    def tensors(self) -> list[Tensor]:
        """What is kept of the window."""
        kept = [part.words if isinstance(part, Spikes) else part for part in (self.x, self.y, *self.start)]
        return [tensor for tensor in kept if tensor is not None]


def compacted(layer: Layer, tape: Tape, output: Tensor) -> Tape | CompactTape:
    """The tape in few bytes; as it is where the neuron emits other things than spikes, or cannot recall its window."""
    if not hasattr(layer.neuron, "recall"):
        return tape
    y = kernels.packed(output) if layer.neuron.spiking else None
    if layer.neuron.spiking and y is None:
        return tape
    x = kernels.packed(tape.x)
    return CompactTape(layer, tape.x if x is None else x, y, tape.start, tape.values, tape.nodes, tape.decay)
