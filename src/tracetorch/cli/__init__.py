"""The command line. Here is its entry point alone, which needs no extra; the commands are in `app`."""

from __future__ import annotations

import sys

import torch

NEEDED = ("typer", "rich", "matplotlib")


def main() -> None:
    """Run `tracetorch` with the arguments it was called with."""
    try:
        from .app import app
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in NEEDED:
            raise
        print(
            f"tracetorch: the command line needs {missing}, which cannot be imported. "
            f"Run pip install 'tracetorch-online[cli]'.",
            file=sys.stderr,
        )
        raise SystemExit(1) from None
    # The products of a small network gain nothing from threads, and lose much to them where other programs are running.
    torch.set_num_threads(1)
    app()
