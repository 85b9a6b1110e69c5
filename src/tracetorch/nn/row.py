"""Rows of usual layers, run in few calls.

What a row computes, and what it keeps, is what `Layer` and `rules` compute and keep for any layer, and either may go
on from where the other stopped. It is here because of small windows, where a step is so little work that the calls of
torch and Python around it are most of its time: a single step, or a window of few rows (steps times lanes), takes one
call in each direction for the whole row, a longer window three for each layer.

A call of the same shape after the same call, or where streams begin, does what the one before did (`Row.again`), where
`watch` sees no change.

A model that is nothing but such layers is run as one row; elsewhere each usual layer is a row by itself. Whatever else
comes (bad input, a horizon, another module's tapes) is left to the general way, by answering None, or False.

Inputs, membranes and traces are written in two sets of buffers by turns. What was committed last is never written to,
so that a refused call leaves everything as it was. A layer's traces stand right before its window's input, and what is
left over at the window's start right before its gradients: one product gives both parts of the weights' gradient.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from .. import kernels
from ..functional.scan import State
from ..kernels import memory
from ..rules.base import Segment
from . import streaming
from .state import LayerState
from .streaming import Call, LayerPlan, Plans, Remembered
from .usual import Link, Place, PlaceTape, Scratch
from .watch import KEPT, Gradients, Watch

if TYPE_CHECKING:
    from .layer import Layer
    from .online import Online

FUSED_LANES = 4  # up to which a single step has a kernel of its own
CHAINED_WEIGHTS = 2**19  # of a layer, up to which a window of few rows is run in a single call, by one thread;
CHAINED_PRODUCTS = 2**22  # and up to so many times its rows where torch has several
SHAPES = 2  # numbers of steps and lanes for which buffers are kept
PATTERNS = 16  # of frozen parameters, and of what is asked for besides, for which tables are kept


_Word = tuple[Any, int]  # a table, and a place in it
_requires_grad = operator.attrgetter("requires_grad")


class Start(NamedTuple):
    """Where a layer goes on from."""

    mem: Tensor
    past: Place | None  # where there is input that is not in the traces yet
    traces: Any  # as a rule keeps them; None: all zero


class Commit(NamedTuple):
    """What a call leaves in the model and its layers."""

    call: Call
    outputs: memory.Stock
    model: dict[str, Any]
    layers: list[tuple[dict[str, Any], dict[str, Any]]]  # each layer's attributes, and what is put into them
    kept: list[Any]  # of each layer, its state and tapes


class Known(NamedTuple):
    """What there is to do in a call of a shape, after the same call or where streams begin."""

    buffers: Buffers
    binding: Binding
    commit: Commit
    fits: Any  # see `Online._check_size`


class Binding:
    """A set of buffers and what comes before it: the kernels' tables, and what is to be committed."""

    def __init__(self, buffers: Buffers, starts: Sequence[Start], plans: list[LayerPlan], cpu: Any) -> None:
        self.plans, self.starts = plans, starts  # the tables have the addresses of the starts
        self.commits: dict[tuple[bool, bool], Commit] = {}
        parts = list(zip(buffers.links, buffers.places, starts, strict=True))
        self.tapes = [
            PlaceTape(place, State(start.mem), link.values, plan.nodes)
            for (link, place, start), plan in zip(parts, plans, strict=True)
        ]
        self.folds: list[Callable[[], None]] = []  # of the traces, where that is a call by itself
        self.scans: list[Any] = []
        chain: list[Any] = []
        words: list[int] = []
        for (link, place, start), above in zip(parts, [*buffers.places[1:], None], strict=True):
            traces = [0] * 5
            if link.traced:
                traces = _traces(cpu, start, place)
                if not buffers.single or (start.past is not None and (start.past.wide or start.past.shape[0] > 1)):
                    fold = _fold(cpu, link, start, place, traces)
                    if buffers.chained and isinstance(fold, cpu.Job):
                        chain.append(fold)
                    else:
                        self.folds.append(fold.run if isinstance(fold, cpu.Job) else fold)
                    traces = [0] * 5
            y = 0 if above is None else cpu.address(above.x)
            states = start.mem.data_ptr(), place.mem.data_ptr()
            if buffers.single:
                words += link.step_words(cpu, place, states, y, traces)
            else:
                self.scans.append(link.scan_job(cpu, place, states, y))
        self.step = cpu.Job("step", buffers.dtype, [len(parts), 0, 0, 0, *words]) if buffers.single else None
        self.chain: Any = None
        if buffers.chained:
            for (link, place, _), scan in zip(parts, self.scans, strict=True):
                chain += [link.product_job(cpu, place), scan]
            self.chain = cpu.Chain([buffers.take, *chain])

    def commit(self, model: Online, buffers: Buffers, window: bool, y: Tensor, unbatched: bool) -> Commit:
        """What is left in the model by a call of this shape; the same objects each time, since one follows another."""
        known = self.commits.get((window, unbatched))
        if known is None:
            call = Call(window, unbatched, True)
            layers = [
                {"_state": place.state, "_segments": (Segment(tape, buffers.steps, call),), "_plan": plan}
                for place, tape, plan in zip(buffers.places, self.tapes, self.plans, strict=True)
            ]
            of_model: dict[str, Any] = {"_latest": call}
            if model is not buffers.links[0].layer:
                of_model["_run"] = call, [link.layer for link in buffers.links]  # see `Container`
            into = [*zip((link.attributes for link in buffers.links), layers, strict=True)]
            kept = [left[name] for left in layers for name in KEPT]
            known = Commit(call, memory.Stock(y.shape, y.dtype), of_model, into, kept)
            self.commits[window, unbatched] = known
        return known


