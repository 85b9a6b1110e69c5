"""The exactness checks catch the mistakes that they are there for."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import tracetorch as tt
from cases import LEARNED, ONE_LAYER, Case
from checks import equals_bptt, masked_reset_is_a_fresh_start
from tracetorch import testing
from tracetorch.functional import scan, surrogate, trace
from tracetorch.rules.base import Segment

LIF = ONE_LAYER[0]
true_advance, true_advance_ones = trace.advance, trace.advance_ones
true_lif_reverse = scan.lif_reverse
true_forget = Segment.forget


def wrong_decay(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(trace, "advance", lambda z, x, decay: true_advance(z, x, decay * 1.01))


def wrong_normaliser_decay(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(trace, "advance_ones", lambda n, steps, decay: true_advance_ones(n, steps, decay * 1.01))


def one_step_late(patch: pytest.MonkeyPatch) -> None:
    """The window's last step reaches the traces one window later."""
    late: dict[int, torch.Tensor] = {}

    def advance(z: Tensor, x: Tensor, decay: Tensor) -> Tensor:
        held = late.get(x.shape[-1], torch.zeros_like(x[0]))
        late[x.shape[-1]] = x[-1]
        return true_advance(z, torch.cat([held[None], x[:-1]]), decay)

    patch.setattr(trace, "advance", advance)


def surrogate_dropped(patch: pytest.MonkeyPatch) -> None:
    # the layer's own reverse scan alone: the reference asks the same surrogate for its slope
    def reverse(ls, u, mem, beta, threshold, fire, *beyond):
        return true_lif_reverse(ls, u, mem, beta, threshold, surrogate.Custom(fire.spike, torch.ones_like), *beyond)

    patch.setattr(scan, "lif_reverse", reverse)


def reset_left_out_of_the_membrane(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(scan, "lif_membrane", lambda u, threshold, _: u + threshold)


def reset_left_out_of_the_run(patch: pytest.MonkeyPatch) -> None:
    def lif(current, mem, beta, threshold, fire, _) -> scan.LIFScan:
        u = scan.li(current, mem, beta) - threshold
        return scan.LIFScan(fire.spike(u), u, u[-1] + threshold)

    patch.setattr(scan, "lif", lif)


@pytest.mark.parametrize("window", [1, 3, 7])
@pytest.mark.parametrize(
    "plant",
    [
        wrong_decay,
        wrong_normaliser_decay,
        one_step_late,
        surrogate_dropped,
        reset_left_out_of_the_membrane,
        reset_left_out_of_the_run,
    ],
)
def test_is_caught(plant: Callable[[pytest.MonkeyPatch], None], window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if plant is reset_left_out_of_the_membrane and window == 1:
        pytest.skip("a window of one step takes the membrane from its start")
    model, x, ls = LIF.make(tt.InputTrace())
    equals_bptt(model, x, ls, window)
    plant(monkeypatch)
    with pytest.raises(AssertionError, match="cosine"):
        equals_bptt(model, x, ls, window)


@pytest.mark.parametrize("rule", [tt.InputTrace(), tt.MeanRate()], ids=["InputTrace", "MeanRate"])
def test_a_masked_reset_that_touches_another_lanes_normaliser_is_caught(
    rule: tt.rules.Rule, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(self: Segment, state):
        traces = true_forget(self, state)
        normaliser = "bias" if isinstance(rule, tt.InputTrace) else "norm"
        if self.reset is None or not hasattr(traces, normaliser):
            return traces
        return traces._replace(**{normaliser: torch.zeros_like(getattr(traces, normaliser))})

    model, x, ls = LIF.make(rule)
    masked_reset_is_a_fresh_start(model, x, ls, reset_at=[0, 3, 6], window=3)
    monkeypatch.setattr(Segment, "forget", careless)
    with pytest.raises(AssertionError, match="cosine"):
        masked_reset_is_a_fresh_start(model, x, ls, reset_at=[0, 3, 6], window=3)


def test_each_knob_moves_the_gradient() -> None:
    """A comparison in which a parameter plays no part would prove nothing about it."""
    base = Case("", lambda rule: tt.LIF(9, 5, beta=0.85, dtype=torch.float64, rule=rule, **LEARNED))
    model, x, ls = base.make(tt.InputTrace())
    before = testing.bptt_gradients(model, x, ls)
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            parameter += 0.05
        after = testing.bptt_gradients(model, x, ls)
        assert not torch.allclose(before["synapse.weight"], after["synapse.weight"], rtol=1e-3), name
        with torch.no_grad():
            parameter -= 0.05
