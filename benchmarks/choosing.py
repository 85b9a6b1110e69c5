"""The page that helps to choose a rule, a window and a horizon, from the figures of the other benchmarks.

    python benchmarks/choosing.py

Writes docs/choosing.md from results/{rowwise_mnist,delayed_cue,evidence,fidelity}.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean

import torch

import fidelity
import tracetorch as tt
from _record import load

DOCS = Path(__file__).parents[1] / "docs" / "choosing.md"
NEW = next(iter(fidelity.SETTINGS)) + "; new"


def accuracy(benchmark: str, row: str) -> str:
    """Mean test accuracy of a row, in per cent; a dash where it has not been measured."""
    found = load(benchmark).get("rows", {}).get(row)
    return "-" if found is None else f"{100 * mean(run['accuracy'] for run in found['runs']):.1f}"


def cosine(rule: str, window: int = 1) -> str:
    """Mean cosine of the lowest layer's weights in the network of three hidden layers."""
    return f"{fidelity.averages(load('fidelity')['settings'][NEW])[rule, window]['0.synapse.weight'][0]:.2f}"


def break_even() -> dict[str, int]:
    """For 784-128-128-10, time constants per neuron."""
    taus = torch.logspace(0.3, 1.7, 128)
    return tt.Sequential(tt.LIF(784, 128, tau=taus), tt.LIF(128, 128, tau=taus), tt.LI(128, 10)).break_even()


PAGE = """# Which rule, which window, which horizon?

**When does the learning signal come?**

| | take | why |
|---|---|---|
| at every step, or most | `InputTrace`, windows of a few steps | most of the credit is recent, and a layer's own membrane carries it: row-wise MNIST, a loss at every step, K = 1: {ramp_input_trace} %, BPTT {ramp_bptt} %; with recurrent weights, K = 4: {ramp_recurrent} % |
| late, and it fits into memory | any rule with `horizon=H` that covers the delay | credit is exact over H steps, through recurrent weights and all modules too |
| late, and T is beyond the break-even, or has no end | `Eligibility` | row-wise MNIST, a loss at the last step, K = 1: {eligibility} %, BPTT {bptt} %, `InputTrace` {input_trace} % |
| the input is a rate, stationary | `MeanField`, or `MeanRate` for the original's rule | exact where slopes do not change in time; at the memory of a few traces |
| you want the cheapest baseline | `Truncated` | keeps nothing; a cue remembered over 50 steps, K = 1: {cue_truncated} %, `Eligibility` {cue_eligibility} %, BPTT {cue_bptt} % |

**Which window?** The longest that fits: work per step falls with K, since a window is one matrix product per layer, and
the gradient gets better. K = 1 is for signals that must act at once. Row-wise MNIST, a loss at the last step,
`InputTrace`: K = 1 {input_trace} %, K = 7 {input_trace_7} %, K = 14 {input_trace_14} %, horizon 14 {input_trace_h14} %.

**Which horizon?** H - K steps more than the window, for (H + K) / (2 K) times its work. It pays where a rule's carry is
poor and the delay is known.

| | kept per layer and lane | cosine, layer 1 of 3 at K = 1 | MNIST by rows, last step | delayed cue | keeps less than BPTT from T = |
|---|---|---|---|---|---|
| BPTT | all T steps | 1 | {bptt} | {cue_bptt} | |
{table}

Accuracies in per cent. [How close each rule is to BPTT](exactness.md); [MNIST by rows](rowwise-mnist.md);
[the delayed cue](delayed-cue.md); [evidence over 2,250 steps](evidence.md), bytes beside accuracy; the break-even is
that of 784-128-128-10 with single steps. For a model of your own:

```python
import tracetorch as tt

model = tt.Sequential(tt.LIF(100, 64, tau=20.0), tt.LI(64, 10), rule=tt.Eligibility())
print(model.break_even())                       # from which T on each rule keeps less than BPTT
print(model.state_bytes(lanes=32))              # what is kept between calls, before anything has been run
print(model.tape_bytes(lanes=32, window=10))    # and of the latest window
```

With Adam a gradient that is too small is hidden, with SGD it is not: the norm ratios of `Truncated` and `InputTrace`
below the top layer are far below 1 at K = 1. A better mean gradient is not yet a better network: `MeanField` has the
higher cosine than `InputTrace` everywhere, and the lower accuracy where time carries the message. Rules mix:
`tt.LIF(784, 128, rule=tt.InputTrace())` in a model with `rule=tt.Eligibility()` saves the largest matrix.
"""

RULES = {
    "Truncated()": ("nothing", "truncated-k1"),
    "InputTrace()": ("G n + m numbers (n + 1 with one beta)", "input-trace-k1"),
    "MeanField()": ("G (n + m)", "mean-field-k1"),
    "Eligibility()": ("G n m (n m under a readout with one beta)", "eligibility-k1"),
}


def page() -> str:
    """The page."""
    even = break_even()
    lines = [
        f"| `{rule}` | {kept} | {cosine(rule)} | {accuracy('rowwise_mnist', row)} | {accuracy('delayed_cue', row)} "
        f"| {even[rule]} |"
        for rule, (kept, row) in RULES.items()
    ]
    return PAGE.format(
        table="\n".join(lines),
        ramp_input_trace=accuracy("rowwise_mnist", "input-trace-ramp"),
        ramp_recurrent=accuracy("rowwise_mnist", "input-trace-ramp-recurrent"),
        ramp_bptt=accuracy("rowwise_mnist", "bptt-ramp"),
        eligibility=accuracy("rowwise_mnist", "eligibility-k1"),
        bptt=accuracy("rowwise_mnist", "bptt"),
        input_trace=accuracy("rowwise_mnist", "input-trace-k1"),
        input_trace_7=accuracy("rowwise_mnist", "input-trace-k7"),
        input_trace_14=accuracy("rowwise_mnist", "input-trace-k14"),
        input_trace_h14=accuracy("rowwise_mnist", "input-trace-horizon-14"),
        cue_truncated=accuracy("delayed_cue", "truncated-k1"),
        cue_eligibility=accuracy("delayed_cue", "eligibility-k1"),
        cue_bptt=accuracy("delayed_cue", "bptt"),
    )


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    DOCS.write_text(page())


if __name__ == "__main__":
    main()
