"""What the rules that write adjoints in a bank share: its nodes, and how one layer's adjoint becomes the next's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .. import _checks, kernels
from ..functional import bank as banks
from ..functional import trace
from ..functional.bank import Bank
from ..functional.scan import Values
from ..functional.trace import Stage
from .base import Border, LayerLike, ModelDecays, Nodes, Rule, Tape, map_tensors

UNKNOWN_SPAN = (2.0, 50.0)  # steps; where no beta lies between 0 and 1


@dataclass(frozen=True, repr=False)
class BankRule(Rule):
    """A rule with a bank of exponentials (see `functional.bank`).

    Args:
        nodes: G, how many exponentials the bank has. A layer with a single beta needs no bank of its own.
        span: the shortest and longest time constant of the bank, in steps; by default from those of the model's layers
            when a stream begins, with a margin that the rule chooses.
    """

    nodes: int = 8
    span: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        where = type(self).__name__
        _checks.at_least_one(where, "nodes", self.nodes)
        if self.span is not None and not _is_span(self.span):
            raise ValueError(
                f"{where}: expected span to be the shortest and the longest time constant in steps, between "
                f"{banks.FASTEST_TAU} and {banks.SLOWEST_TAU:g}, got {self.span}. Give for example span=(2.0, 50.0)."
            )

    @property
    def hands_adjoint(self) -> bool:
        """It does."""
        return True

    def _spaced(self, decays: ModelDecays, pinned: list[float], margin: tuple[float, float] = (1.5, 2.5)) -> Tensor:
        """Nodes spaced geometrically over the span, those nearest to a pinned beta moved onto it."""
        taus = [-1 / math.log(decay) for decay in decays.inside]
        low, high = UNKNOWN_SPAN if not taus else (min(taus) / margin[0], max(taus) * margin[1])
        low, high = self.span or (max(low, banks.FASTEST_TAU), min(max(high, 2 * banks.FASTEST_TAU), banks.SLOWEST_TAU))
        return banks.with_pinned(banks.geometric_nodes(low, high, self.nodes), pinned)


def _is_span(span: object) -> bool:
    """Whether it is a pair of time constants whose decays are not rounded to 0 or 1."""
    try:
        low, high = (float(tau) for tau in span)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        return False
    return banks.FASTEST_TAU <= low <= high <= banks.SLOWEST_TAU


class Adjoint(NamedTuple):
    """The adjoint of a layer before the border."""

    states: dict[str, Tensor]  # (B, G, m) by the stages of the input's chain, such as dL/dp as "mem", in the own nodes
    current: Tensor  # (B, G, m) of dL/dI, likewise
    signal: Tensor | None  # (B, H, m) of dL/dy, from above and through recurrent weights, in `signal_nodes`


def is_shared(chain: Sequence[Stage]) -> bool:
    """Whether each stage has one decay for all neurons: then a trace for each stage is exact, and needs no bank."""
    return all(stage.decay.numel() == 1 for stage in chain)


def are_nodes(chain: Sequence[Stage]) -> bool:
    """Whether the decays of the stages are all the exponentials that the layer's own adjoint is made of."""
    return is_shared(chain) and banks.are_apart([stage.decay.item() for stage in chain])


def has_integrator(chain: Sequence[Stage]) -> bool:
    """Whether a state is kept for ever by some neuron."""
    return any(bool((stage.decay == 1).any()) for stage in chain)


def is_recurrent(layer: LayerLike, hops: int) -> bool:
    """Whether the layer's adjoint feeds back on itself."""
    return hops > 0 and layer.learns("recurrent")


def signal_nodes(layer: LayerLike, nodes: Nodes, hops: int) -> Tensor | None:
    """The nodes in which all that reaches the layer's outputs is written; None where nothing does."""
    return nodes.own if is_recurrent(layer, hops) else nodes.above


@dataclass(frozen=True, repr=False)
class AdjointRule(BankRule):
    """A rule that continues the adjoint into the past through the layers above, and through recurrent weights.

    Args:
        hops: how often the adjoint before the border passes through recurrent weights U; 0 leaves them out.
        paths: which of its adjoint a layer hands down: "all", or its "own" membranes' part alone, so that credit
            reaches the membranes one layer up and no further.
    """

    hops: int = 1
    paths: Literal["all", "own"] = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.paths not in ("all", "own"):
            raise ValueError(f"{type(self).__name__}: expected paths to be 'all' or 'own', got {self.paths!r}.")
        if self.hops != 0 or isinstance(self.hops, float):
            _checks.at_least_one(type(self).__name__, "hops, where it is not 0,", self.hops)

    @property
    def uses_adjoint(self) -> bool:
        """It does."""
        return True

    @property
    def only_own(self) -> bool:
        """Whether a layer's own adjoint, in which the bank is written, is that of its membranes alone."""
        return False

    def grid(self, layer: LayerLike, above: Tensor | None, decays: ModelDecays) -> Tensor | None:
        """The layer's own beta where nothing reaches its outputs; else the betas themselves, or nodes spaced evenly.

        Raises:
            ValueError: a Softmax below other layers, whose neurons have no slope each.
        """
        if above is not None and layer.neuron.name == "Softmax":
            raise ValueError(
                f"{type(self).__name__}: expected a Softmax to be the last layer, got one below others, each of whose "
                f"outputs depends on all of its membranes. Give it rule=InputTrace()."
            )
        recurrent = is_recurrent(layer, self.hops)
        chain = layer.neuron.chain(layer.values(), "input")
        if (above is None or self.only_own) and not recurrent and are_nodes(chain):
            return None
        # a node of 1 is for perfect integrators from here on up alone: below one it would stand for another's
        integrates = has_integrator(chain) or (above is not None and bool((above == 1).any()))
        pinned = [decay for decay in decays.constant if decay < 1 or integrates]
        nodes = self._spaced(decays, pinned)
        if self.span is None and not recurrent and not decays.others and banks.are_apart(decays.constant):
            nodes = nodes.new_tensor(sorted(pinned))
        return nodes


