"""What layers and models have in common: calls, backward, reset, state. The public edge, where checks stand.

A call runs in two steps, so that a refused call changes no state: every part *proposes* its next state, and only when
all have done so are the proposals *committed*. `backward` likewise adds to `.grad` when all gradients are known.
"""

from __future__ import annotations

import copy
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from .. import _checks, kernels
from ..functional.bank import Bank
from ..kernels import memory
from ..rules import Eligibility, InputTrace, MeanField, Rule, Truncated
from ..rules.base import ModelDecays, Wanted
from .row import Row
from .state import flatten
from .streaming import Call, Handed, Plans, Streaming, forked_random_numbers, full_precision, learning
from .usual import make_a_row

if TYPE_CHECKING:
    from .layer import Layer

Model = TypeVar("Model", bound="Online")


@contextmanager
def learning_is(wanted: bool) -> Iterator[None]:
    """Within this context models in training mode learn, or do not."""
    before = learning.set(wanted)
    try:
        yield
    finally:
        learning.reset(before)


@contextmanager
def probe_of(model: Model) -> Iterator[Model]:
    """A copy of `model`, from rest, that learns within this context, whatever the mode and the context around it.

    Only its layers and models are put into training mode: a Dropout or BatchNorm in eval mode stays there.
    """
    with torch.inference_mode(False), learning_is(True):
        probe = copy.deepcopy(model)
        probe.reset()
        for module in probe.modules():
            if isinstance(module, Online):
                module.training = True
        yield probe


def no_learning() -> AbstractContextManager[None]:
    """A context in which no traces are kept and `backward` is refused, as in `model.eval()`.

    Membranes go on. When learning resumes the traces start afresh: the past is truncated. `torch.inference_mode()` has
    the same effect.

    >>> with no_learning():
    ...     pass
    """
    return learning_is(False)


class Proposal(NamedTuple):
    """A part's next state, not yet in force."""

    part: Part
    step: Any

    def commit(self, call: Call) -> None:
        """Put it in force."""
        self.part._commit(self.step, call)


class PartBackward(NamedTuple):
    """What a part's backward returns."""

    ls_below: list[Tensor | None]  # (K, B, ...) dL/dx of each tape, where asked for; None for 0
    below: Tensor | None  # (B, G, ...) the adjoint of the time before the tapes, for the part below
    updates: list[tuple[nn.Parameter, Tensor]]  # what is to be added to .grad


class Rescaling(NamedTuple):
    """What calibration makes of a weight."""

    weight: Tensor
    factor: Tensor  # broadcasts to it


class Part(Protocol):
    """What a model is made of: a layer, a model, or the adapter of a stateless module."""

    def _hand_nodes(
        self,
        above: Handed | None,
        decays: Callable[[], ModelDecays],
        plans: Plans,
        grids: Mapping[int, Tensor | None] | None,
    ) -> Handed | None: ...

    def _uses_adjoint(self) -> bool: ...

    def _trains(self) -> bool: ...

    def _windows_kept(self) -> int: ...

    def _propose(self, x: Tensor, call: Call) -> tuple[Tensor, list[Proposal]]: ...

    def _commit(self, step: Any, call: Call) -> None: ...

    def _backward(self, ls: list[Tensor | None], above: Tensor | None, wanted: Wanted, call: Call) -> PartBackward: ...

    def _calibrate(self, x: Tensor) -> tuple[Tensor, list[Rescaling]]: ...


