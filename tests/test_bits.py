"""Spikes kept as bits: what the kernels make of them is what torch makes of the numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tracetorch import kernels
from tracetorch.functional import spikes
from tracetorch.functional.spikes import Spikes
from tracetorch.kernels import cpu

several = settings(max_examples=150, deadline=None)
dtypes = st.sampled_from([torch.float32, torch.float64])


class Window(NamedTuple):
    x: Tensor  # (K, B, n), zeros and ones
    bits: Spikes

    @property
    def rows(self) -> Tensor:
        return self.x.reshape(-1, self.x.shape[-1])


def packed(x: Tensor) -> Window:
    bits = cpu.packed(x)
    assert bits is not None
    return Window(x, bits)


@st.composite
def windows(draw: st.DrawFn) -> Window:
    torch.manual_seed(draw(st.integers(0, 2**16)))
    shape = [draw(st.sampled_from(sizes)) for sizes in ([1, 2, 7], [1, 3, 32, 65], [1, 5, 63, 64, 65, 128, 200, 784])]
    activity = draw(st.sampled_from([0.0, 0.02, 0.15, 0.5, 1.0]))
    return packed((torch.rand(shape) < activity).to(draw(dtypes)))


def dyadic(*shape: int, like: Tensor) -> Tensor:
    """Numbers of which any sum is exact."""
    return torch.randint(-64, 64, shape).to(like.dtype) / 16


outputs = st.sampled_from([1, 8, 10, 16, 17, 33, 64, 100, 128, 130, 300])


@several
@given(windows())
def test_the_words_hold_the_spikes_in_order(window: Window) -> None:
    x, bits = window
    shifts = torch.arange(64)
    entries = (bits.words[:, :, None] >> shifts & 1).flatten(1)
    used = x[0].numel()
    assert bits.words.shape == (len(x), -(-used // 64))
    assert torch.equal(entries[:, :used], x.flatten(1).long())
    assert not entries[:, used:].any()
    assert (bits.shape, bits.ones, bits.rows) == (tuple(x.shape), int(x.sum()), len(window.rows))


@several
@given(windows(), st.sampled_from([2.0, -1.0, 0.5, 1e-30, float("nan"), float("inf"), -float("inf")]), st.data())
def test_anything_but_zeros_and_ones_is_refused(window: Window, strange: float, data: st.DataObject) -> None:
    x = window.x.clone()
    x.view(-1)[data.draw(st.integers(0, x.numel() - 1))] = strange
    assert cpu.packed(x) is None


def test_minus_zero_is_zero() -> None:
    assert packed(-torch.zeros(2, 3, 50)).bits.ones == 0


@several
@given(windows(), st.data())
def test_unpacked_rows_are_those_that_were_packed(window: Window, data: st.DataObject) -> None:
    begin = data.draw(st.integers(0, len(window.rows) - 1))
    end = data.draw(st.integers(begin + 1, len(window.rows)))
    out = torch.full_like(window.rows, 7.0)
    cpu.unpack(window.bits, begin, end, out)
    assert torch.equal(out[: end - begin], window.rows[begin:end])
    assert (out[end - begin :] == 7).all()


@several
@given(windows(), st.sampled_from([0.0, 0.5, 0.9, 1.0]), st.booleans(), st.booleans())
def test_folding_is_the_recursion(window: Window, beta: float, counts: bool, in_place: bool) -> None:
    x, bits = window
    old, decay, ones = torch.randn_like(x[0]), torch.tensor(beta, dtype=x.dtype), torch.rand_like(x[0, :, 0])
    old.view(-1)[0] = torch.finfo(x.dtype).tiny * 1e3
    expected, count = old.clone(), ones.clone()
    for entering in x:
        expected, count = entering + expected * decay, 1 + count * decay
    expected[expected.abs() <= torch.finfo(x.dtype).tiny * 2**24] = 0
    new = old if in_place else torch.empty_like(old)
    advanced = torch.empty_like(ones)
    cpu.fold_bits(bits, old, new, decay, *([ones, advanced] if counts else []))
    assert torch.equal(new, expected)
    if counts:
        assert torch.equal(advanced, count)


@several
@given(windows(), outputs)
def test_the_product_is_exact(window: Window, m: int) -> None:
    weight = dyadic(m, window.bits.shape[2], like=window.x)
    out = torch.full((len(window.rows), m), float("nan"), dtype=window.x.dtype)
    cpu.gather(window.bits, weight, out)
    assert torch.equal(out, window.rows @ weight.t())


@several
@given(windows(), outputs, st.booleans())
def test_the_gradient_is_exact(window: Window, m: int, add: bool) -> None:
    g, there = dyadic(len(window.rows), m, like=window.x), dyadic(m, window.bits.shape[2], like=window.x)
    out = there.clone() if add else torch.full_like(there, float("nan"))
    cpu.gather_t(window.bits, g, out, add)
    assert torch.equal(out, g.t() @ window.rows + (there if add else 0))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([1, 30, 300]), st.sampled_from([0.02, 0.5, 1.0])), min_size=1), outputs)
def test_gradients_are_summed_whichever_way_they_come(parts: list[tuple[int, float]], m: int) -> None:
    """Sparse, dense and both; the kernels' sum, and the reference."""
    like, expected = torch.zeros((), dtype=torch.float64), torch.zeros(m, 200, dtype=torch.float64)
    sums = [kernels.gradient_sum(like), spikes.GradientSum()]
    assert isinstance(sums[0], cpu.GradientSum)
    for steps, activity in parts:
        window = packed((torch.rand(steps, 3, 200) < activity).to(like.dtype))
        g = dyadic(steps, 3, m, like=like)
        expected += g.view(-1, m).t() @ window.rows
        for each in sums:
            each.add(window.bits, g)
    for each in sums:
        assert torch.equal(each.total(), expected)


