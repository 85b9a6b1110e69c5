"""What is exact, at 1e-10 in float64, parameter by parameter."""

import pytest
import torch

import tracetorch as tt
from cases import A_BETA_PER_NEURON, DEEP, F64, HIDDEN, ONE_LAYER, UNDER_A_LINEAR_HEAD, WINDOWS, Case, M, T, hidden
from checks import equals_bptt, masked_reset_is_a_fresh_start
from tracetorch import testing


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("case", ONE_LAYER + UNDER_A_LINEAR_HEAD, ids=str)
def test_input_trace_is_exact_with_any_window(case: Case, window: int) -> None:
    equals_bptt(*case.make(tt.InputTrace()), window)


@pytest.mark.parametrize("rule", [tt.InputTrace(), tt.Truncated()], ids=str)
@pytest.mark.parametrize("case", ONE_LAYER + UNDER_A_LINEAR_HEAD + DEEP, ids=str)
def test_every_exact_rule_is_exact_when_the_window_is_the_sequence(case: Case, rule: tt.rules.Rule) -> None:
    equals_bptt(*case.make(rule), T)


@pytest.mark.parametrize("case", A_BETA_PER_NEURON, ids=str)
def test_truncated_takes_a_beta_per_neuron(case: Case) -> None:
    equals_bptt(*case.make(tt.Truncated()), T)


def test_mixed_exact_rules_are_exact_when_the_window_is_the_sequence() -> None:
    def build(rule: tt.rules.Rule) -> tt.Sequential:
        slow_and_fast = tt.LI(HIDDEN, M, tau=[2.0, 4, 8, 16, 32], rule=tt.Truncated(), **F64)
        return tt.Sequential(hidden(rule=tt.Truncated()), hidden(HIDDEN), slow_and_fast, rule=rule)

    equals_bptt(*Case("mixed", build).make(tt.InputTrace()), T)


@pytest.mark.parametrize("case", DEEP[:2], ids=str)
def test_input_trace_is_approximate_in_deep_models_and_truncated_more_so(case: Case) -> None:
    """Recorded: the table of what is exact must not claim more, nor less."""
    cosines = {}
    for rule in (tt.InputTrace(), tt.Truncated()):
        model, x, ls = case.make(rule)
        ls = ls.clone()
        ls[:-1] = 0
        rows = testing.compare(testing.online_gradients(model, x, ls, 1), testing.bptt_gradients(model, x, ls))
        cosines[str(rule)] = next(row for row in rows if row.name == "0.synapse.weight")
    assert cosines["InputTrace()"].cosine < 0.99
    assert cosines["InputTrace()"].cosine > cosines["Truncated()"].cosine


@pytest.mark.parametrize("window", [1, 3, 7])
@pytest.mark.parametrize(
    "case", [case for case in ONE_LAYER + UNDER_A_LINEAR_HEAD + DEEP if case.name != "a Softmax inside"], ids=str
)
def test_a_masked_reset_is_a_fresh_start(case: Case, window: int) -> None:
    model, x, ls = case.make(tt.InputTrace())
    masked_reset_is_a_fresh_start(model, x, ls, reset_at=[0, window, 2 * window], window=window)


@pytest.mark.parametrize("value", ["modelled", "measured"])
@pytest.mark.parametrize("case", ONE_LAYER[:1], ids=str)
def test_a_masked_reset_is_a_fresh_start_for_mean_rate(case: Case, value: str) -> None:
    model, x, ls = case.make(tt.MeanRate(value=value))
    masked_reset_is_a_fresh_start(model, x, ls, reset_at=[0, 3, 6], window=3)


def test_an_optimizer_step_between_windows_leaves_earlier_traces_right() -> None:
    """Traces advance with the beta their step was run with, whatever beta is afterwards."""
    layer = tt.LIF(2, 3, beta=0.8, learn_beta=True, dtype=torch.float64)
    x = torch.ones(1, 2, dtype=torch.float64)
    layer(x)
    layer(x)
    with torch.no_grad():
        layer.raw_beta += 1.0
    layer(x)  # folds the second step in, which was run with 0.8
    torch.testing.assert_close(layer._state.traces.weight[:, 0], 0.8 * x + x, rtol=1e-12, atol=0)
