"""The usual layer's own way against the general one, whatever is done with a stream."""

import contextlib
import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tracetorch as tt
from cases import F64
from tracetorch import kernels
from tracetorch.kernels import cpu

N, HIDDEN, M = 9, 7, 3
RULES = [tt.InputTrace(), tt.Truncated()]


def model(rule: tt.rules.Rule, bias: bool = True) -> tt.Sequential:
    torch.manual_seed(0)
    return tt.Sequential(
        tt.LIF(N, HIDDEN, beta=0.8, bias=bias, **F64),
        tt.LIF(HIDDEN, HIDDEN, beta=0.9, threshold=torch.rand(HIDDEN) + 0.5, firing=tt.firing.StrictSpike(), **F64),
        tt.LI(HIDDEN, M, beta=0.95, bias=bias, **F64),
        rule=rule,
    )


def test_these_layers_are_usual_and_others_are_not() -> None:
    x = torch.rand(2, 1, N, **F64)

    def ways(net: tt.Sequential) -> list[bool]:
        net.window(x)
        return [net._row is not None or layer._row is not None for layer in net._layers().values()]

    assert ways(model(tt.InputTrace())) == [True, True, True]
    assert ways(model(tt.Truncated())) == [True, True, True]
    assert ways(model(tt.MeanField())) == [False, False, False]
    assert ways(model(tt.InputTrace(feedback="random"))) == [False, False, False]
    learned = tt.Sequential(tt.LIF(N, 4, learn_beta=True, **F64), tt.LIF(4, 4, reset="zero", **F64), tt.LI(4, 2, **F64))
    assert ways(learned) == [False, False, True]
    net = model(tt.InputTrace())
    net[0].synapse.register_forward_hook(lambda *_: None)
    assert ways(net) == [False, True, True]
    with kernels.reference():
        assert ways(model(tt.InputTrace())) == [False, False, False]


def operations() -> Any:
    step = st.tuples(st.just("step"), st.integers(0, 2))
    window = st.tuples(st.just("window"), st.integers(1, 4) | st.sampled_from([30, 130]))
    others = [
        "forget",
        "mask",
        "eval",
        "refused",
        "saved",
        "horizon",
        "optimizer",
        "copied",
        "first alone",
        "constants",
    ]
    return st.lists(st.one_of(step, window, st.tuples(st.sampled_from(others), st.just(0))), min_size=3, max_size=12)


def run(net: tt.Sequential, todo: list[tuple[str, int]], lanes: int, size: float) -> list[Tensor]:
    """Everything that can be seen from outside, for inputs of 0 and `size`."""
    generator = torch.Generator().manual_seed(1)
    seen: list[Tensor] = []

    def draw(*shape: int) -> Tensor:
        return (torch.rand(*shape, net[0].in_features, generator=generator, **F64) < 0.4).double() * size

    def learn(y: Tensor, times: int) -> None:
        seen.append(y)
        for _ in range(times):
            signal = net.backward(torch.sin(torch.arange(y.numel(), **F64)).view_as(y), input_signal=True)
            assert signal is not None
            seen.append(signal)

    for what, number in todo:
        if what == "step":
            learn(net(draw(lanes)), number)
        elif what == "window":
            learn(net.window(draw(number, lanes)), 1)
        elif what == "forget":
            net.reset()
        elif what == "mask" and net[0].mem is not None:
            net.reset(torch.arange(lanes) % 2 == 0)
        elif what == "eval":
            net.eval()
            seen.append(net(draw(lanes)))
            net.train()
        elif what == "refused" and net[0].mem is not None:
            with pytest.raises(ValueError, match="lanes"):
                net(draw(lanes + 1))
        elif what == "saved":
            state = net.stream_state()
            net.load_stream_state(state)
            seen += [tensor for layer in state["tensors"].values() for tensor in layer.values()]
        elif what == "horizon":
            net.horizon = None if net.horizon else 5
        elif what == "optimizer":
            for p in net.parameters():
                if p.grad is not None:
                    p.data.sub_(p.grad, alpha=1e-3)
            net.zero_grad()
        elif what == "copied":
            net = copy.deepcopy(net)
        elif what == "first alone":
            seen.append(net[0](draw(lanes)))
        elif what == "constants":
            net[1].constant_beta.mul_(0.9)
    seen += [p.grad for p in net.parameters() if p.grad is not None]
    return seen


@settings(max_examples=200, deadline=None)
@given(operations(), st.sampled_from([1, 2, 6]), st.sampled_from(RULES), st.booleans(), st.sampled_from([1.0, 2.0]))
def test_both_ways_are_the_same(
    todo: list[tuple[str, int]], lanes: int, rule: tt.rules.Rule, bias: bool, size: float
) -> None:
    came = run(model(rule, bias), todo, lanes, size)
    with kernels.reference():
        expected = run(model(rule, bias), todo, lanes, size)
    assert_same(came, expected)


