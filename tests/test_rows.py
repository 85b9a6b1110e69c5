"""What a row of usual layers must see, refuse or leave to the general way: the plain way does the same."""

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import tracetorch as tt
from cases import F64
from tracetorch import kernels

N, HIDDEN, M, LANES = 6, 5, 3, 2


def model(**options: Any) -> tt.Sequential:
    torch.manual_seed(0)
    layers = tt.LIF(N, HIDDEN, beta=0.8, **F64), tt.LIF(HIDDEN, HIDDEN, beta=0.9, **F64), tt.LI(HIDDEN, M, **F64)
    return tt.Sequential(*layers, **options)


def spikes(*shape: int, seed: int = 1) -> Tensor:
    return (torch.rand(*shape, N, generator=torch.Generator().manual_seed(seed), **F64) < 0.4).double()


def learn(net: tt.Sequential, *sizes: int) -> list[Tensor]:
    """Outputs and gradients of windows of so many steps, 1 being a single step."""
    seen = []
    for i, steps in enumerate(sizes):
        x = spikes(steps, LANES, seed=i)
        y = net(x[0]) if steps == 1 else net.window(x)
        net.backward(torch.sin(torch.arange(y.numel(), **F64)).view_as(y))
        seen.append(y)
    return seen + [p.grad.clone() for p in net.parameters() if p.grad is not None]


def outcome(do: Callable[[], Any]) -> Any:
    """What it returns, or the kind of error that it raises."""
    try:
        return do()
    except Exception as error:  # compared by the caller
        return type(error)


