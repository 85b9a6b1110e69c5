"""The commands: what they are called, what they take and what they print."""

from __future__ import annotations

import signal
import time
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Annotated, TypeVar

import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .. import __version__, datasets, health
from ..nn import Sequential
from ..rules import OSTL, OTPE, OTTT, SLTT, Eligibility, EProp, InputTrace, MeanField, MeanRate, Rule, Truncated
from ..train import BatchResult, ImageSettings, build, evaluate, fit
from .fidelity import LOSSES, FidelitySettings, report
from .fidelity import write as write_fidelity
from .info import input_from, model_of, show
from .report import FILES, Run, write

COMPARED: dict[str, Rule] = {
    "truncated": Truncated(),
    "input-trace": InputTrace(),
    "mean-field": MeanField(),
    "eligibility": Eligibility(),
    "sltt": SLTT(),
    "ottt": OTTT(),
    "ostl": OSTL(),
    "otpe": OTPE(),
    "e-prop": EProp(),
    "e-prop-random": EProp(feedback="random"),
}
RULES: dict[str, Rule] = {
    "input-trace": InputTrace(),
    "truncated": Truncated(),
    "mean-field": MeanField(),
    "eligibility": Eligibility(),
    "mean-rate": MeanRate(),
}
PRESETS = {"digits": ImageSettings(epochs=30, lr=4e-3), "mnist": ImageSettings()}
PIXELS = {"digits": 64, "mnist": 784}
CLASSES = 10
NETWORKS: dict[str, Callable[[], Sequential]] = {
    name: partial(build, PIXELS[name], CLASSES, settings) for name, settings in PRESETS.items()
}
INTERRUPTED = 130  # what shells call the end by Ctrl-C

app = typer.Typer(add_completion=False, no_args_is_help=True)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tracetorch {__version__}, torch {torch.__version__}")
        raise typer.Exit


