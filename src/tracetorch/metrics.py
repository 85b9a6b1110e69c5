"""Figures of merit of spike trains and classifications."""

from __future__ import annotations

from torch import Tensor

from . import _checks


def firing_rate(spk: Tensor) -> Tensor:
    """The mean spikes per step of each neuron: (K, B, m) or (K, m) -> (m,).

    >>> import torch
    >>> firing_rate(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    tensor([0.5000, 0.0000])
    """
    return spk.float().flatten(0, -2).mean(0)


def accuracy(scores: Tensor, target: Tensor) -> float:
    """The share of lanes whose largest score is that of the target class.

    Args:
        scores: (B, m), such as spike counts or membranes.
        target: (B,) class indices.

    Raises:
        ValueError: the shapes do not fit.

    >>> import torch
    >>> accuracy(torch.tensor([[0.2, 0.8], [0.6, 0.4]]), torch.tensor([1, 1]))
    0.5
    """
    _checks.same_shape("metrics.accuracy", "target", target, tuple(scores.shape[:-1]), "One class per lane.")
    return (scores.argmax(-1) == target).double().mean().item()


def bit_accuracy(spk: Tensor, target: Tensor) -> float:
    """The share of entries in which spikes and target agree, both 0 or 1 and of one shape.

    Raises:
        ValueError: the shapes differ.

    >>> import torch
    >>> bit_accuracy(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0]))
    0.5
    """
    _checks.same_shape("metrics.bit_accuracy", "target", target, tuple(spk.shape), "One bit per output.")
    return (spk == target).double().mean().item()
