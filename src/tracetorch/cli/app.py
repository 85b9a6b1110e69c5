"""The commands: what they are called, what they take and what they print."""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Annotated

import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .. import __version__, datasets
from ..nn import Sequential
from ..rules import InputTrace, MeanRate, Rule, Truncated
from ..train import BatchResult, ImageSettings, build, evaluate, fit
from .report import FILES, Run, write

RULES: dict[str, Rule] = {"input-trace": InputTrace(), "truncated": Truncated(), "mean-rate": MeanRate()}
PRESETS = {"digits": ImageSettings(epochs=30, lr=4e-3), "mnist": ImageSettings()}
CLASSES = 10
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
