"""Compact tapes: the same gradients from few bytes."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tracetorch as tt
from cases import F64
from tracetorch import kernels
from tracetorch.functional import spikes
from tracetorch.nn.compact import CompactTape

N, HIDDEN, M, LANES = 9, 7, 3, 2
RULES = [tt.InputTrace(), tt.Truncated(), tt.MeanField(), tt.MeanRate(), tt.Eligibility()]
NEURONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "strict": {"firing": tt.firing.StrictSpike()},
    "learned": {"learn_beta": True, "learn_threshold": True},
    "recurrent": {"recurrent": True, "learn_beta": True},
    "zero": {"reset": "zero", "learn_beta": True},
    "delayed": {"reset_delay": True, "learn_threshold": True},
    "drawn": {"firing": tt.firing.EscapeNoise(0.2, torch.Generator())},
}


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 9), (2, 1, 64), (5, 6, 65)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activity", [0.0, 0.3, 1.0])
def test_bits_give_the_spikes_back(shape: tuple[int, ...], dtype: torch.dtype, activity: float) -> None:
    x = (torch.rand(shape) < activity).to(dtype)
    window, reference = kernels.packed(x), spikes.packed(x)
    assert window is not None
    assert reference is not None
    assert torch.equal(window.words, reference.words)
    assert window[1:] == reference[1:] == (shape, int(x.sum()))
    assert torch.equal(kernels.unpacked(window, dtype), x)
    assert torch.equal(spikes.unpacked(window, dtype), x)


@pytest.mark.parametrize("value", [0.5, 2.0, -1.0, torch.nan, torch.inf, 1e-40])
def test_other_numbers_are_not_bits(value: float) -> None:
    x = torch.ones(2, 1, 70)
    x[1, 0, 66] = value
    assert kernels.packed(x) is None


def model(rule: tt.rules.Rule, neuron: dict[str, Any], layer: type[tt.nn.Layer] = tt.LIF) -> tt.Sequential:
    torch.manual_seed(0)
    return tt.Sequential(
        layer(N, HIDDEN, beta=0.8, **neuron, **F64),
        tt.LIF(HIDDEN, HIDDEN, beta=0.9, **F64),
        tt.LI(HIDDEN, M, beta=0.95, learn_beta=True, **F64),
        rule=rule,
    )


def gradients(net: tt.Sequential, compact: bool, windows: list[int], horizon: int | None, binary: bool) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    for part in net.modules():
        if isinstance(part, tt.LIF) and isinstance(part.neuron.form.firing, tt.firing.EscapeNoise):
            part.neuron.form.firing.generator.manual_seed(2)
    net.compact, net.horizon = compact, horizon
    seen = []
    for i, steps in enumerate(windows):
        x = torch.rand(steps, LANES, N, generator=generator, **F64)
        y = net.window((x < 0.4).double() if binary else x)
        signal = net.backward(torch.sin(torch.arange(y.numel(), **F64)).view_as(y), input_signal=True)
        assert signal is not None
        seen += [y, signal]
        if i == 1:
            net.reset(torch.tensor([True, False]))
    return [*seen, *(p.grad for p in net.parameters() if p.grad is not None)]


def assert_same(one: list[Tensor], other: list[Tensor]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("name", NEURONS)
@pytest.mark.parametrize("horizon", [None, 7])
def test_gradients_are_those_of_plain_tapes(rule: tt.rules.Rule, name: str, horizon: int | None) -> None:
    try:
        nets = [model(rule, NEURONS[name]) for _ in range(2)]
    except ValueError:
        pytest.skip(f"{rule} does not serve these neurons")
    for net in nets:
        try:
            net.window(torch.ones(1, LANES, N, **F64))
        except ValueError:
            pytest.skip(f"{rule} does not serve these neurons")
        net.reset()
    plain, compact = (
        gradients(net, packed, [4, 1, 3, 5], horizon, binary=True)
        for net, packed in zip(nets, (False, True), strict=True)
    )
    assert_same(compact, plain)
    assert all(isinstance(segment.tape, CompactTape) for layer in nets[1] for segment in layer._segments)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=6), st.sampled_from([None, 1, 4, 9]), st.booleans(), st.booleans()
)
def test_whatever_the_windows(windows: list[int], horizon: int | None, binary: bool, reference: bool) -> None:
    found = []
    for compact in (False, True):
        net = model(tt.InputTrace(), NEURONS["learned"])
        if reference:
            with kernels.reference():
                found.append(gradients(net, compact, windows, horizon, binary))
        else:
            found.append(gradients(net, compact, windows, horizon, binary))
    assert_same(found[1], found[0])


@pytest.mark.parametrize("firing", [tt.firing.MultiSpike(), tt.firing.Graded()])
def test_other_outputs_are_kept_as_they_are(firing: tt.firing.Firing) -> None:
    found = []
    for compact in (False, True):
        net = model(tt.InputTrace(), {"firing": firing})
        net[0].synapse.weight.data.mul_(5)
        found.append(gradients(net, compact, [4, 3], 5, binary=True))
    assert_same(found[1], found[0])
    assert not isinstance(net[0]._segments[-1].tape, CompactTape)


def test_convolutions_and_stateless_modules_too() -> None:
    def made() -> tt.Sequential:
        torch.manual_seed(0)
        return tt.Sequential(
            tt.LIF(synapse=nn.Conv2d(1, 2, 3, **F64), beta=0.8),
            nn.Flatten(),
            tt.Synaptic(18, 4, beta=0.8, alpha=0.5, learn_alpha=True, **F64),
            tt.ALIF(4, 4, beta=0.8, rho=0.9, **F64),
            tt.Softmax(4, M, beta=0.9, generator=torch.Generator().manual_seed(3), **F64),
        )

    x = (torch.rand(9, LANES, 1, 5, 5, **F64) < 0.5).double()
    found = []
    for compact in (False, True):
        net = made()
        net.compact, net.horizon = compact, 6
        for window in x.split(3):
            net.window(window)
            net.backward(torch.linspace(-1, 1, 3 * LANES * M, **F64).view(3, LANES, M))
        found.append([p.grad for p in net.parameters() if p.grad is not None])
    assert_same(found[1], found[0])


@pytest.mark.parametrize("steps", [1, 6])
def test_tapes_are_compact_from_the_call_after_it_was_asked_for(steps: int) -> None:
    net = tt.Sequential(tt.LIF(N, HIDDEN, beta=0.8, **F64), tt.LI(HIDDEN, M, **F64))
    x = torch.ones(steps, LANES, N, **F64)

    def call() -> None:
        net.window(x)
        assert all(isinstance(layer._segments[-1].tape, CompactTape) == net.compact for layer in net)

    for compact in (False, True, False):
        net.compact = compact
        for _ in range(4):  # those after the first ones go the way of the ones before
            call()


def test_spikes_stay_when_weights_change() -> None:
    """Membranes are those of the new weights, and resets those of the spikes that there were."""
    net = tt.LIF(N, HIDDEN, beta=0.8, **F64)
    net.compact = True
    x = (torch.rand(6, LANES, N, **F64) < 0.4).double()
    y = net.window(x)
    net.weight.data.mul_(1.5)
    tape = net._segments[-1].tape.opened()
    v = torch.zeros(LANES, HIDDEN, **F64)
    for t in range(6):
        u = 0.8 * v + net.synapse(x[t]) - net.threshold
        torch.testing.assert_close(tape.record.u[t], u.detach())
        v = (u + net.threshold * (1 - y[t])).detach()


def test_membranes_are_recalled_or_kept_not_both() -> None:
    net = tt.LIF(N, HIDDEN, beta=0.8, **F64)
    net.compact = True
    y = net.window((torch.rand(6, LANES, N, **F64) < 0.4).double())
    segment = net._segments[-1]
    tape = segment.tape.opened()
    recall = tape.recall()
    assert recall is not None
    assert torch.equal(kernels.unpacked(recall.emitted, torch.float64), y)
    torch.testing.assert_close(recall.current[0] - 1, tape.record.u[0])
    assert tape.recall() is None
    ls = torch.randn_like(y)
    recalled, kept = (net.neuron.reverse(each, ls, ()) for each in (segment.tape.opened(), tape))
    torch.testing.assert_close(recalled, kept)


def test_a_sum_over_windows_takes_the_sparse_way() -> None:
    found = []
    for compact in (False, True):
        torch.manual_seed(0)
        net = tt.Sequential(tt.LIF(200, 150, beta=0.8), tt.LI(150, M))
        net.compact, net.horizon = compact, 30
        generator = torch.Generator().manual_seed(1)
        for _ in range(4):
            y = net.window((torch.rand(10, 30, 200, generator=generator) < 0.1).float())
            net.backward(torch.ones_like(y))
        spikes = net[0]._segments[-1].tape.spikes if not compact else net[0]._segments[-1].tape.x
        assert kernels.cpu_for(y).sparse_gradient_pays(300, 200, 150, spikes.ones, torch.float32)
        found.append([p.grad for p in net.parameters()])
    for a, b in zip(*found, strict=True):
        assert (a - b).abs().max() < 1e-6 * a.abs().max()


def test_bytes_are_a_tenth_or_less() -> None:
    def net() -> tt.Sequential:
        return tt.Sequential(tt.LIF(784, 512), tt.LIF(512, 512), tt.LI(512, 10))

    plain, compact = net(), net()
    compact.compact = True
    assert compact.tape_bytes(32, 256) < plain.tape_bytes(32, 256) / 30
    plain.horizon = compact.horizon = 256
    assert compact.tape_bytes(32, 32) < plain.tape_bytes(32, 32) / 20


def test_models_of_models_and_slices_of_them_say_so() -> None:
    inner = tt.Sequential(tt.LIF(N, 4, **F64))
    net = tt.Sequential(inner, tt.LI(4, M, **F64))
    net.compact = True
    net.window(torch.ones(2, 1, N, **F64))
    assert isinstance(inner[0]._segments[-1].tape, CompactTape)
    assert net[:1].compact