class ReverseCall(NamedTuple):
    """What single steps and windows of few rows do backwards, in a single call."""

    job: Any
    signals: list[_Word]  # where it stands where dL/dy is
    finite: _Word  # where it stands afterwards whether that is finite
    targets: list[tuple[Tensor, _Word]]  # the parameters from below, and where it stands where their gradients go
    below: _Word | None  # where it stands where dL/dx goes; None where that is not asked for

    def run(self, ls: Tensor, check: bool) -> bool:
        """Whether it was run: not where `check` and ls is not finite."""
        place = ls.data_ptr()
        for table, at in self.signals:
            table[at] = place
        self.job.kernel(self.job.place)
        table, at = self.finite
        return not check or table[at] != 0


class Buffers:
    """One set of buffers."""

    def __init__(self, links: Sequence[Link], steps: int, lanes: int) -> None:
        self.links, self.steps, self.lanes = links, steps, lanes
        self.dtype = links[0].w.dtype
        self.single = steps == 1 and lanes <= FUSED_LANES
        self.places = [Place(link, steps, lanes) for link in links]
        self.wide = self.places[0].wide
        largest = max(link.w.numel() for link in links)
        small = steps * lanes * largest <= CHAINED_PRODUCTS or torch.get_num_threads() == 1
        self.chained = small and largest <= CHAINED_WEIGHTS and not self.single and not self.wide
        self.left: Commit | None = None  # by the latest call of a model
        self.begins = False  # whether the latest call was the first of its streams: there is nothing in the traces
        self.bindings: dict[Buffers | None, Binding] = {}  # by the buffers before; None where streams begin
        self.take: Any = None  # what copies the input of few rows, and says whether it is finite
        self.reverses: list[Any] = []  # the layers' reverse scans of a window
        self.biases: list[Any] = []  # likewise, their biases' gradients
        self.backwards: dict[tuple[bool, ...], ReverseCall] = {}  # in a single call, by what there is to do
        self.adds_to: list[Any] | None = None  # where the latest of these says that gradients go

    def starts(self) -> list[Start]:
        """Where the next call goes on from."""
        return [Start(place.mem, place if place.traces else None, place.traces) for place in self.places]


Before = Buffers | list[Start] | None
"""What a call goes on from: this row's latest call, other states, or None: all streams begin."""


