"""The play-tests of the original traceTorch, as a requirement: memorise everything, with either rule, for any seed."""

import importlib
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"

everything = pytest.mark.parametrize(
    ("rule", "seed"), [(rule, seed) for rule in ("mean-rate", "input-trace") for seed in (0, 1, 2)]
)


@pytest.fixture
def run_example(monkeypatch, tmp_path):
    """Run an example by name with some options; its results."""
    monkeypatch.syspath_prepend(EXAMPLES)
    threads = torch.get_num_threads()
    yield lambda name, *options: importlib.import_module(name).main([*options, "--out", str(tmp_path)])
    torch.set_num_threads(threads)


@everything
def test_lif_layers_memorise_five_pairs(run_example, rule, seed):
    results = run_example("lif_memory", "--rule", rule, "--seed", str(seed))
    assert results["bits_right"] == 1


@everything
def test_ten_inputs_are_told_apart(run_example, rule, seed):
    results = run_example("classification", "--rule", rule, "--seed", str(seed))
    assert results["classes_right"] == 1
