"""Where the loaders look for files, and what they say where something is missing."""

from __future__ import annotations

import os
from pathlib import Path

DATA_VARIABLE = "TRACETORCH_DATA"
"""The environment variable that names the folder where data are looked for."""


def find(where: str, name: str, subfolder: str, data: str | Path | None) -> Path:
    """The file `name` in the folder `data`, or that which the environment names, or below it.

    Raises:
        FileNotFoundError: it is not there, or no folder is given.
    """
    folder = data or os.environ.get(DATA_VARIABLE)
    if not folder:
        raise FileNotFoundError(
            f"{where}: expected a folder with {name}, got none. Give data=, or set {DATA_VARIABLE} to it."
        )
    places = [Path(folder), Path(folder) / subfolder]
    for place in places:
        if (place / name).is_file():
            return place / name
    raise FileNotFoundError(f"{where}: expected {name} in {' or '.join(map(str, places))}, found none there.")


def missing(where: str, package: str, extra: str = "data") -> ImportError:
    """The error where a package of an extra is missing."""
    return ImportError(
        f"{where}: expected {package} to be installed, but it cannot be imported. "
        f"Run pip install 'tracetorch-online[{extra}]'."
    )
