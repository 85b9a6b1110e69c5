"""Compact tapes: spikes as bits, and the state that the window began with; the rest is computed again when needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from .. import kernels
from ..functional.scan import Values
from ..functional.spikes import Spikes
from ..rules.base import Nodes, Recall, Tape

if TYPE_CHECKING:
    from .layer import Layer


class CompactTape(NamedTuple):
    """A `Tape` of few bytes.

    Opened, it computes the membranes again, for the weights as they are then and the spikes as they were: exact while
    the weights are those that the window was run with.
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
        spikes = self.x if isinstance(self.x, Spikes) and self.layer._is_plain() else None
        x: Any = _Once(self.input)
        return OpenedTape(x, _Recalled(self), self.start, self.values, self.nodes, self.decay, spikes)

    def input(self) -> Tensor:
        """The input as numbers."""
        return kernels.unpacked(self.x, self.layer.weight.dtype) if isinstance(self.x, Spikes) else self.x

    def current(self) -> Tensor:
        """The input currents."""
        return self.layer.current(self.x if self.layer._is_plain() else self.input())

    def record(self) -> Any:
        """The neuron's record."""
        y = None if self.y is None else kernels.unpacked(self.y, self.layer.weight.dtype)
        return self.layer.neuron.recall(self.values, self.current(), self.start, y)

    def tensors(self) -> list[Tensor]:
        """What is kept of the window."""
        kept = [part.words if isinstance(part, Spikes) else part for part in (self.x, self.y, *self.start)]
        return [tensor for tensor in kept if tensor is not None]


class _Once:
    """What a function returns, computed when it is first looked at."""

    def __init__(self, function: Any) -> None:
        self.function, self.known = function, None

    def value(self) -> Any:
        if self.known is None:
            self.known = self.function()
        return self.known


class _Recalled(_Once):
    """The neuron's record, likewise."""

    def __init__(self, tape: CompactTape) -> None:
        super().__init__(tape.record)
        self.tape = tape


class OpenedTape(Tape):
    """A tape of which input and record are computed when they are first looked at."""

    @property
    def x(self) -> Tensor:
        """(K, B, n) input."""
        x: Tensor = _looked_at(self[0])
        return x

    @property
    def record(self) -> Any:
        """The neuron's own."""
        return _looked_at(self[1])

    def recall(self) -> Recall | None:
        """What the record would be computed from, unless it is there already."""
        record: Any = self[1]
        if not isinstance(record, _Recalled) or record.known is not None or record.tape.y is None:
            return None
        return Recall(record.tape.current(), record.tape.y)


def _looked_at(part: Any) -> Any:
    return part.value() if isinstance(part, _Once) else part


def compacted(layer: Layer, tape: Tape, output: Tensor) -> Tape | CompactTape:
    """The tape in few bytes; as it is where the neuron emits other things than spikes, or cannot recall its window."""
    if not hasattr(layer.neuron, "recall"):
        return tape
    y = kernels.packed(output) if layer.neuron.spiking else None
    if layer.neuron.spiking and y is None:
        return tape
    x = kernels.packed(tape.x) if tape.spikes is None else tape.spikes
    return CompactTape(layer, tape.x if x is None else x, y, tape.start, tape.values, tape.nodes, tape.decay)
