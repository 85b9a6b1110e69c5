"""Record golden spike trains of other packages, so that presets are tested without installing them.

Each package is run in an environment of its own, outside the repository, and writes one file beside this script:

    python -m venv ENV && ENV/bin/pip install torch==2.13.0 numpy
    ENV/bin/pip install --no-deps PACKAGE                     # of the table below
    ENV/bin/pip install --no-deps NIR && ENV/bin/pip install NEEDED
    ENV/bin/python tests/golden/record.py NAME

    NAME          PACKAGE              NIR                 NEEDED
    snntorch      snntorch==1.0.0      -                   -
    spikingjelly  spikingjelly==2.0.0  -                   loguru
    norse         norse==1.1.0         nir nirtorch        h5py
    sinabs        sinabs==3.1.3        nir==1.0.4 nirtorch pbr matplotlib h5py

No module is replaced by a stub. Before it writes, the script replays each case in numpy with `replay` and asserts that
the spikes are the same, that the membrane agrees to 1e-12, and that each option of `replay` which a package uses shows
in the spikes of at least one case. `README.md` holds the equations and the format.
"""

from __future__ import annotations

import json
import math
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

T, B, M = 200, 2, 8  # steps, lanes, neurons
UNIT = 64  # currents are multiples of 1/64, so that sums are exact and the threshold can be met exactly

# package -> case -> (class, arguments, scale of the drive)
CASES: dict[str, dict[str, tuple[str, dict[str, Any], float]]] = {
    "snntorch": {
        "subtract": ("Leaky", {"beta": 0.9}, 1.25),
        "zero": ("Leaky", {"beta": 0.9, "reset_mechanism": "zero"}, 1.25),
        "none": ("Leaky", {"beta": 0.9, "reset_mechanism": "none"}, 0.375),
        "subtract_now": ("Leaky", {"beta": 0.9, "reset_delay": False}, 1.25),
        "zero_now": ("Leaky", {"beta": 0.9, "reset_mechanism": "zero", "reset_delay": False}, 1.25),
        "subtract_now_strong": ("Leaky", {"beta": 0.9, "reset_delay": False}, 2.0),
        "zero_ties": ("Leaky", {"beta": 0.5, "threshold": 0.5, "reset_mechanism": "zero"}, 1.0),
        "synaptic_subtract": ("Synaptic", {"alpha": 0.8, "beta": 0.9}, 0.25),
        "synaptic_zero": ("Synaptic", {"alpha": 0.8, "beta": 0.9, "reset_mechanism": "zero"}, 0.25),
        "synaptic_zero_now": (
            "Synaptic",
            {"alpha": 0.8, "beta": 0.9, "reset_mechanism": "zero", "reset_delay": False},
            0.25,
        ),
    },
    "spikingjelly": {
        "lif": ("LIFNode", {}, 4.0),
        "lif_soft": ("LIFNode", {"v_reset": None}, 4.0),
        "lif_undecayed": ("LIFNode", {"decay_input": False}, 2.0),
        "lif_undecayed_soft": ("LIFNode", {"decay_input": False, "v_reset": None}, 2.0),
        "lif_slow": ("LIFNode", {"tau": 10.0}, 9.5),
        "lif_slow_soft": ("LIFNode", {"tau": 10.0, "v_reset": None}, 9.5),
        "lif_below": ("LIFNode", {"v_reset": -0.25, "v_threshold": 0.5}, 2.0),
        "if": ("IFNode", {}, 1.0),
        "if_soft": ("IFNode", {"v_reset": None}, 1.0),
        "if_below": ("IFNode", {"v_reset": -0.25}, 1.0),
    },
    "norse": {
        "box": ("LIFBoxCell", {}, 9.5),
        "box_subtract": ("LIFBoxCell", {"reset_method": "reset_subtract"}, 9.5),
        "box_fast": ("LIFBoxCell", {"tau_mem_inv": 1 / 5e-3, "v_th": 0.7}, 4.0),
        "box_potentials": ("LIFBoxCell", {"v_leak": 0.125, "v_reset": -0.25}, 12.0),
        "box_dt": ("LIFBoxCell", {"dt": 0.002}, 7.0),
        "box_ties": ("LIFBoxCell", {"tau_mem_inv": 500.0, "v_th": 0.25}, 1.0),
        "current": ("LIFCell", {}, 2.5),
        "current_fast": ("LIFCell", {"tau_mem_inv": 1 / 5e-3, "tau_syn_inv": 100.0, "v_th": 0.7}, 0.5),
        "iaf": ("IAFCell", {}, 1.0),
    },
    "sinabs": {
        "lif": ("LIF", {"tau_mem": 20.0}, 20.0),
        "lif_unnormed": ("LIF", {"tau_mem": 20.0, "norm_input": False}, 1.0),
        "lif_single": ("LIF", {"tau_mem": 20.0, "spike_fn": "SingleSpike"}, 20.0),
        "lif_reset": ("LIF", {"tau_mem": 20.0, "reset_fn": "MembraneReset"}, 20.0),
        "lif_floor": ("LIF", {"tau_mem": 20.0, "min_v_mem": -0.25}, 20.0),
        "lif_synapse": ("LIF", {"tau_mem": 20.0, "tau_syn": 5.0}, 5.0),
        "lif_strong": ("LIF", {"tau_mem": 20.0, "norm_input": False}, 4.0),
        "lif_strong_single": ("LIF", {"tau_mem": 20.0, "norm_input": False, "spike_fn": "SingleSpike"}, 4.0),
        "iaf": ("IAF", {}, 1.0),
        "iaf_single": ("IAF", {"spike_fn": "SingleSpike"}, 1.0),
        "iaf_strong_reset": ("IAF", {"reset_fn": "MembraneReset"}, 4.0),
    },
}


