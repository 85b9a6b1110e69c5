"""The kernels against the reference: equal spikes, and gradients that differ by rounding alone."""

import subprocess
import sys
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tracetorch as tt
from tracetorch import kernels
from tracetorch.functional import firing, scan, surrogate, trace
from tracetorch.functional.firing import Firing
from tracetorch.functional.scan import Form, State
from tracetorch.functional.trace import Stage

SURROGATES = [
    surrogate.ArcTan(0.25),
    surrogate.FastSigmoid(),
    surrogate.Triangle(),
    surrogate.Sigmoid(),
    surrogate.Exponential(),
]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
OPTIONAL = ("alpha", "rho", "kappa")

several = settings(max_examples=300, deadline=None)


@dataclass
class Problem:
    """A window of some neuron."""

    current: Tensor
    start: State
    values: dict[str, Tensor]
    form: Form
    ls: Tensor | None
    ahead: State | None

    def run(self) -> tuple[scan.Scan, scan.Reverse]:
        """Forwards and backwards, everything asked for."""
        forward = kernels.spiking(self.current.clone(), self.start, self.values, self.form)
        wanted = [name for name in self.values if name != "recurrent"]
        back = kernels.spiking_reverse(self.ls, forward.record, self.start, self.values, self.form, wanted, self.ahead)
        return forward, back


