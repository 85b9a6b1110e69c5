"""The command line: what it prints, writes and returns, and how it ends early."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

import tracetorch as tt
from test_datasets import write_mnist
from tracetorch import datasets, health
from tracetorch.cli import app as commands
from tracetorch.cli import info, main
from tracetorch.train import ImageSettings, build, evaluate

TINY = ["--epochs", "1", "--steps", "4", "--window", "2", "--lanes", "50"]


def tracetorch(*arguments: object):
    return CliRunner().invoke(commands.app, [str(argument) for argument in arguments])


def one_line(result) -> str:
    """What a refusal says: one line, without a traceback."""
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.stdout == ""
    assert result.stderr.startswith("tracetorch: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_a_run_is_written_down(tmp_path):
    out = tmp_path / "new" / "folder"
    result = tracetorch("train", "digits", *TINY, "--epochs", 3, "--rule", "truncated", "--seed", 4, "--out", out)
    assert result.exit_code == 0, result.output
    assert "1437 images to learn, 360 to test; network 64-128-128-10; rule truncated" in result.stdout
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["settings"]["rule"] == "truncated"
    assert [metrics["settings"][name] for name in ("dataset", "steps", "window", "seed")] == ["digits", 4, 2, 4]
    assert metrics["versions"]["tracetorch"] == tt.__version__
    assert metrics["versions"]["torch"] == torch.__version__
    assert metrics["test_accuracy"] == metrics["accuracy_per_epoch"][-1]
    assert len(metrics["accuracy_per_epoch"]) == 3
    assert [len(curve) for curve in metrics["learning_curve"].values()] == [3 * 29, 3 * 29]
    assert metrics["seconds"] > 0
    assert metrics["interrupted"] is False
    assert f"test accuracy {metrics['test_accuracy']:.2%}" in result.stdout
    assert (out / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_the_model_can_be_loaded_as_plain_data_and_is_the_one_that_was_tested(tmp_path):
    assert tracetorch("train", "digits", *TINY, "--out", tmp_path).exit_code == 0
    saved = torch.load(tmp_path / "model.pt", weights_only=True)
    names = ("hidden", "readout", "steps", "window", "lanes", "intensity", "encoding", "seed")
    settings = ImageSettings(**{name: saved["settings"][name] for name in names})
    model = build(64, 10, settings)
    model.load_state_dict(saved["state_dict"])
    images = datasets.digits()
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert evaluate(model, images.test_x, images.test_y, settings) == metrics["test_accuracy"]


def test_mnist_from_a_folder_without_writing_anything(tmp_path, monkeypatch):
    folder = write_mnist(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    result = tracetorch("train", "mnist", *TINY, "--data", folder, "--rule", "mean-rate")
    assert result.exit_code == 0, result.output
    assert "6 images to learn, 4 to test; network 784-128-128-10; rule mean-rate" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("rule", commands.RULES)
@pytest.mark.parametrize("dataset", commands.PRESETS)
def test_defaults_are_those_of_the_data_set(dataset, rule):
    assert commands._settings(dataset, rule, {}).rule == commands.RULES[rule]
    settings = commands._settings(dataset, rule, {"lr": 0.5})
    assert settings.lr == 0.5
    assert settings.epochs == commands.PRESETS[dataset].epochs


REFUSALS = {
    "data set": (["cifar"], 2, "expected one of digits, mnist, got 'cifar'"),
    "rule": (
        ["digits", "--rule", "bptt"],
        2,
        "--rule to be one of input-trace, truncated, mean-field, eligibility, mean-rate, got 'bptt'",
    ),
    "window": (["digits", "--window", "0"], 2, "window to be a whole number of at least 1, got 0"),
    "steps": (["digits", "--steps", "-3"], 2, "steps to be a whole number of at least 1, got -3"),
    "lr": (["digits", "--lr", "nan"], 2, "lr to be a finite number above 0, got nan"),
    "device": (["digits", "--device", "abacus"], 2, "--device to be cpu, or cuda where there is one, got 'abacus'"),
    "no such data": (["mnist", "--data", "nowhere"], 2, "train-images-idx3-ubyte"),
    "data not needed": (["digits", "--data", "."], 2, "no --data for digits"),
    "out is a file": (["digits", "--out", __file__], 2, "File exists"),
}


@pytest.mark.parametrize(("arguments", "code", "says"), REFUSALS.values(), ids=REFUSALS)
def test_bad_values_are_refused_in_one_line(arguments, code, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = tracetorch("train", *arguments)
    assert says in one_line(result)
    assert result.exit_code == code


def test_what_is_no_number_is_refused():
    result = tracetorch("train", "digits", "--window", "x")
    assert result.exit_code == 2
    assert "--window" in result.stderr


@pytest.mark.parametrize("error", [ConnectionError("offline"), RuntimeError("corrupted"), ImportError("no pooch")])
def test_failing_surroundings_are_told_in_one_line(error, monkeypatch):
    def failing(data):
        raise error

    monkeypatch.setattr(datasets, "mnist", failing)
    result = tracetorch("train", "mnist")
    assert one_line(result) == f"tracetorch: {error}\n"
    assert result.exit_code == 1


def test_the_version():
    result = tracetorch("--version")
    assert result.exit_code == 0
    assert result.stdout == f"tracetorch {tt.__version__}, torch {torch.__version__}\n"


def test_help_names_the_rules_and_defaults():
    result = tracetorch("train", "--help")
    assert result.exit_code == 0
    shown = " ".join(result.stdout.replace("│", " ").split())
    assert "input-trace, truncated, mean-field, eligibility, mean-rate" in shown
    assert "30 for digits, 1 for mnist" in shown
    assert "Default: 5." in shown


# -- ending early ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batches", [1, 40])
def test_an_interrupted_run_is_written_down(batches, tmp_path, monkeypatch):
    whole = commands.fit

    def interrupted(*arguments):
        for number, result in enumerate(whole(*arguments)):
            if number == batches:
                raise KeyboardInterrupt
            yield result

    monkeypatch.setattr(commands, "fit", interrupted)
    result = tracetorch("train", "digits", *TINY, "--epochs", 2, "--out", tmp_path)
    assert result.exit_code == 130, result.output
    assert f"interrupted after {batches} batches" in result.stdout
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["interrupted"] is True
    assert len(metrics["learning_curve"]["loss"]) == batches
    assert len(metrics["accuracy_per_epoch"]) == batches // 29
    assert 0 <= metrics["test_accuracy"] <= 1
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.json", "model.pt", "picture.png"}


def test_a_run_that_has_learned_nothing_leaves_earlier_files_as_they_were(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    (tmp_path / "metrics.json").write_text("of an earlier run")
    monkeypatch.setattr(commands, "fit", interrupted)
    result = tracetorch("train", "digits", *TINY, "--out", tmp_path)
    assert result.exit_code == 130, result.output
    assert "nothing had been learned, and nothing is written" in result.stdout
    assert (tmp_path / "metrics.json").read_text() == "of an earlier run"


def test_a_folder_that_cannot_be_written_is_told_in_one_line_after_the_model_is_saved(tmp_path):
    (tmp_path / "metrics.json").mkdir()
    result = tracetorch("train", "digits", *TINY, "--out", tmp_path)
    assert result.exit_code == 2, result.output
    assert "metrics.json" in result.stderr
    assert (tmp_path / "model.pt").exists()


def test_ctrl_c_ends_a_running_command_cleanly(tmp_path):
    # A runner in the background may have handed down "ignore SIGINT".
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        f"sys.argv = ['tracetorch', 'train', 'digits', '--epochs', '100000', '--out', {str(tmp_path)!r}];"
        "from tracetorch.cli import main; main()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        first = process.stdout.readline()
        assert first.startswith(b"digits: 1437 images")
        time.sleep(10)  # some batches, after the kernels have been compiled
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert b"interrupted after" in out
    assert b"Traceback" not in err
    assert json.loads((tmp_path / "metrics.json").read_text())["interrupted"] is True
    assert torch.load(tmp_path / "model.pt", weights_only=True)["settings"]["epochs"] == 100_000


# -- the entry point ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["typer", "rich", "matplotlib"])
def test_without_the_extra_it_says_what_to_install(missing):
    code = (
        f"import sys; sys.modules.update(dict.fromkeys([{missing!r}, '{missing}.progress', '{missing}.figure']));"
        "from tracetorch.cli import main; main()"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr == (
        f"tracetorch: the command line needs {missing}, which cannot be imported. "
        f"Run pip install 'tracetorch-online[cli]'.\n"
    )


def test_a_defect_of_our_own_is_not_taken_for_a_missing_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tracetorch.cli.app", None)
    with pytest.raises(ImportError, match=r"tracetorch\.cli\.app"):
        main()


def test_the_installed_command_runs():
    command = Path(sys.executable).with_name("tracetorch")
    run = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert run.stdout.startswith(f"tracetorch {tt.__version__}")


def test_fidelity_prints_a_table_and_draws_a_picture(tmp_path):
    small = ["--sizes", "8,12,3", "--steps", 24, "--lanes", 4, "--windows", "1,8"]
    result = tracetorch(
        "fidelity", *small, "--rules", "truncated,eligibility,otpe", "--horizons", "0,24", "--out", tmp_path
    )
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert (
        lines[0] == "| rule | K | H | `0.synapse.weight` | `0.synapse.bias` | `1.synapse.weight` | `1.synapse.bias` |"
    )
    exact = "1.000 (1.00) | 1.000 (1.00) | 1.000 (1.00) | 1.000 (1.00) |"
    assert f"| Eligibility() | 1 | 1 | {exact}" in lines
    assert f"| Truncated() | 1 | 24 | {exact}" in lines
    assert f"| Truncated() | 1 | 1 | {exact}" not in lines
    assert lines[-1] == f"wrote {tmp_path / 'fidelity.md'}, {tmp_path / 'fidelity.png'}"
    assert (tmp_path / "fidelity.md").read_text().splitlines() == lines[:-1]
    assert (tmp_path / "fidelity.png").read_bytes().startswith(b"\x89PNG")


def test_fidelity_along_a_training_run_with_recurrent_weights():
    small = ["--sizes", "8,12,3", "--beta", 0.9, "--steps", 24, "--lanes", 4, "--windows", 8, "--recurrent"]
    result = tracetorch("fidelity", *small, "--rules", "mean-field", "--lr", 0.01, "--updates", 2, "--loss", "ramp")
    assert result.exit_code == 0, result.output
    assert "`0.recurrent_weight`" in result.stdout
    assert "| 2 | MeanField(), weights moving | 8 |" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "8,3"], "expected --sizes to be at least 3 numbers with commas, got '8,3'"),
        (["--sizes", "8,x,3"], "got '8,x,3'"),
        (["--taus", "5,2"], "expected --taus to be two numbers above 0, the smaller first, got '5,2'"),
        (["--rules", "hebb"], "expected --rules to be of truncated, input-trace, .*, got 'hebb'"),
        (["--loss", "first"], "expected --loss to be of last, ramp, mean, got 'first'"),
        (["--windows", "0"], "expected windows to be a whole number of at least 1, got 0"),
        (["--beta", "1.5"], r"expected beta in \[0, 1\], got 1.5"),
    ],
)
def test_fidelity_refuses(arguments, message):
    result = tracetorch("fidelity", *arguments)
    assert result.exit_code == 2
    assert re.search(message, one_line(result))


# -- info --------------------------------------------------------------------------------------------------------------

NETS = """
import torch
import tracetorch as tt

