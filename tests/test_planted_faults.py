"""The exactness checks catch the mistakes that they are there for."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import tracetorch as tt
from cases import DEEP, F64, HIDDEN, LEARNED, ONE_LAYER, Case, M, N, hidden
from checks import equals_bptt, last_step_alone, masked_reset_is_a_fresh_start, relative_errors
from tracetorch import kernels, testing
from tracetorch.functional import scan, surrogate, trace
from tracetorch.functional.bank import Bank
from tracetorch.nn import layer, streaming
from tracetorch.nn.streaming import Call
from tracetorch.rules import adjoint, base, mean_field
from tracetorch.rules.base import Segment

LIF = ONE_LAYER[0]
true_chain, true_ones, true_reverse_scan = trace.advance_chain, trace.advance_ones, scan.spiking_reverse
true_scan = scan.spiking
true_forget = Segment.forget


@pytest.fixture(autouse=True)
def _reference() -> Iterator[None]:
    """Faults are planted in the reference; the kernels are held against that (tests/test_kernels.py)."""
    with kernels.reference():
        yield


def in_place_of(change: Callable) -> Callable:
    """A chain whose stages are changed."""
    return lambda z, x, chain, kept=None: true_chain(z, x, tuple(change(stage) for stage in chain), kept)


def wrong_decay(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(trace, "advance_chain", in_place_of(lambda stage: stage._replace(decay=stage.decay * 1.01)))


def wrong_normaliser_decay(patch: pytest.MonkeyPatch) -> None:
    """Of the trace of ones alone."""

    def advance(z, x, chain, kept=None):
        wrong = tuple(stage._replace(decay=stage.decay * 1.01) for stage in chain)
        return true_chain(z, x, wrong if x.shape[-1] == 1 else chain, kept)

    patch.setattr(trace, "advance_chain", advance)
    patch.setattr(trace, "advance_ones", lambda z, steps, decay: true_ones(z, steps, decay * 1.01))


def one_step_late(patch: pytest.MonkeyPatch) -> None:
    """The window's last step reaches the traces one window later."""
    late: dict[int, torch.Tensor] = {}

    def advance(z: Tensor, x: Tensor, chain, kept=None) -> Tensor:
        held = late.get(x.shape[-1], torch.zeros_like(x[0]))
        late[x.shape[-1]] = x[-1]
        return true_chain(z, torch.cat([held[None], x[:-1]]), chain, kept)

    patch.setattr(trace, "advance_chain", advance)


def surrogate_dropped(patch: pytest.MonkeyPatch) -> None:
    # the layer's own reverse scan alone: the reference asks the same surrogate for its slope
    def reverse(ls, record, start, values, form, wanted=(), ahead=None):
        flat = type(form.firing)(surrogate.Custom(form.firing.surrogate.spike, torch.ones_like))
        return true_reverse_scan(ls, record, start, values, replace(form, firing=flat), wanted, ahead)

    patch.setattr(scan, "spiking_reverse", reverse)


