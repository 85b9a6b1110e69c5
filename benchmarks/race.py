"""The time of a step and the memory of a sequence: this library beside snnTorch, SpikingJelly, Norse and plain torch.

    make bench                          all of it: some ten minutes
    python benchmarks/race.py           what the environment of `make bench` runs: measures, writes results/race.json
    python benchmarks/race.py --page    writes docs/race.md, its plots and the table of README.md from it

`--minutes` is for the times alone; memory takes some three more. `--only time`, `--only memory` measure one of the two
and keep what is recorded of the other. The contestants are in `_peers.py`.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import random
import re
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import tracetorch as tt
from _peers import ACTIVITY, CONTESTANTS, Contestant, Drawn, Held, ours, weights
from _record import load, save, write_readme
from _timing import cell, decorate, in_a_row, spread, table

ROOT = Path(__file__).parents[1]
T, CLASSES = 64, 10
NETS = {"784-128-128-10": (784, 128, 128, CLASSES), "784-512-512-10": (784, 512, 512, CLASSES)}
BATCHES = (1, 32, 256)
OPTIMIZER_BATCH = 32
FEWEST, MOST = 5, 100  # rounds
OURS, SINGLE, FLOOR = "tracetorch, windows of 32", "tracetorch, single steps", "matrix products alone"
BPTT = ("snnTorch", "snnTorch, layer by layer", "SpikingJelly", "Norse")
WITH_OPTIMIZER = (OURS, *BPTT, "SpikingJelly, OTTT")
PEERS = ("snntorch", "spikingjelly", "norse")

LANES = 64
LENGTHS = (10, 100, 1_000, 10_000, 100_000)
MEMORY = {  # up to which of these lengths; BPTT one further with --long
    OURS: 100_000,
    SINGLE: 10_000,
    "snnTorch": 1_000,
    "SpikingJelly": 1_000,
    "Norse": 1_000,
    "SpikingJelly, OTTT": 10_000,
    "OTTT by hand": 10_000,
}


# -- time --------------------------------------------------------------------------------------------------------------


def data(sizes: tuple[int, ...], lanes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Bernoulli spikes (T, B, n) and classes (B,), the same for all contestants."""
    generator = torch.Generator().manual_seed(1)
    x = torch.empty(T, lanes, sizes[0]).bernoulli_(ACTIVITY, generator=generator)
    return x, torch.randint(sizes[-1], (lanes,), generator=generator)


def seconds(
    contestant: Contestant, x: torch.Tensor, target: torch.Tensor, optimizer: torch.optim.Optimizer | None
) -> float:
    """How long one sequence takes: gradients zeroed, forward, loss, backward, with an optimizer its step."""

    def sequence() -> None:
        for p in contestant.parameters:
            p.grad = None
        contestant.run(Held(x), len(x), target)
        if optimizer is not None:
            optimizer.step()

    return in_a_row(sequence)


def race(sizes: tuple[int, ...], lanes: int, names: list[str], budget: float, optimize: bool) -> dict[str, Any]:
    """Rounds of one sequence per contestant, in a new order each time, until the seconds of the budget are spent."""
    layers = weights(sizes)
    x, target = data(sizes, lanes)
    contestants = {name: CONTESTANTS[name](layers) for name in names}
    optimizers = {
        name: torch.optim.AdamW(contestant.parameters, lr=1e-5, fused=True) if optimize else None
        for name, contestant in contestants.items()
    }
    times: dict[str, list[float]] = {name: [] for name in names}
    order = random.Random(0)
    start = time.perf_counter()
    for count in range(-1, MOST):  # the first is for warming up
        if count >= FEWEST and time.perf_counter() - start > budget:
            break
        for name in order.sample(names, len(names)):
            took = seconds(contestants[name], x, target, optimizers[name])
            if count >= 0:
                times[name].append(took)
    rows = {}
    for name in names:
        ratios = [its / our for its, our in zip(times[name], times[OURS], strict=True)]
        rows[name] = {"ms": spread([1e3 * took / T for took in times[name]]), "ratio": spread(ratios)}
    return {"rounds": len(times[OURS]), "rows": rows}


