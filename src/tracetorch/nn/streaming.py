"""What lanes remember between calls, and how it is reset, saved, counted and moved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from .. import _checks
from ..functional.bank import Bank
from ..functional.scan import Values
from ..rules import Rule
from ..rules.base import ModelDecays, Neuron, Nodes, Segment

STREAM_STATE_VERSION = 3

learning: ContextVar[bool] = ContextVar("tracetorch_learning", default=True)
"""Whether models in training mode learn."""

_SET_IN_CALLS = frozenset(
    {"_state", "_segments", "_plan", "_latest", "_ended", "_run", "_known_values", "_row", "_fits"}
)


class Call:
    """One forward call: the shape in which the user gave x, and the identity that ties backward to it.

    A row of usual layers has one for every second of its calls: by the time that it comes again, no layer's tape is of
    the call before that had it.
    """

    def __init__(self, window: bool, unbatched: bool, learning: bool) -> None:
        self.window = window
        self.unbatched = unbatched
        self.learning = learning
        self.plans: Plans = {}  # what each layer writes its adjoint in; by part
        self.compact = False  # whether tapes are kept in few bytes
        self.horizon = 0  # steps that the reverse pass reaches back, this call's included; 0: this call's alone
        self.y_shape: tuple[int, ...] = ()

    def leaving(self, segments: tuple[Segment, ...], steps: int) -> tuple[tuple[Segment, ...], tuple[Segment, ...]]:
        """Which tapes are folded into the traces when `steps` more steps come, and which stay within the horizon."""
        if not self.learning or steps >= self.horizon:
            return segments, ()
        first, kept = len(segments), steps
        while first > 0 and kept < self.horizon:
            first -= 1
            kept += segments[first].steps
        return segments[:first], segments[first:]

    def fold(self, tensor: Tensor) -> Tensor:
        """From the user's shape to (K, B, ...)."""
        if self.unbatched:
            tensor = tensor.unsqueeze(1 if self.window else 0)
        return tensor if self.window else tensor[None]

    def unfold(self, tensor: Tensor) -> Tensor:
        """From (K, B, ...) to the user's shape."""
        if not self.window:
            tensor = tensor[0]
        return tensor.squeeze(1 if self.window else 0) if self.unbatched else tensor


def stale(where: str) -> RuntimeError:
    """The error of a part that is not as the model's latest call left it."""
    return RuntimeError(
        f"{where}: expected to be as the model's latest call left it, but this module was called, reset, moved, "
        f"replaced or given another rule or mode by itself since. Call the model again first."
    )


class Handed(NamedTuple):
    """What a part says of the adjoint that it will hand down."""

    nodes: Tensor  # (G,) float64, the decays of its exponentials
    fresh: bool  # whether its traces start anew
    live: bool  # whether they are betas as they are now, not nodes chosen when the stream began
    moving: bool  # whether some of these are learned, and change while the stream goes on


class LayerPlan(NamedTuple):
    """What a layer writes its adjoint and its traces in."""

    grid: Tensor | None  # (G,) float64, nodes chosen when the stream began; None where its one beta is the only node
    nodes: Nodes  # as they are at this call
    above_live: bool  # whether `nodes.above` are betas as they are now
    above_moving: bool  # whether some of these are learned
    fresh: bool  # whether its traces start anew


Plans = dict[int, Any]
"""LayerPlans by the id of the layer; what a container needs to know, by its own."""

structure_changes = 0
"""How often the modules of any model were changed: what is remembered of a model holds no longer than that."""


def structure_changed() -> None:
    """Say that a model has other modules from now on."""
    global structure_changes
    structure_changes += 1


class Remembered(NamedTuple):
    """The plans of a model without learned decays, as long as nothing that they depend on has changed."""

    changes: int
    layers: list[tuple[StateKeeper, Rule, Values]]
    fresh: Plans | None  # where all streams begin
    running: Plans

    def now(self) -> Plans | None:
        """The plans of the next call; None where they must be found anew."""
        if self.changes != structure_changes:
            return None
        beginning = 0
        for layer, rule, values in self.layers:
            if layer.rule is not rule or layer.values() is not values:
                return None
            state, plan = layer._state, layer._plan
            if state is None or state.traces is None:
                beginning += 1
            elif plan is not self.running[id(layer)] and (self.fresh is None or plan is not self.fresh[id(layer)]):
                return None
        if beginning:
            return self.fresh if beginning == len(self.layers) else None
        return self.running