def assert_same(do: Callable[[], list[Tensor]]) -> None:
    """Both ways give the same, or raise the same."""
    came = outcome(do)
    with kernels.reference():
        expected = outcome(do)
    if isinstance(came, type) or isinstance(expected, type):
        assert came is expected
        return
    assert len(came) == len(expected)
    for a, b in zip(came, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize("alone", [0, 1, 2])
def test_lanes_are_those_of_every_layer(lanes: int, alone: int) -> None:
    net = model()
    learn(net, 1, 3)
    net[alone].reset()
    before = net.stream_state()
    with pytest.raises(ValueError, match="expected 2 lanes"):
        net(spikes(lanes))
    torch.testing.assert_close(net.stream_state()["tensors"], before["tensors"])


def test_synapses_of_another_size_are_refused_while_a_stream_goes_on() -> None:
    for synapse in (nn.Linear(9, HIDDEN, **F64), nn.Linear(N, 9, **F64)):
        net = model()
        learn(net, 1, 3)
        net[0].synapse = synapse
        came = outcome(lambda net=net, synapse=synapse: net(torch.ones(LANES, synapse.in_features, **F64)))
        assert came in (ValueError, RuntimeError)


def test_values_of_another_dtype_are_not_taken_for_the_weights() -> None:
    def run() -> list[Tensor]:
        torch.manual_seed(0)
        net = tt.Sequential(tt.LI(N, M, bias=False, beta=0.5))
        net[0].synapse.double()
        return [net.window(spikes(3, LANES))]

    assert_same(run)


@pytest.mark.parametrize("steps", [1, 3])
def test_weights_and_biases_may_lie_anyhow(steps: int) -> None:
    def strided() -> list[Tensor]:
        net = model()
        net[1].synapse.bias = nn.Parameter(torch.arange(2.0 * HIDDEN, **F64).view(HIDDEN, 2)[:, 0])
        return learn(net, steps, steps)

    def swapped() -> list[Tensor]:
        net = model()
        seen = learn(net, steps, steps)
        net[1].synapse.weight.data = net[1].synapse.weight.data.t()
        net.zero_grad()
        return seen + learn(net, steps)

    assert_same(strided)
    assert_same(swapped)


def test_rules_and_layers_of_ones_own_are_asked() -> None:
    class Nothing(tt.InputTrace):
        def backward(self, *args: Any) -> Any:
            result = super().backward(*args)
            return result._replace(gradients={name: 0 * g for name, g in result.gradients.items()})

    class Halved(tt.LIF):
        def current(self, x: Any) -> Tensor:
            return super().current(x * 0.5)

    assert not any(g.any() for g in learn(model(rule=Nothing()), 1, 3)[2:])

    def halved(size: int) -> list[Tensor]:
        torch.manual_seed(0)
        return learn(tt.Sequential(Halved(N, HIDDEN, **F64), tt.LI(HIDDEN, M, **F64)), size)

    for size in (1, 3, 80):
        assert_same(lambda size=size: halved(size))

    def patched(size: int) -> list[Tensor]:
        net = model()
        net[0].synapse.forward = lambda x: 2 * nn.functional.linear(x, net[0].weight, net[0].synapse.bias)
        return learn(net, size)

    for size in (1, 3, 80):
        assert_same(lambda size=size: patched(size))


@pytest.mark.parametrize("steps", [1, 3])
def test_gradients_of_another_dtype_are_left_to_the_general_way(steps: int) -> None:
    net = model()
    weight = net[0].synapse.weight
    if not hasattr(weight, "grad_dtype"):
        pytest.skip("this torch ties a gradient's dtype to its parameter's")
    weight.grad_dtype = torch.float32
    weight.grad = torch.zeros_like(weight, dtype=torch.float32)
    learn(net, steps)
    other = model()
    learn(other, steps)
    torch.testing.assert_close(weight.grad.double(), other[0].synapse.weight.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("change", ["prune", "parametrize"])
def test_a_synapse_that_became_something_else_is_refused(change: str) -> None:
    def run() -> list[Tensor]:
        net = model()
        seen = learn(net, 1, 3)
        if change == "prune":
            prune.random_unstructured(net[0].synapse, "weight", 0.5)
        else:
            parametrize.register_parametrization(net[0].synapse, "weight", nn.Identity())
        return seen + learn(net, 1)

    came = outcome(run)
    assert isinstance(came, list) or came in (TypeError, NotImplementedError)
    assert_same(run)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_signal_is_looked_at_though_nothing_learns(steps: int) -> None:
    net = model().requires_grad_(False)
    y = net.window(spikes(steps, LANES))
    with pytest.raises(ValueError, match="finite"):
        net.backward(y * torch.nan)


def test_tapes_are_counted_without_traces() -> None:
    net = tt.Sequential(tt.LIF(40, 30), tt.LI(30, 2))
    assert net.tape_bytes() == 4 * (40 + 30 + 30 + 30 + 2 + 2)


@pytest.mark.parametrize("compact", [False, True])
def test_input_that_lies_anyhow(compact: bool) -> None:
    def run() -> list[Tensor]:
        torch.manual_seed(0)
        turn = nn.Flatten()
        turn.forward = lambda x: x.t().contiguous().t()  # type: ignore[method-assign]
        net = tt.Sequential(tt.LIF(N, HIDDEN, **F64), turn, tt.LI(HIDDEN, M, **F64))
        net.compact = compact
        return learn(net, 3, 70)

    assert_same(run)


def test_the_reference_is_plain_torch_backwards_too(monkeypatch: pytest.MonkeyPatch) -> None:
    net = tt.Sequential(tt.LIF(N, HIDDEN, **F64), nn.Identity(), tt.LI(HIDDEN, M, **F64))
    y = net.window(spikes(3, LANES))
    monkeypatch.setattr("tracetorch.nn.row.Row._reverse", None)
    with kernels.reference():
        net.backward(torch.ones_like(y))


def test_bits_are_taken_up_again_after_other_input() -> None:
    net = model()
    x = spikes(80, LANES)

    def kept_as_bits() -> bool:
        return net[0]._segments[-1].tape.place.spikes is not None

    net.window(x)
    assert kept_as_bits()
    bad = x.clone()
    bad[3, 1, 2] = torch.nan
    with pytest.raises(ValueError, match="finite"):
        net.window(bad)
    net.window(x)
    assert kept_as_bits()
    net.window(0.5 * x)
    assert not kept_as_bits()
    net.reset()
    net.window(x)
    assert kept_as_bits()


def test_gradients_are_there_when_all_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    net = model()
    y = net.window(spikes(kernels.WIDE, LANES))

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tracetorch.nn.row.Row._weight_gradient", interrupted)
    with contextlib.suppress(KeyboardInterrupt):
        net.backward(torch.ones_like(y))
    assert all(p.grad is None for p in net.parameters())


def test_shallow_copies_have_a_state_of_their_own() -> None:
    layer = tt.LIF(N, HIDDEN, **F64)
    layer.window(spikes(3, LANES))
    twin = copy.copy(layer)
    before = twin.mem.clone()
    for _ in range(3):
        layer.window(spikes(3, LANES, seed=7))
    assert torch.equal(twin.mem, before)


def test_another_default_device_changes_nothing() -> None:
    net = model()
    with torch.device("meta"):
        y = net.window(torch.ones(3, LANES, N, device="cpu", **F64))
        net.backward(torch.ones(3, LANES, M, device="cpu", **F64), input_signal=True)
    assert y.device.type == "cpu"
    assert all(p.grad.device.type == "cpu" for p in net.parameters())


def test_buffers_go_where_tapes_are_compact() -> None:
    net = model()
    learn(net, 3)
    assert net._row is not None
    net.compact = True
    learn(net, 3)
    assert net._row is None


@pytest.mark.parametrize("rule", [tt.InputTrace(), tt.Truncated()])
@pytest.mark.parametrize("size", [1.0, 0.5])
def test_single_steps_of_many_lanes(rule: tt.rules.Rule, size: float) -> None:
    def run() -> list[Tensor]:
        net, seen = model(rule=rule), []
        for i, steps in enumerate((1, 1, 3, 1)):
            y = net.window(size * spikes(steps, 130, seed=i))
            net.backward(torch.sin(torch.arange(y.numel(), **F64)).view_as(y))
            seen.append(y)
        return seen + [p.grad for p in net.parameters() if p.grad is not None]

    assert_same(run)


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("step", [False, True])
def test_a_warning_of_large_states_points_to_the_call(reference: bool, step: bool) -> None:
    net = model()
    net.state_limit = 1
    with (
        kernels.reference() if reference else contextlib.nullcontext(),
        pytest.warns(UserWarning, match="limit") as seen,
    ):
        net(spikes(LANES)) if step else net.window(spikes(2, LANES))
    assert {warning.filename for warning in seen} == {__file__}


def test_windows_of_other_lengths_share_what_nobody_reads_afterwards() -> None:
    net = model()
    for steps in (90, 7, 40, 7):
        net.window(spikes(steps, LANES))
        net.backward(torch.ones(steps, LANES, M, **F64))
    assert net._row is not None
    places = {pair.scratch[0].memory.data_ptr() for pair in net._row.pairs.values()}
    assert len(net._row.pairs) == 2
    assert len(places) == 1
