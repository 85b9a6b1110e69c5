"""Recordings of events: the Heidelberg data sets, and those that `tonic` reads."""

from __future__ import annotations

import gzip
import hashlib
import operator
import shutil
from collections.abc import Iterable, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np

from .. import _checks
from .files import missing
from .recordings import Recordings

SHD_CHANNELS = 700
HEIDELBERG = "https://zenkelab.org/datasets/"


def read_heidelberg(
    path: str | Path, *, step: float = 0.01, channels: int = SHD_CHANNELS, longest: float | None = None
) -> Recordings:
    """A file of the Spiking Heidelberg Digits or Spiking Speech Commands, its spikes gathered into steps.

    Cramer et al. 2020, "The Heidelberg spiking data sets for the systematic evaluation of spiking neural networks",
    arXiv:1910.07407. Several spikes of a channel in one step count as one. Needs h5py (the extra `events`).

    Args:
        path: an HDF5 file with `spikes/times` (s), `spikes/units` and `labels`, `extra/speaker` where there is one.
        step: seconds of a step.
        channels: n.
        longest: seconds after which a recording is cut; by default it ends with its last spike.

    Raises:
        ImportError: h5py is not installed.
        ValueError: a step or longest not above 0; spikes of a channel that there is not, or before the start.
    """
    _checks.positive("read_heidelberg", "step", step)
    if longest is not None:
        _checks.positive("read_heidelberg", "longest", longest)
    try:
        import h5py
    except ImportError as error:
        raise missing("read_heidelberg", "h5py", "events") from error
    with h5py.File(path, "r") as file:
        times, units = file["spikes/times"][:], file["spikes/units"][:]
        labels = file["labels"][:]
        about = {"speaker": file["extra/speaker"][:]} if "extra" in file and "speaker" in file["extra"] else {}
    binned = [
        _binned("read_heidelberg", np.asarray(t, dtype=np.float64) / step, u, channels, longest and longest / step)
        for t, u in zip(times, units, strict=True)
    ]
    return _recordings(binned, labels, step, channels, **about)


def heidelberg(name: str, *, hash: str | None = None, url: str = HEIDELBERG, cache: str | Path | None = None) -> Path:
    """Download a file of the Heidelberg data sets once, and unpack it; then `read_heidelberg` it.

    Needs pooch (the extra `data`).

    Args:
        name: such as "shd_train", "shd_test", "ssc_train", "ssc_valid", "ssc_test".
        hash: of the packed file, "md5:..." or "sha256:..."; by default the md5 that the address lists in its
            `md5sums.txt`.
        url: the address of the folder with `<name>.h5.gz`.
        cache: the folder for downloads; by default `heidelberg` in the user's cache for tracetorch.

    Returns:
        The path of the unpacked file.

    Raises:
        ImportError: pooch is not installed.
        ConnectionError: the address cannot be reached.
        RuntimeError: it sent something else than the file, or lists no md5 of it.
    """
    try:
        import pooch
    except ImportError as error:
        raise missing("heidelberg", "pooch") from error
    folder = pooch.os_cache("tracetorch") / "heidelberg" if cache is None else Path(cache)
    packed = f"{name}.h5.gz"
    plain = folder / f"{name}.h5"
    if plain.is_file():
        return plain
    try:
        if hash is None:
            sums = Path(pooch.retrieve(f"{url.rstrip('/')}/md5sums.txt", known_hash=None, path=folder))
            hash = _listed(sums, packed)
        found = Path(pooch.retrieve(f"{url.rstrip('/')}/{packed}", known_hash=hash, fname=packed, path=folder))
    except ValueError as error:
        raise RuntimeError(
            f"heidelberg: expected {url} to send {packed} with the hash {hash}, got something else. Try again "
            f"later, or get the file some other way and give its path to read_heidelberg."
        ) from error
    except OSError as error:
        raise ConnectionError(
            f"heidelberg: expected {url} to send {packed}, got {type(error).__name__}: {error}. Get the file some "
            f"other way and give its path to read_heidelberg."
        ) from error
    partial = plain.with_suffix(".part")
    with gzip.open(found, "rb") as source, partial.open("wb") as target:
        shutil.copyfileobj(source, target)
    partial.rename(plain)
    return plain


