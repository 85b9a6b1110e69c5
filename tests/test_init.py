"""Initial weights, calibration, and values kept in their ranges."""

import math

import pytest
import torch

import tracetorch as tt
from cases import F64, HIDDEN, hidden
from tracetorch.functional import scan

N, M = 400, 300


def membrane_rms(layer: tt.nn.layer.Layer, x: torch.Tensor) -> torch.Tensor:
    """The root mean square of each neuron's membrane without reset and bias, over steps and lanes."""
    current = x @ layer.synapse.weight.T
    return scan.li(current, torch.zeros(x.shape[1], layer.out_features, **F64), layer.beta).square().mean((0, 1)).sqrt()


@pytest.mark.parametrize("options", [{"beta": 0.9}, {"tau": 5.0, "threshold": 2.0}, {"beta": 0.0}])
def test_membranes_start_at_the_threshold(options: dict[str, float]) -> None:
    """With spikes at the rate that initialisation assumes, once the start is over."""
    torch.manual_seed(0)
    layer = tt.LIF(N, M, **options, **F64)
    x = torch.bernoulli(torch.full((150, 4, N), 0.1, **F64))
    current = x @ layer.synapse.weight.detach().T
    settled = scan.li(current, torch.zeros(4, M, **F64), layer.beta)[100:]
    assert settled.square().mean().sqrt().item() == pytest.approx(layer.threshold.item(), rel=0.1)
    assert layer.synapse.bias.abs().sum() == 0


def test_the_standard_deviation_is_the_formulas() -> None:
    torch.manual_seed(0)
    layer = tt.LI(N, M, beta=0.8, **F64)
    expected = 0.2 / math.sqrt(N * (0.09 / (1 - 0.64) + 0.01 / 0.04))
    assert layer.synapse.weight.std().item() == pytest.approx(expected, rel=0.02)


def test_a_beta_per_neuron_gives_each_row_its_own_scale() -> None:
    torch.manual_seed(0)
    taus = torch.linspace(2, 50, M)
    layer = tt.LIF(N, M, tau=taus, rule=tt.Truncated(), **F64)
    rows = layer.synapse.weight.std(1)
    assert rows[0] > 3 * rows[-1]


@pytest.mark.parametrize("beta", [1.0, 0.9999])
def test_perfect_integrators_start_with_finite_weights(beta: float) -> None:
    weight = tt.LI(N, M, beta=beta).synapse.weight
    assert bool(torch.isfinite(weight).all())
    assert weight.abs().sum() > 0


def test_calibration_gives_every_membrane_the_threshold_on_the_data() -> None:
    torch.manual_seed(0)
    model = tt.Sequential(
        tt.LIF(30, HIDDEN, threshold=torch.linspace(0.5, 2, HIDDEN), **F64),
        tt.LIF(HIDDEN, HIDDEN, **F64),
        tt.LI(HIDDEN, 4, **F64),
    )
    x = 20 * torch.rand(25, 6, 30, **F64)
    model.calibrate(x)
    torch.testing.assert_close(membrane_rms(model[0], x), model[0].threshold)
    spikes = model[0].window(x)
    torch.testing.assert_close(membrane_rms(model[1], spikes), torch.ones(HIDDEN, **F64))
    torch.testing.assert_close(membrane_rms(model[2], model[1].window(spikes)), torch.full((4,), 0.1, **F64))


def test_calibration_leaves_streams_and_silent_neurons_as_they_were() -> None:
    model = tt.Sequential(hidden(5), tt.LI(HIDDEN, 2, **F64))
    model(torch.rand(3, 5, **F64))
    state, weight = model.stream_state(), model[0].synapse.weight.clone()
    model.calibrate(torch.zeros(4, 2, 5, **F64))
    torch.testing.assert_close(model.stream_state()["tensors"], state["tensors"], rtol=0, atol=0)
    torch.testing.assert_close(model[0].synapse.weight, weight, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"expected a window of x of shape \(K, B, 5\)"):
        model.calibrate(torch.rand(5, **F64))


def test_a_given_synapse_is_used_as_it_is() -> None:
    synapse = torch.nn.Linear(3, 2, bias=False)
    before = synapse.weight.clone()
    layer = tt.LIF(synapse=synapse)
    assert layer.synapse is synapse
    assert torch.equal(synapse.weight, before)
    layer.window(torch.ones(4, 1, 3))
    layer.backward(torch.ones(4, 1, 2))
    assert synapse.weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [1e-3, 0.5, 0.9, 0.999])
def test_learned_values_start_where_they_were_given(value: float, dtype: torch.dtype) -> None:
    layer = tt.LIF(2, 2, beta=value, threshold=value, learn_beta=True, learn_threshold=True, dtype=dtype)
    assert layer.beta.item() == pytest.approx(value, rel=1e-5)
    assert layer.threshold.item() == pytest.approx(value, rel=1e-5)
    assert layer.beta.dtype == dtype


@pytest.mark.parametrize("raw", [-1e4, 1e4])
def test_learned_values_stay_inside_their_ranges_however_far_raw_goes(raw: float) -> None:
    layer = tt.LIF(2, 2, learn_beta=True, learn_threshold=True)
    with torch.no_grad():
        layer.raw_beta.fill_(raw)
        layer.raw_threshold.fill_(raw)
    assert 0 < layer.beta.item() < 1
    assert layer.threshold.item() > 0
    layer.window(torch.ones(5, 2, 2))
    layer.backward(torch.ones(5, 2, 2))
    assert bool(torch.isfinite(layer.raw_beta.grad))


def test_tau_is_in_steps() -> None:
    assert tt.LI(2, 2, tau=10.0).beta.item() == pytest.approx(math.exp(-0.1))


def test_the_printed_model_says_what_is_learned() -> None:
    text = repr(tt.Sequential(tt.LIF(2, 3, learn_beta=True), tt.LI(3, 2, tau=[1.0, 9.0], rule=tt.Truncated())))
    assert "beta=0.9 (learned), threshold=1, rule=InputTrace()" in text
    assert "beta=0.3679..0.8948, rule=Truncated()" in text


def test_calibration_leaves_frozen_weights_and_generators_as_they_were() -> None:
    generator = torch.Generator().manual_seed(0)
    model = tt.Sequential(tt.LIF(5, 4), tt.Softmax(4, 3, generator=generator), torch.nn.Dropout(), tt.LI(3, 2))
    model[0].weight.requires_grad_(False)
    x = torch.rand(6, 2, 5)
    before, drawn, rng = model[0].weight.clone(), generator.get_state(), torch.get_rng_state()
    model.calibrate(x)
    assert torch.equal(model[0].weight, before)
    assert torch.equal(generator.get_state(), drawn)
    assert torch.equal(torch.get_rng_state(), rng)
    assert model[2].training


@pytest.mark.parametrize("threshold", [5.0, 20.0, 60.0])
def test_large_thresholds_keep_their_slope(threshold: float) -> None:
    layer = tt.LIF(2, 2, threshold=threshold, learn_threshold=True, **F64)
    raw = layer.raw_threshold.detach().clone().requires_grad_()
    (slope,) = torch.autograd.grad(torch.logaddexp(raw, torch.zeros_like(raw)), raw)
    torch.testing.assert_close(tt.nn.constraint.Positive.slope(layer.threshold), slope, rtol=1e-12, atol=0)
