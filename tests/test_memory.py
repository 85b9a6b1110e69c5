"""Memory that does not grow: no autograd graph, bytes of state, live tensor storage."""

import gc

import pytest
import torch

import tracetorch as tt
from cases import ALL, F64, HIDDEN, Case, M, N, T, hidden
from tracetorch.testing import LiveStorage

RULES = [tt.InputTrace(), tt.Truncated(), tt.MeanRate(value="measured", learn_decay=True)]


def model(rule: tt.rules.Rule) -> tt.Sequential:
    return tt.Sequential(hidden(), hidden(HIDDEN, HIDDEN), tt.Softmax(HIDDEN, M, learn_beta=True, **F64), rule=rule)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_no_autograd_graph_is_built(rule: tt.rules.Rule) -> None:
    saved = []
    net = model(rule)
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda x: x):
        for x in torch.rand(3, 4, 2, N, **F64):
            net.window(x)
            net.backward(torch.ones(4, 2, M, **F64))
        y = net(x[0])
        net.backward(torch.ones(2, M, **F64), input_signal=True)
    assert saved == []
    assert not y.requires_grad
    assert y.grad_fn is None


def test_the_hooks_would_see_a_graph() -> None:
    saved = []
    net = model(tt.InputTrace())
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda x: x):
        net[0].synapse(torch.rand(2, N, **F64))
    assert saved


def test_stateless_modules_run_under_autograd_only_inside_backward() -> None:
    net = tt.Sequential(hidden(), torch.nn.Linear(HIDDEN, M, **F64))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = net.window(torch.rand(4, 2, N, **F64))
        assert saved == []
        net.backward(torch.ones_like(y))
    assert saved
    assert not y.requires_grad


def live_bytes_after(net: tt.Sequential, steps: int, window: int) -> int:
    """What a stream of `steps` leaves alive, gradients and the latest tape included."""
    net.reset()
    net.zero_grad()
    signal = torch.ones(window, 2, M, **F64)
    with LiveStorage() as live:
        for _ in range(steps // window):
            x = torch.rand(window, 2, N, **F64)
            if window == 1:
                net(x[0])
                net.backward(signal[0])
            else:
                net.window(x)
                net.backward(signal)
        del x
        gc.collect()
        return live.bytes


@pytest.mark.parametrize("window", [1, 10])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_state_and_live_storage_are_the_same_after_four_times_the_steps(rule: tt.rules.Rule, window: int) -> None:
    net = model(rule)
    before = net.state_bytes(2)
    first = live_bytes_after(net, 100, window)
    assert net.state_bytes() == before
    assert live_bytes_after(net, 400, window) == first
    assert net.state_bytes() == before
    assert first > before


def test_unrolling_would_grow() -> None:
    net = model(tt.InputTrace())

    def unrolled(steps: int) -> int:
        with LiveStorage() as live:
            v = torch.zeros(2, HIDDEN, **F64)
            for _ in range(steps):
                v = 0.9 * v + net[0].synapse(torch.rand(2, N, **F64))
            gc.collect()
            return live.bytes

    assert unrolled(400) > 3 * unrolled(100)


@pytest.mark.parametrize("rule", [tt.Truncated(), tt.MeanRate(value="measured")], ids=str)
@pytest.mark.parametrize("case", [case for case in ALL if not case.name.startswith("stateless")], ids=str)
def test_bytes_are_what_is_kept(case: Case, rule: tt.rules.Rule) -> None:
    if isinstance(rule, tt.MeanRate) and case.name == "LI, perfect integrator":
        pytest.skip("MeanRate has no estimate for a perfect integrator")
    net, x, _ = case.make(rule)
    lanes = x.shape[1]
    net.window(x)
    state = [t for tensors in net.stream_state()["tensors"].values() for t in tensors.values()]
    assert net.state_bytes() == net.state_bytes(lanes) == sum(t.nbytes for t in state)
    kept = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for part in net._parts()
        for t in part._tape_tensors()
    }
    assert net.tape_bytes(lanes, T) == sum(kept.values())


def test_counting_bytes_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    net = tt.Sequential(tt.LIF(N, HIDDEN), torch.nn.Dropout(), tt.Softmax(HIDDEN, M, generator=generator))
    before, drawn = torch.get_rng_state(), generator.get_state()
    net.tape_bytes(lanes=7, window=9)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(generator.get_state(), drawn)
    assert net[0].mem is None
    assert net.training


def test_the_window_is_what_the_tape_keeps() -> None:
    """Per lane and step: the inputs of each layer, one number per LIF neuron, two per softmax class."""
    net = tt.Sequential(tt.LIF(784, 128), tt.LIF(128, 128), tt.LI(128, 10))
    per_step = 784 + 2 * 128 + 2 * 128 + 10
    assert net.tape_bytes(1, 2) - net.tape_bytes(1, 1) == 4 * per_step
    assert net.state_bytes(1) == 4 * ((784 + 1 + 128) + (128 + 1 + 128) + (128 + 1 + 10))


def test_bytes_are_counted_whatever_the_mode() -> None:
    net = tt.Sequential(tt.LIF(N, HIDDEN), torch.nn.BatchNorm1d(HIDDEN).eval(), tt.LI(HIDDEN, M))
    expected = net.tape_bytes(2, 3)
    assert expected > 0
    with tt.no_learning(), torch.inference_mode():
        assert net.tape_bytes(2, 3) == expected
    assert net.eval().tape_bytes(2, 3) == expected
