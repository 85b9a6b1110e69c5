"""A horizon reaches back exactly as far as it says, wherever the borders of windows fall."""

import copy
import math

import pytest
import torch

import tracetorch as tt
from cases import ALL, CONCAT, DEEP, F64, HIDDEN, MIXED, ONE_LAYER, RECURRENT, RULES, Case, M, T, hidden
from checks import equals_bptt, gradients_in, gradients_of, masked_reset_is_a_fresh_start
from tracetorch import testing
from tracetorch.nn.online import Online

EVERYTHING = ALL + MIXED
DEEPEST = [DEEP[3], RECURRENT[2], CONCAT[0]]
accepted = [(case, rule) for case in EVERYTHING for rule in RULES if case.accepts(rule)]


def with_horizon(case: Case, rule: tt.rules.Rule, horizon: int) -> tuple[Online, torch.Tensor, torch.Tensor]:
    model, x, ls = case.make(rule)
    model.horizon = horizon
    return model, x, ls


@pytest.mark.parametrize(("case", "rule"), accepted, ids=str)
def test_a_horizon_of_the_sequence_is_bptt_in_windows(case: Case, rule: tt.rules.Rule) -> None:
    equals_bptt(*with_horizon(case, rule, T), 5)


@pytest.mark.parametrize("case", EVERYTHING, ids=str)
def test_a_horizon_of_the_sequence_is_bptt_in_steps(case: Case) -> None:
    equals_bptt(*with_horizon(case, tt.InputTrace(), T), 1)


@pytest.mark.parametrize("case", EVERYTHING, ids=str)
def test_windows_may_vary_from_call_to_call(case: Case) -> None:
    model, x, ls = with_horizon(case, tt.InputTrace(), T)
    expected = testing.bptt_gradients(model, x, ls)
    testing.assert_gradients_close(gradients_in(model, x, ls, [1, 4, 2, 7, 3, 4]), expected)


@pytest.mark.parametrize(("horizon", "window"), [(4, 3), (7, 3), (10, 4), (2, 5), (6, 1)])
@pytest.mark.parametrize("case", ONE_LAYER, ids=str)
def test_the_carry_deals_with_what_is_older(case: Case, horizon: int, window: int) -> None:
    equals_bptt(*with_horizon(case, tt.InputTrace(), horizon), window)


@pytest.mark.parametrize(("horizon", "window"), [(4, 3), (7, 3), (10, 4), (2, 5), (6, 1)])
@pytest.mark.parametrize("case", DEEPEST, ids=str)
def test_nothing_is_carried_by_truncated_and_whole_windows_cover_the_horizon(
    case: Case, horizon: int, window: int
) -> None:
    """Each signal's gradient is that of one plain window over the last steps, begun with the membranes there."""
    model, x, ls = with_horizon(case, tt.Truncated(), horizon)
    actual = testing.online_gradients(model, x, ls, window)
    plain = copy.deepcopy(model)
    plain.horizon = None
    for start in range(0, T, window):
        end = min(T, start + window)
        first = max(0, start - window * max(0, math.ceil((horizon - (end - start)) / window)))
        plain.reset()
        if first:
            with tt.no_learning():
                plain.window(x[:first])
        plain.window(x[first:end])
        plain.backward(torch.cat([torch.zeros_like(ls[first:start]), ls[start:end]]))
    testing.assert_gradients_close(actual, gradients_of(plain))


@pytest.mark.parametrize("rule", [tt.InputTrace(), tt.Eligibility()], ids=str)
@pytest.mark.parametrize("case", [ONE_LAYER[0], *DEEPEST], ids=str)
@pytest.mark.parametrize("reset_at", [[0, 3, 6], [9, 18, 9]], ids=str)
def test_a_masked_reset_inside_the_horizon_is_a_fresh_start(
    case: Case, rule: tt.rules.Rule, reset_at: list[int]
) -> None:
    model, x, ls = with_horizon(case, rule, T)
    masked_reset_is_a_fresh_start(model, x, ls, reset_at, 3, exact=True)
    model.horizon = 7
    masked_reset_is_a_fresh_start(model, x, ls, reset_at, 3)


def test_lanes_may_be_reset_again_and_again_within_a_horizon() -> None:
    model, x, ls = with_horizon(DEEPEST[1], tt.InputTrace(), T)
    model.reset()
    for t in range(T):
        model.reset(torch.tensor([t % 7 == 0, False, False])) if t else None
        model(x[t])
        model.backward(ls[t])
    parts = [testing.bptt_gradients(model, x[t : t + 7, :1], ls[t : t + 7, :1]) for t in (0, 7, 14)]
    parts.append(testing.bptt_gradients(model, x[:, 1:], ls[:, 1:]))
    testing.assert_gradients_close(gradients_of(model), {name: sum(p[name] for p in parts) for name in parts[0]})


