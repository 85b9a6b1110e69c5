"""The slow, obviously right way, and the tools to compare with it.

`bptt_gradients` unrolls a model over time and lets autograd do the rest. It shares no code with the layers' own scans
and rules: use it to test a rule, a neuron or a model of your own.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .nn import LI, LIF, Concat, Softmax
from .nn.layer import Layer
from .nn.online import Online, probe_of
from .nn.streaming import forked_random_numbers, full_precision

Gradients = dict[str, Tensor]
"""Gradients by parameter name, as in `named_parameters()`."""


# -- the reference -----------------------------------------------------------------------------------------------------


class _Spike(torch.autograd.Function):
    """A step forwards, the surrogate's slope backwards."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, spike: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(u)
        ctx.slope = slope
        return spike(u)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (u,) = ctx.saved_tensors
        return grads[0] * ctx.slope(u), None, None


def bptt_gradients(model: Online, x: Tensor, ls: Tensor, *, input_gradient: bool = False) -> Gradients:
    """The gradient of `sum(ls * y)` by backpropagation through time, reset detached, from rest.

    For a `Softmax`, y stands for its probabilities (straight through the sample). What draws random numbers on the way
    must draw the same here and in the model: give a `Softmax` inside a generator of its own; a `Dropout` in training
    mode cannot be compared.

    Args:
        model: any layer or model of tracetorch; neither it nor its `.grad` is changed.
        x: (T, B, n) input.
        ls: (T, B, m) learning signal dL/dy.
        input_gradient: also return dL/dx, as "x".

    Returns:
        The gradient of every parameter that is not frozen; zero where the output does not depend on it.

    Raises:
        NotImplementedError: a layer that this reference does not know.
    """
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        full_precision(x),
        forked_random_numbers(x),
    ):
        leaf = x.detach().clone().requires_grad_(input_gradient)
        outputs = _unroll(model, list(leaf))
        total = sum((signal * y).sum() for signal, y in zip(ls, outputs, strict=True))
        wanted = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if input_gradient:
            wanted["x"] = leaf  # type: ignore[assignment]
        gradients = torch.autograd.grad(total, list(wanted.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(wanted, gradients, strict=True))


def _unroll(module: nn.Module, xs: list[Tensor]) -> list[Tensor]:
    """Run a module over a list of steps (B, n) under autograd."""
    if isinstance(module, LIF):
        return _unroll_lif(module, xs)
    if isinstance(module, Softmax):
        return _unroll_softmax(module, xs)
    if isinstance(module, LI):
        return _unroll_li(module, xs)
    if isinstance(module, Concat):
        branches = [_unroll(child, xs) for child in module]
        return [torch.cat(ys, -1) for ys in zip(*branches, strict=True)]
    if isinstance(module, Online) and isinstance(module, nn.Sequential):
        for child in module:
            xs = _unroll(child, xs)
        return xs
    if isinstance(module, Online):
        raise NotImplementedError(
            f"bptt_gradients: expected LIF, LI, Softmax, Sequential, Concat and stateless modules, "
            f"got {type(module).__name__}."
        )
    return [module(x) for x in xs]


def _unroll_lif(layer: LIF, xs: list[Tensor]) -> list[Tensor]:
    beta, theta = _beta(layer), _threshold(layer)
    v = torch.zeros((), dtype=beta.dtype, device=beta.device)
    u: Tensor | None = layer.recurrent_weight
    if u is not None and not layer.self_connections:
        u = u * (1 - torch.eye(len(u), dtype=u.dtype, device=u.device))
    spikes: list[Tensor] = []
    for x in xs:
        p = beta * v + layer.synapse(x)
        if u is not None and spikes:
            p = p + F.linear(spikes[-1], u)
        s = _Spike.apply(p - theta, layer.surrogate.spike, layer.surrogate.slope)  # type: ignore[no-untyped-call]
        v = p - theta * s.detach()
        spikes.append(s)
    return spikes


def _unroll_li(layer: Layer, xs: list[Tensor]) -> list[Tensor]:
    beta = _beta(layer)
    v = torch.zeros((), dtype=beta.dtype, device=beta.device)
    membranes = []
    for x in xs:
        v = beta * v + layer.synapse(x)
        membranes.append(v)
    return membranes


def _unroll_softmax(layer: Softmax, xs: list[Tensor]) -> list[Tensor]:
    generator = copy.deepcopy(layer.neuron.generator)
    outputs = []
    for v in _unroll_li(layer, xs):
        pi = torch.softmax(v, dim=-1)
        draw = torch.rand(v.shape[0], 1, dtype=v.dtype, generator=generator, device=v.device)
        sample = (pi.cumsum(-1) <= draw).sum(-1).clamp(max=v.shape[-1] - 1)
        outputs.append(F.one_hot(sample, v.shape[-1]) + pi - pi.detach())
    return outputs


def _beta(layer: Layer) -> Tensor:
    return torch.sigmoid(layer.raw_beta) if layer.learns("beta") else layer.beta  # type: ignore[arg-type]


def _threshold(layer: LIF) -> Tensor:
    if layer.learns("threshold"):
        return F.softplus(layer.raw_threshold)  # type: ignore[arg-type]
    assert layer.threshold is not None
    return layer.threshold


# -- what is compared --------------------------------------------------------------------------------------------------


def online_gradients(model: Online, x: Tensor, ls: Tensor, window: int, *, input_gradient: bool = False) -> Gradients:
    """What `model.backward` accumulates from rest, when x and ls are cut into windows.

    Args:
        model: any layer or model of tracetorch; a copy of it is run.
        x: (T, B, n) input.
        ls: (T, B, m) learning signal dL/dy.
        window: K, the steps per window; the last one may be shorter. 1 runs single steps.
        input_gradient: also return the windows' dL/dx, as "x".

    Returns:
        The gradient of every parameter that is not frozen.
    """
    with probe_of(model) as probe:
        probe.zero_grad()
        below = _run_in_windows(probe, x, ls, window, input_gradient)
    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in probe.named_parameters()
        if p.requires_grad
    }
    if input_gradient:
        gradients["x"] = torch.cat([signal for signal in below if signal is not None])
    return gradients


