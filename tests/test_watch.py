"""Calls that are like the one before: whatever is changed between two of them, the plain way does the same."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from cases import F64
from test_rows import HIDDEN, LANES, M, N, assert_same, model, outcome, spikes
from tracetorch import kernels
from tracetorch.nn.row import PATTERNS

Net = tt.Sequential
Change = Callable[[Net], Any]


def linear(n: int, m: int, seed: int = 3) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(n, m, **F64)


def lif(n: int, m: int, **options: Any) -> tt.LIF:
    return tt.LIF(synapse=linear(n, m), beta=0.7, **options)


def replace_in_buffers(net: Net) -> None:
    net[1]._buffers["constant_beta"] = torch.tensor(0.3, **F64)


def replace_in_modules(net: Net) -> None:
    net._modules["1"] = lif(HIDDEN, HIDDEN)
    net.reset()


def set_data(net: Net) -> None:
    net[1].synapse.weight.data = net[1].synapse.weight.data * 1.5


def transpose(net: Net) -> None:
    net[1].synapse.weight.data = net[1].synapse.weight.data.t()


def replace_forward(net: Net) -> None:
    plain = net[1].synapse.forward
    net[1].synapse.forward = lambda x: 2 * plain(x)


def hook(net: Net) -> None:
    net[0].synapse.register_forward_hook(lambda _module, _taken, y: y + 0.5)


def call_with_other_betas(net: Net) -> Tensor:
    return torch.func.functional_call(net, {"0.constant_beta": torch.tensor(0.2, **F64)}, (spikes(LANES),))


def in_autocast(net: Net) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return net(spikes(LANES))


def plainly(net: Net) -> Tensor:
    with kernels.reference():
        return net(spikes(LANES))


def without_learning(net: Net) -> Tensor:
    with tt.no_learning():
        return net(spikes(LANES))


def in_inference(net: Net) -> Tensor:
    with torch.inference_mode():
        return net(spikes(LANES)).clone()


def give_gradients(make: Callable[[Tensor], Tensor]) -> Change:
    def change(net: Net) -> None:
        for p in net.parameters():
            p.grad = make(p.detach())

    return change


def frozen(wanted: bool, *names: str) -> Change:
    def change(net: Net) -> None:
        for name, p in net.named_parameters():
            if not names or name in names:
                p.requires_grad_(wanted)

    return change


def to_the_weights(net: Net) -> None:
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1.1)


CHANGES: dict[str, Change] = {
    "nothing": lambda _: None,
    "weights change": to_the_weights,
    "another weight": lambda net: setattr(net[1].synapse, "weight", nn.Parameter(torch.ones(HIDDEN, HIDDEN, **F64))),
    "another bias": lambda net: setattr(net[2].synapse, "bias", nn.Parameter(torch.ones(M, **F64))),
    "no bias": lambda net: setattr(net[0].synapse, "bias", None),
    "other data": set_data,
    "data the other way round": transpose,
    "another synapse": lambda net: setattr(net[1], "synapse", linear(HIDDEN, HIDDEN)),
    "another neuron": lambda net: (setattr(net[0], "neuron", lif(N, HIDDEN, reset="zero").neuron), net.reset())[1],
    "another rule": lambda net: setattr(net[0], "rule", tt.Truncated()),
    "the model's rule": lambda net: setattr(net, "rule", tt.MeanField()),
    "another beta": lambda net: net[0].constant_beta.fill_(0.5),
    "another beta by name": lambda net: setattr(net[0], "constant_beta", torch.tensor(0.6, **F64)),
    "another buffer": replace_in_buffers,
    "a hook": hook,
    "another forward": replace_forward,
    "another layer": lambda net: net.__setitem__(1, lif(HIDDEN, HIDDEN)),
    "another layer among the modules": replace_in_modules,
    "one layer less": lambda net: net.__delitem__(1),
    "eval and back": lambda net: (net.eval(), net(spikes(LANES)), net.train())[1],
    "a horizon": lambda net: setattr(net, "horizon", 5),
    "compact tapes": lambda net: setattr(net, "compact", True),
    "one layer alone": lambda net: net[0](spikes(LANES)),
    "no checks": lambda net: setattr(net, "check_finite", False),
    "another limit": lambda net: setattr(net, "state_limit", 10**9),
    "no gradients": lambda net: net.zero_grad(),
    "gradients of zero": lambda net: net.zero_grad(False),
    "other gradients": give_gradients(torch.ones_like),
    "gradients that lie otherwise": give_gradients(lambda p: torch.ones_like(p).t().contiguous().t()),
    "gradients that need one": give_gradients(lambda p: torch.ones_like(p).requires_grad_()),
    "some frozen": frozen(False, "0.synapse.weight", "0.synapse.bias", "1.synapse.weight"),
    "all frozen": frozen(False),
    "a mask": lambda net: net.reset(torch.arange(LANES) % 2 == 0),
    "forgotten": lambda net: net.reset(),
    "saved and loaded": lambda net: net.load_stream_state(net.stream_state()),
    "to float64": lambda net: net.to(torch.float64),
    "one layer's own": lambda net: net[1].double(),
    "other betas for one call": call_with_other_betas,
    "autocast": in_autocast,
    "a call by the reference": plainly,
    "a call without learning": without_learning,
    "a call in inference mode": in_inference,
    "a parameter's gradient type": lambda net: net.requires_grad_(True),
    "a refused call": lambda net: outcome(lambda: net(spikes(LANES) * torch.nan)),
    "a refused signal": lambda net: outcome(lambda: net.backward(torch.full((LANES, M), torch.inf, **F64))),
    "input that lies otherwise": lambda net: net(spikes(LANES).t().contiguous().t()),
    "input of truth values": lambda net: net(spikes(LANES) > 0),
    "input that is not 0 or 1": lambda net: net(0.3 * spikes(LANES)),
    "input that requires grad": lambda net: outcome(lambda: net(spikes(LANES).requires_grad_())),
}
SIZES = {"step": 1, "few": 3, "wide": 70}


def one(net: Net, steps: int, seed: int, between: Change = lambda _: None) -> list[Tensor]:
    """A call and its backward: the output, and copies of the gradients."""
    x = spikes(steps, LANES, seed=seed)
    y = net(x[0]) if steps == 1 else net.window(x)
    between(net)
    net.backward(torch.sin(torch.arange(y.numel(), **F64)).view_as(y))
    return [y, *(p.grad.clone() for p in net.parameters() if p.grad is not None)]


def seen_of(came: Any) -> list[Tensor]:
    return [came] if isinstance(came, Tensor) else []


@pytest.mark.parametrize("steps", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_between_calls_is_seen(change: Change, steps: int) -> None:
    def run() -> list[Tensor]:
        net, seen = model(), []
        for seed in range(4):
            seen += one(net, steps, seed)
        seen += seen_of(change(net))
        for seed in range(4, 8):
            seen += one(net, steps, seed)
        return seen

    assert_same(run)


@pytest.mark.parametrize("steps", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_before_backward_is_seen(change: Change, steps: int) -> None:
    def run() -> list[Any]:
        net, seen = model(), []
        for seed in range(4):
            seen += one(net, steps, seed)
        came = outcome(lambda: one(net, steps, 4, change))
        seen += came if isinstance(came, list) else [torch.tensor(float("nan"))]
        came = outcome(lambda: one(net, steps, 5))
        return seen + (came if isinstance(came, list) else [])

    def either() -> list[Tensor]:
        return [tensor.nan_to_num(1234.5) for tensor in run()]

    assert_same(either)


@pytest.mark.parametrize("steps", SIZES.values(), ids=SIZES.keys())
def test_weights_cut_where_they_lie_are_refused_before_a_kernel_reads_them(steps: int) -> None:
    net = model()
    for seed in range(4):
        one(net, steps, seed)
    net.zero_grad()
    for p in net[-1].parameters():
        p.data = p.data[:-1]
    with pytest.raises(RuntimeError, match="must match the size"):
        one(net, steps, 4)
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("steps", SIZES.values(), ids=SIZES.keys())
def test_torch_is_told_what_is_added_to_gradients_that_need_one(steps: int) -> None:
    net = model()
    for seed in range(4):
        one(net, steps, seed)
    for p in net.parameters():
        p.grad = torch.zeros_like(p).requires_grad_()
    one(net, steps, 4)
    assert all(p.grad._version > 0 for p in net.parameters())


def test_what_is_kept_does_not_grow_with_the_ways_to_freeze() -> None:
    def run() -> list[Tensor]:
        net, seen = model(), []
        for seed in range(64):
            for bit, p in enumerate(net.parameters()):
                p.requires_grad_(not seed >> bit & 1)
            if seed % 17 == 0:
                net.requires_grad_(True)
            seen += one(net, 1 + 2 * (seed % 2), seed)
        if net._row is not None:
            kept = [buffers.backwards for pair in net._row.pairs.values() for buffers in pair.sets]
            assert 0 < max(map(len, kept)) <= PATTERNS
        return seen

    assert_same(run)


@pytest.mark.parametrize("steps", SIZES.values(), ids=SIZES.keys())
def test_streams_of_several_lengths_follow_each_other(steps: int) -> None:
    def run() -> list[Tensor]:
        net, seen = model(), []
        for seed in range(12):
            if seed % 5 == 0:
                net.reset()
            seen += one(net, 1 + (steps + seed) % 3 if seed % 4 == 3 else steps, seed)
            if seed == 7:
                net = copy.deepcopy(net)
        return seen

    assert_same(run)


def test_outputs_and_losses_belong_to_the_caller() -> None:
    net, kept = model(), []
    target = torch.tensor([0, 1])
    for seed in range(80):
        y = net(spikes(LANES, seed=seed))
        loss, ls = tt.loss.cross_entropy(y, target)
        net.backward(ls)
        kept += [(tensor, tensor.clone()) for tensor in (y, loss, ls)]
    for tensor, copied in kept:
        torch.testing.assert_close(tensor, copied, rtol=0, atol=0)
        tensor.add_(1)  # they share no memory
    assert len({tensor.data_ptr() for tensor, _ in kept}) == len(kept)


def test_tensors_made_ahead_are_no_inference_tensors() -> None:
    y, target = torch.zeros(2, 3), torch.tensor([0, 1])
    with torch.inference_mode():
        tt.loss.cross_entropy(y, target)
    loss, ls = tt.loss.cross_entropy(y, target)
    assert not loss.is_inference()
    assert not ls.is_inference()
