"""The GPU kernels against the reference: on a GPU where there is one, and by triton's interpreter elsewhere."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import tracetorch as tt
from kernel_problems import Problem, chains, close, integrate, integrators, moved, one_by_one, problems, same
from tracetorch import kernels
from tracetorch.functional import firing, scan, surrogate, trace
from tracetorch.functional.scan import Form, Record, State

pytest.importorskip("triton", reason="triton, which the GPU kernels are compiled by, is not installed")
from tracetorch.kernels import cuda

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICES = [
    pytest.param("cpu", marks=pytest.mark.skipif(not INTERPRETED, reason="triton compiles: there is a GPU")),
    pytest.param("cuda", marks=pytest.mark.skipif(INTERPRETED, reason="there is no GPU: triton interprets")),
]
on_devices = pytest.mark.parametrize("device", DEVICES)


def few(examples: int) -> settings:
    return settings(max_examples=examples, deadline=None)


@contextmanager
def gpu_kernels(device: str) -> Iterator[None]:
    """Run the GPU kernels, with warnings of numpy off, which the interpreter computes with: a GPU has none."""
    if device == "cuda":
        yield
        return
    with kernels._interpreted(), np.errstate(all="ignore"):
        assert kernels.kernels_for(torch.zeros(1)) is kernels._load("cuda", "triton", "GPU") is not None
        yield


def came_from(device: str, function: Any, *args: Any) -> Any:
    """What a function returns there, brought back."""
    with gpu_kernels(device):
        return moved(function(*moved(args, device)), "cpu")


@on_devices
@few(60)
@given(problem=problems())
def test_spiking_neurons_are_the_reference(device: str, problem: Problem) -> None:
    came = came_from(device, problem.on(device).run)
    with kernels.reference():
        expected = problem.run()
    assert torch.equal(came[0].y, expected[0].y)
    same(came, expected)


@on_devices
@few(20)
@given(problem=problems())
def test_known_outputs_are_taken_as_they_are(device: str, problem: Problem) -> None:
    given_ = scan.spiking(problem.current, problem.start, problem.values, problem.form).y.roll(1, -1)
    came = came_from(device, problem.on(device).run, given_)
    with kernels.reference():
        expected = problem.run(given_)
    assert torch.equal(came[0].y, expected[0].y)
    same(came, expected)


@on_devices
@few(20)
@given(problem=problems(firing.EscapeNoise(0.25, torch.Generator())))
def test_stochastic_neurons_are_the_reference_for_the_same_draws(device: str, problem: Problem) -> None:
    problem.form.firing.generator.manual_seed(3)  # type: ignore[attr-defined]
    came = came_from(device, problem.on(device).run)
    problem.form.firing.generator.manual_seed(3)  # type: ignore[attr-defined]
    with kernels.reference():
        expected = problem.run()
    assert torch.equal(came[0].y, expected[0].y)
    same(came, expected)


@on_devices
@few(30)
@given(problem=problems(recurrent=False))
def test_several_probes_are_the_reference(device: str, problem: Problem) -> None:
    record = scan.spiking(problem.current, problem.start, problem.values, problem.form).record
    probes = torch.linspace(-1, 1, 3, dtype=problem.current.dtype).expand(len(problem.current), 3)[..., None, None]
    widened = Record(*[None if part is None else part[:, None] for part in record])
    start = State(*[None if part is None else part[None] for part in problem.start])
    given = (probes, widened, start, problem.values)
    came = came_from(device, lambda *a: kernels.spiking_reverse(*a, problem.form, list(problem.values)), *given)
    with kernels.reference():
        expected = kernels.spiking_reverse(*given, problem.form, list(problem.values))
    if expected.leftover.spk is not None:
        expected = expected._replace(
            leftover=expected.leftover._replace(spk=expected.leftover.spk.expand(came.first.mem.shape))
        )
    same(came, expected)


@on_devices
def test_gains_and_widths_have_the_precision_of_the_dtype(device: str) -> None:
    """Numbers that float32 does not hold, in float64."""
    torch.manual_seed(0)
    values = {"beta": torch.tensor(0.9).double(), "threshold": torch.tensor(0.7).double()}
    x, start = torch.rand(6, 2, 5).double() * 3, State(torch.zeros(2, 5).double())
    form = Form(firing.Spike(surrogate.ArcTan(0.1)), gain=0.3)
    came = came_from(device, Problem(x, start, values, form, x - 1, None).on(device).run)
    with kernels.reference():
        expected = Problem(x, start, values, form, x - 1, None).run()
    assert 0 < expected[0].y.mean() < 1
    same(came, expected)


@on_devices
@few(40)
@given(problem=integrators())
def test_leaky_integrators_are_the_reference(device: str, problem: Any) -> None:
    came = came_from(device, integrate, *problem)
    with kernels.reference():
        same(came, integrate(*problem))


@on_devices
@few(60)
@given(problem=chains())
def test_traces_are_the_reference(device: str, problem: Any) -> None:
    same(came_from(device, kernels.advance_chain, *problem), one_by_one(*problem))
    traces, drive, *_ = problem
    nodes = torch.rand(traces.shape[1], dtype=torch.float64)
    same(came_from(device, kernels.advance_bank, traces, drive, nodes), trace.advance_bank(traces, drive, nodes))


@on_devices
def test_a_bank_of_many_traces_is_the_reference(device: str) -> None:
    given = torch.randn(2, 21, 7), torch.randn(3, 2, 7), torch.rand(21, dtype=torch.float64)
    same(came_from(device, kernels.advance_bank, *given), trace.advance_bank(*given))


@on_devices
@pytest.mark.parametrize("rule", [tt.InputTrace(), tt.Eligibility()], ids=repr)
def test_a_model_learns_the_same(device: str, rule: tt.rules.Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layers = tt.LIF(20, 16, learn_beta=True), tt.LIF(16, 16, recurrent=True), tt.LI(16, 3)
    model = tt.Sequential(*layers, rule=rule).double()
    x = (torch.rand(30, 2, 20) < 0.2).double()
    target = torch.tensor([0, 2])

    def gradients(x: Tensor, target: Tensor) -> list[Tensor]:
        model.reset()
        model.to(x.device).zero_grad()
        for window in x.split(7):
            _, ls = tt.loss.cross_entropy(model.window(window), target)
            model.backward(ls)
        return [p.grad.clone() for p in model.parameters()]

    with kernels.reference():
        expected = gradients(x, target)
    launched = []
    launch = cuda._launch
    monkeypatch.setattr(cuda, "_launch", lambda kernel, *a, **k: launched.append(kernel) or launch(kernel, *a, **k))
    came = came_from(device, lambda *given: tuple(gradients(*given)), x, target)
    assert {cuda._spiking, cuda._spiking_reverse, cuda._li, cuda._li_reverse, cuda._chain} <= set(launched)
    assert all(gradient.abs().max() > 0 for gradient in expected)
    for a, b in zip(came, expected, strict=True):
        close(a, b)


@pytest.mark.skipif(INTERPRETED, reason="there is no GPU: triton interprets")
@few(30)
@given(problem=problems())
def test_nothing_waits_for_the_device(problem: Problem) -> None:
    there = problem.on("cuda")
    there.run()  # compiled
    torch.cuda.set_sync_debug_mode("error")
    try:
        there.run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_they_compile_for_a_gpu_and_fuse_nothing_that_spikes_depend_on(tmp_path: Path) -> None:
    """Whatever the interpreter accepts: the compiler is stricter."""
    env = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    script = Path(__file__).parent / "compile_for_gpu.py"
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, env=env)
    assert run.returncode == 0, run.stderr[-3000:]
    count, *fused = run.stdout.splitlines()
    assert int(count.split()[0]) > 60
    for name in fused:  # the exponential of float64 is made of these
        assert "torch.float64" in name
        assert name.startswith("_spiking_reverse") or name.endswith("drawn")


def test_without_triton_it_says_so_once_and_the_reference_runs() -> None:
    code = (
        "import sys, warnings; sys.modules['triton'] = None; import torch; from tracetorch import kernels\n"
        "with warnings.catch_warnings(record=True) as caught, kernels._interpreted():\n"
        "    warnings.simplefilter('always')\n"
        "    for _ in range(3):\n"
        "        y = kernels.li(torch.ones(2, 1, 1), torch.zeros(1, 1), torch.tensor(0.5))\n"
        "print([str(w.message).split(',')[0] for w in caught], y.flatten().tolist())"
    )
    env = os.environ | {"TRITON_INTERPRET": "1"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert run.stdout.strip() == "['tracetorch: expected triton'] [1.0, 1.5]"
