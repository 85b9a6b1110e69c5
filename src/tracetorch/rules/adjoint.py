"""What the rules that write adjoints in a bank share: its nodes, and how one layer's adjoint becomes the next's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _checks
from ..functional import bank as banks
from .base import Border, LayerLike, ModelDecays, Nodes, Rule

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
    return hops > 0 and layer.values().recurrent is not None


def signal_nodes(layer: LayerLike, nodes: Nodes, hops: int) -> Tensor | None:
    """The nodes in which all that reaches the layer's outputs is written; None where nothing does."""
    return nodes.own if is_recurrent(layer, hops) else nodes.above


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
