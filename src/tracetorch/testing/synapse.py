"""Is a synapse what it claims to be?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..nn.synapse import Synapse


def check_synapse(module: nn.Module, *shape: int, rows: int = 3, seed: int = 0) -> None:
    """Assert that a synapse is linear, and that what layers know of its type agrees with autograd.

    Run in float64 with random numbers: the map in x, the weight's gradient, the transpose for the module's weight and
    for another one, the bias, and where they are known what each neuron's weights take.

    Args:
        module: a `nn.Linear`, a convolution, or a map of your own (see `register_synapse`); it is left as it is.
        shape: of a row of its input, where the module takes any size.
        rows: R, how many rows are tried.
        seed: of the random numbers.

    Raises:
        AssertionError: what does not agree.
        NotImplementedError: the type is not registered.
        ValueError: no shape was given where the module takes any size.

    >>> check_synapse(nn.Conv2d(2, 3, 3, stride=2), 2, 7, 6)
    """
    synapse = Synapse("check_synapse", module)
    sizes = shape or tuple(size for size in synapse.input_shape if size is not None)
    if len(sizes) < len(synapse.input_shape):
        raise ValueError(
            f"check_synapse: expected the shape of a row of input for {type(module).__name__}, which takes any, got "
            f"none. Give it, such as check_synapse(module, {', '.join(str(s or 8) for s in synapse.input_shape)})."
        )
    before, kind = {name: p.detach().clone() for name, p in module.named_parameters()}, synapse.weight.dtype
    generator = torch.Generator().manual_seed(seed)
    try:
        _check(Synapse("check_synapse", module.double()), sizes, rows, generator)
    finally:
        module.to(kind)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(before[name])


def _check(synapse: Synapse, shape: tuple[int, ...], rows: int, generator: torch.Generator) -> None:
    module, operations = synapse.module, synapse.operations

    def draw(*size: int) -> Tensor:
        return torch.randn(size, dtype=torch.float64, generator=generator)

    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(draw(*parameter.shape))
        offset = module(torch.zeros(1, *shape, dtype=torch.float64))
    x, other = draw(rows, *shape).requires_grad_(), draw(rows, *shape)
    y = module(x)
    g = draw(*y.shape)
    _same("linear in x", module(2 * x - 3 * other) - offset, 2 * (y - offset) - 3 * (module(other) - offset))
    expected = torch.autograd.grad(y, (x, synapse.weight), g)
    with torch.no_grad():
        found = operations.weight_gradient(module, x, g)
        _same("weight_gradient(module, x, g)", found, expected[1])
        _same("transpose(module, weight, g, in)", operations.transpose(module, synapse.weight, g, shape), expected[0])
        weight = draw(*synapse.weight.shape)
        through = operations.transpose(module, weight, g, shape)
        synapse.weight.copy_(weight)
    _same("transpose with another weight", through, torch.autograd.grad(module(x), x, g)[0])
    if synapse.output_shape(shape) != tuple(y.shape[1:]) or y.shape[1] != synapse.channels:
        raise AssertionError(f"check_synapse: expected {synapse.channels} channels first, got rows of {y.shape[1:]}.")
    bias = getattr(module, "bias", None)
    if bias is not None:
        each = torch.autograd.grad(module(x), bias, g)[0]
        _same("the bias, one per channel", g.transpose(0, 1).flatten(1).sum(1), each)
    if operations.patches is not None:
        with torch.no_grad():
            taken = operations.patches(module, x)
            matrix = torch.einsum("rm,rmf->mf", g.flatten(1), taken.expand(-1, g[0].numel(), -1))
            _same("patches and fold", synapse.fold(matrix), expected[1])


def _same(what: str, actual: Tensor, expected: Tensor) -> None:
    if actual.shape != expected.shape:
        raise AssertionError(
            f"check_synapse: expected {what} of shape {tuple(expected.shape)}, got {tuple(actual.shape)}."
        )
    if not torch.allclose(actual, expected, rtol=1e-9, atol=1e-9):
        worst = (actual - expected).abs().max().item()
        raise AssertionError(f"check_synapse: expected {what} as autograd has it, got a difference of {worst:.3g}.")
