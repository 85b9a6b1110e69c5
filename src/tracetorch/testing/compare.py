"""Gradients beside gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..nn.online import Online, probe_of
from .reference import Gradients


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
