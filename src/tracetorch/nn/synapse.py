"""Synapses: linear maps, each with its parameter gradient and its transpose.

A synapse is an ordinary torch module with a `weight` and perhaps a `bias`, one entry of it per output channel. What the
library needs of it besides is one row of a table: `register_synapse` adds rows.

Shapes: R rows (steps times lanes); the input of one row `in`, its output `out` = (C, ...) with C channels first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _checks, kernels
from ..functional.spikes import Spikes

WeightGradient = Callable[[Any, Tensor, Tensor], Tensor]
"""module, x (R, *in), g = dL/dy (R, *out) -> dL/dW in the weight's shape, summed over rows."""

Transpose = Callable[[Any, Tensor, Tensor, tuple[int, ...]], Tensor]
"""module, a weight of the weight's shape, g (R, *out), in -> dL/dx (R, *in)."""


class SynapseOperations(NamedTuple):
    """What a layer does with its synapse, besides calling it."""

    weight_gradient: WeightGradient
    transpose: Transpose
    input_shape: Callable[[Any], tuple[int | None, ...]]  # module -> in, None for what any size will do
    channel_dim: int | None = 0  # where the weight counts the C output channels; None: C / groups of them, at 1
    fan_in: Callable[[Any], float] | None = None  # module -> how many inputs one output sums; default weight / C
    patches: Callable[[Any, Tensor], Tensor] | None = None  # see `Synapse.patches`; None: not known
    fold: Callable[[Any, Tensor], Tensor] | None = None  # see `Synapse.fold`; None: each neuron has its own


class MaskedLinear(nn.Linear):
    """A linear map of which some weights are left out: `y = (mask * W) x + b`. Those stay as they are and count as 0.

    Args:
        in_features: n.
        out_features: m.
        mask: (m, n), True or 1 where there is a connection. Kept in `state_dict()`.
        bias: whether there is one.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: a mask of another shape.

    >>> MaskedLinear(3, 2, torch.zeros(2, 3), bias=False)(torch.ones(3)).detach()
    tensor([0., 0.])
    """

    mask: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        mask: Tensor,
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        shape = (out_features, in_features)
        _checks.is_tensor("MaskedLinear", "mask", mask)
        _checks.same_shape("MaskedLinear", "mask", mask, shape, "Give one entry for each weight.")
        self.register_buffer("mask", mask.detach().to(self.weight).clone())

    def forward(self, x: Tensor) -> Tensor:
        """(..., n) -> (..., m)."""
        return F.linear(x, self.weight * self.mask, self.bias)


def _linear_gradient(module: nn.Linear, x: Tensor, g: Tensor) -> Tensor:  # noqa: ARG001
    return g.t() @ x


def _linear_transpose(module: nn.Linear, weight: Tensor, g: Tensor, shape: tuple[int, ...]) -> Tensor:  # noqa: ARG001
    return g @ weight


def _linear_patches(module: nn.Linear, x: Tensor) -> Tensor:  # noqa: ARG001
    return x[:, None]


def takes_spikes(module: nn.Module) -> bool:
    """Whether products with spikes can be left to `kernels.product`."""
    hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__
    return type(module) is nn.Linear and not hooked


def product(module: nn.Module, x: Spikes) -> Tensor:
    """What a module of these gives for a window of spikes: (K, B, m)."""
    bias = cast(Tensor | None, module.bias)
    return kernels.product(x, cast(Tensor, module.weight).detach(), None if bias is None else bias.detach())


_LINEAR = SynapseOperations(
    _linear_gradient, _linear_transpose, lambda module: (module.in_features,), patches=_linear_patches
)