class Online(Streaming):
    """Base of everything that learns online: a layer, or a model of layers."""

    check_finite: bool = True
    """Whether inputs and learning signals are checked for NaN and infinity; costs a synchronisation on CUDA."""

    state_limit: int | None = 2**30
    """Bytes, None for no limit: when a stream begins, a warning names every layer that will keep more between calls."""

    compact: bool = False
    """Whether tapes keep spikes as bits, and compute membranes again when they are needed: some thirty times fewer
    bytes for spike input in long windows, or with a long horizon. Membranes are those of the weights as they are by
    then. Where neurons emit other things than spikes, tapes are as they are without; where input is not all spikes, it
    is kept as it is. Of nested models the outermost one's counts."""

    _row: Row | None = None  # what runs it, where it is a stack of usual layers
    _horizon: int | None = None
    _fits: tuple[Plans, int, int | None] | None = None  # what was last seen to keep no more than the limit

    @property
    def horizon(self) -> int | None:
        """Steps, H: how far back credit is exact at least, wherever the borders of windows fall.

        After every window of K steps the reverse pass runs over the latest H steps or a few more (whole windows), for
        (H + K) / (2 K) times the work of a plain window, and the rule carries what is older. H = T is BPTT in windows
        of any length. None, the default: the window alone. What it keeps is counted by `tape_bytes`. Of nested models
        the outermost one's counts.
        """
        return self._horizon

    @horizon.setter
    def horizon(self, steps: int | None) -> None:
        if steps is not None:
            _checks.at_least_one(type(self).__name__, "horizon", steps)
        self._horizon = steps

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What torch does to move or convert parameters."""
        self._row = None
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call, no-any-return]

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles hold nothing that is known of the model's latest calls."""
        return super().__getstate__() | {"_fits": None, "_row": None}

    # -- calls ---------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """Run one step. No autograd graph is built.

        Args:
            x: (B, n) input of B lanes, or (n,) for a single one; floating point or boolean. It is copied, so the same
                buffer may be filled anew for the next call.

        Returns:
            (B, m), or (m,).

        Raises:
            ValueError: x has another shape, another number of lanes than the calls before, or non-finite entries.
            TypeError: x has a dtype other than the weights' or bool, or requires grad.
        """
        return self._call(x, window=False)

    def window(self, x: Tensor) -> Tensor:
        """Run a window of K steps: the same as K single steps, in one matrix product per layer.

        Args:
            x: (K, B, n), or (K, n) for a single lane; otherwise as for a single step.

        Returns:
            (K, B, m), or (K, m).
        """
        return self._call(x, window=True)

    def _call(self, x: Tensor, window: bool) -> Tensor:
        row = self._row
        y = None if row is None or type(x) is not Tensor else row.again(self, x, window)
        if y is not None:
            return y
        if self.compact:
            self._row = None
        steps = len(x) if window and isinstance(x, Tensor) and x.ndim else 1
        if isinstance(x, Tensor) and self._learns_now() and not self._keeps_more_than(steps):
            row = self._as_row()
            y = None if row is None else row.call(self, x, window)
            if y is not None:
                return y
        return self._general_call(x, window)

    def _keeps_more_than(self, steps: int) -> bool:
        """Whether more is kept, or otherwise, than the plain tape of the latest window."""
        return self.compact or (self._horizon is not None and self._horizon > steps)

    def _as_row(self) -> Row | None:
        """What runs it in few calls, where it is nothing but usual layers."""
        members = self._members()
        cpu = kernels.cpu_for(members[0]._a_weight()) if members else None
        if cpu is None or torch.is_autocast_enabled("cpu"):
            return None
        if self._row is None or not self._row.serves(members):
            self._row = Row(members, [*self._modules.values()], cpu) if make_a_row(members) else None
        return self._row

    @torch.no_grad()
    def _general_call(self, x: Tensor, window: bool) -> Tensor:
        call, folded = self._fold_input(x, window, copied=self._learns_now())
        if call.learning:
            call.plans, call.compact = self._planned(), self.compact
            if self._horizon is not None and self._horizon > len(folded) and self._parts_agree(call.plans):
                call.horizon = self._horizon
        with full_precision(folded):
            y, proposals = self._propose(folded, call)
        if call.learning and (self._remembered is None or call.plans is not self._remembered.running):
            self._check_size(call.plans, folded.shape[1])
        for proposal in proposals:
            proposal.commit(call)
        y = call.unfold(y)
        call.y_shape = tuple(y.shape)
        if not call.learning:
            self._latest, self._ended = None, "the latest ran in eval mode or under no_learning()"
            return y
        self._latest = call
        return y.clone()  # the same for y

    def _parts_agree(self, plans: Plans) -> bool:
        """Whether all parts keep tapes of the same calls: not where one was run or replaced by itself."""
        kept = {tuple(id(segment.call) for segment in part._segments) for part in self._parts()}
        starting = [plans[id(layer)].fresh for layer in self._layers().values()]
        return len(kept) == 1 and all(fresh == starting[0] for fresh in starting)

    def _check_size(self, plans: Plans, lanes: int) -> None:
        """Warn where a stream begins that will keep more bytes than the limit."""
        known = self._fits
        if known is not None and known[0] is plans and known[1:] == (lanes, self.state_limit):
            return
        fits = True
        for name, layer in self._layers().items():
            plan = plans[id(layer)]
            if not plan.fresh or self.state_limit is None:
                continue
            size = layer._state_bytes_per_lane(plan.nodes) * lanes
            if size > self.state_limit:
                fits = False
                warnings.warn(
                    f"{type(self).__name__}: layer {name or 0} ({layer!r}) will keep {size:,} bytes between calls for "
                    f"{lanes} lanes, more than the limit of {self.state_limit:,}. Give it rule=MeanField(), or "
                    f"InputTrace() with a horizon, or fewer lanes; or set state_limit (bytes, None for no limit).",
                    stacklevel=_level_of_the_user(),
                )
        self._fits = (plans, lanes, self.state_limit) if fits else None

    def _learns_now(self) -> bool:
        return self.training and learning.get() and not torch.is_inference_mode_enabled()

    def _fold_input(self, x: Tensor, window: bool, copied: bool = False) -> tuple[Call, Tensor]:
        """The call, and x as (K, B, ...); `copied`: for the tape, so that x may be written to afterwards."""
        where = type(self).__name__
        _checks.is_tensor(where, "x", x)
        if x.requires_grad:
            raise TypeError(
                f"{where}: expected x without requires_grad, got one that requires it: no autograd graph is built "
                f"here. Give x.detach(), and continue by hand with x.backward(model.backward(ls, input_signal=True))."
            )
        if x.layout != torch.strided:
            raise TypeError(f"{where}: expected a dense x, got {x.layout}. Convert it with x.to_dense().")
        weight = self._a_weight()
        if x.dtype == torch.bool:
            x = x.to(weight.dtype)
        elif x.dtype != weight.dtype:
            raise TypeError(
                f"{where}: expected x to be {weight.dtype} like the weights, or bool, got {x.dtype}. "
                f"Convert it with x.to({weight.dtype})."
            )
        _checks.same_device(where, "x", x, weight)
        call = Call(window, self._is_unbatched(x, window), self._learns_now())
        if x.numel() == 0:
            raise ValueError(f"{where}: expected at least one step and one lane, got x of shape {tuple(x.shape)}.")
        if copied:
            return call, call.fold(self._copied(where, x))
        if self.check_finite:
            _checks.finite(where, "x", x)
        return call, call.fold(x)

    def _copied(self, where: str, x: Tensor) -> Tensor:
        """A contiguous copy of an input, which is checked in the same pass over it where there is a kernel."""
        cpu = kernels.cpu_for(x)
        if cpu is None or not x.is_contiguous():
            if self.check_finite:
                _checks.finite(where, "x", x)
            return x.clone(memory_format=torch.contiguous_format)
        copy = memory.empty(x.shape, x.dtype)
        if not cpu.taken(x, copy) and self.check_finite:
            _checks.finite(where, "x", x)
        return copy

    def _is_unbatched(self, x: Tensor, window: bool) -> bool:
        features = self._feature_shape()
        leading = ("K", "B") if window else ("B",)
        if features is None:  # a stateless module comes first, and what it takes is its own affair
            if x.ndim <= len(leading):
                raise ValueError(
                    f"{type(self).__name__}: expected x of shape ({', '.join(leading)}, ...), got {tuple(x.shape)}."
                )
            return False
        missing = len(leading) + len(features) - x.ndim
        if missing not in (0, 1) or not fits(x.shape[x.ndim - len(features) :], features):
            inputs = "inputs" if len(features) == 1 else "channels"
            remedy = f"Give the model {features[0]} {inputs}, or a layer of the size that came."
            if x.ndim > len(leading) + len(features):
                remedy = f"Flatten it first, with x.flatten({len(leading)})."
                if not window and fits(x.shape[-len(features) :], features):
                    remedy = "For a window of steps, time first, call window(x)."
            steps = "a window of " if window else ""
            raise ValueError(
                f"{type(self).__name__}: expected {steps}x of shape {shown([*leading, *features])}, "
                f"got {tuple(x.shape)}. {remedy}"
            )
        return missing == 1

    # -- backward ------------------------------------------------------------------------------------------------

    def backward(self, ls: Tensor, *, input_signal: bool = False) -> Tensor | None:
        """Add the gradients for a learning signal to `.grad`. For the latest call; earlier ones live on in traces.

        A second call for the same forward adds its gradients. Call it before the optimizer steps: the signal passes
        down through the weights as they are now.

        Args:
            ls: dL/dy, in the shape of the latest call's y.
            input_signal: also return dL/dx of the latest call.

        Returns:
            dL/dx in x's shape where `input_signal`, else None.

        Raises:
            RuntimeError: no forward call to go back to (none yet, a reset since), or eval mode.
            ValueError: ls has another shape than y, is on another device, or has non-finite entries.
            TypeError: ls is not a tensor of y's dtype.
        """
        row = self._row
        if row is not None and isinstance(ls, Tensor):
            served = row.backward(self, ls, input_signal)
            if served is not None:
                return served[0]
        return self._general_backward(ls, input_signal)

    @torch.no_grad()
    def _general_backward(self, ls: Tensor, input_signal: bool) -> Tensor | None:
        where = f"{type(self).__name__}.backward"
        if not self._learns_now():
            raise RuntimeError(
                f"{where}: expected training mode, got eval mode, no_learning() or inference mode. "
                f"Call model.train(), and forward and backward outside such contexts."
            )
        call = self._latest
        if call is None:
            raise RuntimeError(
                f"{where}: expected a forward call in training mode to go back to, but {self._ended}. "
                f"Call the model, or model.window(x), first."
            )
        _checks.is_tensor(
            where, "ls", ls, "A loss of tracetorch.loss returns a pair: write loss, ls = ..., and give ls."
        )
        _checks.floating(where, "ls", ls)
        dtype = self._a_weight().dtype
        if ls.dtype != dtype:
            raise TypeError(f"{where}: expected ls to be {dtype} like y, got {ls.dtype}. Convert it with ls.to().")
        _checks.same_shape(
            where, "ls", ls, call.y_shape, "ls is dL/dy, the second of what a loss of tracetorch.loss returns."
        )
        _checks.same_device(where, "ls", ls, self._a_weight())
        if self.check_finite:
            _checks.finite(where, "ls", ls)
        signals = [*[None] * (self._windows_kept() - 1), call.fold(ls)]
        with full_precision(ls):
            result = self._backward(signals, None, Wanted(input_signal, False), call)
        for parameter, gradient in result.updates:
            if parameter.grad is None:
                parameter.grad = gradient.contiguous()
            else:
                parameter.grad.add_(gradient)
        if not input_signal:
            return None
        below = result.ls_below[-1]
        assert below is not None
        return call.unfold(below).contiguous()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Let go of the gradients of all parameters, or set them to zero."""
        if set_to_none:
            _let_go_of_gradients(self)
        else:
            super().zero_grad(False)

    # -- before training -------------------------------------------------------------------------------------------

    def tape_bytes(self, lanes: int = 1, window: int = 1) -> int:
        """The bytes that the latest call keeps for its backward until the next call, besides `state_bytes`.

        Linear in lanes and steps. With a horizon H, the latest windows that cover it are kept. With `compact`, of input
        that is all spikes, and somewhat more than is kept of several lanes, which share words. Found by running a copy
        of the model for two short windows. The state of torch's random numbers, which a Dropout keeps (some 5 kB,
        whatever the lanes and steps), and each window's copy of betas and thresholds are not counted.

        Args:
            lanes: B.
            window: K.

        Raises:
            ValueError: lanes or window below 1; a model whose input size is unknown, since a stateless module is first.
        """
        where = f"{type(self).__name__}.tape_bytes"
        _checks.at_least_one(where, "lanes", lanes)
        _checks.at_least_one(where, "window", window)
        features = self._feature_shape(known=True)
        sizes = [size for size in features or () if size is not None]
        if features is not None and len(sizes) < len(features):
            raise ValueError(
                f"{where}: expected a model whose input has a size, got a convolution first, which takes any. "
                f"Call the model once before."
            )
        if features is None:
            raise ValueError(
                f"{where}: expected a model that starts with a layer, got a stateless module first, whose input size "
                f"is unknown. Ask the part of the model after it, model[1:], and add the bytes of the module's input."
            )
        weight = self._a_weight()
        windows = 1 if self._horizon is None else max(1, math.ceil(self._horizon / window))
        with forked_random_numbers(weight), probe_of(self) as probe:
            one, two = (
                probe._window_tape_bytes(
                    torch.zeros(k, 1, *sizes, dtype=weight.dtype, device=weight.device), self._keeps_more_than(window)
                )
                for k in (1, 2)
            )
        return windows * lanes * (one + (window - 1) * (two - one))

    def _window_tape_bytes(self, x: Tensor, more: bool) -> int:
        self.horizon = len(x) + 1 if more else None  # one window, kept as several are
        self.reset()
        self.window(x)
        tensors = [tensor for part in self._parts() for tensor in part._tape_tensors()]
        return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())

    def break_even(self, rules: Sequence[Rule] | None = None, *, window: int = 1) -> dict[str, int]:
        """From which sequence length T on each rule keeps fewer bytes than backpropagation through time.

        BPTT keeps the tapes of all T steps; a rule keeps its traces, and the tape of one window.

        Args:
            rules: to compare, each for the whole model; by default Truncated, InputTrace, MeanField and Eligibility.
            window: K, the steps per window.

        Returns:
            T in steps, by the rule's text, such as `{"InputTrace()": 3}`. A rule that cannot serve the model is left
            out.

        Raises:
            ValueError: window below 1; a model whose input size is unknown, since a stateless module is first.
        """
        found = {}
        with forked_random_numbers(self._a_weight()), probe_of(self) as probe:
            probe.horizon = None
            for layer in probe._layers().values():
                layer.rule = Truncated()
            tape = probe.tape_bytes(1, window)
            rest, per_step = (probe.tape_bytes(1, 1), probe.tape_bytes(1, 2) - probe.tape_bytes(1, 1))
            layers = probe._layers().values()
            for rule in rules or (Truncated(), InputTrace(), MeanField(), Eligibility()):
                try:
                    for layer in probe._layers().values():
                        layer.rule = rule
                    kept = probe.state_bytes(1) + tape
                except ValueError:
                    continue
                membranes = sum(t.nbytes for layer in layers for t in flatten(layer._rest(1)).values())
                found[repr(rule)] = max(1, 1 + (kept - membranes - rest + per_step) // per_step)
        return found

    def banks(self) -> dict[str, Bank]:
        """The bank of each layer whose rule has one, by name: its `nodes`, coefficients and `error()`.

        As a stream that begins now would have it, or as the running stream has it.

        >>> from tracetorch import LI, LIF, Eligibility, Sequential
        >>> model = Sequential(LIF(4, 8, beta=0.8), LIF(8, 8, beta=0.9), LI(8, 2, beta=0.95), rule=Eligibility())
        >>> {name: len(bank.nodes) for name, bank in model.banks().items()}
        {'0': 3, '1': 3, '2': 1}
        """
        plans = self._planned()
        return {
            name: layer.bank(
                plans[id(layer)].nodes.own,
                plans[id(layer)].nodes.above,
                layer.neuron.chain(layer.values(), "input")[-1].decay,
            )
            for name, layer in self._layers().items()
            if layer.rule.hands_adjoint
        }

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Scale the weights to the data, layer by layer from the input up; the streams are left as they are.

        Each neuron's weights are multiplied so that its membrane, without bias and reset and from rest, has the root
        mean square over `x` that initialisation aims at: the threshold, for a readout 1 - beta. Frozen weights stay.

        Args:
            x: (K, B, n) a batch of input as the model will see it, or (K, n).

        Raises:
            ValueError: as for `window`; a synapse that several layers share.
            TypeError: as for `window`.
        """
        _, folded = self._fold_input(x, window=True)
        with full_precision(folded):
            _, rescalings = self._calibrate(folded)
        if len({id(weight) for weight, _ in rescalings}) < len(rescalings):
            raise ValueError(
                f"{type(self).__name__}.calibrate: expected each layer to have weights of its own, got a synapse that "
                f"several share. Calibrate those layers by themselves."
            )
        for weight, factor in rescalings:
            weight.mul_(factor)
        self._end("calibrate() changed the weights after the latest")

    # -- what subclasses write -------------------------------------------------------------------------------------

    def _members(self) -> list[Layer]:
        """The layers of which it is a plain stack; none where it is something else."""
        return []

    def _propose(self, x: Tensor, call: Call) -> tuple[Tensor, list[Proposal]]:
        raise NotImplementedError

    def _commit(self, step: Any, call: Call) -> None:
        raise NotImplementedError

    def _backward(self, ls: list[Tensor | None], above: Tensor | None, wanted: Wanted, call: Call) -> PartBackward:
        raise NotImplementedError

    def _calibrate(self, x: Tensor) -> tuple[Tensor, list[Rescaling]]:
        """The output (K, B, ...) for x (K, B, ...) from rest with the rescaled weights, and the rescalings."""
        raise NotImplementedError

    def _trains(self) -> bool:
        """Whether a parameter of it is not frozen."""
        raise NotImplementedError

    def _windows_kept(self) -> int:
        """Of how many calls there are tapes."""
        raise NotImplementedError

    def _feature_shape(self, known: bool = False) -> tuple[int | None, ...] | None:
        """The shape of one lane's input at one step, with None for what any size will do; None where it is unknown.

        Args:
            known: give the sizes of the calls before, where there were any.
        """
        raise NotImplementedError


def _level_of_the_user() -> int:
    """The stack level, for a warning that the caller gives, of the first frame outside of this library and torch."""
    inside = str(Path(torch.__file__).parent / "_")[:-1], str(Path(__file__).parents[1] / "_")[:-1]
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(inside):
        level, frame = level + 1, frame.f_back
    return level


def _let_go_of_gradients(module: nn.Module) -> None:
    for parameter in module._parameters.values():
        if parameter is not None:
            parameter.grad = None
    for child in module._modules.values():
        if child is not None:
            _let_go_of_gradients(child)


def fits(shape: Sequence[int], expected: Sequence[int | None]) -> bool:
    """Whether a shape is as expected, None being any size."""
    return len(shape) == len(expected) and all(e in (None, size) for size, e in zip(shape, expected, strict=True))


def shown(expected: Sequence[int | str | None]) -> str:
    """A shape as messages have it."""
    return f"({', '.join('any' if size is None else str(size) for size in expected)})"
