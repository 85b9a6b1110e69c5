"""Several modules fed by one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..rules import Rule
from ..rules.base import ModelDecays, Wanted
from .container import Container, feature_shape, named
from .online import PartBackward, Proposal, Rescaling
from .sequential import Sequential
from .streaming import Call, Handed, Plans


class Branches(Container):
    """Base of containers whose modules all get the same input; subclasses join their outputs."""

    def __init__(
        self,
        *modules: nn.Module | OrderedDict[str, nn.Module],
        rule: Rule | None = None,
        horizon: int | None = None,
    ) -> None:
        super().__init__(*modules, rule=rule, horizon=horizon)
        self._places: list[list[int] | None] = []  # where each part's exponentials stand among those handed down
        self._sizes: list[tuple[int, ...]] = []  # of the parts' outputs in the latest call, in a lane at a step

    def _join(self, outputs: list[Tensor]) -> Tensor:
        """The output, (K, B, ...)."""
        raise NotImplementedError

    def _split(self, signal: Tensor) -> list[Tensor]:
        """Each part's share of a signal (K, B, ...), or of an adjoint (B, H, ...)."""
        raise NotImplementedError

    def _hand_nodes(
        self,
        above: Handed | None,
        decays: Callable[[], ModelDecays],
        plans: Plans,
        grids: Mapping[int, Tensor | None] | None,
    ) -> Handed | None:
        union: list[Tensor] = []
        found: dict[float, int] = {}  # exponentials that several parts have in common are handed down once
        all_places: list[list[int] | None] = []
        fresh = live = moving = False
        for name, part in self._named_parts():
            with named(self, name):
                handed = part._hand_nodes(above, decays, plans, grids)
            if handed is None:
                all_places.append(None)
                continue
            places: list[int] = []
            for node in handed.nodes:
                place = None if handed.moving else found.get(node.item())
                if place is None:
                    place = len(union)
                    union.append(node)
                    if not handed.moving:
                        found[node.item()] = place
                places.append(place)
            all_places.append(places)
            fresh, live, moving = fresh or handed.fresh, live or handed.live, moving or handed.moving
        plans[id(self)] = all_places
        return Handed(torch.stack(union), fresh, live, moving) if union else None

    def _propose(self, x: Tensor, call: Call) -> tuple[Tensor, list[Proposal]]:
        proposals: list[Proposal] = []
        outputs = []
        for name, part in self._named_parts():
            with named(self, name):
                y, more = part._propose(x, call)
            outputs.append(y)
            proposals += more
        sizes = [tuple(y.shape[2:]) for y in outputs]
        return self._join(outputs), [
            *proposals,
            Proposal(self, (list(self._modules.values()), call.plans.get(id(self), []), sizes)),
        ]

    def _commit(self, step: Any, call: Call) -> None:
        modules, self._places, self._sizes = step
        super()._commit(modules, call)

    def _backward(self, ls: list[Tensor | None], above: Tensor | None, wanted: Wanted, call: Call) -> PartBackward:
        parts = self._modules_as_run(call)
        signals = [[None] * len(parts) if s is None else self._split(s) for s in ls]
        adjoints = [None] * len(parts) if above is None else self._split(above)
        results = []
        for i, (name, part) in enumerate(parts):
            with named(self, name):
                results.append(part._backward([each[i] for each in signals], adjoints[i], wanted, call))
        updates = [update for result in results for update in result.updates]
        below = [_sum_of_given(list(windows)) for windows in zip(*(result.ls_below for result in results), strict=True)]
        return PartBackward(below, self._adjoint_below(results) if wanted.adjoint else None, updates)

    def _adjoint_below(self, results: list[PartBackward]) -> Tensor | None:
        """The sum of what the parts hand down, over all of their exponentials."""
        handed = [(p, r.below) for p, r in zip(self._places, results, strict=True) if p is not None]
        total: Tensor | None = None
        for places, coefficients in handed:
            if coefficients is None:
                continue
            if total is None:
                count = 1 + max(max(places) for places, _ in handed)
                total = coefficients.new_zeros(len(coefficients), count, *coefficients.shape[2:])
            total[:, places] += coefficients
        return total

    def _calibrate(self, x: Tensor) -> tuple[Tensor, list[Rescaling]]:
        outputs, rescalings = [], []
        for name, part in self._named_parts():
            with named(self, name):
                y, more = part._calibrate(x)
            outputs.append(y)
            rescalings += more
        return self._join(outputs), rescalings

    def _feature_shape(self, known: bool = False) -> tuple[int | None, ...] | None:
        shapes = (feature_shape(module, known) for module in self._modules.values())
        return next((shape for shape in shapes if shape is not None), None)


