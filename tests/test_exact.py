"""What is exact, at 1e-10 in float64, parameter by parameter."""

import pytest
import torch

import tracetorch as tt
from cases import (
    ALL,
    DEEP,
    F64,
    HIDDEN,
    MIXED,
    ONE_LAYER,
    OWN,
    RULES,
    UNDER_A_LINEAR_HEAD,
    WINDOWS,
    B,
    Case,
    M,
    N,
    T,
    hidden,
)
from checks import equals_bptt, masked_reset_is_a_fresh_start
from tracetorch import testing


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("case", ONE_LAYER + UNDER_A_LINEAR_HEAD + OWN[:1], ids=str)
def test_input_trace_is_exact_with_any_window(case: Case, window: int) -> None:
    equals_bptt(*case.make(tt.InputTrace()), window)


@pytest.mark.parametrize(
    ("case", "rule"), [(case, rule) for case in ALL + MIXED for rule in RULES if case.accepts(rule)], ids=str
)
def test_every_exact_rule_is_exact_when_the_window_is_the_sequence(case: Case, rule: tt.rules.Rule) -> None:
    equals_bptt(*case.make(rule), T)


def test_every_case_is_served_by_most_rules() -> None:
    """The table above leaves out what is refused: that must not be much."""
    refused = [(str(case), str(rule)) for case in ALL + MIXED for rule in RULES if not case.accepts(rule)]
    assert refused == [
        ("a Softmax inside", "MeanField()"),
        ("a Softmax inside", "Eligibility()"),
        ("stateless first, branches of channels, one transposed", "Eligibility()"),
    ]


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
    "case", [case for case in ONE_LAYER + UNDER_A_LINEAR_HEAD + DEEP + OWN if case.name != "a Softmax inside"], ids=str
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
    torch.testing.assert_close(layer._state.traces["weight"][:, 0], 0.8 * x + x, rtol=1e-12, atol=0)


def test_eligibility_matrices_advance_with_the_betas_of_their_steps() -> None:
    """E_t = q E_{t-1} + psi_t (beta_t Z_{t-1} + x_t), Z_t = beta_t Z_{t-1} + x_t, while beta and theta change."""
    torch.manual_seed(0)
    model = tt.Sequential(hidden(threshold=0.4), tt.LI(HIDDEN, M, beta=0.9, **F64), rule=tt.Eligibility())
    layer, q = model[0], model[1].beta
    z, e = torch.zeros(B, N, **F64), torch.zeros(B, HIDDEN, N, **F64)
    for x in torch.rand(6, B, N, **F64):
        beta = layer.beta
        model(x)
        z = beta * z + x  # dp/dW of this step, and dv/dW after it
        e = q * e + layer.surrogate.slope(layer._segments[-1].tape.record.u)[0, :, :, None] * z[:, None]
        with torch.no_grad():
            layer.raw_beta += 0.3
            layer.raw_threshold += 0.1
    traces = layer._advanced_state().traces
    torch.testing.assert_close(traces.own["weight"][:, 0], z, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(traces.matrices["weight"][:, 0], e, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rule", [tt.InputTrace(), tt.MeanField(), tt.Eligibility()], ids=str)
def test_one_layers_weights_get_the_sum_over_the_copies_that_saw_the_data(rule: tt.rules.Rule) -> None:
    """Learning while the stream goes on: what is frozen (beta, theta) leaves the traces of earlier steps exact."""
    case = Case("", lambda rule: hidden(N, M, learn_beta=False, learn_threshold=False, rule=rule))
    model, x, ls = case.make(rule)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    slopes, inputs = [], []
    for x_t, ls_t in zip(x, ls, strict=True):
        model(x_t)
        slopes.append(model.surrogate.slope(model._segments[-1].tape.record.u)[0])
        inputs.append(x_t)
        optimizer.zero_grad()
        model.backward(ls_t)
        trace = sum(model.beta**k * past for k, past in enumerate(reversed(inputs)))
        torch.testing.assert_close(model.weight.grad, (slopes[-1] * ls_t).t() @ trace, rtol=1e-10, atol=1e-10)
        optimizer.step()
