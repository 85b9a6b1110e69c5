"""What a stream keeps after 1,000 and after 100,000 steps, beside backpropagation through time.

    python benchmarks/memory.py

Writes results/memory.json and the table of docs/memory.md. Takes some ten minutes: every operation is counted.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import tracetorch as tt
from _record import load, save
from tracetorch.testing import LiveStorage

N, HIDDEN, M, LANES, WINDOW = 40, 40, 10, 4, 20
RULES = {
    "InputTrace": tt.InputTrace(),
    "Truncated": tt.Truncated(),
    "MeanRate, measured, decay learned": tt.MeanRate(value="measured", learn_decay=True),
}
DOCS = Path(__file__).parents[1] / "docs" / "memory.md"


def resident_bytes() -> int:
    """The memory of this process that is resident now, free pages of the allocator returned first."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def model(rule: tt.rules.Rule) -> tt.Sequential:
    torch.manual_seed(0)
    learned = {"learn_beta": True, "learn_threshold": True}
    return tt.Sequential(
        tt.LIF(N, HIDDEN, **learned), tt.LIF(HIDDEN, HIDDEN, **learned), tt.Softmax(HIDDEN, M), rule=rule
    )


def online(net: tt.Sequential, window: int) -> Callable[[int], None]:
    """A function that goes on with the stream for so many steps, learning."""
    ls = torch.ones(window, LANES, M)

    def run(steps: int) -> None:
        for _ in range(steps // window):
            x = torch.rand(window, LANES, N)
            if window == 1:
                net(x[0])
                net.backward(ls[0])
            else:
                net.window(x)
                net.backward(ls)

    return run


def unrolled(net: tt.Sequential) -> Callable[[int], None]:
    """The same for BPTT: the graph over all steps is kept, since the loss is at the end."""
    membranes: list[Any] = [0.0, 0.0, 0.0]

    def run(steps: int) -> None:
        for _ in range(steps):
            s = torch.rand(LANES, N)
            for i, layer in enumerate(net):
                p = 0.9 * membranes[i] + layer.synapse(s)
                s = torch.sigmoid(10 * (p - 1))  # a smooth stand-in for the spike; the graph has the same shape
                membranes[i] = p - s.detach()

    return run


def measure(run: Callable[[int], None], short: int, long: int, state_bytes: Callable[[], int]) -> dict[str, int]:
    figures: dict[str, int] = {}
    with LiveStorage() as live:
        run(short)
        gc.collect()
        figures |= {"state_short": state_bytes(), "live_short": live.bytes, "resident_short": resident_bytes()}
        run(long - short)
        gc.collect()
        figures |= {"state_long": state_bytes(), "live_long": live.bytes, "resident_long": resident_bytes()}
    return figures


PAGE = """# Memory over time

Made by `python benchmarks/memory.py`: {n}-{h}-{h}-{m}, {lanes} lanes, beta and threshold learned, a learning signal at every step. `state` is
`model.state_bytes()`; `live` is all tensor storage that operations since the start returned and that is still alive: state, the latest tape,
gradients, views of weights; `resident` is how much the process grew in between. "Short" is after {short:,} steps, "long" after {long:,}; for BPTT, which
keeps everything, after {bptt:,}.

{table}

{machine}
"""


def page(figures: dict[str, Any]) -> str:
    lines = [
        "| | state, short | state, long | live, short | live, long | resident, growth |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in figures["rows"].items():
        growth = (row["resident_long"] - row["resident_short"]) / 2**20
        lines.append(
            f"| {name} | {row['state_short']:,} B | {row['state_long']:,} B | {row['live_short']:,} B "
            f"| {row['live_long']:,} B | {growth:.2f} MiB |"
        )
    m = figures["machine"]
    return PAGE.format(
        n=N,
        h=HIDDEN,
        m=M,
        lanes=LANES,
        short=figures["short"],
        long=figures["long"],
        bptt=figures["bptt_long"],
        table="\n".join(lines),
        machine=f"{m['processor']}, torch {m['torch']}, Python {m['python']}.",
    )


def main() -> None:
    """Measure, save, write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", type=int, default=1_000)
    parser.add_argument("--long", type=int, default=100_000)
    arguments = parser.parse_args()
    short, long = arguments.short, arguments.long
    torch.set_num_threads(1)
    online(model(tt.InputTrace()), 1)(200)  # what the first calls allocate is torch's own
    rows = {}
    for name, rule in RULES.items():
        for label, window in (("single steps", 1), (f"windows of {WINDOW}", WINDOW)):
            net = model(rule)
            rows[f"{name}, {label}"] = measure(online(net, window), short, long, net.state_bytes)
            print(name, label, rows[f"{name}, {label}"], flush=True)
    bptt_long = 10 * short
    rows["BPTT"] = measure(unrolled(model(tt.InputTrace())), short, bptt_long, lambda: 0)
    print("BPTT", rows["BPTT"])
    figures = {"short": short, "long": long, "bptt_long": bptt_long, "rows": rows}
    save("memory", figures)
    DOCS.write_text(page(load("memory")))


if __name__ == "__main__":
    main()