class Concat(Branches):
    """Layers, models and stateless modules side by side: each gets the same input, their outputs are concatenated.

        y = [y_1, y_2, ...]          along one dimension
        dL/dx = dL_1/dx + dL_2/dx + ...

    Put it into a `Sequential` to have one layer feed several.

    Args:
        modules: the modules, or one OrderedDict of them.
        dim: the dimension of a lane's output at one step along which they are joined: -1 is the last, 0 the channels.
        rule: the learning rule of every layer that has none of its own. InputTrace() by default.
        horizon: where it is the whole model: H, how many steps back credit is exact at least (see `horizon`).

    Raises:
        TypeError: batch normalisation with statistics of the batch, a recurrent torch module, one that works in place.
        ValueError: no layer among them, or one twice; a layer that the rule given cannot serve.

    >>> from tracetorch.nn import LIF
    >>> both = Concat(LIF(4, 3, tau=2.0), LIF(4, 5, tau=20.0))
    >>> both.window(torch.ones(6, 1, 4)).shape
    torch.Size([6, 1, 8])
    """

    def __init__(
        self,
        *modules: nn.Module | OrderedDict[str, nn.Module],
        dim: int = -1,
        rule: Rule | None = None,
        horizon: int | None = None,
    ) -> None:
        super().__init__(*modules, rule=rule, horizon=horizon)
        self.dim = dim

    @property
    def _dim_of_all(self) -> int:
        """`dim` of a tensor with two leading dimensions."""
        return self.dim if self.dim < 0 else self.dim + 2

    def _join(self, outputs: list[Tensor]) -> Tensor:
        dim = self._dim_of_all
        if not -outputs[0].ndim + 2 <= self.dim < outputs[0].ndim - 2:
            raise ValueError(
                f"Concat: expected dim to be one of the {outputs[0].ndim - 2} dimensions of a lane's output at one "
                f"step, got {self.dim}."
            )
        others = {(*y.shape[:dim], *y.shape[dim % y.ndim + 1 :]) for y in outputs}
        if len(others) > 1 or len({y.ndim for y in outputs}) > 1:
            raise ValueError(
                f"Concat: expected outputs that differ in dimension {self.dim} alone, got the shapes "
                f"{[tuple(y.shape[2:]) for y in outputs]} for each step and lane. Flatten them first."
            )
        return torch.cat(outputs, dim)

    def _split(self, signal: Tensor) -> list[Tensor]:
        return list(torch.split(signal, [size[self.dim] for size in self._sizes], self._dim_of_all))

    def _part(self, modules: OrderedDict[str, nn.Module]) -> Concat:
        return type(self)(modules, dim=self.dim, rule=self._given_rule, horizon=self.horizon)


class Parallel(Branches):
    """Layers, models and stateless modules side by side: each gets the same input, their outputs are added.

        y = y_1 + y_2 + ...
        dL/dx = dL_1/dx + dL_2/dx + ...

    Args:
        modules: the modules, or one OrderedDict of them.
        rule: the learning rule of every layer that has none of its own. InputTrace() by default.
        horizon: where it is the whole model: H, how many steps back credit is exact at least (see `horizon`).

    Raises:
        TypeError: batch normalisation with statistics of the batch, a recurrent torch module, one that works in place.
        ValueError: no layer among them, or one twice; a layer that the rule given cannot serve.

    >>> from tracetorch.nn import LI
    >>> both = Parallel(LI(4, 3, tau=2.0), LI(4, 3, tau=20.0))
    >>> both.window(torch.ones(6, 1, 4)).shape
    torch.Size([6, 1, 3])
    """

    def _join(self, outputs: list[Tensor]) -> Tensor:
        shapes = [tuple(y.shape[2:]) for y in outputs]
        if len(set(shapes)) > 1:
            raise ValueError(
                f"{type(self).__name__}: expected outputs of one shape, got {shapes} for each step and lane. "
                f"Make the sizes agree: what is added must be alike."
            )
        return _sum(outputs)

    def _split(self, signal: Tensor) -> list[Tensor]:
        return [signal] * len(self)


class Residual(Parallel):
    """Modules one after the other, whose output is added to their input: `y = x + f(x)`.

    Fang et al. 2021, "Deep residual learning in spiking neural networks", arXiv:2102.04159, add spikes in the same way.

    Args:
        modules: the modules of f; what comes out must have the shape of what goes in.
        rule: the learning rule of every layer that has none of its own. InputTrace() by default.
        horizon: where it is the whole model: H, how many steps back credit is exact at least (see `horizon`).

    Raises:
        TypeError: batch normalisation with statistics of the batch, a recurrent torch module, one that works in place.
        ValueError: no layer among them, or one twice; a layer that the rule given cannot serve.

    >>> from tracetorch.nn import LIF
    >>> Residual(LIF(4, 4))(torch.ones(1, 4)).shape
    torch.Size([1, 4])
    """

    def __init__(
        self,
        *modules: nn.Module | OrderedDict[str, nn.Module],
        rule: Rule | None = None,
        horizon: int | None = None,
    ) -> None:
        around = OrderedDict([("identity", nn.Identity()), ("inner", Sequential(*modules))])
        super().__init__(around, rule=rule, horizon=horizon)


def _sum(tensors: list[Tensor]) -> Tensor:
    return sum(tensors[1:], tensors[0])


def _sum_of_given(signals: list[Tensor | None]) -> Tensor | None:
    given = [signal for signal in signals if signal is not None]
    return _sum(given) if given else None
