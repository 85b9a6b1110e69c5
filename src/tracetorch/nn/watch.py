"""Whether the layers of a row are as they were: asked in every call, hence answered by few calls of Python.

Lists are gone through by `map` and compared as a whole. What is looked up are dictionaries of modules, which torch and
everybody who replaces something write to.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from operator import attrgetter, getitem, is_
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from ..kernels import memory

if TYPE_CHECKING:
    from .usual import Link

KEPT = "_state", "_segments"  # what a call leaves in each layer, besides `_plan`, which follows from them

_Entry = tuple[dict[str, Any], str, Any]  # of a dictionary
_version, _surrogate, _dtype = map(attrgetter, ("_version", "surrogate", "dtype"))
_grad, _requires_grad = map(attrgetter, ("grad", "requires_grad"))


class _Entries(NamedTuple):
    """Where to look, and what should be there."""

    dictionaries: list[dict[str, Any]]
    keys: list[str]
    values: list[Any]  # fewer than keys: those of `KEPT` come last, and are given by whoever asks


def _entries(fixed: Iterable[_Entry], kept: Iterable[_Entry]) -> _Entries:
    dictionaries, keys, _ = map(list, zip(*fixed, *kept, strict=True))
    return _Entries(dictionaries, keys, [value for _, _, value in fixed])


class Gradients(NamedTuple):
    """Those of all parameters of a row."""

    each: list[Tensor]
    places: list[int]
    are_there: bool  # and are added to; new ones are not yet those of the parameters


def _takes_its_own(parameter: Tensor) -> bool:
    """Whether a gradient has the parameter's dtype."""
    return getattr(parameter, "grad_dtype", parameter.dtype) in (parameter.dtype, None)


class Watch:
    """The layers of a row as they are now, for the question whether they still are so.

    What the values of parameters are does not matter; where they lie does.
    """

    def __init__(self, links: Iterable[Link]) -> None:
        weights: list[_Entry] = []
        others: list[_Entry] = []
        kept: list[_Entry] = []
        self.synapses, self.buffers, self.firings = [], [], []
        self.matrices: list[Tensor] = []
        self.tensors: list[Tensor] = []
        self.hooks: list[dict[int, Any]] = []
        self.counted: list[dict[str, Any]] = []  # of which nothing must be added to
        for link in links:
            attributes, synapse = link.attributes, link.synapse
            weights += [(attributes["_modules"], "synapse", synapse)]
            weights += [(synapse._parameters, name, synapse._parameters[name]) for name in ("weight", "bias")]
            others += [(attributes, name, attributes[name]) for name in ("neuron", "_own_rule", "_model_rule")]
            others += [(attributes["_buffers"], name, buffer) for name, buffer in attributes["_buffers"].items()]
            kept += [(attributes, name, None) for name in KEPT]
            self.synapses.append(synapse)
            self.hooks += [synapse._forward_hooks, synapse._forward_pre_hooks]
            self.counted += [synapse.__dict__, attributes["_parameters"]]
            self.buffers += [buffer for buffer in attributes["_buffers"].values() if buffer is not None]
            self.firings += [] if link.form is None else [link.form.firing]
            self.matrices.append(link.weight)
            self.tensors += [link.weight] if link.bias is None else [link.weight, link.bias]
        self.of_weights, self.of_all = _entries(weights, kept), _entries([*weights, *others], kept)
        self.places = self._places()
        self.counts = [*map(_version, self.buffers), *map(len, self.counted)]
        self.surrogates = [*map(_surrogate, self.firings)]
        self.shares = len({*map(id, self.tensors)}) < len(self.tensors)
        self.layout = [*map(Tensor.stride, self.tensors), *map(_dtype, self.tensors)]  # what gradients must

    def has_its_weights(self, kept: Iterable[Any]) -> bool:
        """Whether weights and biases are those that they were, and lie where they lay.

        Args:
            kept: what the layers should have kept, see `KEPT`.
        """
        return self._are(self.of_weights, kept) and self._places() == self.places

    def sees_no_change(self, kept: Iterable[Any] = ()) -> bool:
        """Whether nothing was changed or replaced, likewise; weights and biases may have other values.

        By default it does not matter what the layers have kept.
        """
        return (
            self._are(self.of_all, kept)
            and self._places() == self.places
            and not any(self.hooks)
            and [*map(_version, self.buffers), *map(len, self.counted)] == self.counts
            and all(map(is_, map(_surrogate, self.firings), self.surrogates))
        )

    def _are(self, entries: _Entries, kept: Iterable[Any]) -> bool:
        dictionaries, keys, values = entries
        try:
            return all(map(is_, chain(values, kept), map(getitem, dictionaries, keys)))
        except KeyError:
            return False

    def _places(self) -> list[Any]:
        return [
            *map(type, self.synapses),
            *map(Tensor.data_ptr, self.tensors),
            *map(Tensor.stride, self.matrices),
            *map(Tensor.numel, self.tensors),
        ]

    def gradients(self) -> Gradients | None:
        """The gradients of all parameters: what there is, or new ones where there is none.

        None where only some have one, or a kernel may not write to them, or a parameter is frozen or has two places.
        """
        if self.shares or not all(map(_requires_grad, self.tensors)):
            return None
        each = [*map(_grad, self.tensors)]
        if each[0] is None:
            if any(gradient is not None for gradient in each) or not all(map(_takes_its_own, self.tensors)):
                return None
            each = [*map(memory.empty_like, self.tensors)]
            return Gradients(each, [*map(Tensor.data_ptr, each)], False)
        try:
            if [*map(Tensor.stride, each), *map(_dtype, each)] != self.layout or any(map(_requires_grad, each)):
                return None
            return Gradients(each, [*map(Tensor.data_ptr, each)], True)
        except (TypeError, RuntimeError):  # of None, of a sparse one
            return None
