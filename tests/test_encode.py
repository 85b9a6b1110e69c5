"""Encoders: their statistics, their shapes, their generators."""

import pytest
import torch

import tracetorch as tt

ENCODERS = [
    lambda g: tt.encode.bernoulli(torch.full((3, 50), 0.4), 20, generator=g),
    lambda g: tt.encode.poisson(torch.full((3, 50), 0.4), 20, generator=g),
    lambda g: tt.encode.latency(torch.full((3, 50), 0.4), 20, jitter=3.0, generator=g),
    lambda g: tt.encode.delta(torch.linspace(0, 3, 60).view(20, 3).repeat(1, 50), 0.1, noise=0.3, generator=g),
]


@pytest.mark.parametrize("encode", ENCODERS)
def test_the_generator_decides(encode) -> None:
    def seeded(seed: int) -> torch.Tensor:
        return encode(torch.Generator().manual_seed(seed))

    assert torch.equal(seeded(1), seeded(1))
    assert not torch.equal(seeded(1), seeded(2))
    before = torch.get_rng_state()
    seeded(1)
    assert torch.equal(torch.get_rng_state(), before)


def test_bernoulli_rates_follow_the_intensity_range() -> None:
    x = torch.linspace(0, 1, 5).expand(2000, 5)
    spikes = tt.encode.bernoulli(x, 20, intensity=(0.1, 0.3), generator=torch.Generator().manual_seed(0))
    assert spikes.shape == (20, 2000, 5)
    assert set(spikes.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(spikes.mean((0, 1)), torch.linspace(0.1, 0.3, 5), atol=0.01, rtol=0)


def test_poisson_counts_have_mean_and_variance_of_the_rate() -> None:
    counts = tt.encode.poisson(torch.full((5000,), 1.5), 20, generator=torch.Generator().manual_seed(0))
    assert counts.mean().item() == pytest.approx(1.5, abs=0.02)
    assert counts.var().item() == pytest.approx(1.5, abs=0.04)


def test_latency_orders_values_and_spikes_once() -> None:
    spikes = tt.encode.latency(torch.tensor([1.0, 0.75, 0.01, 0.0]), 9)
    assert spikes.sum(0).tolist() == [1, 1, 1, 0]
    assert spikes.argmax(0).tolist()[:3] == [0, 2, 8]
    jittered = tt.encode.latency(torch.rand(500), 9, jitter=50.0)
    assert jittered.sum(0).eq(1).all()


def test_delta_reconstructs_the_signal_to_within_its_threshold() -> None:
    x = torch.sin(torch.linspace(0, 6, 200))
    spikes = tt.encode.delta(x, 0.05)
    assert ((x[0] + 0.05 * spikes.cumsum(0)) - x).abs().max() < 0.05


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda: tt.encode.bernoulli(torch.tensor([2.0]), 3),
            ValueError,
            r"encode.bernoulli: expected values in \[0, 1\], got 2.0",
        ),
        (lambda: tt.encode.bernoulli(torch.tensor([float("nan")]), 3), ValueError, r"expected values in \[0, 1\]"),
        (lambda: tt.encode.bernoulli(torch.tensor([255]), 3), TypeError, "expected x to be a floating-point tensor"),
        (
            lambda: tt.encode.bernoulli(torch.ones(1), 0),
            ValueError,
            "expected steps to be a whole number of at least 1",
        ),
        (lambda: tt.encode.bernoulli(torch.ones(1), 1, intensity=(0, 1.5)), ValueError, r"expected intensity\[1\] in"),
        (lambda: tt.encode.poisson(torch.tensor([float("inf")]), 3), ValueError, "expected finite numbers in rate"),
        (lambda: tt.encode.delta(torch.ones(0, 3), 1.0), ValueError, "with at least one step"),
        (lambda: tt.encode.poisson(torch.tensor([-1.0]), 3), ValueError, "expected rates of at least 0, got -1.0"),
        (lambda: tt.encode.latency(torch.tensor([1.5]), 3), ValueError, r"encode.latency: expected values in \[0, 1\]"),
        (lambda: tt.encode.latency(torch.ones(1), 3, jitter=-1.0), ValueError, "expected jitter"),
        (
            lambda: tt.encode.delta(torch.ones(3), 0.0),
            ValueError,
            "encode.delta: expected threshold to be a finite number",
        ),
        (lambda: tt.encode.delta(torch.ones(3), 1.0, noise=-1.0), ValueError, "expected noise of at least 0"),
    ],
)
def test_bad_input_is_refused(call, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()
