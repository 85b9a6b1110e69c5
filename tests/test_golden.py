"""Spike for spike the neurons of other libraries: trains recorded from their releases, see golden/README.md."""

import json
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from cases import F64

GOLDEN = Path(__file__).parent / "golden"
SYN, MEM = math.exp(-1 / 5), math.exp(-1 / 20)

# What reproduces each recorded case.
EQUAL = {
    "snntorch": {
        "subtract": {"beta": 0.9},
        "zero": {"beta": 0.9, "reset": "zero"},
        "none": {"beta": 0.9, "reset": "none"},
        "zero_now": {"beta": 0.9, "reset": "zero"},
        "zero_ties": {"beta": 0.5, "threshold": 0.5, "reset": "zero"},
        "synaptic_subtract": {"alpha": 0.8, "beta": 0.9},
        "synaptic_zero_now": {
            "alpha": 0.8,
            "beta": 0.9,
            "reset": "zero",
            "firing": tt.firing.StrictSpike(),
            "like": None,
        },
    },
    "spikingjelly": {
        "lif": {},
        "lif_soft": {"reset": "subtract"},
        "lif_undecayed": {"gain": 1.0},
        "lif_undecayed_soft": {"gain": 1.0, "reset": "subtract"},
        "lif_slow": {"tau": 10.0},
        "lif_slow_soft": {"tau": 10.0, "reset": "subtract"},
        "lif_below": {"threshold": 0.75},  # relative to the potential that it rests at and is reset to, -0.25
        "if": {"beta": 1.0, "gain": 1.0},
        "if_soft": {"beta": 1.0, "gain": 1.0, "reset": "subtract"},
        "if_below": {"beta": 1.0, "gain": 1.0, "threshold": 1.25},
    },
    "norse": {
        "box": {},
        "box_subtract": {"reset": "subtract"},
        "box_fast": {"tau": 5.0, "threshold": 0.7},
        "box_dt": {"beta": 0.8},
        "box_ties": {"beta": 0.5, "threshold": 0.25},
        "current": {"alpha": 0.8},
        "current_fast": {"alpha": 0.9, "tau": 5.0, "threshold": 0.7},
        "iaf": {"beta": 1.0, "gain": 1.0},
    },
    "sinabs": {
        "lif": {},
        "lif_unnormed": {"gain": 1.0},
        "lif_single": {"firing": tt.firing.Spike()},
        "lif_reset": {"reset": "zero"},
        "lif_synapse": {
            "alpha": SYN,
            "beta": MEM,
            "gain": SYN * (1 - MEM),
            "firing": tt.firing.MultiSpike(),
            "like": None,
        },
        "lif_strong": {"gain": 1.0},
        "lif_strong_single": {"gain": 1.0, "firing": tt.firing.Spike()},
        "iaf": {"beta": 1.0, "gain": 1.0},
        "iaf_single": {"beta": 1.0, "gain": 1.0, "firing": tt.firing.Spike()},
        "iaf_strong_reset": {"beta": 1.0, "gain": 1.0, "reset": "zero"},
    },
}
# What has no counterpart here, and why.
OTHERS = {
    "snntorch": {
        "subtract_now": "the threshold is raised for a step where the membrane stays above it",
        "subtract_now_strong": "likewise",
        "synaptic_zero": "the current of the step after a spike is dropped",
    },
    "spikingjelly": {},
    "norse": {"box_potentials": "it leaks to another potential than it is reset to"},
    "sinabs": {"lif_floor": "the membrane has a floor"},
}
TELLING = {"norse": "box_ties"}  # cases that tell a preset from all others, where the first one does not
CASES = [(library, case) for library, cases in EQUAL.items() for case in cases]
# A delayed reset to zero is the same map as one at once, but for the membrane that is shown; others are shifted.
OTHER_MEMBRANE = {
    ("snntorch", "zero"),
    ("snntorch", "zero_ties"),
    ("spikingjelly", "lif_below"),
    ("spikingjelly", "if_below"),
}


@cache
def recorded(library: str) -> dict:
    with np.load(GOLDEN / f"{library}.npz") as file:
        return {name: file[name] for name in file.files} | {"about": json.loads(str(file["about"]))}


def problem(library: str, case: str) -> tuple[tt.LIF, Tensor, Tensor]:
    """Our neuron with the current as its input, the current, and the recorded spikes (T, B, m)."""
    data = recorded(library)
    synapse = nn.Linear(8, 8, bias=False, **F64)
    nn.init.eye_(synapse.weight)
    layer = tt.LIF(synapse=synapse, **({"like": library} | EQUAL[library][case]))
    current = torch.from_numpy(data["drive"]).double() * data["about"]["cases"][case]["scale"] / 64
    return layer, current, torch.from_numpy(data[f"{case}/spikes"]).double()


@pytest.mark.parametrize(("library", "case"), CASES)
@pytest.mark.parametrize("window", [1, 200])
def test_the_spikes_are_theirs(library: str, case: str, window: int) -> None:
    layer, current, spikes = problem(library, case)
    assert spikes.shape == (200, 2, 8)
    assert spikes.mean() > 0.1
    found = torch.cat([layer.window(part) for part in current.split(window)])
    assert torch.equal(found, spikes)


@pytest.mark.parametrize(("library", "case"), [pair for pair in CASES if pair not in OTHER_MEMBRANE])
def test_the_membranes_are_theirs(library: str, case: str) -> None:
    layer, current, _ = problem(library, case)
    membranes = []
    for x in current:
        layer(x)
        membranes.append(layer.mem[0])
    torch.testing.assert_close(
        torch.stack(membranes), torch.from_numpy(recorded(library)[f"{case}/membrane"]).double(), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("library", EQUAL)
def test_every_recorded_case_is_accounted_for(library: str) -> None:
    assert recorded(library)["about"]["cases"].keys() == EQUAL[library].keys() | OTHERS[library].keys()


@pytest.mark.parametrize("library", EQUAL)
@pytest.mark.parametrize("other", [*EQUAL, None])
def test_a_preset_is_not_another(library: str, other: str | None) -> None:
    """The recorded spikes tell the presets apart."""
    if other == library:
        return
    case = TELLING.get(library, next(iter(EQUAL[library])))
    layer, current, spikes = problem(library, case)
    options = {"like": library} | EQUAL[library][case] | {"like": other}
    other_layer = tt.LIF(synapse=layer.synapse, **({"beta": layer.beta.item()} | options))
    assert not torch.equal(other_layer.window(current), spikes)
