"""The training loop for images: it learns, repeats itself, stops anywhere and does not grow."""

import math
from dataclasses import replace
from itertools import islice

import pytest
import torch

import tracetorch as tt
from tracetorch.datasets import Images, digits
from tracetorch.testing import LiveStorage, assert_alive
from tracetorch.train import TEST_LANES, ImageSettings, build, classify, encode_images, evaluate, fit

SMALL = ImageSettings(hidden=(32,), steps=6, window=3, lanes=30, epochs=2, lr=1e-2)


def stripes(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of 4 x 4 pixels, noise and one bright row: its number is the class."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(4, (count,), generator=generator)
    x = 0.3 * torch.rand(count, 4, 4, generator=generator)
    x[torch.arange(count), y] += 0.6
    return x.flatten(1), y


@pytest.fixture(scope="module")
def data() -> Images:
    return Images(*stripes(300), *stripes(100, seed=1))


def fitted(data: Images, settings: ImageSettings):
    model = build(16, 4, settings)
    return model, list(fit(model, data, settings))


VARIANTS = {
    "default": SMALL,
    "truncated": replace(SMALL, rule=tt.Truncated()),
    "mean rate": replace(SMALL, rule=tt.MeanRate()),
    "softmax": replace(SMALL, readout="softmax"),
    "constant": replace(SMALL, encoding="constant"),
    "two layers, dim": replace(SMALL, hidden=(32, 32), intensity=(0.02, 0.8)),
    "uneven windows and batches": replace(SMALL, window=4, lanes=70, epochs=3),
    "one step": replace(SMALL, window=1),
    "window beyond the end": replace(SMALL, window=99),
}


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_it_learns(data, settings):
    model = build(16, 4, settings)
    before = evaluate(model, data.test_x, data.test_y, settings)
    results = list(fit(model, data, settings))
    assert before < 0.6
    assert results[-1].test_accuracy > 0.95
    assert results[-1].test_accuracy == evaluate(model, data.test_x, data.test_y, settings)
    assert results[-1].loss < 0.6 * results[0].loss
    assert math.isclose(results[0].loss, math.log(4), rel_tol=0.3), "the weights of a sequence sum to 1"


def test_results_are_counted_by_batch_and_tested_by_epoch(data):
    settings = replace(SMALL, lanes=70, epochs=2)
    _, results = fitted(data, settings)
    assert settings.batches(data) == 5
    assert [result.epoch for result in results] == [1] * 5 + [2] * 5
    assert [result.test_accuracy is not None for result in results] == 2 * [False, False, False, False, True]


def test_the_seed_decides_everything(data):
    (first, results), (again, same), (_, other) = (
        fitted(data, settings) for settings in (SMALL, SMALL, replace(SMALL, seed=1))
    )
    assert results == same
    assert results != other
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


def test_the_global_random_state_is_neither_used_nor_changed(data):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fitted(data, replace(SMALL, epochs=1))
    assert torch.equal(torch.rand(3), expected)


def test_it_can_be_left_at_any_time(data):
    model = build(16, 4, SMALL)
    taken = list(islice(fit(model, data, SMALL), 3))
    assert len(taken) == 3
    assert 0 <= evaluate(model, data.test_x, data.test_y, SMALL) <= 1


def test_the_learning_rate_falls_to_zero(data, monkeypatch):
    rates = []
    step = torch.optim.AdamW.step

    def noting(self, *args):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", noting)
    fitted(data, SMALL)
    assert len(rates) == 2 * 10 * 2, "epochs, batches, windows: the weights change after every window"
    assert rates[0] == SMALL.lr
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 0.01 * SMALL.lr


def test_classifying_leaves_the_model_as_it_was_but_for_its_lanes(data):
    model = build(16, 4, SMALL)
    assert_alive(model, encode_images(data.train_x, 6, SMALL, torch.Generator()))
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    scores = classify(model, data.test_x, SMALL)
    assert scores.shape == (100, 4)
    assert torch.equal(scores, classify(model, data.test_x, SMALL))
    assert model.training
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    model.window(torch.zeros(2, 7, 16))  # another number of lanes: they were reset
    model.eval()
    classify(model, data.test_x, SMALL)
    assert not model.training


def test_classifying_sums_the_readout_over_all_steps(data):
    settings = replace(SMALL, encoding="constant")
    model = build(16, 4, settings)
    model.eval()
    y = model.window(data.test_x.expand(settings.steps, 100, 16))
    torch.testing.assert_close(classify(model, data.test_x, settings), y.sum(0))


def test_softmax_is_classified_by_its_probabilities(data):
    settings = replace(SMALL, readout="softmax")
    scores = classify(build(16, 4, settings), data.test_x, settings)
    torch.testing.assert_close(scores.sum(1), torch.full((100,), float(settings.steps)))
    assert not torch.equal(scores, scores.round())


def test_images_are_encoded_between_the_intensities():
    settings = ImageSettings(intensity=(0.1, 0.4))
    x = torch.tensor([[0.0, 0.5, 1.0]])
    spikes = encode_images(x, 20_000, settings, torch.Generator().manual_seed(0))
    assert set(spikes.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(spikes.mean(0), torch.tensor([[0.1, 0.25, 0.4]]), atol=0.02, rtol=0)
    constant = encode_images(x, 2, replace(settings, encoding="constant"), torch.Generator())
    torch.testing.assert_close(constant, torch.tensor([[0.1, 0.25, 0.4]]).expand(2, 1, 3))


def test_memory_grows_neither_with_steps_nor_with_test_images(data):
    def peak(settings: ImageSettings, images: Images) -> int:
        """The largest number of bytes alive before a synapse is applied, over an epoch and its test."""
        model = build(16, 4, settings)
        seen = []
        with LiveStorage() as live:
            for layer in model:
                current = layer.current
                layer.current = lambda x, current=current: (seen.append(live.bytes), current(x))[1]
            list(fit(model, images, settings))
        return max(seen)

    settings = replace(SMALL, epochs=1, hidden=(64,))
    short = peak(settings, data)
    assert short > 30 * 3 * 64 * 4, "the currents of a window are seen"
    assert peak(replace(settings, steps=60), data) < 1.05 * short
    many = data._replace(test_x=data.test_x.repeat(40, 1), test_y=data.test_y.repeat(40))
    assert len(many.test_x) > 4 * TEST_LANES
    some = data._replace(test_x=many.test_x[:TEST_LANES], test_y=many.test_y[:TEST_LANES])
    assert peak(settings, many) < 1.2 * peak(settings, some)


def test_digits_reach_ninety_percent_in_a_few_epochs():
    settings = ImageSettings(epochs=4, lr=1e-2)
    model = build(64, 10, settings)
    *_, last = fit(model, digits(), settings)
    assert last.test_accuracy > 0.9


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"hidden": (0,)}, "hidden sizes to be a whole number of at least 1, got 0"),
        ({"steps": 0}, "steps to be"),
        ({"window": 0}, "window to be"),
        ({"lanes": 0}, "lanes to be"),
        ({"epochs": 0}, "epochs to be"),
        ({"lr": 0.0}, "lr to be a finite number above 0"),
        ({"seed": -1}, "seed from 0"),
        ({"intensity": (0.0, 1.5)}, r"intensity\[1\] in \[0, 1\], got 1.5"),
        ({"readout": "lif"}, "readout to be one of .'li', 'softmax'.*'lif'"),
        ({"encoding": "latency"}, "encoding to be one of"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_settings_out_of_range_are_refused(wrong, match):
    with pytest.raises(ValueError, match=f"ImageSettings: expected {match}"):
        ImageSettings(**wrong)
