"""The firing-rate estimates against the simulated neuron: what holds of them."""

import math

import pytest
import torch

from cases import F64
from tracetorch.functional import firing, rate, scan

CURRENTS = torch.linspace(0.01, 1.5, 3000, **F64)


def simulated(beta: torch.Tensor, current: torch.Tensor) -> torch.Tensor:
    """The rate of neurons with threshold 1 after 500 steps, for a current (K, n)."""
    values = {"beta": beta, "threshold": torch.ones((), **F64)}
    start = scan.State(torch.zeros_like(current[:1]))
    return scan.spiking(current[:, None], start, values, scan.Form(firing.Spike())).y[500:].mean((0, 1))


@pytest.mark.parametrize("beta", [0.75, 0.8, 0.9, 0.95, 0.99])
def test_balance_is_within_its_bound_for_constant_currents(beta: float) -> None:
    """Within 0.27 (1 - beta) + 0.01 at rates of .05 to .95, of which the softness w is at most w log 2."""
    decay, one = torch.tensor(beta, **F64), torch.ones((), **F64)
    true = simulated(decay, CURRENTS.expand(4000, -1))
    inside = (true >= 0.05) & (true <= 0.95)
    balance = rate.Balance().value(CURRENTS, decay, one)
    assert (balance - true).abs()[inside].max() <= 0.27 * (1 - beta) + 0.01
    clip = rate.Balance(width=1e-4).value(CURRENTS, decay, one)
    assert (balance - clip).abs().max() <= 0.03 * math.log(2) + 1e-9
    sigmoid = rate.Sigmoid().value(CURRENTS, decay, one)
    assert (sigmoid - true).abs()[inside].max() > 0.29  # what the original says


@pytest.mark.parametrize(("current", "rate_"), [(0.12, 0.058), (0.2, 0.143), (0.3, 0.250), (0.5, 0.455), (0.9, 0.857)])
def test_the_neuron_fires_as_published(current: float, rate_: float) -> None:
    true = simulated(torch.tensor(0.9, **F64), torch.full((6000, 1), current, **F64))
    assert true.item() == pytest.approx(rate_, abs=1e-3)


def test_a_noisy_current_fires_below_the_mean_threshold() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = (
        0.35
        * (torch.rand(4000, 1, 20, generator=generator, **F64) < 0.1).double()
        @ torch.tensor([1.0, -1] * 10, **F64)
    )
    beta, one = torch.tensor(0.9, **F64), torch.ones((), **F64)
    assert simulated(beta, noise).item() > 0.03
    assert rate.Balance(width=1e-4).value(torch.zeros(1, **F64), beta, one).item() < 1e-9
