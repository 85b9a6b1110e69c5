"""Windows of neurons and traces for tests of kernels against the reference."""

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

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


@dataclass
class Problem:
    """A window of some neuron."""

    current: Tensor
    start: State
    values: dict[str, Tensor]
    form: Form
    ls: Tensor | None
    ahead: State | None

    def on(self, device: str) -> "Problem":
        """The same on another device."""
        return Problem(**{name: moved(part, device) for name, part in vars(self).items()})

    def run(self, given: Tensor | None = None) -> tuple[scan.Scan, scan.Reverse]:
        """Forwards, with outputs that are known where they are given, and backwards, everything asked for."""
        forward = kernels.spiking(self.current.clone(), self.start, self.values, self.form, given)
        wanted = [name for name in self.values if name != "recurrent"]
        back = kernels.spiking_reverse(self.ls, forward.record, self.start, self.values, self.form, wanted, self.ahead)
        return forward, back


def moved(value: Any, device: str) -> Any:
    """Tensors in tuples and dictionaries, on another device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: moved(part, device) for name, part in value.items()}
    if isinstance(value, tuple):
        parts = [moved(part, device) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


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
def problems(draw: Any, emits: Firing | None = None, recurrent: bool | None = None) -> Problem:
    emits = emits or a_firing(draw)
    reset = draw(st.sampled_from(["subtract", "zero", "none"]))
    form = Form(
        emits,
        reset,
        delayed=reset == "subtract" and not isinstance(emits, firing.Graded) and draw(st.booleans()),
        attached=draw(st.booleans()),
        gain=draw(st.sampled_from([1.0, 0.5, "leak"])),
    )
    recurrent = draw(st.booleans()) if recurrent is None else recurrent
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


SHAPES = st.tuples(st.sampled_from([1, 2, 9]), st.sampled_from([1, 3]), st.sampled_from([1, 7, 300]))
DTYPES = st.sampled_from([torch.float32, torch.float64])


@st.composite
def integrators(draw: Any) -> tuple[Tensor, Tensor, Tensor, Tensor | None, State | None]:
    """Currents, membrane, beta, learning signal and what is left over of a later window, of leaky integrators."""
    shape, dtype = draw(SHAPES), draw(DTYPES)
    torch.manual_seed(draw(st.integers(0, 2**16)))
    beta = torch.rand(shape[2] if draw(st.booleans()) else (), dtype=dtype)
    current, mem = torch.randn(shape, dtype=dtype), torch.randn(shape[1:], dtype=dtype)
    ls = torch.randn(shape, dtype=dtype) if draw(st.booleans()) else None
    ahead = State(torch.randn(shape[1:], dtype=dtype)) if draw(st.booleans()) else None
    return current, mem, beta, ls, ahead


def integrate(
    current: Tensor, mem: Tensor, beta: Tensor, ls: Tensor | None, ahead: State | None
) -> tuple[Tensor, scan.Reverse]:
    """Forwards and backwards."""
    out = kernels.li(current, mem, beta)
    return out, kernels.li_reverse(ls, out, State(mem), beta, ahead)


@st.composite
def chains(draw: Any) -> tuple[Tensor, Tensor, tuple[Stage, ...], Tensor | None]:
    """Traces, what drives them, the stages, and what is kept of the last."""
    shape, dtype = draw(SHAPES), draw(DTYPES)
    torch.manual_seed(draw(st.integers(0, 2**16)))
    _, lanes, n = shape
    stages = draw(st.integers(1, 3))
    gains = [
        draw(st.sampled_from([1.0, 0.5, torch.rand((), dtype=dtype), torch.rand(n, dtype=dtype)]))
        for _ in range(stages)
    ]
    decays = [torch.rand(n if draw(st.booleans()) else (), dtype=dtype) for _ in range(stages)]
    chain = tuple(Stage("mem", "beta", decay, gain) for decay, gain in zip(decays, gains, strict=True))
    traces, drive = torch.randn(lanes, stages, n, dtype=dtype), torch.randn(shape, dtype=dtype)
    if draw(st.booleans()):
        drive = drive[:, :1, :1].expand(shape)
    kept = (torch.rand(shape) < 0.5).to(dtype) if draw(st.booleans()) else None
    return traces, drive, chain, kept


def one_by_one(traces: Tensor, drive: Tensor, chain: tuple[Stage, ...], kept: Tensor | None) -> Tensor:
    """The reference for chains, step by step: its closed forms round otherwise."""
    return trace.advance_chain(traces, drive, chain, torch.ones_like(drive) if kept is None else kept)
