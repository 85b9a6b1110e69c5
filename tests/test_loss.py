"""Losses against autograd through torch's own."""

import pytest
import torch
import torch.nn.functional as F

import tracetorch as tt
from cases import F64

K, B, M = 4, 3, 5


def check(pair: tt.loss.Loss, y: torch.Tensor, expected: torch.Tensor) -> None:
    (ls,) = torch.autograd.grad(expected, y)
    torch.testing.assert_close(pair.loss, expected.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pair.ls, ls, rtol=1e-12, atol=1e-12)
    assert not pair.ls.requires_grad


def weighted(per_step: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    weights = torch.full((K,), 1 / K, **F64) if weights is None else weights
    return (per_step * weights).sum()


@pytest.mark.parametrize("weights", [None, tt.loss.ramp(10, **F64)[3:7], tt.loss.last(K, **F64)])
@pytest.mark.parametrize("per_step", [True, False])
def test_windows(per_step: bool, weights: torch.Tensor | None) -> None:
    torch.manual_seed(0)
    y = torch.randn(K, B, M, **F64, requires_grad=True)
    target = torch.randn(K, B, M, **F64) if per_step else torch.randn(B, M, **F64)
    index = torch.randint(M, (K, B)) if per_step else torch.randint(M, (B,))
    index_t = index.expand(K, B)
    mse = weighted((y - target).square().mean((1, 2)), weights)
    check(tt.loss.mse(y, target, weights), y, mse)
    cross = torch.stack([F.cross_entropy(y[t], index_t[t]) for t in range(K)])
    check(tt.loss.cross_entropy(y, index, weights), y, weighted(cross, weights))
    probs = torch.softmax(y.detach(), -1).requires_grad_()
    nll = torch.stack([F.nll_loss(probs[t].log(), index_t[t]) for t in range(K)])
    expected = tt.loss.nll(probs, index, weights)
    check(expected, probs, weighted(nll, weights))
    torch.testing.assert_close(tt.loss.cross_entropy(probs, index, weights, of="probs"), expected)


def test_single_steps_and_single_lanes() -> None:
    torch.manual_seed(1)
    y = torch.randn(B, M, **F64, requires_grad=True)
    target, index = torch.randn(B, M, **F64), torch.randint(M, (B,))
    check(tt.loss.mse(y, target), y, F.mse_loss(y, target))
    check(tt.loss.cross_entropy(y, index), y, F.cross_entropy(y, index))
    check(tt.loss.cross_entropy(y, index, tt.loss.ramp(9, **F64)[4]), y, F.cross_entropy(y, index) * 5 / 45)
    lane = torch.randn(M, **F64, requires_grad=True)
    check(tt.loss.mse(lane, target[0]), lane, F.mse_loss(lane, target[0]))
    check(tt.loss.cross_entropy(lane, index[0]), lane, F.cross_entropy(lane, index[0]))


def test_slices_of_the_weights_add_up_to_the_whole() -> None:
    y, index, ramp = torch.randn(10, B, M, **F64), torch.randint(M, (B,)), tt.loss.ramp(10, **F64)
    whole = tt.loss.cross_entropy(y, index, ramp)
    parts = [tt.loss.cross_entropy(y[i : i + 4], index, ramp[i : i + 4]) for i in (0, 4, 8)]
    torch.testing.assert_close(sum(p.loss for p in parts), whole.loss)
    torch.testing.assert_close(torch.cat([p.ls for p in parts]), whole.ls)


@pytest.mark.parametrize("of", ["mse", "cross_entropy", "nll"])
def test_each_lane_may_have_its_own_weights(of: str) -> None:
    """The mean over lanes of each lane's loss with its weights: in the whole, in windows, and step by step."""
    torch.manual_seed(2)
    y, index, weights = torch.rand(K, B, M, **F64), torch.randint(M, (B,)), torch.rand(K, B, **F64)
    weights[2:, 0] = 0  # this lane has ended
    function, target = getattr(tt.loss, of), torch.rand(B, M, **F64) if of == "mse" else index
    whole = function(y, target, weights)
    lanes = [function(y[:, b : b + 1], target[b : b + 1], weights[:, b]) for b in range(B)]
    torch.testing.assert_close(whole.loss, sum(lane.loss for lane in lanes) / B)
    torch.testing.assert_close(whole.ls, torch.cat([lane.ls for lane in lanes], dim=1) / B)
    assert not whole.ls[2:, 0].any()
    windows = [function(y[i : i + 3], target, weights[i : i + 3]) for i in (0, 3)]
    steps = [function(y[t], target, weights[t]) for t in range(K)]
    for parts, ls in ((windows, torch.cat([p.ls for p in windows])), (steps, torch.stack([p.ls for p in steps]))):
        torch.testing.assert_close(sum(part.loss for part in parts), whole.loss)
        torch.testing.assert_close(ls, whole.ls)


def test_a_likelihood_of_zero_stays_finite() -> None:
    pair = tt.loss.nll(torch.tensor([[0.0, 1.0]]), torch.tensor([0]))
    assert torch.isfinite(pair.loss)
    assert torch.isfinite(pair.ls).all()


def test_signal_of_any_function() -> None:
    y = torch.randn(K, B, M, **F64, requires_grad=True)
    target = torch.eye(M, **F64)[torch.tensor([0, 2, 4])]
    pair = tt.loss.signal(lambda y, target: F.mse_loss(y.mean(0), target), y, target)
    check(pair, y, F.mse_loss(y.mean(0), target))
    assert not pair.loss.requires_grad


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda y: tt.loss.mse(y, y[0, 0]),
            ValueError,
            r"loss.mse: expected target of y's shape \(4, 3, 5\), or .* \(3, 5\)",
        ),
        (lambda y: tt.loss.mse(y, y[0].long()), TypeError, "expected target to be a floating-point tensor"),
        (
            lambda y: tt.loss.mse(y, y, torch.ones(3)),
            ValueError,
            r"expected one weight per step, shape \(4,\), or one per step and lane, shape \(4, 3\), got \(3,\)",
        ),
        (
            lambda y: tt.loss.nll(y, torch.zeros(B, dtype=torch.int64), torch.ones(B, K)),
            ValueError,
            r"or one per step and lane, shape \(4, 3\), got \(3, 4\)",
        ),
        (
            lambda y: tt.loss.mse(y, y, [1.0] * K),
            TypeError,
            "expected weights to be a tensor, got list",
        ),
        (lambda y: tt.loss.cross_entropy(y, torch.zeros(B)), TypeError, "expected target to be int64 class indices"),
        (
            lambda y: tt.loss.cross_entropy(y, torch.zeros(2, dtype=torch.int64)),
            ValueError,
            r"expected target of shape",
        ),
        (lambda y: tt.loss.cross_entropy(y, torch.full((B,), M)), ValueError, "expected classes from 0 to 4, got 5"),
        (lambda y: tt.loss.cross_entropy(y, torch.full((B,), -1)), ValueError, "expected classes from 0 to 4, got -1"),
        (
            lambda y: tt.loss.cross_entropy(y, torch.zeros(B), of="odds"),
            ValueError,
            "expected of to be 'logits' or 'probs'",
        ),
        (
            lambda y: tt.loss.signal(lambda v: v, y),
            ValueError,
            "expected function to return a scalar tensor computed from y",
        ),
        (lambda y: tt.loss.signal(lambda v: v.detach().sum(), y), ValueError, "computed from y"),
        (lambda y: tt.loss.signal(lambda _: 1.0, y), ValueError, "computed from y, got float"),
        (lambda _: tt.loss.ramp(0), ValueError, "loss.ramp: expected steps to be a whole number"),
    ],
)
def test_bad_input_is_refused(call, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call(torch.rand(K, B, M))
