"""The kernels against the reference: equal spikes, and gradients that differ by rounding alone."""

import os
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tracetorch as tt
from kernel_problems import Problem, chains, close, integrate, integrators, one_by_one, problems, same
from tracetorch import kernels
from tracetorch.functional import firing, scan, surrogate, trace
from tracetorch.functional.scan import Form, State
from tracetorch.functional.spikes import Spikes

several = settings(max_examples=300, deadline=None)


@several
@given(problems())
def test_spiking_neurons_are_the_reference(problem: Problem) -> None:
    came = problem.run()
    with kernels.reference():
        expected = problem.run()
    assert torch.equal(came[0].y, expected[0].y)
    same(came[0].state, expected[0].state)
    same(came[0].record.u, expected[0].record.u)
    same(came[1], expected[1])


@several
@given(problems(recurrent=False), st.booleans())
def test_several_probes_are_the_reference(problem: Problem, all_asked: bool) -> None:
    """The same signal for all neurons, and sums over the window besides."""
    record = scan.spiking(problem.current, problem.start, problem.values, problem.form).record
    probes = torch.linspace(-1, 1, 3, dtype=problem.current.dtype).expand(len(problem.current), 3)[..., None, None]
    widened = scan.Record(*[None if part is None else part[:, None] for part in record])
    start = State(*[None if part is None else part[None] for part in problem.start])
    given_ = (probes, widened, start, problem.values, problem.form, list(problem.values) if all_asked else [])
    came = kernels.spiking_reverse(*given_)
    with kernels.reference():
        expected = kernels.spiking_reverse(*given_)
    if expected.leftover.spk is not None:
        spk = expected.leftover.spk.expand(came.first.mem.shape)
        expected = expected._replace(leftover=expected.leftover._replace(spk=spk))
    assert came.sums is not None
    same(came, expected)


@several
@given(problems(firing.EscapeNoise(0.25, torch.Generator())))
def test_stochastic_neurons_are_the_reference_for_the_same_draws(problem: Problem) -> None:
    problem.form.firing.generator.manual_seed(3)  # type: ignore[attr-defined]
    came = problem.run()
    problem.form.firing.generator.manual_seed(3)  # type: ignore[attr-defined]
    with kernels.reference():
        expected = problem.run()
    assert torch.equal(came[0].y, expected[0].y)
    same(came, expected)


@several
@given(problems(), st.booleans())
def test_known_outputs_are_taken_as_they_are(problem: Problem, other: bool) -> None:
    """Those of the same window give the same membranes; any give what the reference gives."""
    forward = kernels.spiking(problem.current.clone(), problem.start, problem.values, problem.form)
    given_ = forward.y.roll(1, -1) if other else forward.y
    came = problem.run(given_)
    with kernels.reference():
        expected = problem.run(given_)
    assert torch.equal(came[0].y, given_)
    same(came, expected)
    if not other:
        assert torch.equal(came[0].record.u, forward.record.u)
        same(came[0].state, forward.state)


@several
@given(problems(), st.booleans(), st.sampled_from([firing.Spike, firing.StrictSpike]), st.floats(0, 1))
def test_windows_recalled_from_spikes_are_the_reference(
    problem: Problem, usual: bool, emits: type[firing.Firing], activity: float
) -> None:
    """Whatever was emitted; the usual neuron has a kernel of its own."""
    if usual:
        problem.form, problem.start = Form(emits(problem.form.firing.surrogate)), State(problem.start.mem)  # type: ignore[call-arg]
        problem.values = {name: problem.values[name] for name in ("beta", "threshold")}
        problem.ahead = None if problem.ahead is None else State(problem.ahead.mem)
    emitted = kernels.packed((torch.rand_like(problem.current) < activity).to(problem.current.dtype))
    assert emitted is not None
    wanted = [] if usual else [name for name in problem.values if name != "recurrent"]

    def run() -> Any:
        return kernels.recalled_reverse(
            problem.ls,
            problem.current.clone(),
            emitted,
            problem.start,
            problem.values,
            problem.form,
            wanted,
            problem.ahead,
        )

    came = run()
    with kernels.reference():
        same(came, run())


def test_a_firing_of_ones_own_runs_the_reference() -> None:
    custom = surrogate.Custom(lambda u: (u > 0).to(u.dtype), lambda u: torch.exp(-u.abs()))
    values = {"beta": torch.tensor(0.5), "threshold": torch.tensor(1.0)}
    current, start = torch.rand(5, 2, 3) * 2, State(torch.zeros(2, 3))
    y = kernels.spiking(current.clone(), start, values, Form(firing.Spike(custom))).y
    assert torch.equal(y, kernels.spiking(current, start, values, Form(firing.StrictSpike())).y)


