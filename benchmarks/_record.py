"""Where figures are kept: JSON beside the script, with the machine and the versions that made them."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

import tracetorch

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """The machine and the versions."""
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), processor)
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "tracetorch": tracetorch.__version__,
    }


def save(name: str, figures: dict[str, Any]) -> Path:
    """Write `results/<name>.json`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **figures}, indent=1) + "\n")
    return path


def load(name: str) -> dict[str, Any]:
    """Read `results/<name>.json`; empty where there is none."""
    path = RESULTS / f"{name}.json"
    figures: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return figures


def write_readme(name: str, text: str) -> None:
    """Put a text between the marks of this name in README.md."""
    path = Path(__file__).parents[1] / "README.md"
    before, rest = path.read_text().split(f"<!-- {name} -->\n")
    _, after = rest.split(f"<!-- /{name} -->")
    path.write_text(f"{before}<!-- {name} -->\n{text}<!-- /{name} -->{after}")
