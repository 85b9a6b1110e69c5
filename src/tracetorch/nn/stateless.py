"""The adapter that lets an ordinary torch module stand between layers.

A stateless module sees (K*B, ...) rows. Its backward is a vector-Jacobian product: the module is run again on the
input that was kept, under autograd, and the graph is freed at once. This is the only place where autograd runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..rules.base import ModelDecays, Segment, Wanted
from .online import PartBackward, Proposal, Rescaling
from .streaming import Call, Handed, Plans, Streaming, forked_random_numbers, stale

_RESHAPING = (nn.Identity, nn.Flatten, nn.Unflatten)  # their Jacobian is the identity, in another shape
_DRAWING = (nn.modules.dropout._DropoutNd, nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)


class StatelessStep(NamedTuple):
    """What is kept of a call."""

    x: Tensor  # (K, B, ...) input
    modes: list[bool]  # `training` of the module and all in it
    random_state: tuple[Tensor, ...] | None  # torch's, before the call: a dropout mask is drawn again from it


class Stateless:
    """Adapts a module; holds no parameters of its own."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._segments: tuple[Segment, ...] = ()  # of StatelessStep

    def _may_draw(self) -> bool:
        """Whether it may draw random numbers. Of torch's own modules it is known which ones do, of others it is not."""
        return any(
            isinstance(part, _DRAWING) or not type(part).__module__.startswith("torch.nn.")
            for part in self.module.modules()
        )

    def _trains(self) -> bool:
        return any(p.requires_grad for p in self.module.parameters())

    def _windows_kept(self) -> int:
        return len(self._segments)

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

    def _hand_nodes(
        self,
        above: Handed | None,
        decays: Callable[[], ModelDecays],  # noqa: ARG002
        plans: Plans,  # noqa: ARG002
        grids: Mapping[int, Tensor | None] | None,  # noqa: ARG002
    ) -> Handed | None:
        return above

    def _uses_adjoint(self) -> bool:
        return False

    def _propose(self, x: Tensor, call: Call) -> tuple[Tensor, list[Proposal]]:
        self.check(type(self.module).__name__)
        segments: tuple[Segment, ...] = ()
        if call.learning:
            step = StatelessStep(x, self._modes(), _random_state(x) if self._may_draw() else None)
            _, staying = call.leaving(self._segments, len(x))
            segments = (*staying, Segment(step, len(x), call))
        return self._run(x), [Proposal(self, segments)]

    def _commit(self, step: tuple[Segment, ...], call: Call) -> None:  # noqa: ARG002
        self._segments = step

    def _backward(self, ls: list[Tensor | None], above: Tensor | None, wanted: Wanted, call: Call) -> PartBackward:
        latest = self._segments[-1] if self._segments else None
        if latest is None or latest.call is not call or latest.tape.modes != self._modes():
            raise stale(type(self.module).__name__)
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        ls_below: list[Tensor | None] = []
        updates: list[tuple[nn.Parameter, Tensor]] = []
        for segment, signal in zip(self._segments, ls, strict=True):
            below: list[Tensor] = []
            if signal is not None and (wanted.signal or parameters):
                below, gradients = self._products(segment.tape, [signal], parameters, wanted.signal)
                updates += zip(parameters, gradients, strict=True)
            ls_below.append(below[0] if below else None)
        handed = None
        if wanted.adjoint and above is not None:
            handed = self._adjoint_below(self._segments[0].tape, above)
        return PartBackward(ls_below, handed, updates)

    def _adjoint_below(self, step: StatelessStep, above: Tensor) -> Tensor:
        """(B, H, ...) -> (B, H, ...): through the mean of the Jacobians of the window next to the border."""
        steps = len(step.x)
        signals = [(coefficient / steps).expand(steps, *coefficient.shape) for coefficient in above.unbind(1)]
        below, _ = self._products(step, signals, [], True)
        return torch.stack([product.sum(0) for product in below], 1)

    def _products(
        self, step: StatelessStep, signals: list[Tensor], parameters: list[nn.Parameter], signal: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The vector-Jacobian products of a window for each of the signals, and the last one's for the parameters."""
        if type(self.module) in _RESHAPING:
            return [vector.reshape(step.x.shape) for vector in signals if signal], []
        below: list[Tensor] = []
        gradients: list[Tensor] = []
        with torch.enable_grad(), _replayed(step.x, step.random_state), self._in_modes(step.modes):
            leaf = step.x.detach().requires_grad_(signal)
            y = self._run(leaf)
            wanted = [leaf, *parameters] if signal else parameters
            for vector in signals:
                products = torch.autograd.grad(
                    y, wanted, vector, retain_graph=vector is not signals[-1], allow_unused=True, materialize_grads=True
                )
                below += products[:1] if signal else ()
                # Autograd may hand out one tensor for several parameters, or the signal itself.
                gradients = [g.clone() for g in products[len(products) - len(parameters) :]]
        return below, gradients

    def _calibrate(self, x: Tensor) -> tuple[Tensor, list[Rescaling]]:
        """Torch modules keep the weights they came with; a Dropout is left out, as it is when nothing is learned."""
        self.check(type(self.module).__name__)
        with self._in_modes([False] * len(self._modes())):
            return self._run(x), []

    @contextmanager
    def _in_modes(self, modes: list[bool]) -> Iterator[None]:
        """Within this context the module and all in it are in training or eval mode as given."""
        before = self._modes()
        for module, training in zip(self.module.modules(), modes, strict=True):
            module.training = training
        try:
            yield
        finally:
            for module, training in zip(self.module.modules(), before, strict=True):
                module.training = training

    def _forget(self) -> None:
        self._segments = ()

    def _fold(self) -> None:
        self._forget()

    def _reset_lanes(self, mask: Tensor) -> None:
        """Each step and lane is by itself here: nothing to forget."""

    def _tape_tensors(self) -> list[Tensor]:
        return [segment.tape.x for segment in self._segments]

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles hold no latest call."""
        return self.__dict__ | {"_segments": ()}


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
