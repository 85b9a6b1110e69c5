"""The products of few rows beside torch's, and jobs one after the other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernel_problems import same

cpu = pytest.importorskip("tracetorch.kernels.cpu")
several = settings(max_examples=200, deadline=None)
sizes = st.integers(1, 9) | st.sampled_from([15, 16, 17, 31, 33, 63, 64, 65, 127, 130])
dtypes = st.sampled_from([torch.float32, torch.float64])


def within(*shape: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A tensor with others around it, to see whether these are left alone: it, and all of it."""
    whole = torch.full((shape[0] + 2, *shape[1:]), 7.0, dtype=dtype)
    return whole[1:-1], whole


def assert_is_within(whole: Tensor) -> None:
    assert bool((whole[0] == 7).all() and (whole[-1] == 7).all())


@several
@given(sizes, sizes, sizes, dtypes)
def test_rows_times_weights(rows: int, n: int, m: int, dtype: torch.dtype) -> None:
    x, weight = torch.randn(rows, n, dtype=dtype), torch.randn(m, n, dtype=dtype)
    out, whole = within(rows, m, dtype=dtype)
    cpu.inner_job(x, weight, out).run()
    same((out,), (x @ weight.t(),))
    assert_is_within(whole)


@several
@given(sizes, sizes, sizes, dtypes, st.booleans(), st.booleans())
def test_factors_times_rows(rows: int, terms: int, columns: int, dtype: torch.dtype, across: bool, adds: bool) -> None:
    factors, matrix = torch.randn(rows, terms, dtype=dtype), torch.randn(terms, columns, dtype=dtype)
    if across:
        factors = torch.randn(terms, rows, dtype=dtype).t()
    out, whole = within(rows, columns, dtype=dtype)
    expected = factors @ matrix + (out if adds else 0)
    job = cpu.outer_job(factors, matrix)
    job.table[cpu.OUTER_OUT], job.table[cpu.OUTER_OUT + 1] = out.data_ptr(), adds
    job.run()
    same((out,), (expected,))
    assert_is_within(whole)


@several
@given(sizes, dtypes)
def test_a_decayed_sum(n: int, dtype: torch.dtype) -> None:
    x, decayed, decay = torch.randn(n, dtype=dtype), torch.randn(n, dtype=dtype), torch.rand((), dtype=dtype)
    out, whole = within(n, dtype=dtype)
    cpu.decayed_sum_job(x, decayed, decay, out).run()
    same((out,), (x + decay * decayed,))
    assert_is_within(whole)


@pytest.mark.parametrize("bad", [False, True])
def test_a_chain_stops_where_a_job_says_so(bad: bool) -> None:
    x = torch.tensor([1.0, torch.nan if bad else 2.0])
    first, second, one = torch.zeros(2), torch.zeros(2), torch.ones(())
    look = cpu.finite_job(2, x.dtype)
    look.table[cpu.FINITE_OF] = x.data_ptr()
    before, after = (cpu.decayed_sum_job(x, x, one, out) for out in (first, second))
    chain = cpu.Chain([before, (look, cpu.FINITE), after])
    for _ in range(2):
        chain.kernel(chain.place)
        assert look.table[cpu.FINITE] == (not bad)
        assert first[0] == 2
        assert second[0] == (0 if bad else 2)