def _convolution_backward(
    module: Any, x: Tensor, weight: Tensor, g: Tensor, mask: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
    x_gradient, weight_gradient, _ = torch.ops.aten.convolution_backward(
        g,
        x,
        weight,
        None,
        module.stride,
        _padding(module),
        module.dilation,
        transposed,
        module.output_padding,
        module.groups,
        (*mask, False),
    )
    return x_gradient, weight_gradient


def _padding(module: Any) -> tuple[int, ...]:
    """The padding in numbers."""
    if not isinstance(module.padding, str):
        return cast(tuple[int, ...], module.padding)
    if module.padding == "valid":
        return (0,) * len(module.kernel_size)
    return tuple(d * (k - 1) // 2 for d, k in zip(module.dilation, module.kernel_size, strict=True))


def _convolution_gradient(module: Any, x: Tensor, g: Tensor) -> Tensor:
    return _convolution_backward(module, x, module.weight, g, (False, True))[1]


def _convolution_transpose(module: Any, weight: Tensor, g: Tensor, shape: tuple[int, ...]) -> Tensor:
    x = g.new_empty(1).expand(len(g), *shape)  # looked at for its shape alone
    return _convolution_backward(module, x, weight, g, (True, False))[0]


def _convolution_input(module: Any) -> tuple[int | None, ...]:
    return (module.in_channels, *[None] * len(module.kernel_size))


def _transposed_fan_in(module: Any) -> float:
    taps = math.prod(module.kernel_size) / math.prod(module.stride)  # of the kernel, those that meet an output
    return float(module.in_channels / module.groups * max(1.0, taps))


def _convolution_patches(module: Any, x: Tensor) -> Tensor:
    """(R, *in) -> (R, m, F): a convolution with kernels that are 1 in one place each."""
    taps, groups = module.weight[0].numel(), module.groups
    ones = torch.eye(taps, dtype=x.dtype, device=x.device).view(taps, *module.weight.shape[1:])
    convolve = (F.conv1d, F.conv2d, F.conv3d)[len(module.kernel_size) - 1]
    kernels = ones.repeat(groups, *[1] * (x.ndim - 1))
    found = convolve(x, kernels, None, module.stride, _padding(module), module.dilation, groups)
    found = found.view(len(x), groups, 1, taps, -1).transpose(3, 4)  # the same for all channels of a group
    return found.expand(-1, -1, module.out_channels // groups, -1, -1).reshape(len(x), -1, taps)


def _convolution_fold(module: Any, matrix: Tensor) -> Tensor:
    """(m, F) -> the weight's shape: a sum over positions."""
    return matrix.view(module.out_channels, -1, matrix.shape[-1]).sum(1).view_as(module.weight)


_CONVOLUTION = SynapseOperations(
    _convolution_gradient,
    _convolution_transpose,
    _convolution_input,
    patches=_convolution_patches,
    fold=_convolution_fold,
)
_TRANSPOSED = SynapseOperations(
    _convolution_gradient, _convolution_transpose, _convolution_input, None, _transposed_fan_in
)

_OPERATIONS: dict[type[nn.Module], SynapseOperations] = {
    nn.Linear: _LINEAR,
    MaskedLinear: _LINEAR._replace(
        weight_gradient=lambda module, x, g: (g.t() @ x) * module.mask,
        transpose=lambda module, weight, g, _: g @ (weight * module.mask),
        fold=lambda module, matrix: matrix * module.mask,
    ),
    nn.Conv1d: _CONVOLUTION,
    nn.Conv2d: _CONVOLUTION,
    nn.Conv3d: _CONVOLUTION,
    nn.ConvTranspose1d: _TRANSPOSED,
    nn.ConvTranspose2d: _TRANSPOSED,
    nn.ConvTranspose3d: _TRANSPOSED,
}


def register_synapse(
    kind: type[nn.Module],
    *,
    weight_gradient: WeightGradient,
    transpose: Transpose,
    input_shape: Callable[[Any], tuple[int | None, ...]] | None = None,
) -> None:
    """Let layers use a linear map of your own: `LIF(synapse=kind(...), ...)`.

    A synapse is a module with the parameter `weight`, whose first dimension counts the output channels C, and perhaps
    `bias` (C,); its forward takes rows (R, *in) to (R, C, ...) and is linear in x and in the weight, but for the bias.
    `testing.check_synapse` compares the functions with autograd.

    Args:
        kind: the module's exact type; a subclass needs a row of its own.
        weight_gradient: module, x (R, *in), g = dL/dy (R, *out) -> dL/dW in the weight's shape, summed over rows.
        transpose: module, weight, g (R, *out), in -> dL/dx (R, *in). The weight is the module's, or a fixed random one
            in its place where a rule's feedback is random.
        input_shape: module -> in, with None for what any size will do; by default (weight.shape[1],).

    Raises:
        TypeError: `kind` is not a class of modules.

    >>> class Scale(nn.Module):
    ...     def __init__(self, n):
    ...         super().__init__()
    ...         self.weight = nn.Parameter(torch.ones(n))
    ...     def forward(self, x):
    ...         return x * self.weight
    >>> register_synapse(
    ...     Scale,
    ...     weight_gradient=lambda module, x, g: (g * x).sum(0),
    ...     transpose=lambda module, weight, g, shape: g * weight,
    ...     input_shape=lambda module: tuple(module.weight.shape),
    ... )
    """
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise TypeError(
            f"register_synapse: expected a class of torch modules, got {kind!r}. Give the class, not an instance."
        )
    _OPERATIONS[kind] = SynapseOperations(
        weight_gradient, transpose, input_shape or (lambda module: (module.weight.shape[1],))
    )


class Synapse:
    """A layer's synapse: the module, and what is known of its type.

    Args:
        where: what messages call it.
        module: the linear map.

    Raises:
        TypeError: no module, or one whose weight is not a parameter.
        NotImplementedError: a module of a type that is not known, or with options that are not.
    """

    def __init__(self, where: str, module: nn.Module) -> None:
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"{where}: expected synapse to be a torch.nn.Module, got {type(module).__name__}. "
                f"Give synapse=nn.Linear(n, m), or just the two sizes."
            )
        # The exact type: a subclass may compute something that is not linear.
        operations = _OPERATIONS.get(type(module))
        if operations is None:
            known = ", ".join(kind.__name__ for kind in _OPERATIONS)
            raise NotImplementedError(
                f"{where}: expected a synapse whose gradient and transpose are known ({known}), "
                f"got {type(module).__name__}. A synapse is a linear map: make one of your own known with "
                f"tt.nn.register_synapse; put a module that is not one between layers, in tt.Sequential."
            )
        if not isinstance(module.weight, nn.Parameter):
            raise TypeError(
                f"{where}: expected the synapse's weight to be a Parameter, got {type(module.weight).__name__}, as "
                f"pruning makes it, whose gradient cannot be computed here. Remove it first."
            )
        _refuse_paddings(where, module)
        self.module, self.operations = module, operations
        self.weight: nn.Parameter = module.weight

    @property
    def channels(self) -> int:
        """C."""
        if self.operations.channel_dim is None:
            return int(self.weight.shape[1] * self.module.groups)  # type: ignore[operator]
        return int(self.weight.shape[self.operations.channel_dim])

    @property
    def fan_in(self) -> float:
        """How many inputs one output sums."""
        if self.operations.fan_in is not None:
            return self.operations.fan_in(self.module)
        return self.weight.numel() / self.channels

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """The shape of a row of its input; None for what any size will do."""
        return self.operations.input_shape(self.module)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a row of its output."""
        if len(shape) == 1:
            return (self.channels,)
        with torch.no_grad():
            return tuple(self.module(self.weight.new_zeros(1, *shape)).shape[1:])

    @property
    def patches(self) -> Callable[[Any, Tensor], Tensor] | None:
        """module, x (R, *in) -> (R, m, F): what each neuron's F weights take; (R, 1, F): the same."""
        return self.operations.patches

    def fold(self, matrix: Tensor) -> Tensor:
        """A gradient (m, F) of each neuron's weights as that of the weight: summed over neurons that share it."""
        return matrix if self.operations.fold is None else self.operations.fold(self.module, matrix)

    def per_channel(self, factors: Tensor) -> Tensor:
        """Factors (C,) in a shape that multiplies the weight."""
        rest = [1] * (self.weight.ndim - 1)
        if self.operations.channel_dim is not None:
            return factors.view(-1, *rest)
        groups = cast(int, self.module.groups)  # its inputs come group by group
        shaped = factors.view(groups, 1, -1).expand(-1, self.weight.shape[0] // groups, -1)
        return shaped.reshape(self.weight.shape[0], -1, *rest[1:])


def _refuse_paddings(where: str, module: nn.Module) -> None:
    """Raise where a convolution pads with something else than as many zeros on both sides."""
    if not isinstance(module, nn.modules.conv._ConvNd):
        return
    uneven = module.padding == "same" and any(
        d * (k - 1) % 2 for d, k in zip(module.dilation, module.kernel_size, strict=True)
    )
    if module.padding_mode != "zeros" or uneven:
        came = "padding='same' with an even kernel" if uneven else f"padding_mode={module.padding_mode!r}"
        raise NotImplementedError(
            f"{where}: expected a convolution that pads both sides alike with zeros, got {came}. "
            f"Put the padding into a module of its own before the layer, such as nn.ZeroPad2d."
        )


def made(
    where: str,
    in_features: int | None,
    out_features: int | None,
    synapse: nn.Module | None,
    bias: bool,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> nn.Module:
    """The synapse that was given, or an `nn.Linear` of the two sizes.

    Raises:
        ValueError: neither or both were given.
    """
    if synapse is None and in_features is not None and out_features is not None:
        _checks.at_least_one(where, "in_features", in_features)
        _checks.at_least_one(where, "out_features", out_features)
        return nn.Linear(in_features, out_features, bias=bias, device=device, dtype=dtype)
    if synapse is not None and in_features is None and out_features is None:
        return synapse
    raise ValueError(
        f"{where}: expected in_features and out_features, or synapse=, got in_features={in_features}, "
        f"out_features={out_features} and {'no' if synapse is None else 'a'} synapse. "
        f"Give the two sizes, or the synapse alone."
    )