def drive() -> np.ndarray:
    """The input in units of 1/64, (T, B, M): each neuron has its own mean; lane 1 is inhibited for a while."""
    mean = np.linspace(0.0, 0.375, M)
    noise = np.random.default_rng(20240607).standard_normal((T, B, M))
    level = np.clip(mean + 0.375 * noise, -1.5, 1.5)
    level[120:140, 1] -= 0.75
    return np.rint(UNIT * level).astype(np.int16)


def count(u: np.ndarray, threshold: float, strict: bool, most: float) -> np.ndarray:
    """How many spikes a membrane gives: whole thresholds at or, if strict, strictly below it, from 0 to `most`."""
    whole = np.ceil(u / threshold) - 1 if strict else np.floor(u / threshold)
    return np.clip(whole, 0, most)


def replay(
    current: np.ndarray,  # (T, B, M)
    *,
    decay: float,
    gain: float,
    strict: bool,
    reset: str,
    threshold: float = 1.0,
    rest: float = 0.0,
    to: float = 0.0,
    synapse: tuple[float, float] | None = None,
    look_back: bool = False,
    delayed: bool = False,
    most: float = 1,
    floor: float = -math.inf,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The equations of all four packages; returns spikes, the membrane reported, and the membrane compared."""
    v, i = np.full(current.shape[1:], rest), np.zeros(current.shape[1:])
    spikes, reported, compared = [], [], []
    for x in current:
        i = x if synapse is None else synapse[0] * i + synapse[1] * x
        above = look_back & (v > threshold)  # snnTorch: what the last step left, compared once more
        if reset == "zero":
            v = np.where(above, to, v)
        u = rest + decay * (v - rest) + gain * i
        if reset == "silence":
            u = np.where(above, to, u)
        seen = u - threshold * above if reset == "subtract" else u
        s = count(seen, threshold, strict, most)
        if delayed or reset == "none":
            v = seen
        elif reset == "subtract":
            v = u - threshold * s
        else:
            v = np.where(s > 0, to, u)
        v = np.maximum(v, floor)
        spikes.append(s)
        reported.append(v)
        compared.append(seen)
    return np.stack(spikes), np.stack(reported), np.stack(compared)


Recorded = tuple[list[torch.Tensor], list[torch.Tensor], dict[str, Any]]  # spikes, membranes, arguments of `replay`


def snntorch(kind: str, arguments: dict[str, Any], current: torch.Tensor) -> Recorded:
    import snntorch

    layer = getattr(snntorch, kind)(**arguments).double()
    spikes, membranes, state = [], [], ()
    for x in current:
        s, *state = layer(x, *state)  # Leaky keeps (mem), Synaptic (syn, mem)
        spikes.append(s)
        membranes.append(state[-1])
    reset = arguments.get("reset_mechanism", "subtract")
    return (
        spikes,
        membranes,
        {
            "decay": arguments["beta"],
            "gain": 1.0,
            "threshold": arguments.get("threshold", 1.0),
            "strict": True,
            "reset": "silence" if (kind, reset) == ("Synaptic", "zero") else reset,
            "synapse": (arguments["alpha"], 1.0) if kind == "Synaptic" else None,
            "look_back": True,
            "delayed": arguments.get("reset_delay", True),
        },
    )


def spikingjelly(kind: str, arguments: dict[str, Any], current: torch.Tensor) -> Recorded:
    from spikingjelly.activation_based import neuron

    layer = getattr(neuron, kind)(**arguments).double()
    spikes, membranes = [], []
    for x in current:
        spikes.append(layer(x))
        membranes.append(layer.v)
    tau = arguments.get("tau", 2.0) if kind == "LIFNode" else math.inf
    soft = arguments.get("v_reset", 0.0) is None
    rest = 0.0 if soft else arguments.get("v_reset", 0.0)
    return (
        spikes,
        membranes,
        {
            "decay": 1 - 1 / tau,
            "gain": 1 / tau if kind == "LIFNode" and arguments.get("decay_input", True) else 1.0,
            "threshold": arguments.get("v_threshold", 1.0),
            "strict": False,
            "reset": "subtract" if soft else "zero",
            "rest": rest,
            "to": rest,
        },
    )


def norse(kind: str, arguments: dict[str, Any], current: torch.Tensor) -> Recorded:
    import norse.torch as nt
    from norse.torch.functional import reset

    of = dict(arguments)
    dt = of.pop("dt", 0.001)
    soft = of.pop("reset_method", None)
    extra = {"reset_method": getattr(reset, soft)} if soft else {}
    # every one is a float64 tensor: the default dtype is set before the package's own defaults are made
    p = getattr(nt, kind.replace("Cell", "Parameters"))(**{key: torch.as_tensor(of[key]) for key in of}, **extra)
    layer = getattr(nt, kind)(p=p, dt=dt)
    spikes, membranes, state = [], [], None
    for x in current:
        s, state = layer(x, state)
        spikes.append(s)
        membranes.append(state.v)
    leaks = kind != "IAFCell"
    gain = dt * of.get("tau_mem_inv", 100.0) if leaks else 1.0
    return (
        spikes,
        membranes,
        {
            "decay": 1 - gain if leaks else 1.0,
            "gain": gain,
            "threshold": of.get("v_th", 1.0),
            "strict": True,
            "reset": "subtract" if soft else "zero",
            "rest": of.get("v_leak", 0.0),
            "to": of.get("v_reset", 0.0),
            "synapse": (1 - dt * of.get("tau_syn_inv", 200.0), 1.0) if kind == "LIFCell" else None,
        },
    )


def sinabs(kind: str, arguments: dict[str, Any], current: torch.Tensor) -> Recorded:
    from sinabs import activation, layers

    given = dict(arguments)
    if "spike_fn" in given:
        given["spike_fn"] = getattr(activation, given["spike_fn"])  # the class itself
    if "reset_fn" in given:
        given["reset_fn"] = getattr(activation, given["reset_fn"])()
    layer = getattr(layers, kind)(**given, record_states=True).double()
    spikes = layer(current.transpose(0, 1))  # (B, T, M)
    membranes = layer.recordings["v_mem"]
    alpha = math.exp(-1 / arguments["tau_mem"]) if kind == "LIF" else 1.0
    slow = math.exp(-1 / arguments["tau_syn"]) if "tau_syn" in arguments else None
    return (
        list(spikes.transpose(0, 1)),
        list(membranes.transpose(0, 1)),
        {
            "decay": alpha,
            "gain": 1 - alpha if kind == "LIF" and arguments.get("norm_input", True) else 1.0,
            "strict": False,
            "reset": "zero" if arguments.get("reset_fn") == "MembraneReset" else "subtract",
            "synapse": (slow, slow) if slow else None,
            "most": 1 if arguments.get("spike_fn") == "SingleSpike" else math.inf,
            "floor": arguments.get("min_v_mem", -math.inf),
        },
    )


RUN = {"snntorch": snntorch, "spikingjelly": spikingjelly, "norse": norse, "sinabs": sinabs}


# what `replay` is without each option: the spikes of at least one case must tell the difference
PLAIN = {
    "gain": 1.0,
    "reset": "none",
    "rest": 0.0,
    "to": 0.0,
    "synapse": None,
    "look_back": False,
    "delayed": False,
    "most": 1,
    "floor": -math.inf,
}


def closeness(compared: np.ndarray, threshold: float, most: float) -> tuple[int, float]:
    """How often the membrane met a threshold exactly, and how near it came otherwise."""
    ratio = compared / threshold
    distance = np.abs(ratio - np.clip(np.rint(ratio), 1, most))
    return int((distance == 0).sum()), float(distance[distance > 0].min())


def record(package: str) -> Path:
    """Run all cases of a package, check the equations, write `<package>.npz`."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)  # else beta=0.9 is kept as the float32 nearest to it
    units = drive()
    arrays: dict[str, np.ndarray] = {"drive": units}
    cases: dict[str, Any] = {}
    used, shown = set(), set()
    for name, (kind, arguments, scale) in CASES[package].items():
        current = scale * units / UNIT
        with torch.no_grad():
            spikes, membranes, equations = RUN[package](kind, arguments, torch.from_numpy(current))
        spikes, membrane = torch.stack(spikes).numpy(), torch.stack(membranes).numpy()
        assert membrane.dtype == np.float64, (package, name, membrane.dtype)

        again, reported, compared = replay(current, **equations)
        np.testing.assert_array_equal(again, spikes, err_msg=f"{package} {name}: spikes")
        np.testing.assert_allclose(reported, membrane, rtol=0, atol=1e-12, err_msg=f"{package} {name}: membrane")
        ties, margin = closeness(compared, equations.get("threshold", 1.0), equations.get("most", 1))
        exact = all(float(UNIT * equations[key]).is_integer() for key in ("decay", "gain"))
        assert margin > 1e-6, f"{package} {name}: rounding could decide a spike, {margin} from the threshold"
        assert exact or not ties, f"{package} {name}: {ties} ties, but the sums are not exact"
        for knob, other in {**PLAIN, "strict": not equations["strict"]}.items():
            if equations.get(knob, other) != other:
                used.add(knob)
                if (replay(current, **{**equations, knob: other})[0] != spikes).any():
                    shown.add(knob)
        rate = float(spikes.mean())
        assert 0.1 < rate < 0.35 or "strong" in name, f"{package} {name}: rate {rate}"

        arrays[f"{name}/spikes"] = spikes.astype(np.uint8)
        arrays[f"{name}/membrane"] = membrane[:, 0].astype(np.float32)
        cases[name] = {
            "class": kind,
            "arguments": arguments,
            "scale": scale,
            "rate": round(rate, 4),
            "most_per_step": int(spikes.max()),
            "ties": ties,
            "margin": margin,
        }
        print(f"{package:13}{name:22}rate {rate:.3f}  most {int(spikes.max())}  ties {ties:3}  margin {margin:.1e}")
    assert used == shown, f"{package}: no spike train tells {used - shown}"
    about = {
        "package": package,
        "version": version(package),
        "torch": torch.__version__.split("+")[0],
        "dtype": "float64",
        "cases": cases,
    }
    path = Path(__file__).with_name(f"{package}.npz")
    np.savez_compressed(path, about=np.array(json.dumps(about)), **arrays)
    return path


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in CASES:
        sys.exit(f"usage: python {sys.argv[0]} {{{','.join(CASES)}}}")
    written = record(sys.argv[1])
    print(f"{written.name}: {written.stat().st_size / 1000:.1f} kB")