def _run_in_windows(model: Online, x: Tensor, ls: Tensor, window: int, input_gradient: bool) -> list[Tensor | None]:
    below = []
    for x_window, ls_window in zip(torch.split(x, window), torch.split(ls, window), strict=True):
        if window == 1:
            model(x_window[0])
            signal = model.backward(ls_window[0], input_signal=input_gradient)
            below.append(None if signal is None else signal[None])
        else:
            model.window(x_window)
            below.append(model.backward(ls_window, input_signal=input_gradient))
    return below


@dataclass(frozen=True)
class Comparison:
    """Two gradients of one parameter."""

    name: str
    cosine: float
    norm_ratio: float  # of the actual to the expected
    worst_index: tuple[int, ...]  # where they differ most
    worst_actual: float
    worst_expected: float

    def __str__(self) -> str:
        return (
            f"{self.name}: cosine {self.cosine:.6f}, norm ratio {self.norm_ratio:.6f}, worst entry "
            f"{self.worst_index}: {self.worst_actual:.10g} where {self.worst_expected:.10g} was expected"
        )


def compare(actual: Gradients, expected: Gradients) -> list[Comparison]:
    """Compare gradients parameter by parameter.

    Raises:
        ValueError: the names or shapes differ.

    >>> print(compare({"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([1.0, 0.0])})[0])
    w: cosine 0.447214, norm ratio 2.236068, worst entry (1,): 2 where 0 was expected
    """
    if actual.keys() != expected.keys():
        raise ValueError(
            f"compare: expected gradients of the same parameters, got {sorted(actual)} and {sorted(expected)}."
        )
    return [_compare_one(name, actual[name], expected[name]) for name in expected]