def reset_left_out_of_the_membrane(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(scan.Steps, "membrane", lambda self, record, _: record.u + self.theta)


def reset_left_out_of_the_run(patch: pytest.MonkeyPatch) -> None:
    def run(current, start, values, form, given=None):
        return true_scan(current, start, values, replace(form, reset="none"), given)

    patch.setattr(scan, "spiking", run)


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
        if self.reset is None:
            return traces
        if isinstance(traces, dict):
            return traces | {normaliser: torch.zeros_like(traces[normaliser])} if normaliser in traces else traces
        if not hasattr(traces, normaliser):
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


# -- the adjoint, the bank, the horizon --------------------------------------------------------------------------------

true_advance_bank, true_advance_matrix = trace.advance_bank, trace.advance_matrix
true_leaving, true_marked, true_reverse = Call.leaving, streaming.marked, base._reverse
BANK = {name: getattr(Bank, name).func for name in ("kernels", "convolved", "delayed", "converted")}


def spoiled(name: str, spoil: Callable[[Tensor], Tensor]) -> Callable[[pytest.MonkeyPatch], None]:
    """Change the coefficients of a bank; what is written exactly is spoiled too."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(Bank, name, property(lambda self: spoil(BANK[name](self))))

    plant.__name__ = f"{name} spoiled"
    return plant


def scaled(coefficients: Tensor) -> Tensor:
    return coefficients * 1.01


def one_step_older(coefficients: Tensor) -> Tensor:
    """Each exponential as it would be one lag further on."""
    return coefficients * 0.9


def without_start(patch: pytest.MonkeyPatch) -> None:
    """Psibar normalised as if the stream had always run."""
    patch.setattr(trace, "average", lambda z, _: z * (1 - 0.9))


def slope_of_the_latest_step(patch: pytest.MonkeyPatch) -> None:
    """No average at all."""

    def advance(layer, old, tape, signal):
        if old is None or signal is None:
            return old
        psi = layer.neuron.slope(tape)[-1][:, None].expand_as(old.slope)
        return old._replace(slope=psi.clone(), steps=torch.ones_like(old.steps))

    patch.setattr(mean_field, "advance_slopes", advance)


def bank_trace_decay(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(trace, "advance_bank", lambda z, x, nodes: true_advance_bank(z, x, nodes * 0.99))


def matrix_decay(patch: pytest.MonkeyPatch) -> None:
    def advance(before, g, at_border, taken, past, decay):
        return true_advance_matrix(before, g, at_border, taken, past, decay * 0.99)

    patch.setattr(trace, "advance_matrix", advance)


def matrix_without_the_past(patch: pytest.MonkeyPatch) -> None:
    """E without `a_0 Z_0^T`: dp/dW begins anew in every window."""

    def advance(before, g, at_border, taken, past, decay):
        return true_advance_matrix(before, g, torch.zeros_like(at_border), taken, past, decay)

    patch.setattr(trace, "advance_matrix", advance)


def probe_one_step_late(patch: pytest.MonkeyPatch) -> None:
    def reverse(ls, record, *rest):
        return true_reverse_scan(ls * 0.95 if record.u.ndim == 4 else ls, record, *rest)

    patch.setattr(scan, "spiking_reverse", reverse)


def adjoint_left_out(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(tt.nn.layer.Layer, "_uses_adjoint", lambda _: False)


def through_left_out(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(adjoint, "_through", lambda *_: torch.zeros(()))


def threshold_without_the_signal(patch: pytest.MonkeyPatch) -> None:
    """dL/dtheta from the membrane alone."""
    true_start = mean_field.MeanField.start
    patch.setattr(mean_field.MeanField, "start", lambda *args: true_start(*args)._replace(slope_drives={}))


def lanes_mixed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(trace, "advance_bank", lambda z, x, nodes: true_advance_bank(z, x, nodes).mean(0, True).expand_as(z))
    patch.setattr(trace, "advance_chain", lambda z, *rest: true_chain(z, *rest).mean(0, True).expand_as(z))


CONSTANT_SLOPES = Case(
    "constant slopes",
    lambda rule: tt.Sequential(
        hidden(beta=0.9, learn_beta=False, surrogate=SLOPE_1),
        hidden(HIDDEN, HIDDEN, beta=0.6, learn_beta=False, surrogate=SLOPE_1),
        tt.LI(HIDDEN, M, beta=0.8, **F64),
        rule=rule,
    ),
)
SLOPE_1 = surrogate.Custom(lambda u: (u >= 0).to(u.dtype), lambda u: 0.7 * torch.ones_like(u))
READOUT = Case("LIF, LI", lambda rule: tt.Sequential(hidden(), tt.LI(HIDDEN, M, beta=0.9, **F64), rule=rule))
NEURONS = Case("a beta per neuron", lambda rule: hidden(N, M, beta=torch.linspace(0.5, 0.95, M), rule=rule))
FAULTS = [
    (CONSTANT_SLOPES, tt.MeanField(), spoiled("convolved", scaled)),
    (CONSTANT_SLOPES, tt.MeanField(), spoiled("convolved", lambda d: d.transpose(1, 2))),
    (CONSTANT_SLOPES, tt.MeanField(), spoiled("convolved", one_step_older)),
    (CONSTANT_SLOPES, tt.MeanField(), spoiled("kernels", scaled)),
    (CONSTANT_SLOPES, tt.MeanField(), without_start),
    (CONSTANT_SLOPES, tt.MeanField(), bank_trace_decay),
    (CONSTANT_SLOPES, tt.MeanField(), adjoint_left_out),
    (CONSTANT_SLOPES, tt.MeanField(), through_left_out),
    (CONSTANT_SLOPES, tt.MeanField(), threshold_without_the_signal),
    (CONSTANT_SLOPES, tt.MeanField(), lanes_mixed),
    (CONSTANT_SLOPES, tt.Eligibility(), spoiled("convolved", scaled)),
    (CONSTANT_SLOPES, tt.Eligibility(), through_left_out),
    (READOUT, tt.Eligibility(), matrix_decay),
    (READOUT, tt.Eligibility(), matrix_without_the_past),
    (READOUT, tt.Eligibility(), probe_one_step_late),
    (READOUT, tt.Eligibility(), adjoint_left_out),
    (READOUT, tt.Eligibility(), lanes_mixed),
]


@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize(
    ("case", "rule", "plant"), FAULTS, ids=[f"{rule}, {plant.__name__}" for _, rule, plant in FAULTS]
)
def test_a_fault_in_the_adjoint_is_caught(
    case: Case, rule: tt.rules.Rule, plant: Callable, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x, ls = case.make(rule)
    ls = last_step_alone(ls)
    equals_bptt(model, x, ls, window)
    plant(monkeypatch)
    with pytest.raises(AssertionError, match="cosine"):
        equals_bptt(model, x, ls, window)


def test_an_average_of_slopes_that_is_none_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by an exact case, where slopes are constant; by how far the rule is off where they are not."""
    model, x, ls = DEEP[1].make(tt.MeanField())
    ls = last_step_alone(ls)
    expected = testing.bptt_gradients(model, x, ls)
    before = relative_errors(testing.online_gradients(model, x, ls, 1), expected)
    slope_of_the_latest_step(monkeypatch)
    after = relative_errors(testing.online_gradients(model, x, ls, 1), expected)
    assert after["0.synapse.weight"] > 1.5 * before["0.synapse.weight"]


@pytest.mark.parametrize("plant", [spoiled("kernels", scaled), bank_trace_decay], ids=lambda plant: plant.__name__)
def test_a_fault_in_a_bank_of_neurons_exceeds_its_bound(plant: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bank's own error for one layer with a beta per neuron is a hundred times smaller."""
    model, x, ls = NEURONS.make(tt.InputTrace())
    expected = testing.bptt_gradients(model, x, ls)
    assert relative_errors(testing.online_gradients(model, x, ls, 1), expected)["synapse.weight"] < 5e-4
    plant(monkeypatch)
    assert relative_errors(testing.online_gradients(model, x, ls, 1), expected)["synapse.weight"] > 5e-3


@pytest.mark.parametrize(
    "plant", [spoiled("delayed", scaled), spoiled("delayed", torch.zeros_like), spoiled("delayed", torch.t)]
)
def test_a_fault_in_what_is_delayed_is_caught(plant: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain of recurrent weights with constant slopes, where two hops are exact up to the bank's error."""
    case = Case("", lambda rule: hidden(N, 3, learn_beta=False, recurrent=True, surrogate=SLOPE_1, rule=rule))
    model, x, _ = case.make(tt.MeanField(hops=2))
    with torch.no_grad():
        model.recurrent_weight.copy_(torch.tensor([[0.0, 0, 0], [0.9, 0, 0], [0, 0.8, 0]]))
    testing.assert_alive(model, x)
    ls = torch.zeros(*x.shape[:2], 3, **F64)
    ls[-1, :, 2] = torch.randn(x.shape[1], **F64)
    expected = testing.bptt_gradients(model, x, ls)
    assert relative_errors(testing.online_gradients(model, x, ls, 1), expected)["synapse.weight"] < 2e-3
    plant(monkeypatch)
    assert relative_errors(testing.online_gradients(model, x, ls, 1), expected)["synapse.weight"] > 5e-3


def ring_in_the_wrong_order(patch: pytest.MonkeyPatch) -> None:
    def leaving(self, segments, steps):
        out, staying = true_leaving(self, segments, steps)
        return out, staying[::-1]

    patch.setattr(Call, "leaving", leaving)


def ring_too_short(patch: pytest.MonkeyPatch) -> None:
    """One window is dropped, neither kept nor folded in."""

    def leaving(self, segments, steps):
        out, staying = true_leaving(self, segments, steps)
        return out, staying[1:]

    patch.setattr(Call, "leaving", leaving)


def ring_folds_twice(patch: pytest.MonkeyPatch) -> None:
    def leaving(self, segments, steps):
        out, staying = true_leaving(self, segments, steps)
        return out + staying[:1], staying

    patch.setattr(Call, "leaving", leaving)


def windows_apart(patch: pytest.MonkeyPatch) -> None:
    """The gradient of the state does not pass from a window to the one before."""

    def reverse(neuron, segments, ls, wanted, ahead):
        return [neuron.reverse(segment.tape, signal, wanted) for segment, signal in zip(segments, ls, strict=True)]

    patch.setattr(base, "_reverse", reverse)


def carry_from_the_last_window(patch: pytest.MonkeyPatch) -> None:
    """What is left over of the latest window, not of the oldest, meets the traces."""

    def reverse(neuron, segments, ls, wanted, ahead):
        runs = true_reverse(neuron, segments, ls, wanted, ahead)
        return [runs[0]._replace(leftover=runs[-1].leftover), *runs[1:]]

    patch.setattr(base, "_reverse", reverse)


@pytest.mark.parametrize(
    "plant", [ring_in_the_wrong_order, ring_too_short, ring_folds_twice, windows_apart, carry_from_the_last_window]
)
def test_a_fault_in_the_horizon_is_caught(plant: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, ls = LIF.make(tt.InputTrace())
    model.horizon = 7
    equals_bptt(model, x, ls, 3)
    plant(monkeypatch)
    with pytest.raises(AssertionError, match="cosine"):
        equals_bptt(model, x, ls, 3)


def resets_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(layer, "marked", lambda segments, _: segments)


def first_reset_forgotten(patch: pytest.MonkeyPatch) -> None:
    def marked(segments, mask):
        return (
            tuple(segment._replace(reset=None) for segment in true_marked(segments, mask)[:-1])
            + true_marked(segments, mask)[-1:]
        )

    patch.setattr(layer, "marked", marked)


def reset_of_all_lanes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(layer, "marked", lambda segments, mask: true_marked(segments, torch.ones_like(mask)))


@pytest.mark.parametrize("plant", [resets_forgotten, first_reset_forgotten, reset_of_all_lanes])
@pytest.mark.parametrize("horizon", [7, 21])
def test_a_fault_in_the_masks_of_the_horizon_is_caught(
    plant: Callable, horizon: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x, ls = LIF.make(tt.InputTrace())
    model.horizon = horizon
    masked_reset_is_a_fresh_start(model, x, ls, [6, 9, 12], 3, exact=True)
    plant(monkeypatch)
    with pytest.raises(AssertionError, match="cosine"):
        masked_reset_is_a_fresh_start(model, x, ls, [6, 9, 12], 3, exact=True)