def _listed(sums: Path, name: str) -> str:
    """The hash that a file made by `md5sum` lists."""
    content = sums.read_text()
    sums.unlink()  # asked for anew each time: it is small, and may change
    for line in content.splitlines():
        digest, _, listed = line.partition(" ")
        if listed.strip().lstrip("*") == name and len(digest) == 2 * hashlib.md5().digest_size:
            return f"md5:{digest}"
    raise RuntimeError(
        f"heidelberg: expected md5sums.txt to list {name}, got {content[:80]!r}. Give the file's hash as hash=."
    )


def from_events(
    items: Iterable[tuple[Any, int]], sensor: Sequence[int], *, step: float = 1000.0, longest: float | None = None
) -> Recordings:
    """Recordings of anything whose items are (events, class), as the data sets of `tonic` have them.

    Channels are counted over polarity, then y, then x: `(p * height + y) * width + x`. Several events of a channel in
    one step count as one, and time starts with the first event. `tonic` need not be installed for this.

    Args:
        items: pairs of a structured array with the fields t, x and p, perhaps y, and a class: an iterable, or a data
            set with a length and indices.
        sensor: (width, height, polarities), as `tonic` calls a data set's `sensor_size`. With one polarity, p is not
            looked at: data sets write 0 or 1 for it.
        step: of time, in microseconds, as t is.
        longest: microseconds after which a recording is cut; by default it ends with its last event.

    Raises:
        ValueError: a sensor that is no triple of sizes; a step or longest not above 0; events outside of the sensor; no
            items.

    >>> events = np.array([(0, 1, 0, 0), (2500, 0, 1, 1)], dtype=[("t", int), ("x", int), ("y", int), ("p", int)])
    >>> found = from_events([(events, 3)], (2, 2, 2))
    >>> found[0].nonzero().tolist(), found.label
    ([[0, 1], [2, 6]], tensor([3]))
    """
    _checks.positive("from_events", "step", step)
    if longest is not None:
        _checks.positive("from_events", "longest", longest)
    try:
        width, height, polarities = (operator.index(size) for size in sensor)
    except (TypeError, ValueError):
        raise ValueError(
            f"from_events: expected sensor to be (width, height, polarities), got {sensor!r}. Give the data set's "
            f"sensor_size."
        ) from None
    binned, labels = [], []
    for events, label in _each(items):
        x = events["x"].astype(np.int64)
        y = events["y"].astype(np.int64) if "y" in (events.dtype.names or ()) else 0
        p = events["p"].astype(np.int64) if polarities > 1 else 0
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height) & (p >= 0) & (p < polarities)
        if not np.all(inside):
            raise ValueError(
                f"from_events: expected events inside of a sensor of {width} x {height} x {polarities}, got "
                f"{int((~inside).sum())} outside of it. Give the data set's sensor_size."
            )
        t = events["t"].astype(np.float64)
        units = (p * height + y) * width + x
        since = (t - t.min()) / step if len(t) else t
        binned.append(_binned("from_events", since, units, width * height * polarities, longest and longest / step))
        labels.append(label)
    if not binned:
        raise ValueError("from_events: expected at least one item, got none.")
    return _recordings(binned, np.asarray(labels), step / 1e6, width * height * polarities)


def _each(items: Iterable[tuple[Any, int]]) -> Iterable[tuple[Any, int]]:
    """The items by their indices where they have some: not every data set raises IndexError where they end."""
    if isinstance(items, Sized) and hasattr(items, "__getitem__"):
        return (items[i] for i in range(len(items)))
    return items


def _binned(where: str, times: np.ndarray, units: np.ndarray, channels: int, longest: float | None) -> np.ndarray:
    """Spikes (T, channels), packed, of times in steps."""
    units = np.asarray(units, dtype=np.int64)
    if len(units) and not 0 <= units.min() <= units.max() < channels:
        raise ValueError(
            f"{where}: expected channels from 0 to {channels - 1}, got {units.min()} to {units.max()}. Give channels=."
        )
    if len(times) and not 0 <= times.min() <= times.max() < np.inf:
        raise ValueError(f"{where}: expected times from 0 on, got {times.min()} to {times.max()} steps.")
    index = np.floor(times).astype(np.int64)
    if longest is not None:
        units, index = units[index < longest], index[index < longest]
    spikes = np.zeros((1 + (index.max() if len(index) else 0), channels), dtype=bool)
    spikes[index, units] = True
    return np.packbits(spikes, axis=1)


def _recordings(
    binned: list[np.ndarray], labels: np.ndarray, step: float, channels: int, **about: np.ndarray
) -> Recordings:
    starts = np.cumsum([0, *map(len, binned)])
    return Recordings(np.concatenate(binned), starts, labels, channels=channels, step=step, classes=(), **about)
