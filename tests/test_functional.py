"""`functional/` against autograd, with smooth stand-ins for the step, and against definitions written out."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cases import F64
from tracetorch.functional import firing, scan, surrogate, trace

K, B, M = 6, 2, 3
SMOOTH = surrogate.Custom(torch.sigmoid, lambda u: torch.sigmoid(u) * (1 - torch.sigmoid(u)))


class ScanLI(torch.autograd.Function):
    """An LI scan as an autograd function, for finite differences."""

    @staticmethod
    def forward(ctx, current: Tensor, mem: Tensor, beta: Tensor) -> Tensor:
        out = scan.li(current, mem, beta)
        ctx.save_for_backward(out, mem, beta)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        out, mem, beta = ctx.saved_tensors
        reverse = scan.li_reverse(grad, out, scan.State(mem), beta)
        return reverse.g, reverse.leftover.mem, reverse.own["beta"].sum_to_size(beta.shape)


@pytest.mark.parametrize("shape", [(), (M,)])
def test_li_reverse_passes_gradcheck(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    inputs = (torch.randn(K, B, M, **F64), torch.randn(B, M, **F64), torch.rand(shape, **F64))
    assert torch.autograd.gradcheck(ScanLI.apply, [i.requires_grad_() for i in inputs])


@pytest.mark.parametrize("shape", [(), (M,)])
@pytest.mark.parametrize("fire", [surrogate.ArcTan(), surrogate.Triangle(), SMOOTH])
def test_lif_reverse_equals_autograd(fire: surrogate.Surrogate, shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    leaves = [
        torch.randn(K, B, M, **F64),
        torch.randn(B, M, **F64),
        torch.rand(shape, **F64) * 0.9,
        torch.rand(shape, **F64) + 0.2,
    ]
    current, mem, beta, theta = (leaf.requires_grad_() for leaf in leaves)
    ls = torch.randn(K, B, M, **F64)
    loss, v = torch.zeros((), **F64), mem
    for t in range(K):
        u = beta * v + current[t] - theta
        s = fire.spike(u).detach()
        loss = loss + (ls[t] * fire.slope(u).detach() * u).sum()  # its gradient is psi * du, as defined
        v = u + theta - theta * s
    expected = torch.autograd.grad(loss, (current, mem, beta, theta))

    plain = [leaf.detach() for leaf in leaves]
    start, values, form = scan.State(plain[1]), {"beta": plain[2], "threshold": plain[3]}, scan.Form(firing.Spike(fire))
    run = scan.spiking(plain[0], start, values, form)
    reverse = scan.spiking_reverse(ls, run.record, start, values, form, ("beta", "threshold"))
    torch.testing.assert_close(reverse.g, expected[0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(reverse.leftover.mem, expected[1], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(reverse.own["beta"].sum_to_size(shape), expected[2], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(reverse.own["threshold"].sum_to_size(shape), expected[3], rtol=1e-10, atol=1e-10)
    after = scan.steps_of(run.record, values, form).membrane(run.record, form)
    torch.testing.assert_close(after[-1], run.state.mem, rtol=1e-12, atol=1e-12)


def test_gradcheck_fails_on_a_hard_spike() -> None:
    """A step has zero slope, so a check by finite differences that passed would check nothing."""

    class HardSpike(torch.autograd.Function):
        @staticmethod
        def forward(ctx, u: Tensor) -> Tensor:
            ctx.save_for_backward(u)
            return surrogate.ArcTan().spike(u)

        @staticmethod
        def backward(ctx, grad: Tensor) -> Tensor:
            return grad * surrogate.ArcTan().slope(*ctx.saved_tensors)

    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(HardSpike.apply, torch.full((1,), 0.3, requires_grad=True, **F64))


@pytest.mark.parametrize(
    "fire",
    [
        surrogate.ArcTan(0.3),
        surrogate.FastSigmoid(0.3),
        surrogate.Triangle(0.7),
        surrogate.Sigmoid(0.2),
        surrogate.Exponential(0.2),
    ],
)
def test_surrogates_have_peak_one_and_fall_off_evenly(fire: surrogate.Surrogate) -> None:
    u = torch.linspace(0, 2, 50, **F64)
    assert fire.slope(u[:1]).item() == 1.0
    assert bool((fire.slope(u).diff() <= 0).all())
    torch.testing.assert_close(fire.slope(u), fire.slope(-u))
    assert fire.spike(torch.tensor([-1e-9, 0.0, 1e-9])).tolist() == [0, 1, 1]


def test_a_surrogate_of_the_users_slope_may_return_its_argument() -> None:
    u = torch.ones(1, 1, 1, **F64)
    fire = surrogate.Custom(lambda v: (v >= 0).to(v), lambda v: v)
    values = dict.fromkeys(("beta", "threshold"), torch.ones((), **F64))
    start = scan.State(torch.zeros(1, 1, **F64))
    scan.spiking_reverse(5 * u, scan.Record(u), start, values, scan.Form(firing.Spike(fire)), values)
    assert u.item() == 1.0


@pytest.mark.parametrize("width", [0.0, -1.0, float("nan"), float("inf")])
def test_refuses_a_width_that_is_not_positive(width: float) -> None:
    with pytest.raises(ValueError, match="ArcTan: expected width to be a finite number above 0"):
        surrogate.ArcTan(width)


@pytest.mark.parametrize("decay", [0.0, 0.3, 1.0, [0.0, 0.5, 1.0]])
def test_traces_advance_as_defined(decay: float | list[float]) -> None:
    torch.manual_seed(2)
    a, z, x = torch.tensor(decay, **F64), torch.randn(B, M, **F64), torch.randn(K, B, M, **F64)
    ones = torch.rand(B, M, **F64)
    expected, expected_ones = z, ones
    for x_t in x:
        expected, expected_ones = a * expected + x_t, a * expected_ones + 1
    torch.testing.assert_close(trace.advance(z, x, a), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(trace.advance_ones(ones, K, a), expected_ones, rtol=1e-12, atol=1e-12)
    one_by_one = z
    for x_t in x:
        one_by_one = trace.advance(one_by_one, x_t[None], a)
    torch.testing.assert_close(one_by_one, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("full", [False, True], ids=["LIF", "with all that there is"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(dtype: torch.dtype, full: bool) -> None:
    current, mem = torch.ones(K, B, M, dtype=dtype), torch.zeros(B, M, dtype=dtype)
    names = ("beta", "threshold", "alpha", "rho", "kappa") if full else ("beta", "threshold")
    values = dict.fromkeys(names, torch.tensor(0.5, dtype=dtype))
    start, form = scan.State(mem), scan.Form(firing.Spike())
    if full:
        start, form = scan.State(mem, mem, mem, mem), replace(form, delayed=True, attached=True, gain="leak")
    run = scan.spiking(current, start, values, form)
    reverse = scan.spiking_reverse(current, run.record, start, values, form, values)
    made = [run.y, *run.record, *run.state, reverse.g, *reverse.first, *reverse.leftover, *reverse.own.values()]
    assert {t.dtype for t in made if t is not None} == {dtype}
    if full:
        assert all(t is not None for t in (*run.record[2:], *run.state, *reverse.leftover))


def test_the_average_of_a_lane_that_has_seen_nothing_is_zero() -> None:
    assert trace.average(torch.tensor([[2.0], [5.0]]), torch.tensor([[4.0], [0.0]])).tolist() == [[0.5], [0.0]]