def marked(segments: tuple[Segment, ...], mask: Tensor) -> tuple[Segment, ...]:
    """The tapes with the lanes of the mask reset after the latest."""
    *before, last = segments
    reset = mask.clone() if last.reset is None else last.reset | mask
    return (*before, last._replace(reset=reset, ended=True))


class TapeKeeper(Protocol):
    """A part of a model that keeps something of the latest calls."""

    _segments: tuple[Segment, ...]  # the tapes within the horizon, the latest call's last

    def _forget(self) -> None:
        """Let go of the latest calls."""

    def _fold(self) -> None:
        """Put the tapes into the traces, where there are any, and let go of them."""

    def _reset_lanes(self, mask: Tensor) -> None:
        """The lanes of the mask start anew."""

    def _tape_tensors(self) -> list[Tensor]:
        """What is kept of them."""


class StateKeeper(TapeKeeper, Protocol):
    """A layer: a part that keeps something of all calls."""

    _state: Any  # a LayerState; None before the first call
    _plan: LayerPlan | None  # what its traces are written in

    rule: Rule

    @property
    def weight(self) -> Tensor:
        """Its synapse's weight."""

    @property
    def neuron(self) -> Neuron:
        """Its dynamics."""

    def values(self) -> Values:
        """The values of its neuron's parameters."""

    def _decays(self) -> list[Tensor]:
        """The decays with which its state remembers."""

    def _moves(self) -> bool:
        """Whether one of them is learned."""

    def bank(self, own: Tensor, above: Tensor | None, decay: Tensor) -> Bank:
        """The bank of its kernels."""

    def _rest(self, lanes: int) -> Any:
        """The state of its neuron at the start."""

    def _state_tensors(self) -> dict[str, Tensor]:
        """Copies of the advanced state's tensors, by name."""

    def _state_from(self, where: str, tensors: dict[str, Tensor], lanes: int | None, nodes: Nodes) -> Any:
        """The state that `_state_tensors` gave."""

    def _state_bytes_per_lane(self, nodes: Nodes) -> int:
        """The bytes of the state of one lane."""