@app.callback()
def _app(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Train spiking neural networks online."""


def _defaults(name: str) -> str:
    """What help says of a setting's default."""
    values = {dataset: getattr(settings, name) for dataset, settings in PRESETS.items()}
    if len(set(values.values())) == 1:
        return f"Default: {values['mnist']}."
    return f"Default: {', '.join(f'{value} for {dataset}' for dataset, value in values.items())}."


@app.command()
def train(
    dataset: Annotated[str, typer.Argument(help="digits (8 x 8 pixels, comes with scikit-learn) or mnist.")],
    rule: Annotated[str, typer.Option(help=f"The learning rule: {', '.join(RULES)}.")] = "input-trace",
    window: Annotated[
        int | None, typer.Option(help=f"Steps between two changes of the weights. {_defaults('window')}")
    ] = None,
    steps: Annotated[int | None, typer.Option(help=f"Steps an image is shown. {_defaults('steps')}")] = None,
    epochs: Annotated[int | None, typer.Option(help=f"Passes over the images. {_defaults('epochs')}")] = None,
    lanes: Annotated[int | None, typer.Option(help=f"Images side by side. {_defaults('lanes')}")] = None,
    lr: Annotated[float | None, typer.Option(help=f"Learning rate at the start. {_defaults('lr')}")] = None,
    seed: Annotated[int | None, typer.Option(help=f"Of everything random. {_defaults('seed')}")] = None,
    device: Annotated[str, typer.Option(help="Where to run: cpu, cuda.")] = "cpu",
    data: Annotated[
        Path | None, typer.Option(help="Folder with the files of MNIST; by default $TRACETORCH_DATA, or a download.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help=f"Folder to write {', '.join(FILES)} to; without it nothing is written.")
    ] = None,
) -> None:
    """Train a network to recognise digits, and test it. Ctrl-C stops early and keeps what was reached."""
    given = {"window": window, "steps": steps, "epochs": epochs, "lanes": lanes, "lr": lr, "seed": seed}
    with _errors_in_one_line():
        settings = _settings(dataset, rule, {name: value for name, value in given.items() if value is not None})
        _check_device(device)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
        images = _load(dataset, data)
    model = build(images.train_x.shape[1], CLASSES, settings).to(device)
    run = _run(dataset, rule, device, model, images, settings)
    if not run.results:
        typer.echo("nothing had been learned, and nothing is written")
        raise typer.Exit(INTERRUPTED)
    typer.echo(f"test accuracy {run.test_accuracy:.2%}, {run.seconds:.1f} s")
    if out is not None:
        with _errors_in_one_line(), _uninterrupted():
            write(out, run, model, images)
        typer.echo(f"wrote {', '.join(str(out / name) for name in FILES)}")
    if run.interrupted:
        raise typer.Exit(INTERRUPTED)


@app.command(name="fidelity")
def compare_gradients(
    sizes: Annotated[str, typer.Option(help="Inputs, hidden layers and outputs.")] = "40,48,48,48,10",
    taus: Annotated[
        str, typer.Option(help="Shortest and longest time constant of the hidden neurons, in steps.")
    ] = "2,30",
    beta: Annotated[float | None, typer.Option(help="One decay for all hidden neurons, instead of taus.")] = None,
    readout: Annotated[float, typer.Option(help="The readout's decay.")] = 0.95,
    recurrent: Annotated[bool, typer.Option(help="Give the hidden layers recurrent weights.")] = False,
    steps: Annotated[int, typer.Option(help="T, the steps of a sequence.")] = 96,
    lanes: Annotated[int, typer.Option(help="Sequences side by side.")] = 8,
    loss: Annotated[str, typer.Option(help=f"When the answer counts: {', '.join(LOSSES)}.")] = "last",
    rules: Annotated[
        str, typer.Option(help=f"Of {', '.join(COMPARED)}.")
    ] = "truncated,input-trace,mean-field,eligibility",
    windows: Annotated[str, typer.Option(help="K, the steps of a window.")] = "1,2,4,8,16,32,64",
    horizons: Annotated[str, typer.Option(help="H, the steps of the horizon; 0 for the window alone.")] = "0",
    lr: Annotated[float | None, typer.Option(help="Learning rate of a training run by BPTT.")] = None,
    updates: Annotated[int, typer.Option(help="Updates of that run.")] = 0,
    every: Annotated[int | None, typer.Option(help="Updates between two comparisons.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder to write fidelity.md and fidelity.png to.")] = None,
) -> None:
    """Compare each rule's gradient with backpropagation through time: cosine (norm ratio), per parameter."""
    with _errors_in_one_line():
        settings = FidelitySettings(
            sizes=tuple(_numbers("sizes", sizes, int, at_least=3)),
            taus=_pair("taus", taus),
            beta=beta,
            readout=readout,
            recurrent=recurrent,
            steps=steps,
            lanes=lanes,
            loss=_one_of("loss", loss, LOSSES),
            seed=seed,
        )
        chosen = [COMPARED[_one_of("rules", name, COMPARED)] for name in rules.split(",")]
        reach = [h or None for h in _numbers("horizons", horizons, int)]
        found = report(settings, chosen, _numbers("windows", windows, int), reach, lr, updates, every)
    typer.echo(found.markdown())
    if out is not None:
        with _errors_in_one_line():
            written = write_fidelity(out, found)
        typer.echo(f"wrote {', '.join(map(str, written))}")


@app.command()
def info(
    model: Annotated[
        str,
        typer.Argument(
            help=f"{', '.join(NETWORKS)}: what train begins with; or module:object, such as mypackage.nets:build: "
            f"a model, or a function that makes one."
        ),
    ],
    lanes: Annotated[int, typer.Option(help="B, for which the state's bytes are counted.")] = 1,
    data: Annotated[
        Path | None, typer.Option(help="File with an input (steps, lanes, n) by torch.save, to find firing rates with.")
    ] = None,
) -> None:
    """Show what a model is made of: layers, parameters, rules, bytes kept, time constants, thresholds."""
    with _errors_in_one_line():
        network = model_of(model, NETWORKS)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = health.summary(network, lanes, None if data is None else input_from(data, network))
    show(found)
    for warning in caught:
        typer.echo(f"tracetorch: {warning.message}", err=True)


Number = TypeVar("Number", int, float)


def _numbers(option: str, text: str, kind: type[Number], at_least: int = 1) -> list[Number]:
    try:
        numbers = [kind(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) < at_least:
        raise ValueError(f"fidelity: expected --{option} to be at least {at_least} numbers with commas, got {text!r}.")
    return numbers


def _pair(option: str, text: str) -> tuple[float, float]:
    numbers = _numbers(option, text, float, at_least=2)
    if len(numbers) != 2 or not 0 < numbers[0] <= numbers[1]:
        raise ValueError(f"fidelity: expected --{option} to be two numbers above 0, the smaller first, got {text!r}.")
    return numbers[0], numbers[1]


def _one_of(option: str, name: str, allowed: Collection[str]) -> str:
    if name not in allowed:
        raise ValueError(f"fidelity: expected --{option} to be of {', '.join(allowed)}, got {name!r}.")
    return name


# -- before ------------------------------------------------------------------------------------------------------------


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    """End with what was wrong: 2 where the user can mend the command, 1 where the surroundings fail."""
    try:
        yield
    except (ImportError, ConnectionError, RuntimeError) as error:
        code, message = 1, str(error)
    except (ValueError, OSError) as error:
        code, message = 2, str(error)
    else:
        return
    typer.echo(f"tracetorch: {message}", err=True)
    raise typer.Exit(code)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Within this context Ctrl-C does nothing: files are not left half written."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _settings(dataset: str, rule: str, given: dict[str, int | float]) -> ImageSettings:
    if dataset not in PRESETS:
        raise ValueError(f"train: expected one of {', '.join(PRESETS)}, got {dataset!r}.")
    if rule not in RULES:
        raise ValueError(f"train: expected --rule to be one of {', '.join(RULES)}, got {rule!r}.")
    return replace(PRESETS[dataset], rule=RULES[rule], **given)  # type: ignore[arg-type]


def _check_device(device: str) -> None:
    try:
        works = torch.zeros((), device=device).device.type in ("cpu", "cuda")
    except (RuntimeError, AssertionError):
        works = False
    if not works:
        raise ValueError(f"train: expected --device to be cpu, or cuda where there is one, got {device!r}.")


def _load(dataset: str, data: Path | None) -> datasets.Images:
    if dataset == "mnist":
        return datasets.mnist(data)
    if data is not None:
        raise ValueError("train: expected no --data for digits, which come with scikit-learn. Leave it out.")
    return datasets.digits()


# -- training ----------------------------------------------------------------------------------------------------------


def _run(
    dataset: str, rule: str, device: str, model: Sequential, images: datasets.Images, settings: ImageSettings
) -> Run:
    """Train until the end or Ctrl-C, and test."""
    start = time.perf_counter()
    results: list[BatchResult] = []
    interrupted = False
    sizes = "-".join(map(str, (images.train_x.shape[1], *settings.hidden, CLASSES)))
    try:
        typer.echo(
            f"{dataset}: {len(images.train_x)} images to learn, {len(images.test_x)} to test; network {sizes}; rule "
            f"{rule}; {settings.steps} steps in windows of {settings.window}; epochs: {settings.epochs}"
        )
        _learn(results, model, images, settings)
    except KeyboardInterrupt:
        interrupted = True
        typer.echo(
            f"interrupted after {len(results)} batches; testing what was reached "
            f"(Ctrl-C during the test leaves at once, writing nothing)"
        )
    tested = None if interrupted else results[-1].test_accuracy
    if tested is None:
        tested = evaluate(model, images.test_x, images.test_y, settings)
    return Run(dataset, rule, device, settings, results, tested, time.perf_counter() - start, interrupted)


def _learn(results: list[BatchResult], model: Sequential, images: datasets.Images, settings: ImageSettings) -> None:
    """Append the results of the batches as they come, with a progress bar."""
    columns = (
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}, accuracy {task.fields[accuracy]:.1%}"),
        TimeRemainingColumn(),
    )
    recent: deque[BatchResult] = deque(maxlen=50)  # one batch alone is noisy
    with Progress(*columns) as progress:
        total = settings.epochs * settings.batches(images)
        task = progress.add_task("", total=total, epoch=1, loss=float("nan"), accuracy=float("nan"))
        for result in fit(model, images, settings):
            results.append(result)
            recent.append(result)
            progress.update(
                task,
                advance=1,
                epoch=result.epoch,
                loss=fmean(r.loss for r in recent),
                accuracy=fmean(r.accuracy for r in recent),
            )