def agreement(sizes: tuple[int, ...]) -> dict[str, Any]:
    """Each contestant's loss and gradients, beside BPTT of the same equations, unrolled by this library's reference.

    Raises:
        SystemExit: one that says it is BPTT gives another gradient: it would not be the same net.
    """
    layers = weights(sizes)
    x, target = data(sizes, 32)
    rows: dict[str, Any] = {}
    for name, make in CONTESTANTS.items():
        if name == FLOOR:
            continue
        contestant = make(layers)
        loss = contestant.run(Held(x), T, target)
        model = ours(layers, **contestant.like)
        y = model.window(x)
        expected, ls = tt.loss.cross_entropy(y, target)
        reference = list(tt.testing.bptt_gradients(model, x, ls).values())
        pairs = list(zip(contestant.gradients(), reference, strict=True))[::2]  # the weights, not the biases
        cosines = [torch.cosine_similarity(a.flatten(), b.flatten(), 0).item() for a, b in pairs]
        ratios = [(a.norm() / b.norm()).item() for a, b in pairs]
        rows[name] = {"loss": loss.item(), "cosines": cosines, "ratios": ratios}
        apart = [1 - min(cosines), *(abs(ratio - 1) for ratio in ratios), abs(loss.item() / expected.item() - 1)]
        if name in BPTT and max(apart) > 1e-3:
            raise SystemExit(f"race: expected {name} to run the same net, got {rows[name]}, loss here {expected:.4f}.")
    spikes, rates = x, []
    for layer in list(ours(layers))[:-1]:
        spikes = layer.window(spikes)
        rates.append(spikes.mean().item())
    return {"rows": rows, "rates": rates}


def measure_times(minutes: float) -> dict[str, Any]:
    """All nets and batches, and one batch more with the optimizer."""
    cells: dict[str, Any] = {name: {} for name in NETS}
    optimized: dict[str, Any] = {}
    budget = 60 * minutes / (len(NETS) * (len(BATCHES) + 1))
    for net, sizes in NETS.items():
        for lanes in BATCHES:
            cells[net][str(lanes)] = race(sizes, lanes, list(CONTESTANTS), budget, optimize=False)
            report(f"{net}, batch {lanes}", cells[net][str(lanes)])
        optimized[net] = race(sizes, OPTIMIZER_BATCH, list(WITH_OPTIMIZER), budget, optimize=True)
        report(f"{net}, batch {OPTIMIZER_BATCH}, with the optimizer", optimized[net])
    return {"cells": cells, "optimizer": optimized}


def report(title: str, cell: dict[str, Any]) -> None:
    """Say on the terminal how a race ended."""
    print(f"{title}: {cell['rounds']} rounds")
    for name, row in cell["rows"].items():
        print(f"  {name:28} {row['ms']['median']:9.3f} ms a step, {row['ratio']['median']:6.2f} times", flush=True)


# -- memory ------------------------------------------------------------------------------------------------------------


def highest() -> int:
    """The most memory that was resident since `forget_highest`, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", status)[1])  # type: ignore[index]


def forget_highest() -> None:
    """Give free pages back and begin anew to watch for the most memory."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def peak(name: str, steps: int) -> dict[str, float]:
    """What a sequence adds to the memory of this process at its peak: run in a process of its own."""
    sizes = NETS["784-128-128-10"]
    contestant = CONTESTANTS[name](weights(sizes))
    target = torch.randint(sizes[-1], (LANES,))
    torch.set_flush_denormal(True)  # traces of neurons that never fire fade to such numbers, which take long
    contestant.run(Drawn(LANES, sizes[0]), 2, target)
    forget_highest()
    before, start = highest(), time.perf_counter()
    contestant.run(Drawn(LANES, sizes[0]), steps, target)
    return {"bytes": highest() - before, "seconds": time.perf_counter() - start}


def measure_memory(threads: int, long: bool) -> dict[str, Any]:
    """A fresh process for each contestant and each T."""
    # else a heap in pieces counts, which is another one in every process
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**15), "MALLOC_ARENA_MAX": "1", "PYTHONHASHSEED": "0"}
    rows: dict[str, Any] = {}
    for name, most in MEMORY.items():
        rows[name] = {}
        for steps in LENGTHS:
            if steps > (10 * most if long and name in BPTT else most):
                break
            command = [sys.executable, __file__, "--peak", name, str(steps), "--threads", str(threads)]
            run = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
            found = json.loads(run.stdout)
            rows[name][str(steps)] = found
            print(f"{name}, T = {steps:,}: {found['bytes'] / 2**20:.1f} MiB, {found['seconds']:.1f} s", flush=True)
    return rows


# -- the page ----------------------------------------------------------------------------------------------------------

CHART = "race-time.svg", "race-memory.svg"