@several
@given(integrators())
def test_leaky_integrators_are_the_reference(given: Any) -> None:
    came = integrate(*given)
    with kernels.reference():
        same(came, integrate(*given))


@several
@given(chains(), st.data())
def test_traces_are_the_reference(given: Any, data: st.DataObject) -> None:
    same(kernels.advance_chain(*given), one_by_one(*given))
    traces, drive, *_ = given
    if data.draw(st.booleans()):
        drive = drive[:, :1, :1]
    nodes = torch.rand(traces.shape[1], dtype=torch.float64)
    same(kernels.advance_bank(traces, drive, nodes), trace.advance_bank(traces, drive, nodes))


def test_several_threads_compute_the_same() -> None:
    values = {"beta": torch.full((300,), 0.9), "threshold": torch.tensor(1.0)}
    current, start = torch.rand(16, 64, 300), State(torch.zeros(64, 300))
    ls = torch.randn(16, 64, 300)

    def run() -> Any:
        forward = kernels.spiking(current.clone(), start, values, Form(firing.Spike()))
        back = kernels.spiking_reverse(ls, forward.record, start, values, Form(firing.Spike()), ["beta"])
        traces = kernels.advance_bank(torch.zeros(64, 2, 300), current, torch.tensor([0.5, 0.9], dtype=torch.float64))
        emitted = kernels.packed(forward.y)
        assert emitted is not None
        again = kernels.recalled_reverse(ls, current.clone(), emitted, start, values, Form(firing.Spike()))
        torch.testing.assert_close(again.g, back.g)
        return forward.y, back.g, back.own["beta"], traces, again.g, again.leftover.mem

    one = run()
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        several = run()
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(one, several, strict=True):
        assert torch.equal(a, b)