model = tt.LIF(4, 3)

def build():
    return tt.Sequential(tt.LIF(4, 3, rule=tt.Truncated()), tt.LI(3, 2))

class Deep(tt.Sequential):
    def __init__(self):
        super().__init__(tt.LIF(4, 3), tt.LIF(3, 3), tt.LI(3, 2))

class Presets:
    small = build

def sized(n):
    return tt.LIF(n, n)

linear = torch.nn.Linear(4, 3)
number = 3
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """A module of that name, which can be imported."""
    (tmp_path / "health_nets.py").write_text(NETS)
    (tmp_path / "broken_nets.py").write_text("1 /\n0")
    monkeypatch.syspath_prepend(tmp_path)
    yield "health_nets"
    sys.modules.pop("health_nets", None)


@pytest.mark.parametrize("dataset", commands.PRESETS)
def test_info_of_what_train_begins_with(dataset):
    result = tracetorch("info", dataset)
    assert result.exit_code == 0, result.output
    model = build(commands.PIXELS[dataset], 10, commands.PRESETS[dataset])
    assert result.stdout == health.table(model) + "\n"
    assert result.stderr == ""


def test_the_presets_have_the_data_sets_pixels(tmp_path):
    for dataset, images in (("digits", datasets.digits()), ("mnist", datasets.mnist(write_mnist(tmp_path)))):
        assert commands.PIXELS[dataset] == images.train_x.shape[1]