def _compare_one(name: str, actual: Tensor, expected: Tensor) -> Comparison:
    if actual.shape != expected.shape:
        raise ValueError(
            f"compare: expected {name} of one shape, got {tuple(actual.shape)} and {tuple(expected.shape)}."
        )
    a, e = actual.detach().double(), expected.detach().double()
    norm_a, norm_e = a.norm().item(), e.norm().item()
    if norm_a == 0 or norm_e == 0:
        cosine = float(norm_a == norm_e)
        ratio = 1.0 if norm_a == norm_e else norm_a / norm_e if norm_e else float("inf")
    else:
        cosine, ratio = (a * e).sum().item() / (norm_a * norm_e), norm_a / norm_e
    worst = tuple(int(i) for i in torch.unravel_index((a - e).abs().argmax(), a.shape)) if a.ndim else ()
    return Comparison(name, cosine, ratio, worst, a[worst].item(), e[worst].item())


def assert_gradients_close(actual: Gradients, expected: Gradients, *, rtol: float = 1e-10, atol: float = 1e-10) -> None:
    """Assert that gradients agree entry by entry: `|actual - expected| <= atol + rtol * |expected|`.

    Raises:
        AssertionError: naming every parameter that differs, with cosine, norm ratio and worst entry.

    >>> assert_gradients_close({"w": torch.ones(2)}, {"w": torch.ones(2)})
    """
    differing = [
        comparison
        for comparison in compare(actual, expected)
        if not torch.allclose(
            actual[comparison.name].double(), expected[comparison.name].double(), rtol=rtol, atol=atol
        )
    ]
    if differing:
        raise AssertionError("gradients differ:\n" + "\n".join(map(str, differing)))


# -- controls ----------------------------------------------------------------------------------------------------------


def spike_rates(model: Online, x: Tensor) -> dict[str, Tensor]:
    """The mean spikes per step of each neuron (m,), by layer, when a copy of the model runs x (T, B, n) from rest."""
    with forked_random_numbers(x), probe_of(model) as probe:
        probe.window(x)
    return {
        name or type(layer).__name__: layer.neuron.output(layer._segments[-1].tape).mean((0, 1))
        for name, layer in cast(dict[str, Layer], probe._layers()).items()
        if layer.threshold is not None
    }


def assert_alive(model: Online, x: Tensor, *, low: float = 0.005, high: float = 0.95) -> None:
    """Assert that every spiking layer fires, and not always: a silent network passes every comparison.

    Args:
        model: any layer or model of tracetorch; a copy of it is run.
        x: (T, B, n) input.
        low: the least mean rate of a layer (spikes per step).
        high: the highest.

    Raises:
        AssertionError: naming the layers that are silent or saturated, and their rates.
    """
    rates = {name: rate.mean().item() for name, rate in spike_rates(model, x).items()}
    dead = {name: f"{rate:.4f}" for name, rate in rates.items() if not low <= rate <= high}
    if dead:
        raise AssertionError(
            f"expected every spiking layer to fire between {low} and {high} spikes per step, got {dead}. "
            f"model.calibrate(x) scales the weights to the data."
        )


class LiveStorage(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensor storage that operations within this context returned and that still lives.

    That is what they made, and what they returned views of.

    >>> with LiveStorage() as live:
    ...     kept = torch.zeros(256)
    ...     _ = torch.ones(1024).sum().item()
    >>> live.bytes
    1024
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._storages: dict[int, tuple[weakref.ref[torch.UntypedStorage], int]] = {}

    @property
    def bytes(self) -> int:
        """The bytes that are alive now."""
        return sum(size for reference, size in self._storages.values() if reference() is not None)

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and note the storages of what it returns."""
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        self._storages[key] = (weakref.ref(storage, lambda _: self._storages.pop(key, None)), storage.nbytes())
