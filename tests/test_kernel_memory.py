"""Memory of large windows, handed out again when nothing refers to it."""

import torch

from tracetorch.kernels import memory

SHAPE = (70, 1_000)  # more than the smallest


def test_it_is_used_again_when_no_tensor_is_left() -> None:
    first = memory.empty(SHAPE, torch.float32)
    address = first.data_ptr()
    part = first[3:].t()  # a view holds it too
    del first
    assert memory.empty(SHAPE, torch.float32).data_ptr() != address
    del part
    addresses = {memory.empty(SHAPE, torch.float32).data_ptr() for _ in range(3)}
    assert address in addresses or len(addresses) == 1


def test_two_tensors_never_share_it() -> None:
    held = [memory.empty(SHAPE, torch.float32) for _ in range(2 * memory.COPIES)]
    assert len({tensor.data_ptr() for tensor in held}) == len(held)
    assert all(tensor.shape == SHAPE and tensor.is_contiguous() for tensor in held)


def test_other_dtypes_and_small_ones_are_ordinary() -> None:
    assert memory.empty((2, 3), torch.float64).dtype == torch.float64
    assert memory.empty(SHAPE, torch.float64).dtype == torch.float64


def test_few_sizes_are_kept() -> None:
    for extra in range(3 * memory.SIZES):
        memory.empty((SHAPE[0] + extra, SHAPE[1]), torch.float32)
    assert len(memory._kept) <= memory.SIZES