def dyadic(draw: Any, shape: tuple[int, ...], low: float, high: float, dtype: torch.dtype) -> Tensor:
    """Multiples of 1/8, whose sums and products with other such numbers are exact: no rounding can flip a spike."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    return torch.randint(int(8 * low), int(8 * high) + 1, shape, generator=generator).to(dtype) / 8


def a_firing(draw: Any) -> Firing:
    slope = draw(st.sampled_from(SURROGATES))
    return draw(
        st.sampled_from(
            [
                firing.Spike(slope),
                firing.StrictSpike(slope),
                firing.MultiSpike(slope),
                firing.MultiSpike(slope, 2),
                firing.Graded(slope),
            ]
        )
    )


@st.composite
def problems(draw: Any, emits: Firing | None = None) -> Problem:
    emits = emits or a_firing(draw)
    reset = draw(st.sampled_from(["subtract", "zero", "none"]))
    form = Form(
        emits,
        reset,
        delayed=reset == "subtract" and not isinstance(emits, firing.Graded) and draw(st.booleans()),
        attached=draw(st.booleans()),
        gain=draw(st.sampled_from([1.0, 0.5, "leak"])),
    )
    recurrent = draw(st.booleans())
    graded = isinstance(emits, firing.Graded)
    dtype = torch.float64 if recurrent and graded else draw(st.sampled_from([torch.float32, torch.float64]))
    steps, lanes = draw(st.sampled_from([1, 2, 6])), draw(st.sampled_from([1, 3]))
    m = draw(st.sampled_from([1, 5, 130]))

    def value(*choices: float) -> Tensor:
        drawn = torch.tensor([draw(st.sampled_from(choices)) for _ in range(min(m, 3))], dtype=dtype)
        return drawn.repeat(m)[:m].clone() if draw(st.booleans()) else drawn[0].clone()

    values = {"beta": value(0.0, 0.5, 1.0), "threshold": value(0.5, 1.0)}
    if draw(st.booleans()):
        values["alpha"] = value(0.0, 0.5)
    if draw(st.booleans()):
        values |= {"rho": value(0.5, 1.0), "kappa": value(0.0, 0.25)}
    level = draw(st.sampled_from([-4.0, 0.0, 0.0, 0.0, 4.0]))  # silent, between, always firing
    current = dyadic(draw, (steps, lanes, m), level - 1, level + 2, dtype)
    if recurrent:
        values["recurrent"] = dyadic(draw, (m, m), -1, 1, dtype) / (1 if m < 10 else 8)

    def state() -> State:
        def part(there: bool, low: float = -1) -> Tensor | None:
            return dyadic(draw, (lanes, m), low, 1, dtype) if there else None

        spikes = None
        if recurrent or form.delayed:
            spikes = dyadic(draw, (lanes, m), 0, 1, dtype).round()
        return State(part(True), part("alpha" in values), part("kappa" in values, 0), spikes)  # type: ignore[arg-type]

    start = state()
    ahead = state() if draw(st.booleans()) else None
    if ahead is not None and not (recurrent or (form.delayed and form.attached)):
        ahead = ahead._replace(spk=None)
    ls = dyadic(draw, (steps, lanes, m), -1, 1, dtype) if draw(st.booleans()) else None
    return Problem(current, start, values, form, ls, ahead)


def close(came: Tensor, expected: Tensor) -> None:
    scale = expected.abs().max().clamp(min=1)
    assert came.shape == expected.shape
    assert (came - expected).abs().max() <= TOLERANCE[came.dtype] * scale


def same(came: Any, expected: Any) -> None:
    """The same tensors, in tuples and dictionaries, up to rounding."""
    if expected is None:
        assert came is None
    elif isinstance(expected, Tensor):
        close(came, expected)
    elif isinstance(expected, dict):
        assert came.keys() == expected.keys()
        for name, part in expected.items():
            close(came[name], part)
    else:
        for a, b in zip(came, expected, strict=True):
            same(a, b)


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
@given(problems(firing.EscapeNoise(0.25, torch.Generator())))
def test_stochastic_neurons_are_the_reference_for_the_same_draws(problem: Problem) -> None:
    problem.form.firing.generator.manual_seed(3)  # type: ignore[attr-defined]
    came = problem.run()
    problem.form.firing.generator.manual_seed(3)  # type: ignore[attr-defined]
    with kernels.reference():
        expected = problem.run()
    assert torch.equal(came[0].y, expected[0].y)
    same(came, expected)


def test_a_firing_of_ones_own_runs_the_reference() -> None:
    custom = surrogate.Custom(lambda u: (u > 0).to(u.dtype), lambda u: torch.exp(-u.abs()))
    values = {"beta": torch.tensor(0.5), "threshold": torch.tensor(1.0)}
    current, start = torch.rand(5, 2, 3) * 2, State(torch.zeros(2, 3))
    y = kernels.spiking(current.clone(), start, values, Form(firing.Spike(custom))).y
    assert torch.equal(y, kernels.spiking(current, start, values, Form(firing.StrictSpike())).y)


SHAPES = st.tuples(st.sampled_from([1, 2, 9]), st.sampled_from([1, 3]), st.sampled_from([1, 7, 300]))
DTYPES = st.sampled_from([torch.float32, torch.float64])


@several
@given(st.data(), SHAPES, DTYPES)
def test_leaky_integrators_are_the_reference(
    data: st.DataObject, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    torch.manual_seed(data.draw(st.integers(0, 2**16)))
    beta = torch.rand(shape[2] if data.draw(st.booleans()) else (), dtype=dtype)
    current, mem = torch.randn(shape, dtype=dtype), torch.randn(shape[1:], dtype=dtype)
    ls = torch.randn(shape, dtype=dtype) if data.draw(st.booleans()) else None
    ahead = State(torch.randn(shape[1:], dtype=dtype)) if data.draw(st.booleans()) else None

    def run() -> tuple[Tensor, scan.Reverse]:
        out = kernels.li(current, mem, beta)
        return out, kernels.li_reverse(ls, out, State(mem), beta, ahead)

    came = run()
    with kernels.reference():
        same(came, run())


@several
@given(st.data(), SHAPES, DTYPES)
def test_traces_are_the_reference(data: st.DataObject, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(data.draw(st.integers(0, 2**16)))
    _, lanes, n = shape
    stages = data.draw(st.integers(1, 3))
    gains = [
        data.draw(st.sampled_from([1.0, 0.5, torch.rand((), dtype=dtype), torch.rand(n, dtype=dtype)]))
        for _ in range(stages)
    ]
    decays = [torch.rand(n if data.draw(st.booleans()) else (), dtype=dtype) for _ in range(stages)]
    chain = tuple(Stage("mem", "beta", decay, gain) for decay, gain in zip(decays, gains, strict=True))
    traces, drive = torch.randn(lanes, stages, n, dtype=dtype), torch.randn(shape, dtype=dtype)
    if data.draw(st.booleans()):
        drive = drive[:, :1, :1]
    kept = (torch.rand(shape) < 0.5).to(dtype) if data.draw(st.booleans()) else None
    spread = drive.expand(shape)
    with kernels.reference():
        one_by_one = trace.advance_chain(
            traces, spread, chain, torch.ones(shape, dtype=dtype) if kept is None else kept
        )
    same(kernels.advance_chain(traces, spread, chain, kept), one_by_one)
    nodes = torch.rand(stages, dtype=torch.float64)
    same(kernels.advance_bank(traces, drive, nodes), trace.advance_bank(traces, drive, nodes))


def test_several_threads_compute_the_same() -> None:
    values = {"beta": torch.full((300,), 0.9), "threshold": torch.tensor(1.0)}
    current, start = torch.rand(16, 64, 300), State(torch.zeros(64, 300))
    ls = torch.randn(16, 64, 300)

    def run() -> Any:
        forward = kernels.spiking(current.clone(), start, values, Form(firing.Spike()))
        back = kernels.spiking_reverse(ls, forward.record, start, values, Form(firing.Spike()), ["beta"])
        traces = kernels.advance_bank(torch.zeros(64, 2, 300), current, torch.tensor([0.5, 0.9], dtype=torch.float64))
        return forward.y, back.g, back.own["beta"], traces

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


@several
@given(st.data(), SHAPES, DTYPES)
def test_matrices_are_the_reference(data: st.DataObject, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(data.draw(st.integers(0, 2**16)))
    steps, lanes, n = shape
    nodes, stages, m = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2)), data.draw(st.sampled_from([1, 4, 9]))
    sizes = [(lanes, nodes, m, n), (steps, nodes, lanes, m), (nodes, lanes, stages, m), shape, (lanes, stages, n)]
    given_ = [torch.randn(size, dtype=dtype) for size in sizes]
    decay = torch.rand(nodes, 1, dtype=dtype)
    same(kernels.advance_matrix(*given_, decay), trace.advance_matrix(*given_, decay))
