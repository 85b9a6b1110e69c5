"""The adapter that lets an ordinary torch module stand between layers.

A stateless module sees (K*B, ...) rows. Its backward is a vector-Jacobian product: the module is run again on the
input that was kept, under autograd, and the graph is freed at once. This is the only place where autograd runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .online import PartBackward, Proposal, Rescaling
from .streaming import Call, Streaming, forked_random_numbers, stale

_DRAWING = (nn.modules.dropout._DropoutNd, nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)


class StatelessStep(NamedTuple):
    """What is kept of the latest call."""

    x: Tensor  # (K, B, ...) input
    modes: list[bool]  # `training` of the module and all in it
    random_state: tuple[Tensor, ...] | None  # torch's, before the call: a dropout mask is drawn again from it


class Stateless:
    """Adapts a module; holds no parameters of its own."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._step: StatelessStep | None = None
        self._call: Call | None = None

    def _may_draw(self) -> bool:
        """Whether it may draw random numbers. Of torch's own modules it is known which ones do, of others it is not."""
        return any(
            isinstance(part, _DRAWING) or not type(part).__module__.startswith("torch.nn.")
            for part in self.module.modules()
        )

    def _modes(self) -> list[bool]:
        return [part.training for part in self.module.modules()]

    def check(self, where: str) -> None:
        """Raise where the module is not a function of each step and lane by itself.

        Raises:
            TypeError: batch normalisation in training mode, a module with a state over time, one that works in place.
        """
        for module in self.module.modules():
            kind = type(module).__name__
            per_batch = isinstance(module, nn.modules.batchnorm._BatchNorm) and not module.track_running_stats
            updating = isinstance(module, nn.modules.batchnorm._NormBase) and (
                module.training and (module.track_running_stats or isinstance(module, nn.modules.batchnorm._BatchNorm))
            )
            if per_batch or updating:
                raise TypeError(
                    f"{where}: expected modules that treat each step and lane by itself, got {kind} with statistics of "
                    f"the batch, which mixes lanes and steps. Use LayerNorm or GroupNorm, or eval mode with running "
                    f"statistics."
                )
            if isinstance(module, Streaming | nn.RNNBase | nn.RNNCellBase):
                raise TypeError(
                    f"{where}: expected stateless modules, got {kind}, whose state over time would be lost here. "
                    f"Put layers of tracetorch directly in tt.Sequential; torch's recurrent modules have no place."
                )
            if getattr(module, "inplace", False):
                raise TypeError(
                    f"{where}: expected modules that leave their input as it is, got {kind} with inplace=True. "
                    f"Set inplace=False."
                )

    def _run(self, x: Tensor) -> Tensor:
        """(K, B, ...) -> (K, B, ...), through the module as rows."""
        kind, rows = type(self.module).__name__, x.flatten(0, 1)
        version = None if rows.is_inference() else rows._version
        y: Tensor = self.module(rows)
        if version is not None and rows._version != version:
            raise TypeError(f"{kind}: expected a module that leaves its input as it is, got one that works in place.")
        if y.shape[:1] != rows.shape[:1]:
            raise ValueError(
                f"{kind}: expected as many rows as came, {len(rows)} (steps times lanes), got shape {tuple(y.shape)}. "
                f"A module between layers works on each row by itself; nn.Flatten() keeps the rows."
            )
        return y.reshape(*x.shape[:2], *y.shape[1:])

    def _propose(self, x: Tensor, learning: bool) -> tuple[Tensor, list[Proposal]]:
        self.check(type(self.module).__name__)
        step = None
        if learning:
            step = StatelessStep(x, self._modes(), _random_state(x) if self._may_draw() else None)
        return self._run(x), [Proposal(self, step)]

    def _commit(self, step: StatelessStep | None, call: Call) -> None:
        self._step, self._call = step, call

    def _backward(self, ls: Tensor, above: Any, signal: bool, call: Call) -> PartBackward:  # noqa: ARG002
        if self._step is None or self._call is not call or self._step.modes != self._modes():
            raise stale(type(self.module).__name__)
        x, _, random_state = self._step
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        if not signal and not parameters:
            return PartBackward(None, None, [])
        with torch.enable_grad(), _replayed(x, random_state):
            leaf = x.detach().requires_grad_(signal)
            y = self._run(leaf)
            wanted = [leaf, *parameters] if signal else parameters
            gradients = list(torch.autograd.grad(y, wanted, ls, allow_unused=True, materialize_grads=True))
        ls_below = gradients.pop(0) if signal else None
        # Autograd may hand out one tensor for several parameters, or ls itself.
        updates = [(p, g.clone()) for p, g in zip(parameters, gradients, strict=True)]
        return PartBackward(ls_below, None, updates)

    def _calibrate(self, x: Tensor) -> tuple[Tensor, list[Rescaling]]:
        """Torch modules keep the weights they came with; a Dropout is left out, as it is when nothing is learned."""
        self.check(type(self.module).__name__)
        modes = self._modes()
        self.module.eval()
        try:
            return self._run(x), []
        finally:
            for module, training in zip(self.module.modules(), modes, strict=True):
                module.training = training

    def _forget(self) -> None:
        self._step, self._call = None, None

    def _tape_tensors(self) -> list[Tensor]:
        return [] if self._step is None else [self._step.x]

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles hold no latest call."""
        return self.__dict__ | {"_step": None, "_call": None}


def _random_state(x: Tensor) -> tuple[Tensor, ...]:
    states = [torch.get_rng_state()]
    if x.is_cuda:
        states.append(torch.cuda.get_rng_state(x.device))
    return tuple(states)


@contextmanager
def _replayed(x: Tensor, random_state: tuple[Tensor, ...] | None) -> Iterator[None]:
    """Within this context random numbers come as they did from `random_state` on; afterwards as if never drawn."""
    if random_state is None:
        yield
        return
    with forked_random_numbers(x):
        torch.set_rng_state(random_state[0])
        if x.is_cuda:
            torch.cuda.set_rng_state(random_state[1], x.device)
        yield
