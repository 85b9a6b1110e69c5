"""A stack of layers and stateless modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from ..rules.base import ModelDecays, Wanted
from .container import Container, feature_shape, named
from .layer import Layer
from .online import PartBackward, Proposal, Rescaling
from .streaming import Call, Handed, Plans


class Sequential(Container):
    """Layers, models and stateless `torch.nn` modules, one after the other, learning online.

    Stateless modules (activation functions, LayerNorm, Dropout, a plain Linear and the like) see (K*B, ...) rows;
    models of tracetorch's layers alone build no autograd graph at all. Parameters of stateless modules learn from the
    window, or horizon, alone: only layers have traces (`LI(..., beta=0.0)` is a Linear with traces).

    Args:
        modules: the modules, or one OrderedDict of them.
        rule: the learning rule of every layer that has none of its own. InputTrace() by default.
        horizon: H, how many steps back credit is exact at least, wherever the borders of windows fall; by default the
            window alone (see `horizon`).

    Raises:
        TypeError: batch normalisation with statistics of the batch, a recurrent torch module, one that works in place.
        ValueError: no layer among them, or one twice; a layer that the rule given cannot serve.

    >>> import torch
    >>> from tracetorch.nn import LI, LIF
    >>> model = Sequential(LIF(4, 3), LI(3, 2))
    >>> y = model.window(torch.ones(5, 1, 4))
    >>> model.backward(torch.ones_like(y))
    >>> model[0].synapse.weight.grad.shape
    torch.Size([3, 4])
    """

    def _hand_nodes(
        self,
        above: Handed | None,
        decays: Callable[[], ModelDecays],
        plans: Plans,
        grids: Mapping[int, Tensor | None] | None,
    ) -> Handed | None:
        for name, part in reversed(self._named_parts()):
            with named(self, name):
                above = part._hand_nodes(above, decays, plans, grids)
        return above

    def _members(self) -> list[Layer]:
        members = [module for module in self._modules.values() if isinstance(module, Layer)]
        return members if len(members) == len(self._modules) else []

    def _propose(self, x: Tensor, call: Call) -> tuple[Tensor, list[Proposal]]:
        proposals: list[Proposal] = []
        for name, part in self._named_parts():
            with named(self, name):
                x, more = part._propose(x, call)
            proposals += more
        return x, [*proposals, Proposal(self, list(self._modules.values()))]

    def _backward(self, ls: list[Tensor | None], above: Tensor | None, wanted: Wanted, call: Call) -> PartBackward:
        parts = self._modules_as_run(call)
        # what the parts below each one ask for
        trains = [part._trains() for _, part in parts]
        uses = [part._uses_adjoint() and train for (_, part), train in zip(parts, trains, strict=True)]
        updates: list[tuple[nn.Parameter, Tensor]] = []
        for i in range(len(parts) - 1, -1, -1):
            name, part = parts[i]
            below = Wanted(wanted.signal or any(trains[:i]), wanted.adjoint or any(uses[:i]))
            with named(self, name):
                ls, above, more = part._backward(ls, above, below, call)
            updates += more
            if not any(below):
                break
        return PartBackward(ls, above, updates)

    def _calibrate(self, x: Tensor) -> tuple[Tensor, list[Rescaling]]:
        rescalings: list[Rescaling] = []
        for name, part in self._named_parts():
            with named(self, name):
                x, more = part._calibrate(x)
            rescalings += more
        return x, rescalings

    def _feature_shape(self, known: bool = False) -> tuple[int | None, ...] | None:
        return feature_shape(next(iter(self._modules.values())), known)
