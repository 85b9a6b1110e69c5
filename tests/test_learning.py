"""Learning over time: small forms of the benchmarks."""

import copy
import os
from collections.abc import Callable

import pytest
import torch

import tracetorch as tt
from tracetorch import datasets, tasks

F64 = {"dtype": torch.float64}


def rows_of(images: torch.Tensor, side: int) -> torch.Tensor:
    """(N, side * side) images as rows over time, (side, N, side)."""
    return images.double().unflatten(1, (side, side)).transpose(0, 1)


def learned(model: tt.Sequential, x: torch.Tensor, y: torch.Tensor, window: int, lanes: int) -> dict[str, torch.Tensor]:
    """The parameters after one pass, with a loss at the last step and an update when a sequence ends."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    weights = tt.loss.last(len(x), **F64)
    for x_batch, target in zip(x.split(lanes, 1), y.split(lanes), strict=True):
        model.reset()
        for x_window, w in zip(x_batch.split(window), weights.split(window), strict=True):
            output = model(x_window[0])[None] if window == 1 else model.window(x_window)
            if w.any():
                ls = tt.loss.cross_entropy(output, target, w).ls
                model.backward(ls[0] if window == 1 else ls)
        optimizer.step()
        optimizer.zero_grad()
    return dict(model.state_dict())


def eligibility_follows_bptt(images: datasets.Images, side: int, hidden: int, updates: int, lanes: int) -> None:
    torch.manual_seed(0)
    x, y = rows_of(images.train_x[: updates * lanes], side), images.train_y[: updates * lanes]
    learn = {"learn_beta": True, "learn_threshold": True}
    online = tt.Sequential(
        tt.LIF(side, hidden, beta=0.9, **learn, **F64), tt.LI(hidden, 10, tau=20.0, **F64), rule=tt.Eligibility()
    )
    online.calibrate(x[:, :lanes])
    before = copy.deepcopy(online.state_dict())
    unrolled = copy.deepcopy(online)
    unrolled.rule = tt.Truncated()
    actual, expected = learned(online, x, y, 1, lanes), learned(unrolled, x, y, side, lanes)
    for name, parameter in expected.items():
        if name.split(".")[-1] in ("weight", "bias", "raw_beta", "raw_threshold"):
            assert (parameter - before[name]).abs().max() > 1e-2, f"{name} was not learned"
        torch.testing.assert_close(actual[name], parameter, rtol=0, atol=1e-8)


def test_eligibility_learns_what_bptt_learns_on_digits_row_by_row() -> None:
    pytest.importorskip("sklearn")
    eligibility_follows_bptt(datasets.digits(), side=8, hidden=64, updates=40, lanes=30)


def test_eligibility_learns_what_bptt_learns_on_mnist_row_by_row() -> None:
    """28-256-10, 100 updates, one step at a time."""
    if "TRACETORCH_DATA" not in os.environ:
        pytest.skip("needs MNIST in the folder named by TRACETORCH_DATA")
    eligibility_follows_bptt(datasets.mnist(), side=28, hidden=256, updates=100, lanes=20)


def trained_accuracy(
    model: tt.Sequential, draw: Callable[[int], tasks.Sequences], window: int, lanes: int, lr: float
) -> float:
    """On fresh sequences, after 60 updates, each when its sequences end."""
    model.calibrate(draw(lanes).x)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for _ in range(60):
        x, target, weights = draw(lanes)
        model.reset()
        for x_window, w in zip(x.split(window), weights.split(window), strict=True):
            y = model.window(x_window)
            if w.any():
                model.backward(tt.loss.cross_entropy(y, target, w).ls)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    model.reset()
    x, target, weights = draw(300)
    return tt.metrics.accuracy(torch.tensordot(weights, model.window(x), dims=1), target)


def cue_accuracy(rule: tt.rules.Rule, window: int, horizon: int | None = None) -> float:
    """A cue remembered over 20 steps, 60 updates; chance is a half."""
    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(1)
    size = {"classes": 2, "channels": 20, "cue": 5, "delay": 20, "answer": 3, "generator": generator}
    taus = torch.logspace(0.7, 2.0, 24)
    model = tt.Sequential(tt.LIF(21, 24, tau=taus), tt.LIF(24, 24, tau=taus), tt.LI(24, 2, tau=3.0))
    model.rule, model.horizon = rule, horizon
    return trained_accuracy(model, lambda lanes: tasks.delayed_cue(lanes, **size), window, lanes=40, lr=2e-2)


@pytest.mark.parametrize("rule", [tt.InputTrace(), tt.MeanField(), tt.Eligibility(), tt.rules.OTPE()], ids=str)
def test_traces_remember_a_cue(rule: tt.rules.Rule) -> None:
    assert cue_accuracy(rule, 1) > 0.9


def test_without_traces_the_cue_is_forgotten() -> None:
    assert cue_accuracy(tt.Truncated(), 1) < 0.7


def test_a_horizon_over_the_delay_remembers_it_too() -> None:
    assert cue_accuracy(tt.Truncated(), 7, horizon=28) > 0.9


def evidence_accuracy(rule: tt.rules.Rule, window: int) -> tuple[float, int]:
    """Evidence over 170 steps, 60 updates; chance is a half. And the bytes kept for it."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    size = {"cues": 5, "cue": 10, "pause": 4, "delay": 80, "answer": 20, "rate": 0.2, "generator": generator}
    model = tt.Sequential(tt.LIF(40, 24, tau=torch.logspace(0.7, 2.2, 24)), tt.LI(24, 2, beta=1.0), rule=rule)
    kept = model.state_bytes(20) + model.tape_bytes(20, window)
    accuracy = trained_accuracy(
        model, lambda lanes: tasks.evidence_accumulation(lanes, **size), window, lanes=20, lr=5e-3
    )
    return accuracy, kept


def test_evidence_is_accumulated_at_a_fraction_of_the_bytes() -> None:
    bptt, all_steps = evidence_accuracy(tt.Truncated(), 170)
    online, kept = evidence_accuracy(tt.Eligibility(), 10)
    truncated, as_many = evidence_accuracy(tt.Truncated(), 34)
    assert kept < as_many < all_steps / 4
    assert online > 0.9
    assert online > bptt - 0.03
    assert truncated < online - 0.1