class Streaming(nn.Module):
    """The streams of a layer or model: one per lane."""

    def __init__(self) -> None:
        super().__init__()
        self._latest: Call | None = None
        self._ended = "none has been made"
        self._remembered: Remembered | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        """What is set in every call is nothing that torch must look at."""
        if name in _SET_IN_CALLS:
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def reset(self, mask: Tensor | None = None) -> None:
        """Make lanes forget: membranes and traces start from zero. Ends the latest call.

        Args:
            mask: (B,) bool, the lanes that forget; the others keep their state, traces advanced. Default: all lanes,
                and the next call may have another number of them.

        Raises:
            RuntimeError: a mask was given before any call, or to layers with different numbers of lanes.
            TypeError: the mask is not boolean.
            ValueError: the mask has another number of lanes.
        """
        if mask is not None:
            self._reset_some(mask)
            return
        for part in self._parts():
            part._forget()
        for layer in self._layers().values():
            layer._state = None
        self._end("reset() ended the latest")

    @torch.no_grad()
    def _reset_some(self, mask: Tensor) -> None:
        where = f"{type(self).__name__}.reset"
        _checks.is_tensor(where, "mask", mask)
        if mask.dtype != torch.bool:
            raise TypeError(f"{where}: expected mask to be bool, got {mask.dtype}. Convert it with mask.bool().")
        lanes = {layer._state.neuron[0].shape[0] for layer in self._layers().values() if layer._state is not None}
        if len(lanes) != 1:
            came = f"layers with {sorted(lanes)} lanes" if lanes else "none since the start or the last reset()"
            raise RuntimeError(
                f"{where}: expected a call before reset(mask), got {came}. Leave out the mask, or call the model first."
            )
        _checks.same_shape(where, "mask", mask, (lanes.pop(),), "Give one entry per lane.")
        _checks.same_device(where, "mask", mask, self._a_weight())
        for part in self._parts():
            part._reset_lanes(mask)
        self._end("reset() ended the latest")

    @torch.no_grad()
    def stream_state(self) -> dict[str, Any]:
        """What the lanes remember, as plain data: membranes and advanced traces, no tape. Not part of `state_dict()`.

        Returns:
            {"version", "lanes", "layers", "nodes", "tensors"}, which `torch.save` and `torch.load` take. What a horizon
            keeps goes into the traces: the loaded stream reaches no further back than its own steps exactly.
        """
        layers = self._layers()
        return {
            "version": STREAM_STATE_VERSION,
            "lanes": self._lanes(),
            "layers": _described(layers),
            "nodes": {name: _grid_of(layer) for name, layer in layers.items()},
            "tensors": {name: layer._state_tensors() for name, layer in layers.items()},
        }

    @torch.no_grad()
    def load_stream_state(self, state: dict[str, Any]) -> None:
        """Go on from what `stream_state` returned. Ends the latest call.

        Raises:
            ValueError: the state is of another version, model, rule or shape, or has entries that are not finite.
            TypeError: an entry is not a floating-point tensor.
        """
        where = f"{type(self).__name__}.load_stream_state"
        version = state.get("version") if isinstance(state, dict) else type(state).__name__
        if version != STREAM_STATE_VERSION:
            raise ValueError(
                f"{where}: expected a stream state of version {STREAM_STATE_VERSION}, got {version}. "
                f"Give what stream_state() of this version of tracetorch returned."
            )
        missing = {"lanes", "layers", "nodes", "tensors"} - state.keys()
        if missing:
            raise ValueError(
                f"{where}: expected a stream state, got a dictionary without {sorted(missing)}. "
                f"Give what stream_state() returned."
            )
        lanes = state["lanes"]
        if lanes is not None:
            _checks.at_least_one(where, "lanes", lanes)
        layers = self._layers()
        if state["layers"] != _described(layers):
            raise ValueError(
                f"{where}: expected the state of a model with the layers {_described(layers)}, got {state['layers']}. "
                f"Build the model as it was when the state was saved."
            )
        tensors = state["tensors"]
        by_layer = isinstance(tensors, dict) and tensors.keys() == layers.keys()
        if not by_layer or not all(isinstance(named, dict) for named in tensors.values()):
            raise ValueError(
                f"{where}: expected a dictionary of tensors for each of the layers {sorted(layers)}, "
                f"got {tensors!r:.80}. Give what stream_state() returned."
            )
        plans = self._planned(_checked_nodes(where, state["nodes"], layers))
        states = {
            name: layer._state_from(f"{where}, module {name or 0}", tensors[name], lanes, plans[id(layer)].nodes)
            for name, layer in layers.items()
        }
        self._put(states, "load_stream_state() ended the latest")
        for layer in layers.values():
            layer._plan = plans[id(layer)]

    def state_bytes(self, lanes: int | None = None) -> int:
        """The bytes kept between two calls while learning, however many steps go by: membranes and traces.

        Args:
            lanes: B; by default as many as there are, or 1.

        Raises:
            ValueError: lanes is below 1.
        """
        lanes = (self._lanes() or 1) if lanes is None else lanes
        _checks.at_least_one(f"{type(self).__name__}.state_bytes", "lanes", lanes)
        plans = self._planned()
        return sum(layer._state_bytes_per_lane(plans[id(layer)].nodes) for layer in self._layers().values()) * lanes

    def _put(self, states: dict[str, Any], ended: str) -> None:
        for part in self._parts():
            part._forget()
        for name, layer in self._layers().items():
            layer._state = states[name]
        self._end(ended)

    def _end(self, why: str) -> None:
        """The latest call, if there is one, can no longer be gone back to; messages say why."""
        if self._latest is not None:
            self._latest, self._ended = None, why

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles hold no latest call."""
        return self.__dict__ | {
            "_latest": None,
            "_ended": "a copy has none yet",
            "_remembered": None,
        }

    def _a_weight(self) -> Tensor:
        """A weight, for its dtype and device."""
        return next(iter(self._layers().values())).weight

    def _lanes(self) -> int | None:
        """How many lanes there are; None before the first call."""
        return next((layer._state.neuron[0].shape[0] for layer in self._layers().values() if layer._state), None)

    def _planned(self, grids: Mapping[int, Tensor | None] | None = None) -> Plans:
        """What every layer writes its adjoint in at the next call, found from the top down; changes nothing.

        Args:
            grids: nodes for all layers, by id, with which streams begin; by default as their rules choose.
        """
        if grids is None and self._remembered is not None:
            known = self._remembered.now()
            if known is not None:
                return known
        plans: Plans = {}
        self._hand_nodes(None, self._model_decays, plans, grids)
        if grids is None:
            self._remember(plans)
        return plans

    def _remember(self, plans: Plans) -> None:
        """Keep plans for the calls to come, where no decay is learned and all streams begin or all go on."""
        self._remembered = None
        layers = list(self._layers().values())
        fresh = plans[id(layers[0])].fresh
        if any(layer._moves() or plans[id(layer)].fresh != fresh for layer in layers):
            return
        running = dict(plans)
        for layer in layers:
            running[id(layer)] = plans[id(layer)]._replace(fresh=False)
        known = [(layer, layer.rule, layer.values()) for layer in layers]
        self._remembered = Remembered(structure_changes, known, plans if fresh else None, running)

    def _model_decays(self) -> ModelDecays:
        """The membrane decays of all layers."""
        inside: list[float] = []
        constant: list[float] = []
        others = False
        for layer in self._layers().values():
            moves = layer._moves()
            for stage in layer._decays():
                decays = stage.double().reshape(-1).tolist()
                inside += [decay for decay in decays if 0 < decay < 1]
                if len(decays) > 1 or moves:
                    others = True
                    constant += {0.0, 1.0} & {*decays}  # of its own, however many neurons there are
                else:
                    constant += decays
        return ModelDecays(inside, constant, others)

    # -- what subclasses write -------------------------------------------------------------------------------------

    def _layers(self) -> Mapping[str, StateKeeper]:
        """The layers by name."""
        raise NotImplementedError

    def _parts(self) -> list[TapeKeeper]:
        """Everything that keeps something of the latest calls."""
        raise NotImplementedError

    def _uses_adjoint(self) -> bool:
        """Whether any layer makes something of an adjoint from above."""
        raise NotImplementedError

    def _hand_nodes(
        self,
        above: Handed | None,
        decays: Callable[[], ModelDecays],
        plans: Plans,
        grids: Mapping[int, Tensor | None] | None,
    ) -> Handed | None:
        """Add to the plans what is written in which exponentials, and say which are handed down.

        Args:
            above: what the layers above hand down.
            decays: the decays of the model, for which a bank is chosen where a stream begins.
            plans: what is added to.
            grids: nodes given, see `_planned`.
        """
        raise NotImplementedError


def _checked_nodes(where: str, nodes: Any, layers: Mapping[str, StateKeeper]) -> dict[int, Tensor | None]:
    """The nodes of a saved state as tensors, by the id of the layer.

    Raises:
        ValueError: they are no lists of decays, one for each layer.
    """
    try:
        grids = {
            id(layer): None if nodes[name] is None else layer.weight.new_tensor(nodes[name], dtype=torch.float64)
            for name, layer in layers.items()
        }
        good = all(
            grid is None or (grid.ndim == 1 and bool(((grid >= 0) & (grid <= 1)).all())) for grid in grids.values()
        )
    except (TypeError, KeyError, ValueError):
        good = False
    if not good:
        raise ValueError(
            f"{where}: expected the nodes of each layer's bank, got {nodes!r:.80}. Give what stream_state() returned."
        )
    return grids


def _grid_of(layer: StateKeeper) -> list[float] | None:
    return None if layer._plan is None or layer._plan.grid is None else layer._plan.grid.tolist()


def _described(layers: Mapping[str, StateKeeper]) -> dict[str, str]:
    """What a saved state must fit: each layer's kind and rule, by name."""
    return {name: f"{type(layer).__name__} with {layer.rule!r}" for name, layer in layers.items()}


def full_precision(tensor: Tensor) -> AbstractContextManager[Any]:
    """A context without autocast, which would change dtypes between forward and backward."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def forked_random_numbers(tensor: Tensor) -> AbstractContextManager[Any]:
    """A context after which torch's generators, that of the tensor's device too, are as they were before it."""
    return torch.random.fork_rng(devices=[tensor.device] if tensor.is_cuda else [])
