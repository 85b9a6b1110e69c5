"""The package: its public names, the direction of its imports, its neighbours on the import path."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tracetorch as tt

SOURCE = Path(tt.__file__).parent
# Each row may import from its own row and from those before it.
LAYERS = [
    {"_checks"},
    {"functional"},
    {"kernels"},
    {"rules"},
    {"nn"},
    {"encode", "loss", "metrics", "datasets", "health", "plot", "tasks"},
    {"train", "testing"},
    {"cli"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def imports_of(path: Path) -> set[str]:
    """The first-level names of ours that a file imports."""
    package = ("tracetorch", *path.relative_to(SOURCE).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            parts = package[: len(package) - node.level + 1] + tuple((node.module or "").split("."))
            full = [*filter(None, parts)]
            found |= {full[1]} if len(full) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            assert not any(name.split(".")[0] == "tracetorch" for name in names), f"{path}: import relatively"
    return found


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_downwards(path: Path) -> None:
    own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if own == "__init__":
        return
    for name in imports_of(path):
        if name in ("__version__",):
            continue
        assert RANK[name] <= RANK[own], f"{own} must not import {name}"


def test_the_direction_check_sees_imports() -> None:
    assert imports_of(SOURCE / "nn" / "layer.py") >= {"_checks", "functional", "rules", "nn"}
    assert imports_of(SOURCE / "functional" / "rate.py") == {"_checks"}


def test_only_the_command_line_may_import_testing() -> None:
    importers = {path.relative_to(SOURCE).parts[0] for path in SOURCE.rglob("*.py") if "testing" in imports_of(path)}
    assert importers <= {"cli", "testing"}


def test_importing_needs_no_extra() -> None:
    """Run-time dependencies are torch and numpy."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['matplotlib', 'pooch', 'sklearn', 'typer', 'rich']));"
        "import tracetorch, tracetorch.testing, tracetorch.datasets"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_exists_and_is_documented() -> None:
    for name in tt.__all__:
        assert getattr(tt, name).__doc__, name


def test_another_distribution_of_the_same_import_name_is_refused(tmp_path: Path) -> None:
    info = tmp_path / "tracetorch-0.11.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tracetorch\nVersion: 0.11.0\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import tracetorch"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert "ImportError: tracetorch: expected this import name to belong to 'tracetorch-online' alone" in run.stderr
    assert "'tracetorch' 0.11.0 is installed" in run.stderr
    assert "pip uninstall" in run.stderr


def test_what_needs_an_extra_is_imported_when_asked_for() -> None:
    code = (
        "import sys, tracetorch as tt; assert 'tracetorch.plot' not in sys.modules;"
        "tt.plot.raster, tt.testing.compare, tt.datasets.digits, tt.train.build, tt.health.check"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="module 'tracetorch' has no attribute 'nothing'"):
        _ = tt.nothing