class Pair:
    """What there is for one number of steps and lanes."""

    def __init__(self, links: Sequence[Link], steps: int, lanes: int, cpu: Any, other: Pair | None) -> None:
        self.sets = [Buffers(links, steps, lanes) for _ in range(2)]
        others: Sequence[Scratch | None] = [None] * len(links) if other is None else other.scratch
        self.scratch: list[Scratch] = [
            Scratch(link, steps, lanes, scratch) for link, scratch in zip(links, others, strict=True)
        ]
        self.rest = [Start(link.layer.zeros(lanes, link.m), None, None) for link in links]
        for buffers in self.sets:
            parts = list(zip(links, buffers.places, self.scratch, strict=True))
            if not buffers.wide:
                buffers.take = cpu.take_job(buffers.places[0].numbers())
            if not buffers.single:
                buffers.reverses = [link.reverse_job(cpu, place, scratch) for link, place, scratch in parts]
                buffers.biases = [
                    cpu.bias_job(scratch.total, scratch.leftover, place.trace("bias")) for _, place, scratch in parts
                ]


class Row:
    """Usual layers, each of which takes what the one before it gives.

    Args:
        layers: for which `make_a_row` holds.
        modules: those of the model.
        cpu: the kernels.
    """

    def __init__(self, layers: Sequence[Layer], modules: Sequence[nn.Module | None], cpu: Any) -> None:
        self.cpu = cpu
        self.links = [Link(layer, cpu) for layer in layers]
        self.layers, self.modules = list(layers), list(modules)
        self.watch = Watch(self.links)
        self.nothing_kept = [None, ()] * len(layers)
        self.n, self.m, self.dtype = self.links[0].n, self.links[-1].m, self.links[0].w.dtype
        self.x_at, self.ls_at = cpu.STEP_HEAD + cpu.STEP_GIVEN, cpu.STEP_HEAD + cpu.STEP_LS  # in tables of single steps
        self.y_at = cpu.STEP_HEAD + (len(layers) - 1) * cpu.STEP_TABLE + cpu.STEP_Y
        self.pairs: dict[tuple[int, int], Pair] = {}
        self.known: dict[tuple[Buffers | None, tuple[int, ...], bool], Known] = {}  # by what comes before, and x
        self.latest: Buffers | None = None  # what was committed last
        self.remembered: Remembered | None = None

    def serves(self, layers: Sequence[nn.Module]) -> bool:
        """Whether it is of these layers, and they are as they were."""
        return self.layers == layers and self.watch.sees_no_change()

    # -- forwards --------------------------------------------------------------------------------------------------

    def call(self, model: Online, x: Tensor, window: bool) -> Tensor | None:
        """What the model does in a call that learns; None where the general way is needed."""
        shape = x.shape
        unbatched = len(shape) == 1 + window
        if len(shape) != 2 + window and not unbatched:
            return None
        steps, lanes = shape[0] if window else 1, 1 if unbatched else shape[-2]
        if shape[-1] != self.n or x.requires_grad or not x.is_cpu or x.layout != torch.strided or not x.numel():
            return None
        if x.dtype != self.dtype:
            if x.dtype != torch.bool:
                return None
            x = x.to(self.dtype)
        before = self._before(lanes)
        if not self._can_go_on(before, lanes):
            return None
        plans = self._plans(model, before)
        buffers, binding = self._bound(steps, lanes, before, [plans[id(layer)] for layer in self.layers])
        y = memory.empty((*shape[:-1], self.m), self.dtype)
        finite = self._run(x.contiguous(), buffers, binding, y)
        if not finite and model.check_finite:
            return None
        if before is None or isinstance(before, list):
            model._check_size(plans, lanes)
        commit = binding.commit(model, buffers, window, y, unbatched)
        commit.call.plans, commit.call.y_shape = plans, tuple(y.shape)
        if not isinstance(before, list):
            self.known[before, shape, window] = Known(buffers, binding, commit, model._fits)
        self._commit(model, buffers, commit)
        return y

    def again(self, model: Online, x: Tensor, window: bool) -> Tensor | None:
        """The same, where a call of this shape was made before, after the same call or where streams begin.

        None where there was none, or something has changed since.
        """
        before = None if self.links[0].attributes["_state"] is None else self.latest
        known = self.known.get((before, x.shape, window))
        if (
            known is None
            or x.dtype is not self.dtype
            or not x.is_cpu
            or x.requires_grad
            or x.layout is not torch.strided
            or not x.is_contiguous()
            or model._horizon is not None
            or model.compact
            or not self._may_run(model)
        ):
            return None
        buffers, binding, commit, fits = known
        if before is None:
            if model._fits is not fits or fits is None or model.state_limit != fits[2]:
                return None
            kept = self.nothing_kept
        elif before.left is not None:
            kept = before.left.kept
        else:
            return None
        if not self.watch.sees_no_change(kept):
            return None
        buffers.begins = before is None
        y = commit.outputs.take()
        if not self._run(x, buffers, binding, y) and model.check_finite:
            return None
        self._commit(model, buffers, commit)
        return y

    def _may_run(self, model: Online) -> bool:
        """Whether the model learns now, and is of these modules, and its kernels are wanted."""
        return (
            model.training
            and streaming.learning.get()
            and kernels.wanted.get()
            and not kernels.interprets.get()
            and not torch.is_inference_mode_enabled()
            and not torch.is_autocast_enabled("cpu")
            and [*model._modules.values()] == self.modules
        )

    def _commit(self, model: Online, buffers: Buffers, commit: Commit) -> None:
        for attributes, left in commit.layers:
            attributes.update(left)
        model.__dict__.update(commit.model)
        self.latest, buffers.left = buffers, commit

    def propose(self, x: Tensor, call: Call, plan: LayerPlan) -> tuple[Tensor, Any] | None:
        """The same for a layer that is part of a model: the output, and what is to be committed."""
        steps, lanes = x.shape[:2]
        before = self._before(lanes)
        if not self._can_go_on(before, lanes):
            return None
        buffers, binding = self._bound(steps, lanes, before, [plan])
        y = memory.empty((steps, lanes, self.m), self.dtype)
        self._run(x.contiguous(), buffers, binding, y)
        place = buffers.places[0]
        return y, (place.state, place.record, (Segment(binding.tapes[0], steps, call),), buffers)

    def _before(self, lanes: int) -> Before:
        """What the layers go on from."""
        latest = self.latest
        if latest is not None and all(map(_follows, self.links, latest.places)):
            return latest
        if all(link.attributes["_state"] is None for link in self.links):
            return None
        starts = []
        for link in self.links:
            state = link.layer._advanced_state()
            if state is None:
                state = LayerState(State(link.layer.zeros(lanes, link.m)), None)
            starts.append(Start(state.neuron.mem, None, state.traces or None))
        return starts

    def _can_go_on(self, before: Before, lanes: int) -> bool:
        """Whether what comes before is of so many lanes, and of these layers."""
        if before is None:
            return True
        if isinstance(before, Buffers):
            return before.lanes == lanes
        for link, start in zip(self.links, before, strict=True):
            shapes = {"weight": (lanes, 1, link.n), "bias": (lanes, 1, 1)}
            if link.bias is None:
                del shapes["bias"]
            traces = start.traces
            if not _is_like(start.mem, (lanes, link.m), link.w):
                return False
            if traces is None or not link.traced:
                continue
            if traces.keys() != shapes.keys() or not all(
                _is_like(traces[name], shape, link.w) for name, shape in shapes.items()
            ):
                return False
        return True

    def _plans(self, model: Online, before: Before) -> Plans:
        """As `model._planned()`, which need not look at the layers again where the row has done so."""
        known = self.remembered
        if known is not None and known is model._remembered and known.changes == streaming.structure_changes:
            if before is None and known.fresh is not None:
                return known.fresh
            if isinstance(before, Buffers):
                return known.running
        plans = model._planned()
        self.remembered = model._remembered
        return plans

    def _bound(self, steps: int, lanes: int, before: Before, plans: list[LayerPlan]) -> tuple[Buffers, Binding]:
        """The set of buffers that may be written to, bound to what comes before."""
        pair = self.pairs.get((steps, lanes))
        if pair is None:
            if len(self.pairs) == SHAPES:
                self._let_go(next(shape for shape, kept in self.pairs.items() if self.latest not in kept.sets))
            other = next(iter(self.pairs.values()), None)
            pair = self.pairs[steps, lanes] = Pair(self.links, steps, lanes, self.cpu, other)
        buffers = pair.sets[self.latest is pair.sets[0]]
        buffers.begins = before is None
        if isinstance(before, list):
            starts = [
                start._replace(traces=None) if plan.fresh else start for start, plan in zip(before, plans, strict=True)
            ]
            return buffers, Binding(buffers, starts, plans, self.cpu)
        binding = buffers.bindings.get(before)
        if binding is None or not all(map(operator.is_, binding.plans, plans)):
            starts = pair.rest if before is None else before.starts()
            binding = buffers.bindings[before] = Binding(buffers, starts, plans, self.cpu)
        return buffers, binding

    def _let_go(self, shape: tuple[int, int]) -> None:
        gone = {*self.pairs.pop(shape).sets}
        self.known = {key: known for key, known in self.known.items() if not {key[0], known.buffers} & gone}
        for pair in self.pairs.values():
            for buffers in pair.sets:
                for before in gone:
                    buffers.bindings.pop(before, None)

    def _run(self, x: Tensor, buffers: Buffers, binding: Binding, y: Tensor) -> bool:
        """From a contiguous x to y; whether all of x is finite."""
        for fold in binding.folds:
            fold()
        step = binding.step
        if step is not None:
            table = step.table
            table[self.x_at], table[self.y_at] = x.data_ptr(), y.data_ptr()
            step.kernel(step.place)
            finite: int = table[self.cpu.STEP_FINITE]
            return finite != 0
        if buffers.wide:
            return self._run_wide(x, buffers, binding, y)
        take, chain = buffers.take.table, binding.chain
        take[self.cpu.TAKE_FROM], take[self.cpu.TAKE_STRANGE] = x.data_ptr(), 0
        binding.scans[-1].table[self.cpu.Y_AT] = y.data_ptr()
        if chain is not None:
            chain.kernel(chain.place)
            return not take[self.cpu.TAKE_STRANGE]
        buffers.take.run()
        for link, place, scan in zip(self.links, buffers.places, binding.scans, strict=True):
            torch.mm(place.window, link.transposed, out=place.currents)
            scan.run()
        return not take[self.cpu.TAKE_STRANGE]

    def _run_wide(self, x: Tensor, buffers: Buffers, binding: Binding, y: Tensor) -> bool:
        finite, last = True, len(self.links) - 1
        for link in self.links if buffers.begins else ():
            link.takes_spikes = True
        scratch = self.pairs[buffers.steps, buffers.lanes].scratch
        for i, (link, place, scan) in enumerate(zip(self.links, buffers.places, binding.scans, strict=True)):
            spikes = self.cpu.packed(x.view(place.shape)) if link.takes_spikes else None
            if spikes is not None:
                place.spikes, place.x = spikes, None
                self.cpu.product(spikes, link.w, out=place.kept)
            else:
                numbers = place.numbers()
                if i == 0:
                    finite = self.cpu.taken(x, numbers)
                else:
                    numbers.copy_(x)
                link.takes_spikes = link.takes_spikes and not finite  # none comes for some time, unless x is refused
                torch.mm(numbers.view(-1, link.n), link.transposed, out=place.currents)
            x = y if i == last else scratch[i].ls
            scan.table[self.cpu.Y_AT] = x.data_ptr()
            scan.run()
        return finite

    # -- backwards -------------------------------------------------------------------------------------------------

    def backward(self, model: Online, ls: Tensor, input_signal: bool) -> tuple[Tensor | None] | None:
        """What the model's backward does: dL/dx where it is asked for; None where the general way is needed."""
        buffers, call = self.latest, model._latest
        if buffers is None or call is None or ls.dtype != self.dtype or not ls.is_cpu or ls.layout != torch.strided:
            return None
        if ls.shape != call.y_shape or not self._may_run(model):
            return None
        left = buffers.left
        if left is None or left.call is not call or not self.watch.has_its_weights(left.kept):
            return None
        check, in_one_call = model.check_finite, buffers.single or buffers.chained
        gradients = self.watch.gradients() if in_one_call and not input_signal else None
        if gradients is not None:
            return (None,) if self._sum_into(gradients, ls.contiguous(), buffers, check) else None
        if not all(map(Link.may_add, self.links)):
            return None
        below = None
        if input_signal:
            below = memory.empty((buffers.steps, buffers.lanes, self.n), self.dtype)
        made: dict[int, tuple[Tensor, Tensor]] = {}

        def room(parameter: Tensor) -> tuple[Tensor, bool]:
            grad = parameter.grad
            if grad is not None:
                return grad, True
            if id(parameter) in made:
                return made[id(parameter)][1], True
            made[id(parameter)] = parameter, memory.empty_like(parameter)
            return made[id(parameter)][1], False

        if not self._reverse(ls.contiguous(), buffers, room, below, check):
            return None
        for parameter, grad in made.values():
            parameter.grad = grad
        return (None if below is None else call.unfold(below),)

    def _sum_into(self, gradients: Gradients, ls: Tensor, buffers: Buffers, check: bool) -> bool:
        """What `_reverse` does where the gradients of all parameters are asked for, and nothing else."""
        backwards = self._backwards(buffers, 0, False, check)
        into = [*gradients.places, check]
        if buffers.adds_to != into or not gradients.are_there:
            buffers.adds_to = into if gradients.are_there else None
            for (_, (table, at)), place in zip(backwards.targets, gradients.places, strict=True):
                table[at], table[at + 1] = place, gradients.are_there
        if not backwards.run(ls, check):
            return False
        if not gradients.are_there:
            for parameter, gradient in zip(self.watch.tensors, gradients.each, strict=True):
                parameter.grad = gradient
        return True

    def ran(self, segment: Segment) -> bool:
        """Whether this is the tape of the latest call."""
        return self.latest is not None and _is_of(segment, self.latest.places[0])

    def gradients(self, ls: Tensor | None, wanted: bool) -> tuple[Tensor | None, list[tuple[nn.Parameter, Tensor]]]:
        """The same for a layer that is part of a model: dL/dx where it is wanted, and the gradients."""
        buffers = self.latest
        assert buffers is not None
        steps, lanes = buffers.steps, buffers.lanes
        ls = self.links[0].w.new_zeros(steps, lanes, self.m) if ls is None else ls.contiguous()
        updates: list[tuple[nn.Parameter, Tensor]] = []

        def fresh(parameter: Tensor) -> tuple[Tensor, bool]:
            updates.append((cast(nn.Parameter, parameter), memory.empty_like(parameter)))
            return updates[-1][1], False

        below = memory.empty((steps, lanes, self.n), self.dtype) if wanted else None
        self._reverse(ls, buffers, fresh, below, False)
        return below, updates

    def _reverse(
        self,
        ls: Tensor,
        buffers: Buffers,
        room: Callable[[Tensor], tuple[Tensor, bool]],
        below: Tensor | None,
        check: bool,
    ) -> bool:
        """The gradients from the last layer down to the lowest that learns, written where `room` says, or added there.

        False, and nothing is written, where `check` and ls is not finite.
        """
        lowest = 0
        while below is None and lowest < len(self.links) and not self.links[lowest].trains():
            lowest += 1
        if lowest == len(self.links):
            return not check or bool(self.cpu.is_finite(ls))
        if buffers.single or buffers.chained:
            backwards, buffers.adds_to = self._backwards(buffers, lowest, below is not None, check), None
            for parameter, (table, at) in reversed(backwards.targets):  # in the order in which they are written
                out, table[at + 1] = room(parameter)
                table[at] = out.data_ptr()
            if below is not None and backwards.below is not None:
                table, at = backwards.below
                table[at] = below.data_ptr()
            return backwards.run(ls, check)
        each = self.pairs[buffers.steps, buffers.lanes].scratch
        if check and not self.cpu.is_finite(ls):
            return False
        signal = ls.data_ptr()
        for i in range(len(self.links) - 1, lowest - 1, -1):
            link, place, scratch, job = self.links[i], buffers.places[i], each[i], buffers.reverses[i]
            job.table[link.ls_at] = signal
            job.run()
            if link.weight.requires_grad:
                self._weight_gradient(link, place, scratch, buffers.begins, *room(link.weight))
            if link.bias is not None and link.bias.requires_grad:
                out, add = room(link.bias)
                bias = buffers.biases[i]
                bias.table[self.cpu.BIAS_OUT], bias.table[self.cpu.BIAS_OUT + 1] = out.data_ptr(), add
                bias.run()
            if i > lowest:
                torch.mm(scratch.window, link.w, out=each[i - 1].ls_rows)
                signal = each[i - 1].ls.data_ptr()
            elif below is not None:
                torch.mm(scratch.window, link.w, out=below.view(-1, link.n))
        return True

    def _backwards(self, buffers: Buffers, lowest: int, wanted: bool, check: bool) -> ReverseCall:
        todo = check, wanted, *map(_requires_grad, self.watch.tensors)
        known = buffers.backwards.get(todo)
        if known is None:
            if len(buffers.backwards) >= PATTERNS:
                buffers.backwards.clear()
                buffers.adds_to = None
            make = self._step_backwards if buffers.single else self._window_backwards
            known = buffers.backwards[todo] = make(buffers, lowest, wanted, check)
        return known

    def _window_backwards(self, buffers: Buffers, lowest: int, wanted: bool, check: bool) -> ReverseCall:
        cpu, each = self.cpu, self.pairs[buffers.steps, buffers.lanes].scratch
        finite, top = cpu.finite_job(each[-1].ls.numel(), self.dtype), buffers.reverses[-1]
        jobs: list[Any] = [(finite, cpu.FINITE)] if check else []
        targets: list[tuple[Tensor, _Word]] = []
        below = None
        for i in range(len(self.links) - 1, lowest - 1, -1):
            link, scratch = self.links[i], each[i]
            jobs.append(buffers.reverses[i])
            of_layer = []
            if link.weight.requires_grad:
                jobs += link.gradient_jobs(cpu, buffers.places[i], scratch)
                of_layer.append((link.weight, (jobs[-1].table, cpu.OUTER_OUT)))
            if link.bias is not None and link.bias.requires_grad:
                jobs.append(buffers.biases[i])
                of_layer.append((link.bias, (jobs[-1].table, cpu.BIAS_OUT)))
            targets = of_layer + targets
            if i > lowest:
                jobs.append(cpu.outer_job(scratch.window, link.w, each[i - 1].ls_rows))
            elif wanted:
                jobs.append(cpu.outer_job(scratch.window, link.w))
                below = jobs[-1].table, cpu.OUTER_OUT
        signals = [(finite.table, cpu.FINITE_OF), (top.table, self.links[-1].ls_at)]
        return ReverseCall(cpu.Chain(jobs), signals, (finite.table, cpu.FINITE), targets, below)

    def _step_backwards(self, buffers: Buffers, lowest: int, wanted: bool, check: bool) -> ReverseCall:
        cpu, each = self.cpu, self.pairs[1, buffers.lanes].scratch
        layers = range(len(self.links) - 1, lowest - 1, -1)
        words = [len(layers), 0, check, 0]
        for i in layers:
            words += self.links[i].step_back_words(cpu, buffers.places[i], each[i])
        job = cpu.Job("step_reverse", buffers.dtype, words)
        at = cpu.STEP_HEAD
        targets: list[tuple[Tensor, _Word]] = []
        for i in layers:
            of_layer = []
            for parameter, where in zip((self.links[i].weight, self.links[i].bias), cpu.STEP_GRADIENTS, strict=True):
                if parameter is not None and parameter.requires_grad:
                    of_layer.append((parameter, (job.table, at + where)))
            targets = of_layer + targets
            if i > lowest:
                job.table[at + cpu.STEP_BELOW] = each[i - 1].ls.data_ptr()
            at += cpu.STEP_TABLE
        below = (job.table, at - cpu.STEP_TABLE + cpu.STEP_BELOW) if wanted else None
        return ReverseCall(
            job, [(job.table, cpu.STEP_HEAD + cpu.STEP_LS)], (job.table, cpu.STEP_FINITE), targets, below
        )

    def _weight_gradient(
        self, link: Link, place: Place, scratch: Scratch, begins: bool, out: Tensor, add: bool
    ) -> None:
        """The sum of the steps' and the traces' part, into `out` or added to it."""
        trace = place.trace("weight")
        if scratch.taken is not None and trace is not None:  # of a single step: g (x + beta Z)^T
            if place.spikes is not None:
                self.cpu.unpack(place.spikes, 0, len(scratch.taken), scratch.taken)
            else:
                scratch.taken.copy_(place.numbers().view(-1, link.n))
            scratch.taken.add_(trace.view(-1, link.n), alpha=link.beta)
            _product(scratch.window.t(), scratch.taken, out, add)
            return
        if not place.wide:
            _product(scratch.transposed, place.rows, out, add)
            return
        if trace is not None and not begins:
            _product(scratch.leftover.t(), trace.view(-1, link.n), out, add)
            add = True
        if place.spikes is not None:
            self.cpu.weight_gradient(place.spikes, scratch.window, out, add)
        else:
            _product(scratch.window.t(), place.numbers().view(-1, link.n), out, add)