def test_without_numba_it_says_so_once_and_works() -> None:
    code = (
        "import sys, warnings; sys.modules['numba'] = None; import torch, tracetorch as tt\n"
        "model = tt.LIF(3, 2)\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    for _ in range(3):\n"
        "        y = model(torch.ones(1, 3)); model.backward(torch.ones_like(y))\n"
        "print([str(w.message)[:60] for w in caught], model.weight.grad is not None)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.count("tracetorch: expected numba") == 1
    assert out.strip().endswith("True")


def test_a_model_learns_the_same_with_and_without_kernels() -> None:
    torch.manual_seed(0)
    model = tt.Sequential(tt.LIF(20, 16, learn_beta=True), tt.LIF(16, 16, recurrent=True), tt.LI(16, 3)).double()
    x = (torch.rand(30, 2, 20) < 0.2).double()

    def gradients() -> list[Tensor]:
        model.zero_grad()
        model.reset()
        for window in x.split(7):
            y = model.window(window)
            model.backward(y)
        return [p.grad.clone() for p in model.parameters()]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        came = gradients()
        with kernels.reference():
            expected = gradients()
    for a, b in zip(came, expected, strict=True):
        close(a, b)


@st.composite
def matrices(draw: st.DrawFn) -> tuple[Tensor, tuple[Tensor, ...]]:
    """A signal, and what `advance_matrix` takes: matrices of odd and even sizes, spikes or anything else as inputs."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    steps, nodes, stages = (draw(st.sampled_from(sizes)) for sizes in ([1, 2, 9, 32, 70], [1, 2, 3], [1, 2]))
    lanes, m = draw(st.sampled_from([1, 3])), draw(st.sampled_from([1, 4, 8, 9, 21, 64, 128, 150]))
    n = draw(st.sampled_from([1, 7, 16, 47, 48, 49, 128, 600]))
    sizes = [(lanes, nodes, n, m), (steps, nodes, lanes, m), (nodes, lanes, stages, m)]
    sizes += [(steps, lanes, n), (lanes, stages, n)]
    before, *drawn = [torch.randn(size, dtype=dtype) for size in sizes]
    activity = draw(st.sampled_from([None, 0.0, 0.15, 1.0]))
    if activity is not None:
        drawn[2] = (torch.rand(sizes[3]) < activity).to(dtype)
    return torch.randn(lanes, nodes, m, dtype=dtype), (before.mT, *drawn, torch.rand(nodes, 1, dtype=dtype))


def as_bits(window: tuple[Tensor, ...]) -> tuple[Tensor | Spikes, ...]:
    """What `advance_matrix` takes besides the matrices, with the inputs as bits where they are spikes."""
    g, border, taken, *others = window
    spikes = kernels.packed(taken)
    return g, border, taken if spikes is None else spikes, *others


@several
@given(matrices(), st.booleans(), st.booleans())
def test_matrices_are_the_reference(given: tuple[Tensor, tuple[Tensor, ...]], overwrite: bool, packs: bool) -> None:
    signal, (before, *window) = given
    expected = trace.carry_advanced(signal, before, *window)
    was, copy = before.clone(), before.clone()
    inputs = as_bits(window) if packs else window
    advanced = kernels.advance_matrix(before, *inputs, overwrite=overwrite)
    carried, matrix = kernels.carry_advanced(signal, copy, *inputs, overwrite=overwrite)
    same((carried, matrix), expected)
    same(kernels.carry_matrix(signal, matrix), expected[0])
    assert torch.equal(advanced, matrix)
    for given_, new in ((before, advanced), (copy, matrix)):
        assert (given_.data_ptr() == new.data_ptr()) == overwrite
        assert overwrite or torch.equal(given_, was)


def a_window(lanes: int, m: int, n: int, activity: float = 0.2) -> tuple[Tensor, tuple[Tensor, ...]]:
    sizes = [(lanes, 2, n, m), (16, 2, lanes, m), (2, lanes, 1, m), (lanes, 1, n)]
    before, g, border, past = (torch.randn(size) for size in sizes)
    taken = (torch.rand(16, lanes, n) < activity).float()
    return torch.randn(lanes, 2, m), (before.mT, g, border, taken, past, torch.rand(2, 1))


@pytest.mark.parametrize("packs", [False, True])
def test_several_threads_compute_the_same_matrices(packs: bool) -> None:
    signal, (before, *window) = a_window(8, 37, 200)
    inputs = as_bits(window) if packs else window
    one = (*kernels.carry_advanced(signal, before, *inputs), kernels.carry_matrix(signal, before))
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        several = (*kernels.carry_advanced(signal, before, *inputs), kernels.carry_matrix(signal, before))
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(one, several, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("packs", [False, True])
def test_matrices_that_lie_neuron_by_neuron_are_as_good(packs: bool) -> None:
    signal, (before, *window) = a_window(2, 5, 70)
    inputs = as_bits(window) if packs else window
    other = before.contiguous()
    same(kernels.carry_advanced(signal, other, *inputs), trace.carry_advanced(signal, before, *window))
    same(kernels.advance_matrix(other, *inputs, overwrite=True), trace.advance_matrix(before, *window))
    same(kernels.carry_matrix(signal, other), trace.carry_matrix(signal, before))
    assert torch.equal(other, before)


def test_without_kernels_spikes_are_numbers() -> None:
    signal, (before, *window) = a_window(2, 5, 70)
    expected = trace.carry_advanced(signal, before, *window)
    with kernels.reference():
        same(kernels.carry_advanced(signal, before, *as_bits(window)), expected)
        same(kernels.advance_matrix(before, *as_bits(window)), expected[1])


@pytest.mark.parametrize("packs", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matrices_that_fade_become_zero_and_what_is_not_a_number_stays(dtype: torch.dtype, packs: bool) -> None:
    tiny = torch.finfo(dtype).tiny
    before = torch.tensor([tiny, -tiny, tiny / 8, 1.0, torch.nan, -torch.inf], dtype=dtype).repeat(1, 1, 9, 10)
    before = before.mT.contiguous().mT
    window = [torch.zeros(size, dtype=dtype) for size in ((3, 1, 1, 9), (1, 1, 1, 9), (3, 1, 60), (1, 1, 60))]
    window.append(torch.full((1, 1), 0.5, dtype=dtype))
    came = kernels.advance_matrix(before, *(as_bits(window) if packs else window))
    expected = torch.tensor([0.0, 0.0, 0.0, 0.5, torch.nan, -torch.inf], dtype=dtype).repeat(1, 1, 9, 10)
    assert torch.equal(came.nan_to_num(7.0), expected.nan_to_num(7.0))


def test_no_kernel_uses_memory_that_it_has_let_go_of() -> None:
    """Run where whatever is freed is given back at once, so that to touch it ends the process."""
    program = """if True:
        import torch, tracetorch as tt
        for rule in (tt.InputTrace(), tt.Eligibility(nodes=2)):
            for compact in (False, True):
                model = tt.Sequential(tt.LIF(300, 70), tt.LIF(70, 70, learn_beta=True), tt.LI(70, 3), rule=rule)
                model.compact = compact
                for steps in (1, 40, 40, 7):
                    y = model.window((torch.rand(steps, 6, 300) < 0.1).float())
                    loss, ls = tt.loss.cross_entropy(y, torch.zeros(6, dtype=torch.int64))
                    model.backward(ls)
                    assert all(p.grad.isfinite().all() for p in model.parameters())
    """
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "4096", "MALLOC_TRIM_THRESHOLD_": "0"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