PAGE = """# Speed and memory beside other libraries

Made by `make bench`. {nets}; {activity:.0f} % of the inputs spike in each of T = {steps} steps, {rates} % of the
neurons of the hidden layers. LIF neurons with beta 0.9 and threshold 1, a subtractive reset without gradient; a leaky
readout with beta 0.9; a cross-entropy of its membrane at every step. All get the same weights and the same input.
Timed: gradients zeroed, forward, loss, backward. They take turns, in a new order every round, for at least {fewest}
rounds. A sequence of less than 0.1 s is run up to ten times in a row, as in training, and the first of them does not
count.

{machine}

## Time

![Time per step against the batch](race-time.svg)

Milliseconds per step of the whole batch, medians:

{times}

How many times as long as "{ours}" in the same round: median, and quartiles in brackets.

{ratios}

With the step of an optimizer per sequence (AdamW, fused), batch {batch}, milliseconds per step of the sequence:

{optimizer}

## What each of them computes

{differences}

"{floor}" are the products that none of this can do without when spikes are dense float32 numbers: forward, the
gradients of the three weights, and those of the inputs of layers 2 and 3, over the rows of a window at once.

Before the race, each contestant's gradient is compared with BPTT of the same equations ({net}, batch 32): the loss, and
of each weight's gradient the cosine and, in brackets, the ratio of the norms. Online rules with windows shorter than
the sequence give approximations: [how good they are, and where they are exact](exactness.md).

{agreement}

## Memory

![Peak memory against the number of steps](race-memory.svg)

What a sequence adds to the resident memory at its peak, {net}, batch {lanes}, each in a fresh process after a sequence
of two steps. The input is drawn when it is asked for: in windows, step by step, or, where a library runs layer by
layer, all of it. Blocks of 32 KiB and more go back to the system when they are freed (`MALLOC_MMAP_THRESHOLD_`), so
that these are the tensors, and not the pieces of a heap.

{memory}
"""

DIFFERENCES = {
    OURS: "InputTrace; two windows of 32, a backward each",
    SINGLE: "InputTrace; a backward at each step",
    "snnTorch": "BPTT; `Leaky`, all layers step by step as in its tutorials; the reset comes one step later",
    "snnTorch, layer by layer": "the same neurons, each layer through all steps before the next",
    "SpikingJelly": "BPTT; `LIFNode(step_mode='m')`; the readout scales by 1 / tau, and has weights ten times as large",
    "SpikingJelly, OTTT": "OTTT; `OTTTLIFNode`, `OTTTSequential`, a backward at each step; as in its own networks, "
    "the first layer's input and the biases have no trace",
    "Norse": "BPTT; `LIFBoxCell` in a loop, layer by layer; it scales by 1 - beta, and has weights ten times as large, "
    "a reset function without gradient, and SuperSpike of width 1, as there is no ATan",
    "OTTT by hand": "OTTT in plain torch without autograd, a step at a time: the gradient of single steps",
}


def where(figures: dict[str, Any]) -> str:
    """The machine and the versions, in a sentence."""
    m = figures["machine"]
    peers = ", ".join(f"{name} {figures['versions'][name]}" for name in PEERS)
    threads = "one thread" if m["threads"] == 1 else f"{m['threads']} threads"
    return f"{m['processor']}, {threads}; torch {m['torch']}, {peers}, Python {m['python']}."


def by_batch(figures: dict[str, Any], nets: list[str], kind: str) -> str:
    """A row per contestant, a column per net and batch."""
    header = ["", *(f"{net}, batch {lanes}" for net in nets for lanes in BATCHES)]
    rows = []
    for name in CONTESTANTS:
        row = [name]
        for net in nets:
            for lanes in BATCHES:
                found = figures["cells"][net][str(lanes)]["rows"][name][kind]
                text = cell(found["median"])
                row.append(text if kind == "ms" else f"{text} ({cell(found['low'])} to {cell(found['high'])})")
        rows.append(row)
    return table(header, rows)


def memory_table(figures: dict[str, Any]) -> str:
    """A row per contestant, a column per T."""
    rows = [
        [name, *(f"{cell(found[str(t)]['bytes'] / 2**20)} MiB" if str(t) in found else "" for t in LENGTHS)]
        for name, found in figures["memory"].items()
    ]
    return table(["", *(f"T = {t:,}" for t in LENGTHS)], rows)


def page(figures: dict[str, Any]) -> str:
    """The text of docs/race.md."""
    optimizer = [
        [name, *(cell(figures["optimizer"][net]["rows"][name]["ms"]["median"]) for net in NETS)]
        for name in WITH_OPTIMIZER
    ]
    agreed = []
    for name, row in figures["agreement"]["rows"].items():
        pairs = zip(row["cosines"], row["ratios"], strict=True)
        agreed.append([name, f"{row['loss']:.4f}", *(f"{cosine:.4f} ({ratio:.3f})" for cosine, ratio in pairs)])
    return PAGE.format(
        nets=" and ".join(NETS),
        net=next(iter(NETS)),
        activity=100 * ACTIVITY,
        steps=T,
        rates=" and ".join(f"{100 * rate:.0f}" for rate in figures["agreement"]["rates"]),
        fewest=FEWEST,
        machine=where(figures),
        times=by_batch(figures, list(NETS), "ms"),
        ratios="\n\n".join(by_batch(figures, [net], "ratio") for net in NETS),
        ours=OURS,
        batch=OPTIMIZER_BATCH,
        optimizer=table(["", *NETS], optimizer),
        differences=table(["", "method and neuron"], [[name, text] for name, text in DIFFERENCES.items()]),
        floor=FLOOR[0].upper() + FLOOR[1:],
        agreement=table(["", "loss", "layer 1", "layer 2", "readout"], agreed),
        lanes=LANES,
        memory=memory_table(figures),
    )


