"""Memory that does not grow: no autograd graph, bytes of state, live tensor storage."""

import copy
import gc
import warnings

import pytest
import torch

import tracetorch as tt
from cases import ALL, F64, HIDDEN, RULES, Case, M, N, T, hidden
from tracetorch.testing import LiveStorage

WITH_MEAN_RATE = [*RULES, tt.MeanRate(value="measured", learn_decay=True)]


def model(rule: tt.rules.Rule) -> tt.Sequential:
    return tt.Sequential(hidden(), hidden(HIDDEN, HIDDEN), tt.Softmax(HIDDEN, M, learn_beta=True, **F64), rule=rule)


@pytest.mark.parametrize("rule", WITH_MEAN_RATE, ids=str)
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
@pytest.mark.parametrize("rule", WITH_MEAN_RATE, ids=str)
def test_state_and_live_storage_are_the_same_after_four_times_the_steps(rule: tt.rules.Rule, window: int) -> None:
    net, other = model(rule), model(rule)
    before = net.state_bytes(2)
    steps = 20 if window == 1 else 100
    first = live_bytes_after(net, steps, window)
    assert net.state_bytes() == before
    assert live_bytes_after(other, 4 * steps, window) == first
    assert other.state_bytes() == before
    assert first > before


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_horizon_keeps_the_bytes_that_are_counted_and_no_more(rule: tt.rules.Rule) -> None:
    net = tt.Sequential(
        hidden(recurrent=True), tt.Concat(hidden(HIDDEN, 4), tt.LI(HIDDEN, 3, **F64)), tt.LI(7, M, **F64), rule=rule
    )
    net.horizon = 25
    other = copy.deepcopy(net)
    first = live_bytes_after(net, 100, 10)
    assert live_bytes_after(other, 400, 10) == first
    kept = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for part in net._parts()
        for t in part._tape_tensors()
    }
    assert len(net[0]._segments) == 3
    assert net.tape_bytes(2, 10) == sum(kept.values())
    net.horizon = None
    assert live_bytes_after(net, 100, 10) < first


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


@pytest.mark.parametrize(
    ("case", "rule"),
    [
        (case, rule)
        for case in ALL
        for rule in (tt.Truncated(), tt.MeanField(), tt.Eligibility(), tt.MeanRate(value="measured"))
        if not case.name.startswith("stateless") and case.accepts(rule)
    ],
    ids=str,
)
def test_bytes_are_what_is_kept(case: Case, rule: tt.rules.Rule) -> None:
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


def test_what_each_rule_keeps_is_what_its_docstring_says() -> None:
    """Numbers per lane, for a hidden layer (n inputs, m neurons) under a readout with one beta: H = 1."""
    n, m, g = 20, 7, 2  # betas that lie apart are the bank

    def kept(rule: tt.rules.Rule, **options: object) -> int:
        net = tt.Sequential(tt.LIF(n, m, beta=0.8, **options), tt.LI(m, 3, beta=0.9), rule=rule)
        nodes = net._planned()[id(net[0])].nodes
        return net[0]._state_bytes_per_lane(nodes) // 4 - m  # without the membrane

    assert kept(tt.Truncated()) == 0
    assert kept(tt.InputTrace()) == n + 1
    assert kept(tt.InputTrace(), learn_threshold=True) == n + 1 + m
    assert kept(tt.MeanField()) == g * (n + 1) + (m + 1)
    assert kept(tt.MeanField(), learn_threshold=True) == g * (n + 1) + (m + 1) + g * m + m
    assert kept(tt.Eligibility()) == (n + 1) + n * m + m + (m + 1)
    taus = torch.linspace(2, 20, m).tolist()
    net = tt.LIF(n, m, tau=taus, rule=tt.InputTrace(nodes=6))
    assert net.state_bytes(1) == 4 * (m + 6 * n + m)


@pytest.mark.parametrize("window", [1, 4])
def test_break_even_is_where_the_bytes_cross(window: int) -> None:
    net = tt.Sequential(tt.LIF(30, 12, beta=0.8, recurrent=True), tt.LI(12, 3, beta=0.9))
    found = net.break_even(window=window)
    assert list(found) == ["Truncated()", "InputTrace()", "MeanField()", "Eligibility()"]
    assert list(found.values()) == sorted(found.values())
    membranes = tt.Sequential(*copy.deepcopy(list(net)), rule=tt.Truncated()).state_bytes(1)
    for rule in (tt.Truncated(), tt.InputTrace(), tt.MeanField(), tt.Eligibility()):
        ruled = tt.Sequential(*copy.deepcopy(list(net)), rule=rule)
        kept = ruled.state_bytes(1) + ruled.tape_bytes(1, window)
        crossing = found[repr(rule)]
        assert kept < membranes + ruled.tape_bytes(1, crossing)
        assert crossing == 1 or kept >= membranes + ruled.tape_bytes(1, crossing - 1)
    assert net.rule == tt.InputTrace()
    assert net[0].mem is None


def test_break_even_of_the_rules_given_leaves_out_those_that_cannot_serve() -> None:
    net = tt.Sequential(tt.LIF(30, 12), tt.Softmax(12, 4), tt.LI(4, 3), horizon=50)
    assert list(net.break_even()) == ["Truncated()", "InputTrace()"]
    few, many = (net[:1].break_even([tt.MeanField(nodes=nodes)]) for nodes in (2, 8))
    assert list(few) == ["MeanField(nodes=2)"]
    assert list(many) == ["MeanField()"]
    assert net.horizon == 50


def test_a_stream_that_will_keep_more_than_the_limit_warns_when_it_begins() -> None:
    net = tt.Sequential(tt.LIF(N, HIDDEN), tt.LI(HIDDEN, M), rule=tt.Eligibility())
    per_lane = net[0]._state_bytes_per_lane(net._planned()[id(net[0])].nodes)
    x = torch.rand(3, 2, N)
    net.state_limit = 2 * per_lane
    net.window(x)  # just within
    net.reset()
    net.state_limit -= 1
    message = rf"Sequential: layer 0 \(LIF\(.*\) will keep {2 * per_lane:,} bytes between calls for 2 lanes, more than"
    with pytest.warns(UserWarning, match="(?s)" + message + r".*MeanField\(\), or InputTrace\(\)"):
        net.window(x)
    net.window(x)  # once
    net.reset()
    with tt.no_learning(), warnings.catch_warnings():
        net.window(x)
    net.reset()
    net.rule = tt.MeanField()
    net.window(x)
