"""Losses that return `(loss, ls)`: the value, and the learning signal ls = dL/dy in y's shape.

Shapes: y is (K, B, m) from a window, (B, m) from a single step, or (m,) from a single step of a single lane. All losses
are the mean over lanes of the weighted sum over the window's steps. `weights` (K,) are by default uniform and sum to 1
over the window; when a sequence is cut into windows, give slices of weights made for the whole, such as `ramp(T)`.
Where sequences differ in length, they may be (K, B), each lane's own, or (B,) for a single step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from . import _checks, kernels


class Loss(NamedTuple):
    """A loss and its learning signal."""

    loss: Tensor  # ()
    ls: Tensor  # dL/dy, y's shape


def ramp(steps: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Tensor:
    """Weights (steps,) that grow linearly and sum to 1: `w_t = 2 t / (T (T + 1))`, t = 1..T.

    >>> ramp(3)
    tensor([0.1667, 0.3333, 0.5000])
    """
    _checks.at_least_one("loss.ramp", "steps", steps)
    weights = torch.arange(1, steps + 1, dtype=dtype or torch.get_default_dtype(), device=device)
    return weights / weights.sum()


def last(steps: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Tensor:
    """Weights (steps,) that are 1 at the last step and 0 before.

    >>> last(3)
    tensor([0., 0., 1.])
    """
    _checks.at_least_one("loss.last", "steps", steps)
    weights = torch.zeros(steps, dtype=dtype or torch.get_default_dtype(), device=device)
    weights[-1] = 1
    return weights


@torch.no_grad()
def mse(y: Tensor, target: Tensor, weights: Tensor | None = None) -> Loss:
    """Mean squared error: the mean over the m outputs of `(y - target)^2`.

    Args:
        y: (K, B, m), (B, m) or (m,).
        target: of y's shape, or (B, m) for every step of the window.
        weights: (K,) or (K, B), see the module.

    Raises:
        TypeError: y or target is not floating point.
        ValueError: the shapes do not fit.

    >>> mse(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]]))
    Loss(loss=tensor(0.5000), ls=tensor([[1., 0.]]))
    """
    where = "loss.mse"
    _checks.floating(where, "y", y)
    _checks.floating(where, "target", target)
    if target.shape not in (y.shape, y.shape[1:] if y.ndim == 3 else y.shape):
        raise ValueError(
            f"{where}: expected target of y's shape {tuple(y.shape)}, or the same for every step, "
            f"{tuple(y.shape[-2:])}, got {tuple(target.shape)}."
        )
    per_entry = _scale(where, y, weights) / y.shape[-1]
    error = y - target
    return Loss((per_entry * error.square()).sum(), 2 * per_entry * error)


def cross_entropy(
    y: Tensor, target: Tensor, weights: Tensor | None = None, *, of: Literal["logits", "probs"] = "logits"
) -> Loss:
    """Cross-entropy of class indices: `-log softmax(y)[target]`, or `-log y[target]` with `of="probs"`.

    Args:
        y: (K, B, m), (B, m) or (m,): logits, or probabilities.
        target: class indices, int64: (B,), or (K, B) for one at every step; () for (m,).
        weights: (K,) or (K, B), see the module.
        of: what y is.

    Raises:
        TypeError: y is not floating point, target not int64.
        ValueError: the shapes do not fit, a class that does not exist, another `of`.

    >>> cross_entropy(torch.zeros(1, 2), torch.tensor([0]))
    Loss(loss=tensor(0.6931), ls=tensor([[-0.5000,  0.5000]]))
    """
    where = "loss.cross_entropy"
    if of == "probs":
        return nll(y, target, weights)
    if of != "logits":
        raise ValueError(f"{where}: expected of to be 'logits' or 'probs', got {of!r}.")
    kind = _kind(y, target, weights)
    kernel = None if kind is None else _kernels.pop(kind, None)
    if kernel is None:
        _check_classes(where, y, target)
        if kind is None or not 0 < y.ndim <= 3 or y.numel() == 0 or (weights is not None and weights.dtype != y.dtype):
            return _cross_entropy(where, y, target, weights)
        if weights is not None:
            _check_weights(where, y, weights)
        kernel = cast(Any, kernels.cpu_for(y)).CrossEntropy(y, target, weights)
    loss, ls, low, high = kernel.of(y, target, weights)
    if len(_kernels) >= KEPT_KERNELS:
        _kernels.clear()
    _kernels[kind] = kernel
    _check_range(where, y, low, high)
    return Loss(loss, ls)


KEPT_KERNELS = 16
_kernels: dict[Any, Any] = {}  # of the cross-entropy, by the kinds of tensors; one that is in use is not in here


def _kind(y: Tensor, target: Tensor, weights: Tensor | None) -> Any:
    """What a kernel must know of the tensors, to be looked up by; None where none can read them."""
    if not _is_plain(y) or not _is_plain(target) or torch.is_inference_mode_enabled() or kernels.cpu_for(y) is None:
        return None
    if weights is None:
        return y.shape, y.dtype, target.shape, target.dtype
    return (y.shape, y.dtype, target.shape, target.dtype, weights.shape, weights.dtype) if _is_plain(weights) else None


def _is_plain(tensor: Tensor) -> bool:
    return isinstance(tensor, Tensor) and tensor.is_cpu and tensor.layout is torch.strided and tensor.is_contiguous()


@torch.no_grad()
def _cross_entropy(where: str, y: Tensor, target: Tensor, weights: Tensor | None) -> Loss:
    index = _class_index(where, y, target)
    scale = _scale(where, y, weights)
    log_probs = torch.log_softmax(y, dim=-1)
    one_hot = torch.zeros_like(y).scatter_(-1, index, 1)
    return Loss(-(scale * one_hot * log_probs).sum(), scale * (log_probs.exp() - one_hot))


@torch.no_grad()
def nll(probs: Tensor, target: Tensor, weights: Tensor | None = None) -> Loss:
    """Negative log-likelihood of probabilities: `-log probs[target]`.

    For a `Softmax` layer, give `layer.probs`: a sample has a probability of 0 or 1. A probability below the
    rounding unit of its dtype (1e-7 in float32) counts as that unit.

    Args:
        probs: (K, B, m), (B, m) or (m,).
        target: class indices, int64: (B,), or (K, B) for one at every step; () for (m,).
        weights: (K,) or (K, B), see the module.

    Raises:
        TypeError: probs is not floating point, target not int64.
        ValueError: the shapes do not fit, a class that does not exist.

    >>> nll(torch.tensor([[0.5, 0.5]]), torch.tensor([0]))
    Loss(loss=tensor(0.6931), ls=tensor([[-2.,  0.]]))
    """
    where = "loss.nll"
    index = _class_index(where, probs, target)
    scale = _scale(where, probs, weights)
    likelihood = probs.gather(-1, index).clamp(min=torch.finfo(probs.dtype).eps)
    ls = torch.zeros_like(probs).scatter_(-1, index, -(scale / likelihood))
    return Loss(-(scale * likelihood.log()).sum(), ls)


def signal(function: Callable[..., Tensor], y: Tensor, *args: Any) -> Loss:
    """The pair of any scalar torch function of y: `(function(y, *args), its gradient with respect to y)`.

    Runs autograd through `function` alone.

    Args:
        function: y, *args -> a tensor of shape ().
        y: what the model returned.
        args: handed on to `function`.

    Raises:
        TypeError: y is not floating point.
        ValueError: the function returned something that is not a scalar, or does not depend on y.

    >>> signal(lambda y: (y**2).sum(), torch.tensor([1.0, 2.0]))
    Loss(loss=tensor(5.), ls=tensor([2., 4.]))
    """
    where = "loss.signal"
    _checks.floating(where, "y", y)
    with torch.enable_grad():
        leaf = y.detach().requires_grad_()
        value = function(leaf, *args)
        if not isinstance(value, Tensor) or value.ndim or not value.requires_grad:
            came = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"{where}: expected function to return a scalar tensor computed from y, got {came}. "
                f"Take a sum or mean, and use torch operations throughout."
            )
        (ls,) = torch.autograd.grad(value, leaf, allow_unused=True)
        if ls is None:
            raise ValueError(f"{where}: expected function to compute its value from y, but it does not depend on y.")
    return Loss(value.detach(), ls)


def _scale(where: str, y: Tensor, weights: Tensor | None) -> Tensor:
    """The factor of each step and lane, weights / B, shaped to multiply y."""
    steps = y.shape[0] if y.ndim == 3 else 1
    lanes = y.shape[-2] if y.ndim > 1 else 1
    if weights is None:
        weights = torch.full((steps,), 1 / steps, dtype=y.dtype, device=y.device)
    else:
        _check_weights(where, y, weights)
        if y.ndim > 1 and weights.shape == y.shape[:-1]:
            return (weights.to(y) / lanes)[..., None]
    return (weights.to(y) / lanes).view([steps, 1, 1] if y.ndim == 3 else [1] * y.ndim)


def _check_weights(where: str, y: Tensor, weights: Tensor) -> None:
    if not isinstance(weights, Tensor):
        raise TypeError(f"{where}: expected weights to be a tensor, got {type(weights).__name__}.")
    steps = y.shape[0] if y.ndim == 3 else 1
    if (y.ndim == 1 or weights.shape != y.shape[:-1]) and (weights.numel() != steps or weights.ndim > 1):
        raise ValueError(
            f"{where}: expected one weight per step, shape ({steps},), or one per step and lane, shape "
            f"{tuple(y.shape[:-1])}, got {tuple(weights.shape)}. Slice the weights to the window's steps."
        )


def _class_index(where: str, y: Tensor, target: Tensor) -> Tensor:
    """Check class indices and give them y's number of dimensions."""
    _check_classes(where, y, target)
    _check_range(where, y, int(target.min()), int(target.max()))
    return target.expand(y.shape[:-1])[..., None]


def _check_classes(where: str, y: Tensor, target: Tensor) -> None:
    _checks.floating(where, "y", y)
    _checks.is_tensor(where, "target", target)
    if target.dtype != torch.int64:
        raise TypeError(f"{where}: expected target to be int64 class indices, got {target.dtype}.")
    if target.shape not in (y.shape[:-1], y.shape[1:-1] if y.ndim == 3 else y.shape[:-1]):
        raise ValueError(
            f"{where}: expected target of shape {tuple(y.shape[:-1])} for y of shape {tuple(y.shape)}"
            f"{f', or {tuple(y.shape[1:-1])} for every step' if y.ndim == 3 else ''}, got {tuple(target.shape)}."
        )


def _check_range(where: str, y: Tensor, low: int, high: int) -> None:
    if low < 0 or high >= y.shape[-1]:
        raise ValueError(f"{where}: expected classes from 0 to {y.shape[-1] - 1}, got {low if low < 0 else high}.")
