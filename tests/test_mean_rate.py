"""MeanRate against autograd through its own closed form."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tracetorch as tt
from cases import F64, HIDDEN, M, N, T, hidden
from tracetorch import testing
from tracetorch.functional import rate
from tracetorch.nn.layer import Layer
from tracetorch.rules.base import Wanted

A = 0.8  # the trace's decay
B = 3


def _sigmoid(current: Tensor, beta: Tensor, theta: Tensor) -> Tensor:
    return torch.sigmoid(5 * (current * (2 - beta) / 2 - theta * (1 - beta)))


def _balance(current: Tensor, beta: Tensor, theta: Tensor) -> Tensor:
    x, w = current / theta - (1 - beta) / 2, 0.03
    return w * (torch.log1p(torch.exp(x / w)) - torch.log1p(torch.exp((x - 1) / w)))


def _closed_form(layer: Layer, name: str, x_bar: Tensor) -> Tensor:
    beta = torch.sigmoid(layer.raw_beta) if layer.learns("beta") else layer.beta
    current = layer.synapse(x_bar)
    if isinstance(layer, tt.LIF):
        theta = F.softplus(layer.raw_threshold) if layer.learns("threshold") else layer.threshold
        return (_sigmoid if name == "sigmoid" else _balance)(current, beta, theta)
    settled = current / (1 - beta)
    return torch.softmax(settled, -1) if isinstance(layer, tt.Softmax) else settled


def _average(x: Tensor, correct_start: bool) -> Tensor:
    """The average input, written out step by step."""
    z, norm = torch.zeros_like(x[0]), 0.0
    for x_t in x:
        z, norm = A * z + x_t, A * norm + 1
    return z / norm if correct_start else z * (1 - A)


LAYERS: dict[str, Callable[[tt.rules.Rule], Layer]] = {
    "LIF": lambda rule: hidden(N, M, rule=rule),
    "LIF per neuron": lambda rule: hidden(
        N, M, beta=torch.linspace(0.5, 0.9, M), threshold=torch.linspace(0.5, 1, M), rule=rule
    ),
    "LI": lambda rule: tt.LI(N, M, learn_beta=True, rule=rule, **F64),
    "Softmax": lambda rule: tt.Softmax(N, M, learn_beta=True, rule=rule, **F64),
}


@pytest.mark.parametrize("window", [1, 7, T])
@pytest.mark.parametrize("correct_start", [True, False])
@pytest.mark.parametrize("name", ["sigmoid", "balance"])
@pytest.mark.parametrize("layer_name", LAYERS)
def test_is_the_gradient_of_the_estimate(layer_name: str, name: str, correct_start: bool, window: int) -> None:
    torch.manual_seed(0)
    layer = LAYERS[layer_name](tt.MeanRate(decay=A, rate=name, correct_start=correct_start))
    x = torch.rand(T, B, N, **F64)
    ls = torch.randn(window, B, M, **F64)
    for x_window in x.split(window):
        layer.window(x_window)
    signal = layer.backward(ls, input_signal=True)

    x_bar = _average(x, correct_start).requires_grad_()
    expected_loss = (ls.sum(0) * _closed_form(layer, name, x_bar)).sum()
    parameters = dict(layer.named_parameters())
    *expected, d_x_bar = torch.autograd.grad(expected_loss, [*parameters.values(), x_bar])
    assert all(gradient.norm() > 1e-4 for gradient in expected)
    testing.assert_gradients_close(
        {key: p.grad for key, p in parameters.items()}, dict(zip(parameters, expected, strict=True))
    )
    torch.testing.assert_close(signal, (d_x_bar / window).expand(window, -1, -1), rtol=1e-10, atol=1e-10)


def test_layers_hand_down_what_sums_back_to_the_gradient_of_the_average() -> None:
    torch.manual_seed(1)
    model = tt.Sequential(hidden(), hidden(HIDDEN, M), rule=tt.MeanRate(decay=A))
    x, ls = torch.rand(T, B, N, **F64), torch.randn(T, B, M, **F64)
    model.window(x)
    model.backward(ls)

    first, second = model
    spikes = first.neuron.output(first._segments[-1].tape)
    x_bar, s_bar = _average(x, True), _average(spikes, True).requires_grad_()
    d_s_bar = torch.autograd.grad((ls.sum(0) * _closed_form(second, "balance", s_bar)).sum(), s_bar)[0]
    estimate = _closed_form(first, "balance", x_bar)
    expected = torch.autograd.grad((d_s_bar * estimate).sum(), first.synapse.weight)[0]
    torch.testing.assert_close(first.synapse.weight.grad, expected, rtol=1e-10, atol=1e-10)


def test_mixes_with_the_exact_rules() -> None:
    """A layer below with InputTrace gets dL/dx_bar spread over the window's steps."""
    torch.manual_seed(2)
    model = tt.Sequential(hidden(), hidden(HIDDEN, M, rule=tt.MeanRate(decay=A)), rule=tt.InputTrace())
    x, ls = torch.rand(T, B, N, **F64), torch.randn(T, B, M, **F64)
    model.window(x)
    model.backward(ls)
    assert model[0].synapse.weight.grad.norm() > 0
    spread = model[1]
    result = spread.rule.backward(
        spread, spread._segments, spread._state.traces, [ls], None, Wanted(signal=True, adjoint=False)
    )
    (below,) = result.ls_below
    expected = testing.bptt_gradients(model[0], x, below)
    testing.assert_gradients_close({k: p.grad for k, p in model[0].named_parameters()}, expected)