def test_a_part_that_was_called_by_itself_ends_the_horizon() -> None:
    """What came before is in the traces then: the layers' own membranes carry it."""
    model, x, ls = with_horizon(DEEP[1], tt.InputTrace(), T)
    model.window(x[:5])
    inner = model[0](x[5])
    model.window(x[6:11])
    model.backward(ls[6:11])
    assert [len(part._segments) for part in model._parts()] == [1, 1]
    plain = copy.deepcopy(model)
    plain.horizon = None
    plain.reset()
    plain.zero_grad()
    plain.window(x[:5])
    torch.testing.assert_close(plain[0](x[5]), inner)
    plain.window(x[6:11])
    plain.backward(ls[6:11])
    testing.assert_gradients_close(gradients_of(model), gradients_of(plain))
    model.window(x[11:13])
    assert [len(part._segments) for part in model._parts()] == [2, 2]  # and it begins anew


def test_optimizer_steps_between_windows_leave_the_tapes_as_they_were_run() -> None:
    """Beta and theta of each step are those it was run with; the weights, today's."""
    torch.manual_seed(0)
    layer = hidden(3, M)
    layer.horizon = T
    x, ls = torch.rand(6, 2, 3, **F64), torch.randn(6, 2, M, **F64)
    values = []
    for part, signal in zip(x.split(2), ls.split(2), strict=True):
        layer.window(part)
        values.append(layer.values())
        layer.zero_grad()
        layer.backward(signal)
        actual = gradients_of(layer)
        with torch.no_grad():
            layer.raw_beta += 0.5
            layer.raw_threshold -= 0.2
    u = torch.cat([segment.tape.record.u for segment in layer._segments])
    spk, a, expected = layer.surrogate.spike(u), torch.zeros(2, M, **F64), 0
    signals = [*torch.zeros(4, 2, M, **F64), *ls[4:]]
    for t in range(5, -1, -1):
        g = layer.surrogate.slope(u[t]) * signals[t] + a
        a = values[t // 2]["beta"] * g
        expected = expected + g.t() @ x[t]
    assert spk.mean() > 0
    testing.assert_gradients_close({"w": actual["synapse.weight"]}, {"w": expected})


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: model], ids=["copy", "stream_state"])
def test_a_copy_goes_on_with_what_the_horizon_kept_in_its_traces(duplicate) -> None:
    """One layer is exact either way."""
    model, x, ls = with_horizon(ONE_LAYER[0], tt.InputTrace(), 10)
    expected = testing.bptt_gradients(model, x, ls)
    for t in (0, 4):
        model.window(x[t : t + 4])
        model.backward(ls[t : t + 4])
    other = duplicate(model)
    other.load_stream_state(model.stream_state())
    before = gradients_of(model)
    other.zero_grad()
    other.window(x[8:])
    other.backward(ls[8:])
    testing.assert_gradients_close({name: before[name] + g for name, g in gradients_of(other).items()}, expected)


def test_a_call_in_eval_mode_ends_the_horizon() -> None:
    model, x, ls = with_horizon(DEEP[1], tt.InputTrace(), T)
    model.window(x[:4])
    with tt.no_learning():
        model.window(x[4:8])
    model.window(x[8:])
    model.backward(ls[8:])
    actual = gradients_of(model)
    model.horizon = None
    model.reset()
    model.zero_grad()
    with tt.no_learning():
        model.window(x[:8])
    model.window(x[8:])
    model.backward(ls[8:])
    testing.assert_gradients_close(actual, gradients_of(model))


def test_the_input_signal_is_that_of_the_latest_call() -> None:
    model, x, ls = with_horizon(DEEP[3], tt.InputTrace(), T)
    for t in range(0, T, 3):
        model.window(x[t : t + 3])
        below = model.backward(ls[t : t + 3], input_signal=True)
    assert below.shape == x[-3:].shape
    alone = torch.cat([torch.zeros_like(ls[:-3]), ls[-3:]])
    expected = testing.bptt_gradients(model, x, alone, input_gradient=True)["x"][-3:]
    torch.testing.assert_close(below, expected, rtol=1e-10, atol=1e-10)


def test_a_longer_horizon_is_a_better_gradient() -> None:
    """Recorded: cosines of the first layer's weights with BPTT for a signal at the last step alone, in steps."""
    case = Case("", lambda rule: tt.Sequential(hidden(), hidden(HIDDEN, HIDDEN), tt.LI(HIDDEN, M, **F64), rule=rule))
    cosines = []
    for horizon in (1, 5, 10, T):
        model, x, ls = with_horizon(case, tt.Truncated(), horizon)
        ls = torch.cat([torch.zeros_like(ls[:-1]), ls[-1:]])
        rows = testing.compare(testing.online_gradients(model, x, ls, 1), testing.bptt_gradients(model, x, ls))
        cosines.append(next(row.cosine for row in rows if row.name == "0.synapse.weight"))
    assert cosines == sorted(cosines)
    assert cosines[0] < 0.9
    assert cosines[-1] > 1 - 1e-10
