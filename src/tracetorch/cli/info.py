"""`tracetorch info`: the table of a model that the command line names."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from operator import attrgetter
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ..health import Summary
from ..nn.online import Online

WIDEST = 1000  # columns; no table needs more


def model_of(name: str, presets: Mapping[str, Callable[[], Online]]) -> Online:
    """The model that the command line calls `name`.

    Args:
        name: a preset, or `module:object`: a model, or what makes one when called without arguments. Modules of the
            current folder can be imported too.
        presets: how to make those that come with the command.

    Raises:
        ValueError: it names nothing that is, or makes, a model.
    """
    if name in presets:
        return presets[name]()
    module_name, _, path = name.partition(":")
    if not (module_name and path):
        raise ValueError(
            f"info: expected one of {', '.join(presets)}, or module:object such as mypackage.nets:build, got {name!r}."
        )
    with _current_folder_importable():
        try:
            found = import_module(module_name)
        except Exception as error:  # whatever the user's module raises
            raise ValueError(
                f"info: expected a module that can be imported, got {module_name!r} ({_told(error)}). "
                f"Run the command in the folder that it lies in, or set PYTHONPATH."
            ) from error
        try:
            thing = attrgetter(path)(found)
        except AttributeError as error:
            raise ValueError(
                f"info: expected {path!r} in the module {module_name!r}, got nothing of that name ({error})."
            ) from error
        return _made(name, thing)


def _made(name: str, thing: object) -> Online:
    model = thing
    if callable(thing) and not isinstance(thing, torch.nn.Module):
        try:
            model = thing()
        except Exception as error:  # likewise
            raise ValueError(
                f"info: expected {name} to make a model when called without arguments, got {_told(error)}. "
                f"Name a function that needs none."
            ) from error
    if not isinstance(model, Online):
        raise ValueError(
            f"info: expected {name} to be or to make a layer or model of tracetorch, got {type(model).__name__}. "
            f"tracetorch.Sequential is the way to stack layers."
        )
    return model


def _told(error: Exception) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    before = sys.path[:]
    sys.path.insert(0, str(Path.cwd()))
    try:
        yield
    finally:
        sys.path[:] = before


def input_from(path: Path, model: Online) -> Tensor:
    """The tensor that `torch.save` wrote to a file, in the dtype and on the device of the model.

    Raises:
        ValueError: the file holds something else.
        OSError: it cannot be read.
    """
    try:
        x = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(
            f"info: expected --data to be a tensor saved by torch.save, got {path} (of another format)."
        ) from error
    if not isinstance(x, Tensor):
        raise ValueError(f"info: expected --data to be a tensor saved by torch.save, got a {type(x).__name__}.")
    return x.to(next(model.parameters()))


def show(found: Summary) -> None:
    """Print the table: plain where the output goes on to a file or program, and where the terminal is too narrow."""
    console, shown = Console(), rendered(found)
    needed = console.measure(shown, options=console.options.update(max_width=WIDEST)).minimum
    if console.is_terminal and needed <= console.width:
        console.print(shown)
        console.print(found.tape(), highlight=False)
    else:
        print(found)


def rendered(found: Summary) -> Table:
    """The table for a terminal; where it is too narrow only the titles are broken, between words."""
    head, *rows, total = found.cells()
    shown = Table(box=box.SIMPLE, show_footer=True, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for i, (title, foot, *column) in enumerate(zip(head, total, *rows, strict=True)):
        width = max(map(len, [*title.split(), foot, *column]))
        shown.add_column(
            title, foot, justify="left" if i < 3 else "right", min_width=width, no_wrap=width >= len(title)
        )
    for row in rows:
        shown.add_row(*row)
    return shown