class SlopeTraces(NamedTuple):
    """What is kept of a layer's slopes, at the time scale of each of the H nodes of the signal that reaches it."""

    slope: Tensor  # (B, H, m)  traces of psi_t
    steps: Tensor  # (B, H, 1)  traces of 1


def start_slopes(layer: LayerLike, lanes: int, signal: Tensor | None) -> SlopeTraces | None:
    """The slopes' traces of lanes that have seen nothing."""
    if signal is None:
        return None
    return SlopeTraces(layer.zeros(lanes, len(signal), layer.out_features), layer.zeros(lanes, len(signal), 1))


def advance_slopes(
    layer: LayerLike, old: SlopeTraces | None, tape: Tape, signal: Tensor | None, within: Tensor | None = None
) -> SlopeTraces | None:
    """The slopes' traces one window further; `within` (H, B, m) is what they are from 0, where that is known."""
    if old is None or signal is None:
        return None
    steps = kernels.advance_bank(old.steps, old.steps.new_ones(tape.steps, 1, 1), signal)
    if within is None:
        psi = layer.neuron.slope(tape)
        assert psi is not None
        return SlopeTraces(kernels.advance_bank(old.slope, psi, signal), steps)
    decay = (signal**tape.steps).to(within.dtype)[:, None]
    return SlopeTraces(torch.addcmul(within.transpose(0, 1), old.slope, decay), steps)


def mean_slope(slopes: SlopeTraces | None) -> Tensor | None:
    """Psibar at each time scale, (B, H, m)."""
    return None if slopes is None else trace.average(slopes.slope, slopes.steps)


def continued(
    layer: LayerLike, amplitude: Any, nodes: Nodes, values: Values, driven: Tensor | None = None
) -> tuple[dict[str, Tensor], Tensor]:
    """What goes on in the layer's own state before the border, from the last stage of its chain to the first.

        Lambda^s_g = C^s_ig amplitude^s + sum_h gain Lambda^{s+1}_h D^s_i[h, g]

    Args:
        layer: the layer.
        amplitude: (..., m) dL/dstate at the border, in the fields of the neuron's state.
        nodes: in which it is written.
        values: the neuron's parameters.
        driven: (..., G, m) what has come to the last stage from elsewhere, in the own nodes.

    Returns:
        (..., G, m) for each state; and for the current that enters the first, dL/dI.
    """
    chain = layer.neuron.chain(values, "input")
    several = len(chain) > 1
    found: dict[str, Tensor] = {}
    entering: Tensor | None = None
    for stage in reversed(chain):
        edge: Tensor = getattr(amplitude, stage.state)
        kernels = layer.bank(nodes.own, nodes.above, stage.decay).kernels
        edge = edge.double() if several else edge
        adjoint = edge[..., None, :] * kernels.t().to(edge.dtype)
        if entering is not None:
            adjoint = adjoint + _through(entering, layer.bank(nodes.own, nodes.own, stage.decay).convolved)
        elif driven is not None:
            adjoint = adjoint + driven
        found[stage.state] = adjoint
        entering = stage.scaled(adjoint)
    assert entering is not None
    return found, entering


def own_part(layer: LayerLike, border: Border) -> Tensor:
    """The adjoint of the current that goes on in the layer's own state alone, (B, G, m)."""
    leftover: Any = border.leftover
    return continued(layer, leftover, border.nodes, layer.values())[1].to(leftover.mem.dtype)


# -- a reset to zero ---------------------------------------------------------------------------------------------------


def start_survival(layer: LayerLike, lanes: int) -> dict[str, Tensor]:
    """What is kept of resets to zero, (B, 2, m): traces of 1, with the membrane's decay squared.

    y_t = [s_t = 0] (beta^2 y_{t-1} + 1)          n_t = beta^2 n_{t-1} + 1
    """
    return {"survival": layer.zeros(lanes, 2, layer.out_features)} if layer.neuron.resets_to_zero else {}


def advance_survival(layer: LayerLike, old: Mapping[str, Tensor], tape: Tape) -> dict[str, Tensor]:
    """The same one window further."""
    if "survival" not in old:
        return {}
    beta = layer.neuron.chain(tape.values, "input")[-1].decay
    both = old["survival"]
    for silent in layer.neuron.silent(tape):
        both = beta**2 * both + 1
        both[:, 0] *= silent
    return {"survival": both}