@pytest.mark.parametrize(
    ("path", "kinds"),
    [
        ("model", ["LIF"]),
        ("build", ["LIF", "LI"]),
        ("Deep", ["LIF", "LIF", "LI"]),
        ("Presets.small", ["LIF", "LI"]),
    ],
)
def test_info_of_a_model_of_ones_own(path, kinds, nets):
    before = sys.path[:]
    result = tracetorch("info", f"{nets}:{path}", "--lanes", 10)
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert "bytes per 10 lanes" in result.stdout
    assert [line[1] for line in lines[1 : 1 + len(kinds)]] == kinds
    assert [line[0] for line in lines[1 + len(kinds) :]] == ["total", "tape"]
    assert sys.path == before


def test_info_finds_modules_in_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "nets_beside.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    result = tracetorch("info", "nets_beside:build")
    sys.modules.pop("nets_beside")
    assert result.exit_code == 0, result.output
    assert "Truncated()" in result.stdout


def test_info_with_data_shows_rates_and_warns(tmp_path, nets):
    torch.save(torch.zeros(20, 5, 4, dtype=torch.uint8), tmp_path / "x.pt")
    result = tracetorch("info", f"{nets}:model", "--data", tmp_path / "x.pt")
    assert result.exit_code == 0, result.output
    head, layer, *_ = result.stdout.splitlines()
    assert head.endswith("spikes per step")
    assert layer.endswith("0.0000")
    assert result.stderr.startswith("tracetorch: health.check: expected layer LIF to fire between")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("cifar", "info: expected one of digits, mnist, or module:object such as mypackage.nets:build, got 'cifar'."),
        ("health_nets:", "got 'health_nets:'."),
        (":build", "got ':build'."),
        (
            "no_such_nets:build",
            "info: expected a module that can be imported, got 'no_such_nets' (ModuleNotFoundError: No module named "
            "'no_such_nets'). Run the command in the folder that it lies in, or set PYTHONPATH.",
        ),
        ("broken_nets:build", "got 'broken_nets' (SyntaxError: invalid syntax (broken_nets.py, line 1))."),
        ("health_nets:bild", "expected 'bild' in the module 'health_nets', got nothing of that name (module"),
        (
            "health_nets:sized",
            "expected health_nets:sized to make a model when called without arguments, got TypeError: sized() missing "
            "1 required positional argument: 'n'. Name a function that needs none.",
        ),
        (
            "health_nets:linear",
            "expected health_nets:linear to be or to make a layer or model of tracetorch, got Linear. "
            "tracetorch.Sequential is the way to stack layers.",
        ),
        ("health_nets:number", "a layer or model of tracetorch, got int."),
    ],
)
def test_info_refuses_what_is_no_model(name, says, nets):
    result = tracetorch("info", name)
    assert says in one_line(result)
    assert result.exit_code == 2


