"""What the rules that write adjoints in a bank share: its nodes, and how one layer's adjoint becomes the next's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .. import _checks
from ..functional import bank as banks
from ..functional import trace
from .base import Border, LayerLike, ModelDecays, Nodes, Rule, Tape

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

    own: Tensor  # (B, G, m) of dL/dp, in the layer's own nodes
    signal: Tensor | None  # (B, H, m) of dL/dy, from above and through recurrent weights, in `signal_nodes`


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
        ends = above is None or self.only_own
        if ends and not recurrent and layer.values().beta.numel() == 1:
            return None
        # a node of 1 is for perfect integrators from here on up alone: below one it would stand for another's
        integrates = bool((layer.values().beta == 1).any()) or (above is not None and bool((above == 1).any()))
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


def advance_slopes(layer: LayerLike, old: SlopeTraces | None, tape: Tape, signal: Tensor | None) -> SlopeTraces | None:
    """The slopes' traces one window further."""
    if old is None or signal is None:
        return None
    psi = layer.neuron.slope(tape)
    assert psi is not None
    ones = old.steps.new_ones(len(psi), 1, 1)
    return SlopeTraces(trace.advance_bank(old.slope, psi, signal), trace.advance_bank(old.steps, ones, signal))


def mean_slope(slopes: SlopeTraces | None) -> Tensor | None:
    """Psibar at each time scale, (B, H, m)."""
    return None if slopes is None else trace.average(slopes.slope, slopes.steps)


def own_part(layer: LayerLike, border: Border) -> Tensor:
    """`C_ig a_0`: what goes on in the layer's own membranes, (B, G, m)."""
    a_0: Tensor = border.leftover.mem
    kernels = layer.bank(border.nodes.own, border.nodes.above).kernels.to(a_0.dtype)
    return a_0[:, None] * kernels.t()


def check_integrators(where: str, layer: LayerLike, signal: Tensor | None) -> None:
    """Refuse a perfect integrator below another, or one that feeds back on itself: the joint kernel has no bound.

    Raises:
        ValueError: such a layer.
    """
    if signal is not None and bool((signal == 1).any()) and bool((layer.values().beta == 1).any()):
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
    own = own_part(layer, border)
    if is_recurrent(layer, hops):
        assert mean_slope is not None
        adjoint = _fed_back(layer, border, own.double(), mean_slope.double(), hops)
    elif border.above is None or mean_slope is None:
        return Adjoint(own, None)
    else:
        adjoint = _fed_forward(layer, border, own.double(), mean_slope.double())
    return Adjoint(adjoint.own.to(own.dtype), None if adjoint.signal is None else adjoint.signal.to(own.dtype))


def _fed_forward(layer: LayerLike, border: Border, own: Tensor, mean_slope: Tensor) -> Adjoint:
    """`Lambda_g = C_ig a_0 + sum_h psibar_h R_h D_i[h, g]`, with R handed down from above."""
    assert border.above is not None
    signal = border.above.double()
    convolved = layer.bank(border.nodes.own, border.nodes.above).convolved
    return Adjoint(own + _through(mean_slope * signal, convolved), signal)


def _fed_back(layer: LayerLike, border: Border, own: Tensor, mean_slope: Tensor, hops: int) -> Adjoint:
    """The same where spikes come back through recurrent weights U one step later, for a number of hops:

    hop 1:       R^1 = R T + U^T (C_ig g_1)               the own part, begun after the border; R in the own nodes
    hop j > 1:   R^j = U^T F^{j-1} S                      what came through in the hop before, one step later
    through:     F^j_g = sum_h psibar_h R^j_h D_i[h, g]
                 Lambda = C_ig a_0 + F^1 + F^2 + ...      all signals: R^1 + R^2 + ...
    """  # noqa: D415
    nodes = border.nodes
    bank = layer.bank(nodes.own, nodes.own)
    recurrent = layer.values().recurrent
    assert recurrent is not None
    u = recurrent.double()
    hop = (border.g.double()[:, None] * bank.kernels.t()) @ u
    if border.above is not None:
        hop = hop + torch.einsum("bhm,hg->bgm", border.above.double(), layer.bank(nodes.own, nodes.above).converted)
    signal = hop
    through = _through(mean_slope * hop, bank.convolved)
    total = own + through
    for _ in range(hops - 1):
        hop = torch.einsum("bhm,hg->bgm", through @ u, bank.delayed)
        through = _through(mean_slope * hop, bank.convolved)
        signal, total = signal + hop, total + through
    return Adjoint(total, signal)


def _through(signal: Tensor, convolved: Tensor) -> Tensor:
    """(B, H, m), (m, H, G) or (1, H, G) -> (B, G, m)."""
    return torch.einsum("bhm,mhg->bgm", signal, convolved.expand(signal.shape[-1], -1, -1))
