"""Whether the layers of a row are as they were: asked in every call, hence answered by few calls of Python.

Lists are gone through by `map` and compared as a whole. What is looked up are dictionaries of modules, which torch and
everybody who replaces something write to.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter, getitem, is_
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from .usual import Link

_version, _surrogate, _grad, _requires_grad = map(attrgetter, ("_version", "surrogate", "grad", "requires_grad"))


class Entries:
    """Entries of dictionaries, and what they are to be.

    Args:
        each: dictionary, key and value.
    """

    __slots__ = ("dictionaries", "keys", "values")

    def __init__(self, each: Iterable[tuple[dict[str, Any], str, Any]]) -> None:
        self.dictionaries, self.keys, self.values = map(list, zip(*each, strict=True))

    def are(self, values: Iterable[Any]) -> bool:
        """Whether they are these objects, or, with `values` of its own, those that they were."""
        try:
            return all(map(is_, map(getitem, self.dictionaries, self.keys), values))
        except KeyError:
            return False


class Watch:
    """The layers of a row as they are now, for the question whether they still are so.

    What the values of parameters are does not matter; where they lie does.
    """

    def __init__(self, links: Iterable[Link]) -> None:
        weights, others, counted = [], [], []
        self.synapses, self.buffers, self.firings = [], [], []
        self.matrices, self.tensors = [], []
        for link in links:
            attributes, synapse = link.attributes, link.synapse
            weights += [(attributes["_modules"], "synapse", synapse)]
            weights += [(synapse._parameters, name, synapse._parameters[name]) for name in ("weight", "bias")]
            others += [(attributes, name, attributes[name]) for name in ("neuron", "_own_rule", "_model_rule")]
            others += [(attributes["_buffers"], name, buffer) for name, buffer in attributes["_buffers"].items()]
            counted += [synapse._forward_hooks, synapse._forward_pre_hooks, synapse.__dict__]
            self.synapses.append(synapse)
            self.buffers += [buffer for buffer in attributes["_buffers"].values() if buffer is not None]
            self.firings += [] if link.form is None else [link.form.firing]
            self.matrices.append(link.weight)
            self.tensors += [link.weight] if link.bias is None else [link.weight, link.bias]
        self.weights, self.others, self.counted = Entries(weights), Entries(others), counted
        self.kinds, self.places, self.strides = self._lie()
        self.counts = [*map(len, counted)]
        self.versions, self.surrogates = [*map(_version, self.buffers)], [*map(_surrogate, self.firings)]

    def _lie(self) -> tuple[list[Any], list[Any], list[Any]]:
        return [*map(type, self.synapses)], [*map(Tensor.data_ptr, self.tensors)], [*map(Tensor.stride, self.matrices)]

    def has_its_weights(self) -> bool:
        """Whether weights and biases are those that they were, and lie where they lay."""
        return (
            self.weights.are(self.weights.values)
            and [*map(type, self.synapses)] == self.kinds
            and [*map(Tensor.data_ptr, self.tensors)] == self.places
            and [*map(Tensor.stride, self.matrices)] == self.strides
        )

    def sees_no_change(self) -> bool:
        """Whether nothing was changed or replaced; weights and biases may have other values."""
        return (
            self.has_its_weights()
            and self.others.are(self.others.values)
            and [*map(len, self.counted)] == self.counts
            and [*map(_version, self.buffers)] == self.versions
            and all(map(is_, map(_surrogate, self.firings), self.surrogates))
        )

    def gradients(self) -> list[Any] | None:
        """Where the gradients lie, and which parameters learn; None where one has no gradient, or none learns."""
        each, learning = [*map(_grad, self.tensors)], [*map(_requires_grad, self.tensors)]
        try:
            lie = [*map(Tensor.data_ptr, each), *map(Tensor.stride, each)]
        except (TypeError, RuntimeError):  # of None, of a sparse one
            return None
        return lie + learning if True in learning else None
