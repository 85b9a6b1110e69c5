"""Exercises felt by a smartwatch."""

from __future__ import annotations

from pathlib import Path

from .files import find
from .recordings import Recordings, read_packed

WATCH_FILE = "watch.npz"


def smartwatch(data: str | Path | None = None) -> Recordings:
    """140 recordings of seven shoulder exercises by ten people, as spikes: 244,102 steps of 20 ms in all.

    The watch data of seglearn (Burns et al. 2018, "Shoulder physiotherapy exercise recognition"; BSD). 24 channels;
    each recording has `subject` (1 to 10), `side` (which arm) and `group_test`, True for subjects 8 to 10, who are to
    be left out of training. `stream(smartwatch(), lanes, window)` makes one long stream of them.

    Args:
        data: the folder with `watch.npz`, or with `watch/` that holds it; by default that which the environment
            variable TRACETORCH_DATA names.

    Raises:
        FileNotFoundError: the file is not there.
    """
    return read_packed(find("smartwatch", WATCH_FILE, "watch", data), "subject", "side", "group_test")
