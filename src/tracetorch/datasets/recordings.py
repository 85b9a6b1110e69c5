"""Recordings of spikes, of different lengths: one by one, in padded batches, or as one long stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import _checks


class Batch(NamedTuple):
    """Recordings side by side, the shorter ones followed by silence."""

    x: Tensor  # (T, B, n) spikes, torch's default dtype
    target: Tensor  # (B,) int64 classes
    mask: Tensor  # (T, B) 1 inside of each recording, 0 after its end; times a ramp, say, it is the loss's weights


class Recordings:
    """N recordings of n channels, kept as bits.

    Args:
        spikes: (all steps, n) bool, or what `numpy.packbits(..., axis=1)` makes of it, then with `channels`.
        starts: (N + 1,) recording i has the steps from starts[i] to starts[i + 1].
        label: (N,) classes.
        channels: n, where spikes are packed.
        step: seconds of a step.
        classes: their names, in order.
        **about: further arrays (N,), such as who speaks: attributes of the same name.

    Raises:
        ValueError: arrays that do not fit together.

    >>> found = Recordings(np.eye(5, dtype=bool), [0, 2, 5], [1, 0], speaker=[7, 7])
    >>> len(found), found[1].shape, found.label, found.speaker
    (2, torch.Size([3, 5]), tensor([1, 0]), tensor([7, 7]))
    """

    def __init__(
        self,
        spikes: np.ndarray,
        starts: Sequence[int] | np.ndarray,
        label: Sequence[int] | np.ndarray,
        *,
        channels: int | None = None,
        step: float | None = None,
        classes: Sequence[str] = (),
        **about: Sequence[int] | np.ndarray,
    ) -> None:
        self.channels = int(spikes.shape[1] if channels is None else channels)
        self._packed = np.packbits(np.asarray(spikes, dtype=bool), axis=1) if channels is None else spikes
        self._starts = np.asarray(starts, dtype=np.int64)
        self.label = torch.as_tensor(np.asarray(label, dtype=np.int64))
        self.step = step
        self.classes = tuple(str(name) for name in classes)
        self._about = {name: torch.as_tensor(np.asarray(values)) for name, values in about.items()}
        bytes_per_step = -(-self.channels // 8)
        if self._packed.dtype != np.uint8 or self._packed.shape[1:] != (bytes_per_step,):
            raise ValueError(
                f"Recordings: expected packed spikes of shape (steps, {bytes_per_step}) and uint8 for {self.channels} "
                f"channels, got {self._packed.shape} and {self._packed.dtype}. Pack them with packbits(spikes, axis=1)."
            )
        ordered = len(self._starts) > 0 and self._starts[0] == 0 and bool((np.diff(self._starts) > 0).all())
        if not ordered or self._starts[-1] != len(self._packed) or len(self._starts) != len(self.label) + 1:
            raise ValueError(
                f"Recordings: expected starts that rise from 0 to {len(self._packed)} steps, one more than the "
                f"{len(self.label)} labels, got {len(self._starts)} of them. No recording may be empty."
            )
        for name, values in self._about.items():
            if len(values) != len(self.label):
                raise ValueError(f"Recordings: expected {len(self.label)} values of {name}, got {len(values)}.")

    def __getattr__(self, name: str) -> Tensor:
        about = self.__dict__.get("_about", {})
        if name in about:
            return about[name]  # type: ignore[no-any-return]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, i: int) -> Tensor:
        """Recording i, (T, n) bool."""
        i = range(len(self))[i]
        part = self._packed[self._starts[i] : self._starts[i + 1]]
        return torch.from_numpy(np.unpackbits(part, axis=1, count=self.channels)).bool()

    @property
    def steps(self) -> Tensor:
        """(N,) how long each recording is, in steps."""
        return torch.from_numpy(np.diff(self._starts))

    def __repr__(self) -> str:
        lengths = self.steps
        return (
            f"{type(self).__name__}({len(self)} recordings of {self.channels} channels, "
            f"{int(lengths.min())} to {int(lengths.max())} steps)"
        )

    def subset(self, chosen: Sequence[int] | Tensor) -> Recordings:
        """Those chosen by a (N,) bool mask or by their indices, in that order.

        Raises:
            TypeError: neither bool nor whole numbers.
            IndexError: an index of a recording that there is not.
            ValueError: none is chosen; a mask of another length.
        """
        indices = self._indices("Recordings.subset", chosen)
        parts = [self._packed[self._starts[i] : self._starts[i + 1]] for i in indices.tolist()]
        return Recordings(
            np.concatenate(parts),
            np.cumsum([0, *map(len, parts)]),
            self.label[indices].numpy(),
            channels=self.channels,
            step=self.step,
            classes=self.classes,
            **{name: values[indices].numpy() for name, values in self._about.items()},
        )

    def batch(self, chosen: Sequence[int] | Tensor) -> Batch:
        """Those chosen side by side, by a (N,) bool mask or by their indices.

        Raises:
            TypeError: neither bool nor whole numbers.
            IndexError: an index of a recording that there is not.
            ValueError: none is chosen; a mask of another length.

        >>> x, target, mask = Recordings(np.ones((5, 1), dtype=bool), [0, 3, 5], [4, 6]).batch([0, 1])
        >>> weights = mask / mask.sum(0)    # of a loss: each recording's steps have 1 together
        >>> weights.T
        tensor([[0.3333, 0.3333, 0.3333],
                [0.5000, 0.5000, 0.0000]])
        """
        indices = self._indices("Recordings.batch", chosen)
        x = torch.nn.utils.rnn.pad_sequence([self[i] for i in indices.tolist()]).to(torch.get_default_dtype())
        mask = (torch.arange(len(x))[:, None] < self.steps[indices]).to(x)
        return Batch(x, self.label[indices], mask)

    def batches(self, lanes: int, generator: torch.Generator | None = None, *, shuffle: bool = True) -> Iterator[Batch]:
        """All recordings once, `lanes` at a time (the last batch may be smaller).

        Args:
            lanes: B.
            generator: what their order is drawn with; by default torch's.
            shuffle: whether it is drawn, or as it is here.

        Raises:
            ValueError: lanes below 1.
        """
        _checks.at_least_one("Recordings.batches", "lanes", lanes)
        order = torch.randperm(len(self), generator=generator) if shuffle else torch.arange(len(self))
        return (self.batch(part) for part in torch.split(order, lanes))

    def _indices(self, where: str, chosen: Sequence[int] | Tensor) -> Tensor:
        """The indices (M,), counted from 0, that a mask or indices choose."""
        asked = torch.as_tensor(chosen)
        if asked.numel() == 0 or (asked.dtype == torch.bool and not asked.any()):
            raise ValueError(f"{where}: expected at least one recording to be chosen, got none.")
        if asked.is_floating_point() or asked.is_complex():
            raise TypeError(f"{where}: expected indices or a bool mask, got {asked.dtype}. Convert it with .long().")
        if asked.ndim != 1 or (asked.dtype == torch.bool and len(asked) != len(self)):
            raise ValueError(
                f"{where}: expected indices of shape (M,), or a bool mask of shape ({len(self)},), got {asked.dtype} "
                f"of shape {tuple(asked.shape)}."
            )
        indices = asked.nonzero()[:, 0] if asked.dtype == torch.bool else asked.long()
        if indices.min() < -len(self) or indices.max() >= len(self):
            raise IndexError(
                f"{where}: expected indices of {len(self)} recordings, got {int(indices.min())} to "
                f"{int(indices.max())}."
            )
        return indices % len(self)


def read_packed(path: Path, *about: str) -> Recordings:
    """The recordings of an npz file with packed spikes, and what it says `about` each of them."""
    with np.load(path) as file:
        return Recordings(
            file["spikes"],
            file["ptr"],
            file["label"],
            channels=int(file["channels"]),
            step=float(file["step_ms"]) / 1000,
            classes=file["classes"].tolist(),
            **{name: file[name] for name in about},
        )


class StreamWindow(NamedTuple):
    """A window of a stream, K steps of B lanes."""

    x: Tensor  # (K, B, n) spikes, torch's default dtype
    target: Tensor  # (K, B) int64 the class of each step's recording
    new: Tensor  # (B,) bool, the lanes in which a recording begins with this window
    mask: Tensor  # (K, B) 1 inside of recordings, 0 in the silence that fills a recording's last window


def stream(
    recordings: Recordings, lanes: int, window: int, generator: torch.Generator | None = None
) -> Iterator[StreamWindow]:
    """All recordings one after the other, as `lanes` streams in windows of K steps.

    Each lane takes the next recording when its own has ended, so that all get about as many steps. A recording begins
    with a window; its last window is filled up with silence, where the mask is 0. The stream ends with the last
    recording; lanes that have none left are silent until then. Before each window but the first, a model forgets what
    has ended: `model.reset(new)`.

    Args:
        recordings: to be streamed, each once.
        lanes: B.
        window: K.
        generator: what their order is drawn with; by default as they are.

    Raises:
        ValueError: lanes or window below 1.

    >>> found = Recordings(np.ones((5, 1), dtype=bool), [0, 3, 5], [4, 6])
    >>> [(w.target[:, 0].tolist(), w.new.item(), w.mask[:, 0].tolist()) for w in stream(found, lanes=1, window=2)]
    [([4, 4], True, [1.0, 1.0]), ([4, 4], False, [1.0, 0.0]), ([6, 6], True, [1.0, 1.0])]
    """
    _checks.at_least_one("stream", "lanes", lanes)
    _checks.at_least_one("stream", "window", window)
    count = len(recordings)
    order = list(range(count)) if generator is None else torch.randperm(count, generator=generator).tolist()
    return _windows(recordings, order, lanes, window)


def _windows(recordings: Recordings, waiting: list[int], lanes: int, window: int) -> Iterator[StreamWindow]:
    left: list[Tensor] = [torch.zeros(0, recordings.channels)] * lanes
    target = torch.zeros(lanes, dtype=torch.int64)
    while waiting or any(len(part) for part in left):
        x = torch.zeros(window, lanes, recordings.channels)
        mask = torch.zeros(window, lanes)
        new = torch.zeros(lanes, dtype=torch.bool)
        for lane in range(lanes):
            if len(left[lane]) == 0 and waiting:
                i = waiting.pop(0)
                left[lane], target[lane], new[lane] = recordings[i], recordings.label[i], True
            steps = left[lane][:window]
            x[: len(steps), lane], mask[: len(steps), lane] = steps.to(x), 1
            left[lane] = left[lane][window:]
        yield StreamWindow(x, target.expand(window, -1).clone(), new, mask)
