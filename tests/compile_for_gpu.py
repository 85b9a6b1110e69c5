"""Compile the GPU kernels, without a GPU: run as a script it prints how many, and where products and sums are fused."""

import re
from typing import Any

import torch
from torch import Tensor

from tracetorch.functional import firing, surrogate
from tracetorch.functional.scan import Form, Record, State
from tracetorch.functional.trace import Stage


def forms() -> list[tuple[Form, set[str]]]:
    """Kinds of neurons, and the names of their optional parameters, by which each line of the kernels is compiled."""
    adapts = {"rho", "kappa"}
    return [
        (Form(firing.Spike()), set()),
        (Form(firing.StrictSpike(surrogate.FastSigmoid()), attached=True, gain=0.3), {"alpha", "recurrent", *adapts}),
        (Form(firing.MultiSpike(surrogate.Triangle(), 2), "zero", attached=True, gain="leak"), adapts),
        (Form(firing.MultiSpike(surrogate.Exponential()), delayed=True, attached=True), {"alpha"}),
        (Form(firing.Graded(surrogate.Sigmoid()), "none", gain="leak"), {"recurrent"}),
        (Form(firing.EscapeNoise(), delayed=True), adapts),
    ]


def run_all(kernels: Any, dtype: torch.dtype) -> None:
    """Call every function of the kernels in its variants."""

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=dtype)

    x = zeros(4, 3, 5)
    for form, names in forms():
        values = {name: zeros(5) if name != "recurrent" else zeros(5, 5) for name in {"beta", "threshold", *names}}
        spk = zeros(3, 5) if "recurrent" in names or form.delayed else None
        cur, adapt = (zeros(3, 5) if name in names else None for name in ("alpha", "kappa"))
        start = State(zeros(3, 5), cur, adapt, spk)
        record = kernels.spiking(x.clone(), start, values, form).record
        wanted = values.keys() - {"recurrent"}
        kernels.spiking_reverse(x, record, start, values, form, wanted)
        kernels.spiking_reverse(None, record, start, values, form, (), start)
        if "recurrent" not in names:
            record = Record(*[None if part is None else part[:, None] for part in record])
            start = State(*[None if part is None else part[None] for part in start])
            kernels.spiking_reverse(zeros(4, 2, 1, 1), record, start, values, form, wanted)
    beta, mem = zeros(5), State(zeros(3, 5))
    out = kernels.li(x, mem.mem, beta)
    kernels.li_reverse(x, out, mem, beta, mem)
    kernels.li_reverse(None, out, mem, beta)
    for stages in range(1, 4):
        for gain, kept in ((1.0, x), (0.5, None), (beta, None)):
            kernels.advance_chain(zeros(3, stages, 5), x, (Stage("mem", "beta", beta, gain),) * stages, kept)
        kernels.advance_bank(zeros(3, stages, 5), x, zeros(stages))


class Machine:
    """As much of a GPU as triton asks for when it compiles: an H100."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


def main() -> None:
    """Have what would be launched compiled alone."""
    from triton.runtime import driver

    from tracetorch.kernels import cuda

    fused: dict[str, int] = {}

    def compile_only(kernel: Any, like: Tensor, size: int, rows: int = 1, /, **arguments: Any) -> None:
        compiled = kernel.warmup(grid=(1,), **arguments, size=size, BLOCK=cuda.BLOCK, **cuda.OPTIONS)
        name = f"{compiled.hash} {kernel.__name__} {like.dtype} {arguments.get('FIRING')}"
        fused[name] = len(re.findall(r"\bfma\.rn\.f(?:32|64)", compiled.asm["ptx"]))

    driver.set_active(Machine())
    cuda._launch = compile_only
    run_all(cuda, torch.float32)
    run_all(cuda, torch.float64)
    print(f"{len(fused)} compiled")
    for name, count in fused.items():
        if count:
            print(name.split(" ", 1)[1])


if __name__ == "__main__":
    main()