@pytest.mark.parametrize(
    "estimate", [rate.Sigmoid(), rate.Balance(), rate.Balance(width=0.3), rate.Linear(), rate.Softmax()]
)
def test_slopes_are_derivatives_of_the_value(estimate: rate.RateEstimate) -> None:
    torch.manual_seed(3)
    current = torch.linspace(-1, 2, 12, **F64).view(3, 4).requires_grad_()
    beta = torch.tensor(0.8, **F64).requires_grad_()
    theta = torch.tensor(0.9, **F64).requires_grad_()
    signal = torch.randn(3, 4, **F64)
    value = estimate.value(current, beta, theta)
    expected = torch.autograd.grad(value, (current, beta, theta), signal, allow_unused=True)
    actual = estimate.gradients(signal, value.detach(), current.detach(), beta.detach(), theta.detach())
    torch.testing.assert_close(actual.current, expected[0], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(actual.beta.sum(), expected[1], rtol=1e-9, atol=1e-10)
    if actual.threshold is not None:
        torch.testing.assert_close(actual.threshold.sum(), expected[2], rtol=1e-9, atol=1e-10)


def test_a_measured_value_is_the_average_of_the_output() -> None:
    torch.manual_seed(4)
    layer = hidden(N, M, rule=tt.MeanRate(decay=A, value="measured"))
    x = torch.rand(T, B, N, **F64)
    spikes = torch.cat([layer.window(x[:8]), layer.window(x[8:])])
    ls = torch.randn(T - 8, B, M, **F64)
    layer.backward(ls)
    expected = rate.Balance().gradients(
        ls.sum(0), _average(spikes, True), layer.synapse(_average(x, True)).detach(), layer.beta, layer.threshold
    )
    torch.testing.assert_close(layer.synapse.bias.grad, expected.current.sum(0), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("frozen", [False, True])
def test_the_learned_decay_follows_the_original_formula(frozen: bool) -> None:
    torch.manual_seed(5)
    layer = hidden(N, M, rule=tt.MeanRate(decay=A, learn_decay=True))
    layer.raw_decay.requires_grad_(not frozen)
    assert layer.raw_decay.shape == (N,)
    x, ls = torch.rand(T, B, N, **F64), torch.randn(T, B, M, **F64)
    layer.window(x)
    d_x_bar = layer.backward(ls, input_signal=True).sum(0)
    if frozen:
        assert layer.raw_decay.grad is None
        return
    z = torch.zeros(B, N, **F64)
    for x_t in x:
        z = A * z + x_t
    torch.testing.assert_close(layer.raw_decay.grad, -(d_x_bar * z).sum(0) * A * (1 - A), rtol=1e-9, atol=1e-10)


def test_optimising_the_decay_moves_it_and_keeps_it_inside() -> None:
    torch.manual_seed(6)
    model = tt.Sequential(tt.LIF(N, M), rule=tt.MeanRate(learn_decay=True))
    assert "0.raw_decay" in dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e3)
    for _ in range(5):
        model.window(torch.rand(4, 2, N))
        model.backward(torch.ones(4, 2, M))
        optimizer.step()
    decay = model[0]._constrained("decay")
    assert bool(((decay > 0) & (decay < 1)).all())
    assert not torch.allclose(decay, torch.tensor(0.9))


@pytest.mark.parametrize("kwargs", [{"decay": 1.0}, {"decay": -0.1}, {"decay": 0.0, "learn_decay": True}])
def test_refuses_a_decay_outside_its_range(kwargs: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"MeanRate: expected decay in \[0, 1\)"):
        tt.MeanRate(**kwargs)


def test_refuses_unknown_choices() -> None:
    with pytest.raises(ValueError, match="expected rate to be one of"):
        tt.MeanRate(rate="tanh")
    with pytest.raises(ValueError, match="expected value to be one of"):
        tt.MeanRate(value="guessed")


def test_refuses_a_readout_that_is_a_perfect_integrator() -> None:
    with pytest.raises(ValueError, match=r"MeanRate: expected LI to have beta below 1, got 1"):
        tt.LI(2, 2, beta=1.0, rule=tt.MeanRate())


@pytest.mark.parametrize("window", [1, 4, T])
@pytest.mark.parametrize("learn_decay", [False, True])
@pytest.mark.parametrize("correct_start", [False, True])
@pytest.mark.parametrize("value", ["modelled", "measured"])
def test_every_combination_is_what_it_says(value: str, correct_start: bool, learn_decay: bool, window: int) -> None:
    """With a decay per input that is learned, an optimizer step in between, measured values: all written out."""
    torch.manual_seed(7)
    layer = hidden(N, M, rule=tt.MeanRate(decay=A, value=value, correct_start=correct_start, learn_decay=learn_decay))
    x = torch.rand(T, B, N, **F64)
    a = torch.full((N,), A, **F64)
    z, norm, f_bar, f_norm = torch.zeros(B, N, **F64), torch.zeros(N, **F64), torch.zeros(B, M, **F64), 0.0
    for x_window in x.split(window):
        if learn_decay:
            with torch.no_grad():
                layer.raw_decay.copy_(torch.linspace(-0.5, 2.5, N) + 0.1 * torch.randn(N))
            a = torch.sigmoid(layer.raw_decay.detach())
        y = layer.window(x_window)
        for x_t, y_t in zip(x_window, y, strict=True):
            z, norm = a * z + x_t, a * norm + 1
            f_bar, f_norm = A * f_bar + y_t, A * f_norm + 1
    ls = torch.randn(len(x_window), B, M, **F64)
    layer.backward(ls)

    x_bar = z / norm if correct_start else z * (1 - a)
    current = layer.synapse(x_bar).detach()
    model = rate.Balance()
    f = f_bar / f_norm if value == "measured" else model.value(current, layer.beta, layer.threshold)
    expected = model.gradients(ls.sum(0), f, current, layer.beta, layer.threshold)
    torch.testing.assert_close(layer.weight.grad, expected.current.T @ x_bar, rtol=1e-9, atol=1e-12)
    if learn_decay:
        d_x_bar = expected.current @ layer.weight.detach()
        torch.testing.assert_close(layer.raw_decay.grad, -(d_x_bar * z).sum(0) * a * (1 - a), rtol=1e-9, atol=1e-12)


def test_a_measured_softmax_gets_no_gradient_from_a_constant_signal() -> None:
    """Its average probabilities sum to 1, at the start too."""
    layer = tt.Softmax(N, M, rule=tt.MeanRate(value="measured", correct_start=False), **F64)
    layer.window(torch.rand(3, B, N, **F64))
    layer.backward(torch.ones(3, B, M, **F64))
    assert layer.synapse.bias.grad.abs().max() < 1e-12