def readme(figures: dict[str, Any]) -> str:
    """The tables of README.md."""
    return (
        f"Milliseconds per step of the whole batch (forward, loss, backward), medians; sequences of {T} steps:\n\n"
        f"{by_batch(figures, list(NETS), 'ms')}\n\n"
        f"What a sequence of T steps adds to the memory at its peak, {next(iter(NETS))}, batch {LANES}:\n\n"
        f"{memory_table(figures)}\n\n"
        f"Measured by `make bench`: {where(figures)}\n"
        f"snnTorch, SpikingJelly and Norse run BPTT, of which the online rules give an approximation here: [what each\n"
        f"of them computes, how near it is to BPTT, quartiles and plots](docs/race.md).\n"
    )


def plots(figures: dict[str, Any], folder: Path) -> None:
    """Both plots, as SVG."""
    import matplotlib
    from matplotlib.figure import Figure

    from tracetorch.plot import COLORS, INK

    matplotlib.rcParams["svg.hashsalt"] = "race"  # the same figures give the same file
    colors = dict(zip(CONTESTANTS, COLORS, strict=False)) | {FLOOR: INK}
    style = {name: {"linestyle": "-", "marker": "o"} for name in CONTESTANTS} | {
        FLOOR: {"linestyle": "--", "marker": ""}
    }

    chart = Figure(figsize=(9.5, 3.6), dpi=120, layout="constrained")
    for ax, net in zip(chart.subplots(1, len(NETS), sharey=True), NETS, strict=True):
        for name in CONTESTANTS:
            rows = [figures["cells"][net][str(lanes)]["rows"][name]["ms"] for lanes in BATCHES]
            middle = [row["median"] for row in rows]
            ax.plot(BATCHES, middle, color=colors[name], label=name, markersize=3, linewidth=1.4, **style[name])
            ax.fill_between(
                BATCHES,
                [row["low"] for row in rows],
                [row["high"] for row in rows],
                color=colors[name],
                alpha=0.15,
                linewidth=0,
            )
        ax.set_title(net, loc="left", fontsize="medium")
        decorate(ax, "batch", "ms per step" if net == next(iter(NETS)) else "")
        ax.set_xticks(BATCHES)
        ax.minorticks_off()
    ax.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    chart.savefig(folder / CHART[0], metadata={"Date": None})

    chart = Figure(figsize=(7, 3.4), dpi=120, layout="constrained")
    ax = chart.subplots()
    for name, found in figures["memory"].items():
        steps = [int(t) for t in found]
        mebibytes = [row["bytes"] / 2**20 for row in found.values()]
        ax.plot(steps, mebibytes, color=colors[name], label=name, marker="o", markersize=3, linewidth=1.4)
    decorate(ax, "T (steps)", "peak memory added (MiB)")
    ax.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    chart.savefig(folder / CHART[1], metadata={"Date": None})


def main() -> None:
    """Measure and save, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=6.0, help="for the times")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--long", action="store_true", help="BPTT with T = 10,000 too: some 10 GB of memory")
    parser.add_argument("--only", choices=("time", "memory"))
    parser.add_argument("--page", action="store_true", help="write the page, the plots and README's table")
    parser.add_argument("--peak", nargs=2, metavar=("NAME", "STEPS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        print(json.dumps(peak(arguments.peak[0], int(arguments.peak[1]))))
        return
    if arguments.page:
        figures = load("race")
        (ROOT / "docs" / "race.md").write_text(page(figures))
        write_readme("race", readme(figures))
        plots(figures, ROOT / "docs")
        return
    figures = {key: value for key, value in load("race").items() if key != "machine"}
    figures["versions"] = {name: version(name) for name in PEERS}
    if arguments.only != "memory":
        figures["agreement"] = agreement(NETS["784-128-128-10"])
        figures |= measure_times(arguments.minutes)
    if arguments.only != "time":
        figures["memory"] = measure_memory(arguments.threads, arguments.long)
    save("race", figures)


if __name__ == "__main__":
    main()
