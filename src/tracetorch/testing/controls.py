"""Controls: is the network alive, and what does it keep?"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..health import probe_rates
from ..nn.online import Online


def spike_rates(model: Online, x: Tensor) -> dict[str, Tensor]:
    """The mean spikes per step of each neuron (m,), by layer, when a copy of the model runs x (T, B, n) from rest."""
    return probe_rates(model, x)


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