def assert_same(came: list[Tensor], expected: list[Tensor]) -> None:
    assert len(came) == len(expected)
    for a, b in zip(came, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("activity", [0.0, 0.1, 1.0])
def test_many_rows_of_spikes_take_the_sparse_way(rule: tt.rules.Rule, activity: float) -> None:
    """Windows of so many lanes that their inputs are kept as bits, between others."""

    def made() -> tt.Sequential:
        torch.manual_seed(0)
        layers = tt.LIF(200, 64, beta=0.8, **F64), tt.LIF(64, 64, beta=0.9, **F64), tt.LI(64, M, beta=0.95, **F64)
        return tt.Sequential(*layers, rule=rule)

    def run_(net: tt.Sequential) -> list[Tensor]:
        generator = torch.Generator().manual_seed(1)
        seen = []
        for steps in (50, 50, 1, 20, 50, 3):
            x = (torch.rand(steps, 5, 200, generator=generator, **F64) < activity).double()
            if steps == 20:
                x[0, 0, 0] = 0.5
            y = net.window(x)
            ls = torch.sin(torch.arange(y.numel(), **F64)).view_as(y)
            signal = net.backward(ls, input_signal=True)
            assert signal is not None
            seen += [y, signal]
        return seen + [p.grad for p in net.parameters() if p.grad is not None]

    assert cpu.sparse_pays(250, 200, 64, int(250 * 200 * 0.1), torch.float64)
    assert cpu.sparse_gradient_pays(250, 200, 64, int(250 * 200 * 0.1), torch.float64)
    came = run_(made())
    with kernels.reference():
        assert_same(came, run_(made()))


@pytest.mark.parametrize("window", [1, 4])
def test_frozen_parameters_get_no_gradient(window: int) -> None:
    net = model(tt.InputTrace())
    net[0].synapse.weight.requires_grad_(False)
    net[1].synapse.bias.requires_grad_(False)
    net[2].requires_grad_(False)
    net.window(torch.rand(window, 2, N, **F64))
    net.backward(torch.ones(window, 2, M, **F64))
    given_ = {name: p.grad is not None for name, p in net.named_parameters()}
    assert given_ == {
        "0.synapse.weight": False,
        "0.synapse.bias": True,
        "1.synapse.weight": True,
        "1.synapse.bias": False,
        "2.synapse.weight": False,
        "2.synapse.bias": False,
    }


def test_what_the_user_writes_afterwards_changes_nothing() -> None:
    net, other = model(tt.InputTrace()), model(tt.InputTrace())
    x = torch.rand(3, 2, N, **F64)
    mine = x.clone()
    y = net.window(mine)
    mine.zero_()
    y.zero_()
    net.backward(torch.ones(3, 2, M, **F64))
    other.window(x)
    other.backward(torch.ones(3, 2, M, **F64))
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_another_synapse_is_seen() -> None:
    net = model(tt.InputTrace())
    net.window(torch.rand(2, 2, N, **F64))
    net[2].synapse = nn.Linear(HIDDEN, M, **F64)
    net[2].synapse.weight.data.zero_()
    net[2].synapse.bias.data.zero_()
    net.reset()
    assert not net.window(torch.rand(2, 2, N, **F64)).any()


@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("lanes", [1, 5])
def test_a_model_of_usual_layers_needs_the_general_way_for_nothing(
    window: int, lanes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = model(tt.InputTrace())
    for name in ("_general_call", "_general_backward"):
        monkeypatch.setattr(tt.Sequential, name, None)
    for _ in range(2):
        net.reset()
        for _ in range(3):
            net.window(torch.rand(window, lanes, N, **F64))
            net.backward(torch.ones(window, lanes, M, **F64), input_signal=True)
            net(torch.rand(lanes, N, **F64) < 0.5)
            net.backward(torch.ones(lanes, M, **F64))
        net.reset(torch.arange(lanes) % 2 == 0)
        net.window(torch.rand(window, lanes, N, **F64))
        net.load_stream_state(net.stream_state())
        net.window(torch.rand(window, lanes, N, **F64))


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("zeroed", [False, True])
def test_a_signal_that_is_not_finite_is_refused_and_leaves_the_gradients(window: int, zeroed: bool) -> None:
    net = model(tt.InputTrace())
    x, ls = torch.rand(window, 1, N, **F64), torch.ones(window, 1, M, **F64)
    net.window(x)
    net.backward(ls)
    if zeroed:
        net.zero_grad()
    before = [None if p.grad is None else p.grad.clone() for p in net.parameters()]
    bad = ls.clone()
    bad[0, 0, 1] = torch.nan
    with pytest.raises(ValueError, match="ls"):
        net.backward(bad)
    for p, was in zip(net.parameters(), before, strict=True):
        assert p.grad is None if was is None else torch.equal(p.grad, was)
    net.backward(ls)


def test_layers_that_share_a_synapse_add_up() -> None:
    shared = nn.Linear(N, N, **F64)

    def stack() -> tt.Sequential:
        return tt.Sequential(tt.LIF(synapse=shared, beta=0.8), tt.LIF(synapse=shared, beta=0.9))

    found = []
    for context in (contextlib.nullcontext(), kernels.reference()):
        with context:
            net = stack()
            for window in (1, 3, 1, 1):
                net.window(torch.linspace(0, 1, window * 2 * N, **F64).view(window, 2, N))
                net.backward(torch.ones(window, 2, N, **F64))
            found.append([p.grad for p in shared.parameters()])
            net.zero_grad()
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_several_threads_give_the_same() -> None:
    def gradients() -> list[Tensor]:
        torch.manual_seed(0)
        net = tt.Sequential(tt.LIF(1000, 300, **F64), tt.LI(300, M, **F64))
        generator = torch.Generator().manual_seed(1)
        for size in (1.0, 0.5, 1.0):
            x = (torch.rand(40, 30, 1000, generator=generator, **F64) < 0.1).double() * size
            y = net.window(x)
            net.backward(torch.sin(torch.arange(y.numel(), **F64)).view_as(y))
        return [p.grad for p in net.parameters()]

    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(gradients())
    finally:
        torch.set_num_threads(before)
    assert_same(*found)