def _traces(cpu: Any, start: Start, place: Place) -> list[int]:
    """The addresses of the input before, and of the traces of input and ones, before and after."""
    old = start.traces or {}
    traces = [0 if start.past is None else cpu.address(start.past.x)]
    for name in ("weight", "bias"):
        traces += [cpu.address(old.get(name)), cpu.address(place.trace(name))]
    return traces


def _fold(cpu: Any, link: Link, start: Start, place: Place, traces: list[int]) -> Any:
    """What advances the traces: a job, or after many rows a function."""
    past, beta = start.past, link.values["beta"]
    lanes = len(place.mem)
    if past is None or not past.wide:
        return cpu.fold_job(0 if past is None else past.shape[0], lanes, link.n, traces, beta)

    def fold() -> None:
        if past.spikes is None:
            cpu.fold_job(past.shape[0], lanes, link.n, _traces(cpu, start, place), beta).run()
            return
        old = start.traces
        cpu.fold_bits(past.spikes, old["weight"], place.trace("weight"), beta, old.get("bias"), place.trace("bias"))

    return fold


def _product(a: Tensor, b: Tensor, out: Tensor, add: bool) -> None:
    """`a b`, into `out` or added to it."""
    if add:
        out.addmm_(a, b)
    else:
        torch.mm(a, b, out=out)


def _follows(link: Link, place: Place) -> bool:
    """Whether the layer is as the call that wrote to the place left it."""
    attributes = link.attributes
    if attributes["_state"] is not place.state:
        return False
    segments = attributes["_segments"]
    return len(segments) == 1 and _is_of(segments[0], place) and segments[0].reset is None


def _is_like(tensor: Tensor, shape: tuple[int, ...], weight: Tensor) -> bool:
    """Whether a kernel may read a tensor as one of this shape, and of the weight's dtype."""
    return tensor.shape == shape and tensor.dtype == weight.dtype and tensor.is_cpu and tensor.is_contiguous()


def _is_of(segment: Segment, place: Place) -> bool:
    """Whether the segment's tape is the one that the place keeps."""
    return isinstance(segment.tape, PlaceTape) and segment.tape.place is place