def test_info_refuses_bad_options(tmp_path):
    (tmp_path / "text").write_text("not a tensor")
    (tmp_path / "empty").write_text("")
    torch.save([1.0, 2.0], tmp_path / "list")
    torch.save(torch.zeros(5, 1, 63), tmp_path / "wide")
    for arguments, says in [
        (["--lanes", 0], "expected lanes to be a whole number of at least 1, got 0"),
        (["--data", tmp_path / "nowhere"], "No such file"),
        (["--data", tmp_path / "text"], "expected --data to be a tensor saved by torch.save, got"),
        (["--data", tmp_path / "empty"], "(of another format)"),
        (["--data", tmp_path / "list"], "expected --data to be a tensor saved by torch.save, got a list"),
        (["--data", tmp_path / "wide"], "expected a window of x of shape (K, B, 64), got (5, 1, 63)"),
    ]:
        result = tracetorch("info", "digits", *arguments)
        assert says in one_line(result)
        assert result.exit_code == 2


@pytest.mark.parametrize("width", [60, 80, 200])
def test_on_a_terminal_nothing_of_the_table_is_cut_off(width, monkeypatch, capsys):
    found = health.summary(build(64, 10, ImageSettings()))
    console = Console(width=width, force_terminal=True, color_system=None)
    monkeypatch.setattr(info, "Console", lambda: console)
    info.show(found)
    shown = capsys.readouterr().out
    assert ("───" in shown) == (width > 60)
    for line in found.cells()[1:]:
        for text in filter(None, line):
            assert text in shown
    assert found.tape() in shown
