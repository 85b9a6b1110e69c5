"""Every example runs, returns its results and writes its pictures."""

import gzip
import importlib
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"
PICTURES = ["accuracy.png", "loss.png", "raster.png"]


@pytest.fixture
def run_example(monkeypatch, tmp_path):
    """Run an example by name with some options; its results, after a look at its pictures."""
    monkeypatch.syspath_prepend(EXAMPLES)
    threads = torch.get_num_threads()

    def run(name: str, *options: str) -> dict:
        out = tmp_path / "pictures"
        results = importlib.import_module(name).main([*options, "--out", str(out)])
        assert sorted(path.name for path in out.iterdir()) == PICTURES
        return results

    yield run
    torch.set_num_threads(threads)


def write_idx(path: Path, array: np.ndarray) -> None:
    """An array of bytes in MNIST's file format."""
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


@pytest.fixture
def tiny_mnist(tmp_path):
    """A folder with 60 images to learn from and 20 to test with, in which a class is one bright row."""
    folder = tmp_path / "data" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part, count in (("train", 60), ("t10k", 20)):
        labels = np.arange(count) % 10
        images = np.zeros((count, 28, 28))
        images[np.arange(count), 2 * labels + 4] = 255
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", labels)
    return tmp_path / "data"


@pytest.mark.parametrize("rule", ["input-trace", "mean-rate", "truncated"])
@pytest.mark.parametrize(("name", "result"), [("lif_memory", "bits_right"), ("classification", "classes_right")])
def test_play_tests_run(run_example, name, result, rule):
    results = run_example(name, "--rule", rule, "--epochs", "2", "--window", "20", "--seed", "3")
    assert results["epochs"] == 2
    assert 0 <= results[result] < 1, "two epochs are too few to learn anything by heart"


@pytest.mark.parametrize("options", [(), ("--lanes", "7", "--window", "4", "--rule", "input-trace", "--epochs", "2")])
def test_mnist_runs(run_example, tiny_mnist, options):
    results = run_example("mnist", "--data", str(tiny_mnist), "--images", "50", *options)
    assert 0 <= results["test_accuracy"] <= 1


def test_mnist_learns(run_example, tiny_mnist):
    results = run_example("mnist", "--data", str(tiny_mnist), "--epochs", "6", "--intensity", "0", "0.5")
    assert results["test_accuracy"] > 0.5


def test_the_same_seed_gives_the_same_run(run_example):
    first, second = (run_example("classification", "--epochs", "4", "--seed", "5") for _ in range(2))
    assert first["loss"] == second["loss"]


def test_options_out_of_range_are_refused(run_example, capsys):
    with pytest.raises(SystemExit):
        run_example("lif_memory", "--window", "0")
    assert "--window: expected a whole number of at least 1, got 0" in capsys.readouterr().err


def test_every_example_is_tested():
    scripts = {path.stem for path in EXAMPLES.glob("*.py") if not path.name.startswith("_")}
    assert scripts == {"lif_memory", "classification", "mnist", "convolution", "own_neuron", "recurrence"}


@pytest.mark.parametrize(("name", "least"), [("convolution", 0.9), ("own_neuron", 0.9), ("recurrence", 0.9)])
def test_what_the_tutorials_run(name: str, least: float, capsys: pytest.CaptureFixture[str]) -> None:
    """As their pages have it, and shown there whole."""
    result = importlib.import_module(name).main()
    assert min(result.values() if isinstance(result, dict) else [result]) > least


def test_a_neuron_of_ones_own_takes_one_short_file() -> None:
    assert len((EXAMPLES / "own_neuron.py").read_text().splitlines()) < 80
