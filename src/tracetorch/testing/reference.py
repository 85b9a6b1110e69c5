"""The slow, obviously right way: a model unrolled over time, and autograd.

It shares no code with the layers' own scans and rules.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..functional.firing import Firing
from ..functional.surrogate import Surrogate
from ..nn import LI, LIF, Concat, Parallel, Softmax
from ..nn.constraint import Positive
from ..nn.layer import Layer
from ..nn.online import Online
from ..nn.streaming import forked_random_numbers, full_precision

Gradients = dict[str, Tensor]
"""Gradients by parameter name, as in `named_parameters()`."""


# -- the reference -----------------------------------------------------------------------------------------------------


class _Slope(torch.autograd.Function):
    """A value forwards, a slope backwards."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, value: Tensor, slope: Tensor) -> Tensor:  # noqa: ARG004
        ctx.save_for_backward(slope)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return grads[0] * slope, None, None


def bptt_gradients(
    model: Online,
    x: Tensor,
    ls: Tensor,
    *,
    input_gradient: bool = False,
    reset: Literal["detached", "attached"] = "detached",
) -> Gradients:
    """The gradient of `sum(ls * y)` by backpropagation through time, from rest.

    For a `Softmax`, y stands for its probabilities (straight through the sample). What draws random numbers on the way
    must draw the same here and in the model: give a `Softmax` inside a generator of its own; a `Dropout` in training
    mode cannot be compared.

    Args:
        model: any layer or model of tracetorch; neither it nor its `.grad` is changed.
        x: (T, B, n) input.
        ls: (T, B, m) learning signal dL/dy.
        input_gradient: also return dL/dx, as "x".
        reset: "detached" passes no gradient through the spike that resets the membrane, as the rules do, but for
            layers with reset_gradient="attached"; "attached" does in all, which is another gradient.

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
        outputs = _unroll(model, list(leaf), reset == "attached")
        total = sum((signal * y).sum() for signal, y in zip(ls, outputs, strict=True))
        wanted = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if input_gradient:
            wanted["x"] = leaf  # type: ignore[assignment]
        gradients = torch.autograd.grad(total, list(wanted.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(wanted, gradients, strict=True))


_UNROLLED: dict[type[nn.Module], Callable[[Any, list[Tensor]], list[Tensor]]] = {}


def register_unrolled(kind: type[Online], unrolled: Callable[[Any, list[Tensor]], list[Tensor]]) -> None:
    """Let `bptt_gradients` run a layer of your own.

    Args:
        kind: the layer's exact type.
        unrolled: layer, the inputs of all steps (B, ...) -> the outputs of all steps, in plain torch under autograd and
            from rest. `value(layer, name)` gives a parameter as a function of what is learned; `pseudo_spike(u,
            surrogate)` a spike with the surrogate's slope.
    """
    _UNROLLED[kind] = unrolled


def pseudo_spike(u: Tensor, surrogate: Surrogate) -> Tensor:
    """The surrogate's spike forwards, its slope backwards.

    >>> from tracetorch.functional.surrogate import ArcTan
    >>> u = torch.tensor([0.5], requires_grad=True)
    >>> s = pseudo_spike(u, ArcTan(width=0.5))
    >>> s.item(), torch.autograd.grad(s, u)[0].item()
    (1.0, 0.5)
    """
    slopes: Tensor = _Slope.apply(u, surrogate.spike(u.detach()), surrogate.slope(u.detach()))  # type: ignore[no-untyped-call]
    return slopes


def _unroll(module: nn.Module, xs: list[Tensor], attached: bool) -> list[Tensor]:
    """Run a module over a list of steps (B, n) under autograd."""
    own = _UNROLLED.get(type(module))
    if own is not None:
        return own(module, xs)
    if isinstance(module, LIF):
        return _unroll_lif(module, xs, attached)
    if isinstance(module, Softmax):
        return _unroll_softmax(module, xs)
    if isinstance(module, LI):
        return _unroll_li(module, xs)
    if isinstance(module, Concat | Parallel):
        branches = zip(*[_unroll(child, xs, attached) for child in module], strict=True)
        if isinstance(module, Parallel):
            return [torch.stack(ys).sum(0) for ys in branches]
        return [torch.cat(ys, module.dim if module.dim < 0 else module.dim + 1) for ys in branches]
    if isinstance(module, Online) and isinstance(module, nn.Sequential):
        for child in module:
            xs = _unroll(child, xs, attached)
        return xs
    if isinstance(module, Online):
        raise NotImplementedError(
            f"bptt_gradients: expected layers and models of tracetorch and stateless modules, got "
            f"{type(module).__name__}. Give its unrolled form: testing.register_unrolled({type(module).__name__}, ...)."
        )
    return [module(x) for x in xs]


def _unroll_lif(layer: LIF, xs: list[Tensor], attached: bool) -> list[Tensor]:
    form, firing = layer.neuron.form, copy.deepcopy(layer.firing)  # a generator of its own draws the same
    attached = attached or form.attached
    beta, theta = value(layer, "beta"), value(layer, "threshold")
    alpha, rho, kappa = (value(layer, name) if name in layer.values() else None for name in ("alpha", "rho", "kappa"))
    gain = 1 - beta if form.gain == "leak" else form.gain
    u: Tensor | None = layer.recurrent_weight
    if u is not None and not layer.self_connections:
        u = u * (1 - torch.eye(len(u), dtype=u.dtype, device=u.device))
    v = i = a = y_before = s_before = torch.zeros((), dtype=beta.dtype, device=beta.device)
    outputs: list[Tensor] = []
    for x in xs:
        current = layer.synapse(x)
        if u is not None and outputs:
            current = current + F.linear(y_before, u)
        i = current if alpha is None else alpha * i + current
        theta_t = theta if kappa is None else theta + kappa * a
        p = beta * v + gain * i
        if form.delayed:
            p = p - theta_t * (s_before if attached else s_before.detach())
        y, s = _fire(p - theta_t, theta_t, firing)
        s_reset = s if attached else s.detach()
        if form.reset == "zero":
            fired = (s_reset > 0).to(p) + s_reset - s_reset.detach()  # however often
            v = p * (1 - fired)
        elif form.reset == "none" or form.delayed:
            v = p
        else:
            v = p - theta_t * s_reset
        if rho is not None:
            a = rho * a + s
        y_before, s_before = y, s
        outputs.append(y)
    return outputs


def _fire(u: Tensor, theta: Tensor, firing: Firing) -> tuple[Tensor, Tensor]:
    """The output and the number of spikes, with the slopes of both."""
    with torch.no_grad():
        y = firing.emit(u, theta)
        s, slope, count_slope = firing.count(y), firing.slope(u, theta), firing.count_slope(u, theta)
    return _Slope.apply(u, y, slope), _Slope.apply(u, s, count_slope)  # type: ignore[no-untyped-call]


def _unroll_li(layer: Layer, xs: list[Tensor]) -> list[Tensor]:
    beta = value(layer, "beta")
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


def value(layer: Layer, name: str) -> Tensor:
    """A parameter's value as a function of what is learned, () or one per neuron, one per channel as (C, 1, ...).

    Args:
        layer: a layer of tracetorch, or of your own.
        name: such as "beta".
    """
    if layer.learns(name):
        raw = cast(Tensor, getattr(layer, f"raw_{name}"))
        found = F.softplus(raw) if layer._constraints[name] is Positive else torch.sigmoid(raw)
    else:
        found = cast(Tensor, layer._constrained(name))
    positions = [1] * (len(layer._known_shapes()[1]) - 1)
    return found.reshape(-1, *positions) if found.ndim else found
