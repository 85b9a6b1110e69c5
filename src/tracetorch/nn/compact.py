"""Compact tapes: spikes as bits, and the state that the window began with; the rest is computed again when needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from .. import kernels
from ..functional.scan import Values
from ..rules.base import Nodes, Tape

if TYPE_CHECKING:
    from .layer import Layer


class CompactTape(NamedTuple):
    """A `Tape` of few bytes.

    `opened` computes the membranes again, for the weights as they are then and the spikes as they were: exact while the
    weights are those that the window was run with.
    """

    layer: Layer
    x: Tensor  # words of (K, B, n), or the input itself where it is not all spikes
    y: Tensor | None  # words of (K, B, m), what the neurons emitted, where they are spiking
    shape: tuple[int, ...]  # (K, B, n)
    start: Any
    values: Values
    nodes: Nodes
    decay: Tensor | None

    def opened(self) -> Tape:
        """The tape."""
        layer, (steps, lanes, _) = self.layer, self.shape
        x, y = self.x, None
        if x.dtype != layer.weight.dtype:
            x = kernels.unpacked(x, self.shape, layer.weight.dtype)
        if self.y is not None:
            y = kernels.unpacked(self.y, (steps, lanes, layer.out_features), layer.weight.dtype)
        record = layer.neuron.recall(self.values, layer.current(x), self.start, y)
        return Tape(x, record, self.start, self.values, self.nodes, self.decay)

    def tensors(self) -> list[Tensor]:
        """What is kept of the window."""
        return [tensor for tensor in (self.x, self.y, *self.start) if tensor is not None]


def compacted(layer: Layer, tape: Tape, y: Tensor) -> Tape | CompactTape:
    """The tape in few bytes; as it is where the neuron emits other things than spikes, or cannot recall its window."""
    if not hasattr(layer.neuron, "recall"):
        return tape
    words = None
    if layer.neuron.spiking:
        words = kernels.packed(y)
        if words is None:
            return tape
    x = kernels.packed(tape.x)
    shape = tuple(tape.x.shape)
    return CompactTape(layer, tape.x if x is None else x, words, shape, tape.start, tape.values, tape.nodes, tape.decay)