def faded(border: Border, traces: Mapping[str, Tensor]) -> Border:
    """The border with what is left of the membranes' gradient where a spike set them to zero on the way.

    Before the last reset, d steps ago, a membrane has no part in what it is now: its kernel is `beta^k` for k < d
    alone. The traces know the kernel without an end. The nearest multiple of it, in least squares over all lags, is
    `y / n = (1 - beta^(2 d))` of it.
    """
    return border._replace(leftover=faded_leftover(border.leftover, traces))


def faded_leftover(leftover: Any, traces: Mapping[str, Tensor]) -> Any:
    """dL/dstate (..., B, m) likewise."""
    if "survival" not in traces:
        return leftover
    y, n = traces["survival"].unbind(1)
    return leftover._replace(mem=leftover.mem * trace.average(y, n))


# -- the recursion -----------------------------------------------------------------------------------------------------


def check_integrators(where: str, layer: LayerLike, signal: Tensor | None) -> None:
    """Refuse a perfect integrator below another, or one that feeds back on itself: the joint kernel has no bound.

    Raises:
        ValueError: such a layer.
    """
    if signal is not None and bool((signal == 1).any()) and has_integrator(layer.neuron.chain(layer.values(), "input")):
        raise ValueError(
            f"{where}: expected at most one perfect integrator (beta = 1) on the way from the input to the output, got "
            f"one that feeds another, or itself through recurrent weights, so that their joint kernel grows without "
            f"bound. Give one of them a beta below 1, or choose rule=InputTrace() for this layer."
        )


def layer_adjoint(layer: LayerLike, border: Border, mean_slope: Tensor | None, hops: int) -> Adjoint:
    """The recursion of the adjoint as algebra on coefficients, in float64: some of them are large and cancel.

    Args:
        layer: the layer.
        border: what the reverse pass left at the border.
        mean_slope: (B, H, m) psibar in the signal's nodes; None where there is no signal.
        hops: how often the adjoint passes through recurrent weights.
    """
    signal: Tensor | None
    driven: Tensor | None
    if is_recurrent(layer, hops):
        assert mean_slope is not None
        signal, driven = _fed_back(layer, border, mean_slope.double(), hops)
    elif border.above is None or mean_slope is None:
        signal, driven = None, None
    else:
        signal = border.above.double()
        driven = _through(mean_slope.double() * signal, _last_bank(layer, border.nodes, border.nodes.above).convolved)
    dtype = border.leftover.mem.dtype
    amplitude = border.leftover if driven is None else map_tensors(Tensor.double, border.leftover)
    states, current = continued(layer, amplitude, border.nodes, layer.values(), driven)
    return Adjoint(
        {name: state.to(dtype) for name, state in states.items()},
        current.to(dtype),
        None if signal is None else signal.to(dtype),
    )


def _last_bank(layer: LayerLike, nodes: Nodes, signal: Tensor | None) -> Bank:
    """The bank of the membrane, which a signal enters."""
    return layer.bank(nodes.own, signal, layer.neuron.chain(layer.values(), "input")[-1].decay)


def _fed_back(layer: LayerLike, border: Border, mean_slope: Tensor, hops: int) -> tuple[Tensor, Tensor]:
    """What reaches the outputs and, through their slopes, the membranes, where spikes come back through U:

    hop 1:       R^1 = R T + U^T (own part, begun one step after the border)          R in the own nodes
    hop j > 1:   R^j = U^T (current of F^{j-1}) S        what came through in the hop before, one step later
    through:     F^j_g = sum_h psibar_h R^j_h D_i[h, g]

    Returns:
        all signals R^1 + R^2 + ..., and F^1 + F^2 + ...
    """  # noqa: D415
    nodes, values = border.nodes, layer.values()
    bank = _last_bank(layer, nodes, nodes.own)
    u = values["recurrent"].double()
    hop = continued(layer, map_tensors(Tensor.double, border.first), nodes, values)[1] @ u
    if border.above is not None:
        converted = _last_bank(layer, nodes, nodes.above).converted
        hop = hop + torch.einsum("bhm,hg->bgm", border.above.double(), converted)
    signal, through = hop, _through(mean_slope * hop, bank.convolved)
    total = through
    nothing = map_tensors(torch.zeros_like, map_tensors(Tensor.double, border.first))
    for _ in range(hops - 1):
        current = continued(layer, nothing, nodes, values, through)[1]
        hop = torch.einsum("bhm,hg->bgm", current @ u, bank.delayed)
        through = _through(mean_slope * hop, bank.convolved)
        signal, total = signal + hop, total + through
    return signal, total


def _through(signal: Tensor, convolved: Tensor) -> Tensor:
    """(..., H, m), (m, H, G) or (1, H, G) -> (..., G, m)."""
    if len(convolved) == 1:
        return torch.einsum("...hm,hg->...gm", signal, convolved[0])
    return torch.einsum("...hm,mhg->...gm", signal, convolved.expand(signal.shape[-1], -1, -1))