def test_what_no_spike_asks_for_is_not_read() -> None:
    x = torch.zeros(1, 2, 70)
    x[:, 1, 3] = 1
    bits = packed(x).bits
    weight = torch.full((20, 70), float("inf"))
    weight[:, 3] = 2
    out = torch.empty(2, 20)
    cpu.gather(bits, weight, out)
    assert torch.equal(out, torch.tensor([0.0, 2.0])[:, None].expand(2, 20))
    gradient = torch.empty(20, 70)
    cpu.gather_t(bits, torch.tensor([float("nan"), 3.0])[:, None].repeat(1, 20), gradient)
    assert torch.equal(gradient[:, 3], torch.full((20,), 3.0))
    assert not gradient[:, :3].any()
    assert not gradient[:, 4:].any()


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("n", [784, 500])
def test_several_threads_compute_the_same(n: int) -> None:
    torch.manual_seed(0)
    x = (torch.rand(32, 100, n) < 0.2).float()
    weight, g, old = dyadic(400, n, like=x), dyadic(3200, 400, like=x), torch.rand(100, n)

    def run() -> list[Tensor]:
        bits = packed(x).bits
        assert bits.ones == int(x.sum())
        y, gradient, new, back = (
            torch.empty_like(g),
            torch.empty_like(weight),
            torch.empty_like(old),
            x.new_empty(50, n),
        )
        cpu.gather(bits, weight, y)
        cpu.gather_t(bits, g, gradient)
        cpu.fold_bits(bits, old, new, torch.tensor(0.9))
        cpu.unpack(bits, 90, 140, back)
        total = kernels.gradient_sum(g)
        for _ in range(2):
            total.add(bits, g)
        return [bits.words, y, gradient, new, back, total.total()]

    one = run()
    with threads(3):
        for a, b in zip(one, run(), strict=True):
            assert torch.equal(a, b)
        x[20, 50, 3] = 2
        assert cpu.packed(x) is None


def test_the_sparse_way_is_taken_where_it_is_clearly_faster() -> None:
    def ways(rows: int, n: int, m: int, activity: float) -> tuple[bool, bool]:
        shape = (rows, n, m, int(rows * n * activity), torch.float32)
        return cpu.sparse_pays(*shape), cpu.sparse_gradient_pays(*shape)

    assert ways(1024, 784, 128, 0.15) == (True, True)
    assert ways(1024, 784, 128, 0.9) == (False, False)
    assert ways(32, 128, 128, 0.15) == (False, False)
    assert ways(8192, 512, 10, 0.05) == (True, False)
