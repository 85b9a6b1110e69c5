"""The documentation is true: its code runs, its links lead somewhere."""

import contextlib
import importlib
import io
import json
import re
import types
from pathlib import Path

import pytest
import torch

import tracetorch as tt

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[str]:
    found = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    return [block for block in found if "--8<--" not in block]  # a whole example, which test_examples runs


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_the_code_on_a_page_runs(page: Path) -> None:
    torch.manual_seed(0)
    names: dict[str, object] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        for block in blocks(page):
            exec(compile(block, str(page), "exec"), names)


def test_the_readmes_loop_learns(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    names: dict[str, object] = {}
    exec(blocks(ROOT / "README.md")[0], names)
    assert float(names["loss"]) < 0.35
    assert "kept between steps: 19456 bytes" in capsys.readouterr().out


def test_the_readme_loop_is_short() -> None:
    loop = blocks(ROOT / "README.md")[0].split("optimizer = ")[1]
    assert len([line for line in loop.splitlines() if line.strip()]) <= 12


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / link).exists(), link


def test_the_changelog_speaks_of_what_is_coming_or_of_this_version() -> None:
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_readmes_table_is_the_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import images
    import memory
    import race

    assert images.table(images.load("images")) in (ROOT / "README.md").read_text()
    assert race.readme(race.load("race")) in (ROOT / "README.md").read_text()
    assert memory.page(memory.load("memory")) == (ROOT / "docs" / "memory.md").read_text()


@pytest.mark.parametrize(
    ("script", "page"),
    [
        ("fidelity", "exactness"),
        ("rowwise_mnist", "rowwise-mnist"),
        ("spoken_digits", "spoken-digits"),
        ("conv_mnist", "conv-mnist"),
        ("delayed_cue", "delayed-cue"),
        ("evidence", "evidence"),
        ("race", "race"),
        ("growth", "growth"),
        ("sparse", "sparse"),
    ],
)
def test_pages_are_what_the_benchmarks_measured(script: str, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    module = importlib.import_module(script)
    figures = json.loads((ROOT / "benchmarks" / "results" / f"{script}.json").read_text())
    assert module.page(figures) == (ROOT / "docs" / f"{page}.md").read_text()


def test_the_choosing_page_is_what_the_benchmarks_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import choosing

    assert choosing.page() == (ROOT / "docs" / "choosing.md").read_text()


def test_every_public_class_and_function_has_its_place_in_the_reference() -> None:
    reference = "\n".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    for name in tt.__all__:
        if not isinstance(getattr(tt, name), types.ModuleType):
            assert f"::: tracetorch.{name}\n" in reference, name


def test_the_recorded_memory_does_not_grow() -> None:
    figures = json.loads((ROOT / "benchmarks" / "results" / "memory.json").read_text())
    assert (figures["short"], figures["long"]) == (1_000, 100_000)
    for name, row in figures["rows"].items():
        if name != "BPTT":
            assert row["state_long"] == row["state_short"], name
            assert row["live_long"] == row["live_short"], name
            assert row["resident_long"] - row["resident_short"] < 2**20, name
    assert figures["rows"]["BPTT"]["live_long"] > 5 * figures["rows"]["BPTT"]["live_short"]


@pytest.mark.parametrize(
    ("rule", "window", "cosines"),
    [
        ("MeanField()", 1, (0.82, 0.93, 0.97)),
        ("MeanField()", 32, (0.92, 0.97, 0.99)),
        ("Eligibility()", 1, (0.90, 0.97, 0.999)),
    ],
)
def test_the_recorded_fidelity_of_a_new_network_is_high(
    rule: str, window: int, cosines: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import fidelity

    settings = json.loads((ROOT / "benchmarks" / "results" / "fidelity.json").read_text())["settings"]
    for name in list(fidelity.SETTINGS)[:2]:  # without recurrent weights
        layers = fidelity.averages(settings[f"{name}; new"])[rule, window]
        for i, least in enumerate(cosines):
            cosine, ratio = layers[f"{i}.synapse.weight"]
            assert cosine >= least
            assert 0.7 < ratio < 1.2
