"""Recordings over time: loaders, encoders, batches and streams."""

import gzip
import hashlib
import os
import wave
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch

import tracetorch as tt
from test_datasets import Mirror, mirrors  # noqa: F401
from tracetorch import datasets, tasks
from tracetorch.datasets import Recordings

RATE = 8000


def recordings(lengths: list[int], channels: int = 11, seed: int = 0) -> tuple[Recordings, list[np.ndarray]]:
    generator = np.random.default_rng(seed)
    parts = [generator.random((length, channels)) < 0.4 for length in lengths]
    made = Recordings(np.concatenate(parts), np.cumsum([0, *lengths]), np.arange(len(lengths)) % 3, take=lengths)
    return made, parts


def test_recordings_are_what_was_put_in() -> None:
    made, parts = recordings([4, 1, 6])
    assert len(made) == 3
    assert made.steps.tolist() == made.take.tolist() == [4, 1, 6]
    assert all(torch.equal(made[i], torch.from_numpy(part)) for i, part in enumerate(parts))
    assert torch.equal(made[-1], made[2])
    assert "3 recordings of 11 channels, 1 to 6 steps" in repr(made)
    with pytest.raises(IndexError):
        made[3]
    with pytest.raises(AttributeError, match=r"'Recordings' object has no attribute 'nothing'"):
        _ = made.nothing


def test_a_subset_keeps_the_order_asked_for() -> None:
    made, parts = recordings([4, 1, 6])
    for chosen in (torch.tensor([True, False, True]), torch.tensor([2, 0])):
        indices = chosen.nonzero()[:, 0] if chosen.dtype == torch.bool else chosen
        part = made.subset(chosen)
        assert [part[i].tolist() for i in range(2)] == [parts[i].tolist() for i in indices]
        assert part.take.tolist() == made.take[indices].tolist()
    with pytest.raises(ValueError, match=r"expected at least one recording to be chosen"):
        made.subset(torch.zeros(3, dtype=torch.bool))


def test_batches_are_padded_and_masked() -> None:
    made, parts = recordings([4, 1, 6])
    x, target, mask = made.batch([1, 2])
    assert x.shape == (6, 2, 11)
    assert mask.sum(0).tolist() == [1, 6]
    assert torch.equal(x[:1, 0].bool(), torch.from_numpy(parts[1]))
    assert x[1:, 0].sum() == 0
    assert target.tolist() == [1, 2]
    ordered = list(made.batches(2, shuffle=False))
    assert [b.target.tolist() for b in ordered] == [[0, 1], [2]]
    drawn = [[b.target.tolist() for b in made.batches(2, torch.Generator().manual_seed(s))] for s in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    with pytest.raises(ValueError, match=r"expected lanes to be a whole number of at least 1, got 0"):
        made.batches(0)


def test_a_mask_makes_the_losses_weights() -> None:
    """Steps after a recording's end have no part in the loss, nor in its signal."""
    made, _ = recordings([4, 2])
    _, target, mask = made.batch([0, 1])
    weights = mask / mask.sum(0)
    y = torch.randn(4, 2, 3)
    loss, ls = tt.loss.cross_entropy(y, target, weights)
    alone = [tt.loss.cross_entropy(y[: len(made[i]), i : i + 1], target[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(loss, (alone[0].loss + alone[1].loss) / 2)
    torch.testing.assert_close(ls[:2, 1:], alone[1].ls / 2)
    assert ls[2:, 1].abs().sum() == 0
    for function in (tt.loss.mse, tt.loss.cross_entropy):
        goal = torch.zeros_like(y) if function is tt.loss.mse else target
        by_step = function(y, goal, torch.full((4,), 0.25))
        torch.testing.assert_close(function(y, goal, torch.full((4, 2), 0.25)), by_step)


@pytest.mark.parametrize("lanes", [1, 2, 5])
@pytest.mark.parametrize("window", [1, 3, 50])
def test_a_stream_has_every_step_once(lanes: int, window: int) -> None:
    made, parts = recordings([4, 1, 6, 3])
    running: list[list[int]] = [[] for _ in range(lanes)]
    found: dict[int, list] = {}
    for x, target, new, mask in datasets.stream(made, lanes, window, torch.Generator().manual_seed(3)):
        assert x.shape == (window, lanes, 11)
        assert x[mask == 0].sum() == 0
        for lane in range(lanes):
            if new[lane]:
                found[len(found)] = running[lane] = []
            steps = int(mask[:, lane].sum())
            running[lane] += [(int(target[t, lane]), x[t, lane].bool().tolist()) for t in range(steps)]
            assert mask[:steps, lane].all()
    whole = sorted([(i % 3, step) for step in part.tolist()] for i, part in enumerate(parts))
    assert sorted([list(recording) for recording in found.values()]) == whole


def test_a_network_learns_from_a_stream() -> None:
    made, _ = recordings([4, 1, 6, 3])
    model = tt.Sequential(tt.LIF(11, 8), tt.LI(8, 3))
    for i, (x, target, new, mask) in enumerate(datasets.stream(made, 2, 3)):
        if i:
            model.reset(new)
        y = model.window(x)
        model.backward(tt.loss.cross_entropy(y, target, mask / 3).ls)
    assert model[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"starts": [0, 3]}, "expected starts that rise from 0 to 5 steps, one more than the 2 labels, got 2 of them"),
        ({"starts": [0, 3, 3]}, "No recording may be empty"),
        ({"starts": [0, 3, 4]}, "expected starts that rise from 0 to 5 steps"),
        (
            {"channels": 3},
            r"expected packed spikes of shape \(steps, 1\) and uint8 for 3 channels, got \(5, 2\) and bool",
        ),
        ({"take": [1, 2, 3]}, "expected 2 values of take, got 3"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recordings(**({"spikes": np.ones((5, 2), dtype=bool), "starts": [0, 3, 5], "label": [0, 1]} | change))


# -- spoken digits -----------------------------------------------------------------------------------------------------


def packed(path: Path, **more: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    spikes = np.packbits(np.eye(9, 16, dtype=bool), axis=1)
    about = {"channels": 16, "step_ms": 5.0, "ptr": [0, 4, 9], "label": [3, 4], "classes": ["a", "b"]}
    np.savez(path, spikes=spikes, **(about | more))


def test_spoken_digits_are_read_and_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed(tmp_path / "fsdd" / "fsdd_spikes.npz", speaker=[0, 1], index=[0, 7], split=[2, 0])
    train, test = datasets.spoken_digits(tmp_path)
    assert (train.label.tolist(), test.label.tolist(), train.step, train.classes) == ([4], [3], 0.005, ("a", "b"))
    assert torch.equal(train[0], torch.eye(9, 16)[4:].bool())
    monkeypatch.setenv(datasets.DATA_VARIABLE, str(tmp_path))
    assert datasets.spoken_digits().train.index.tolist() == [7]
    monkeypatch.delenv(datasets.DATA_VARIABLE)
    with pytest.raises(FileNotFoundError, match=r"expected a folder with fsdd_spikes.npz, got none. Give data="):
        datasets.spoken_digits()
    with pytest.raises(FileNotFoundError, match=r"smartwatch: expected watch.npz in .* found none there"):
        datasets.smartwatch(tmp_path)


def test_the_smartwatch_is_read(tmp_path: Path) -> None:
    packed(tmp_path / "watch.npz", subject=[1, 9], side=[0, 1], group_test=[False, True])
    found = datasets.smartwatch(tmp_path)
    assert found.subset(found.group_test).subject.tolist() == [9]
    assert found.step == 0.005


@pytest.mark.skipif(datasets.DATA_VARIABLE not in os.environ, reason="TRACETORCH_DATA names no folder with recordings")
def test_the_real_recordings_are_as_described() -> None:
    train, test = datasets.spoken_digits()
    assert (len(train), len(test), train.channels) == (2700, 300, 120)
    lengths = torch.cat([train.steps, test.steps])
    assert (int(lengths.min()), int(lengths.max())) == (28, 456)
    watch = datasets.smartwatch()
    assert (len(watch), watch.channels, int(watch.steps.sum())) == (140, 24, 244_102)
    assert set(watch.subject[watch.group_test].tolist()) == {8, 9, 10}


def tone(frequency: float, seconds: float = 0.3, rate: int = RATE, silence: float = 0.2) -> np.ndarray:
    """Silence, a tone, silence."""
    quiet = np.zeros(int(silence * rate))
    return np.concatenate([quiet, np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate), quiet])


@pytest.mark.parametrize("frequency", [200.0, 800.0, 2500.0])
@pytest.mark.parametrize("rate", [8000, 16000])
def test_a_tone_is_heard_in_its_band(frequency: float, rate: int) -> None:
    spikes = datasets.encode_audio(0.05 * tone(frequency, rate=rate), rate)
    assert spikes.shape == (140, 120)
    sustained, onset, offset = spikes.split(40, dim=1)
    mel = np.linspace(*(2595 * np.log10(1 + f / 700) for f in (60.0, 3900.0)), 42)[1:-1]
    expected = int(np.abs(700 * (10 ** (mel / 2595) - 1) - frequency).argmin())
    assert abs(int(sustained.sum(0).argmax()) - expected) <= 1
    assert (onset[:, expected].nonzero().min(), offset[:, expected].nonzero().min()) >= (40, 100)  # begins and ends
    assert onset[:, expected].nonzero().max() <= 50
    assert offset[:, expected].nonzero().max() <= 110
    assert not spikes[:40].any()
    assert not spikes[110:].any()
    assert not (sustained[1:] & sustained[:-1]).any()  # it never fires twice in a row at this rate


def test_what_is_heard_later_changes_nothing_before() -> None:
    sound = 0.05 * tone(700)
    whole = datasets.encode_audio(sound, RATE)
    assert torch.equal(datasets.encode_audio(sound[: RATE // 2], RATE), whole[:100])
    assert not datasets.encode_audio(np.zeros(RATE), RATE).any()
    stereo = np.stack([sound, sound], axis=1)
    assert torch.equal(datasets.encode_audio(stereo, RATE), whole)
    assert datasets.encode_audio(sound, RATE, reference_db=-60.0).sum() > whole.sum()


@pytest.mark.parametrize(("width", "channels"), [(1, 1), (2, 1), (2, 2), (3, 1), (4, 2)])
def test_wav_files_are_read(tmp_path: Path, width: int, channels: int) -> None:
    sound = 0.3 * tone(500)
    full = np.round(sound * (2 ** (8 * width - 1) - 1)).astype(np.int64) + (128 if width == 1 else 0)
    content = full.astype("<i8").view(np.uint8).reshape(-1, 8)[:, :width]
    with wave.open(str(tmp_path / "tone.wav"), "wb") as file:
        file.setparams((channels, width, RATE, 0, "NONE", ""))
        file.writeframes(np.repeat(content, channels, axis=0).tobytes())
    found, expected = datasets.encode_wav(tmp_path / "tone.wav"), datasets.encode_audio(sound, RATE)
    assert (found == expected).double().mean() > (0.95 if width == 1 else 0.999)


def test_what_cannot_be_encoded_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.wav").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"encode_wav: expected .*no.wav to be an uncompressed WAV file"):
        datasets.encode_wav(tmp_path / "no.wav")
    for bad in (np.zeros((2, 2, 2)), np.zeros(3, dtype=complex)):
        with pytest.raises(ValueError, match=r"samples of shape \(S,\) or \(S, channels\), floats or integers"):
            datasets.encode_audio(bad, RATE)
    with pytest.raises(ValueError, match=r"expected finite samples"):
        datasets.encode_audio(np.full(100, np.nan), RATE)
    with pytest.raises(ValueError, match=r"expected at least a step of 40 samples, got 3"):
        datasets.encode_audio(np.zeros(3), RATE)
    with pytest.raises(ValueError, match=r"expected 0 <= low_hz < high_hz <= half the rate, 2000"):
        datasets.encode_audio(tone(100), 4000)
    with pytest.raises(ValueError, match=r"expected window_ms of at least step_ms"):
        datasets.encode_audio(tone(100), RATE, window_ms=1.0)
    with pytest.raises(ValueError, match=r"expected reference_db to be a number, or one for each of 40 bands"):
        datasets.encode_audio(tone(100), RATE, reference_db=[1.0, 2.0])


# -- events ------------------------------------------------------------------------------------------------------------


def write_heidelberg(path: Path, speaker: bool = True) -> None:
    h5py = pytest.importorskip("h5py")
    times = [np.array([0.0, 0.011, 0.0119, 0.034]), np.array([0.002]), np.array([])]
    units = [np.array([0, 5, 5, 699]), np.array([3]), np.array([])]
    with h5py.File(path, "w") as file:
        for name, values, kind in (("times", times, np.float16), ("units", units, np.uint16)):
            ragged = file.create_dataset(f"spikes/{name}", (3,), dtype=h5py.vlen_dtype(kind))
            for i, value in enumerate(values):
                ragged[i] = value.astype(kind)
        file["labels"] = np.array([4, 19, 0], dtype=np.uint16)
        if speaker:
            file["extra/speaker"] = np.array([1, 11, 2])


def test_the_heidelberg_format_is_read(tmp_path: Path) -> None:
    write_heidelberg(tmp_path / "shd.h5")
    found = datasets.read_heidelberg(tmp_path / "shd.h5")
    assert found[0].nonzero().tolist() == [[0, 0], [1, 5], [3, 699]]
    assert (found.label.tolist(), found.speaker.tolist(), found.steps.tolist()) == ([4, 19, 0], [1, 11, 2], [4, 1, 1])
    assert found[2].sum() == 0
    write_heidelberg(tmp_path / "ssc.h5", speaker=False)
    assert datasets.read_heidelberg(tmp_path / "ssc.h5", longest=0.02).steps.tolist() == [2, 1, 1]
    with pytest.raises(ValueError, match=r"expected channels from 0 to 99, got 0 to 699. Give channels="):
        datasets.read_heidelberg(tmp_path / "shd.h5", channels=100)
    with pytest.raises(ValueError, match=r"expected step to be a finite number above 0"):
        datasets.read_heidelberg(tmp_path / "shd.h5", step=0.0)


def test_a_file_is_downloaded_once_and_checked(mirrors: list[Mirror], tmp_path: Path) -> None:  # noqa: F811
    pytest.importorskip("pooch")
    served, content = mirrors[0], gzip.compress(b"what is in it")
    (served.folder / "shd_test.h5.gz").write_bytes(content)
    (served.folder / "md5sums.txt").write_text(f"{hashlib.md5(content).hexdigest()}  shd_test.h5.gz\n")
    path = datasets.heidelberg("shd_test", url=served.url, cache=tmp_path)
    assert path.read_bytes() == b"what is in it"
    (served.folder / "md5sums.txt").unlink()
    assert datasets.heidelberg("shd_test", url=served.url, cache=tmp_path) == path
    with pytest.raises(ConnectionError, match=r"heidelberg: expected .* to send ssc_test.h5.gz, got HTTPError"):
        datasets.heidelberg("ssc_test", url=served.url, cache=tmp_path)
    (served.folder / "md5sums.txt").write_text("no sums\n")
    with pytest.raises(RuntimeError, match=r"expected md5sums.txt to list shd_train.h5.gz, got 'no sums"):
        datasets.heidelberg("shd_train", url=served.url, cache=tmp_path)
    with pytest.raises(RuntimeError, match=r"to send shd_test.h5.gz with the hash md5:0000.*, got something else"):
        datasets.heidelberg("shd_test", hash="md5:" + 32 * "0", url=served.url, cache=tmp_path / "other")


def test_events_become_recordings() -> None:
    kind = [("x", np.int16), ("y", np.int16), ("t", np.int64), ("p", bool)]
    first = np.array([(0, 1, 5000, True), (2, 0, 5999, False), (2, 0, 7000, False)], dtype=kind)
    found = datasets.from_events([(first, 1), (first[:1], 0)], (3, 2, 2), step=1000.0)
    assert found[0].nonzero().tolist() == [[0, 2], [0, 9], [2, 2]]
    assert (found.label.tolist(), found.step, found.channels) == ([1, 0], 0.001, 12)
    flat = np.array([(4, 0, 1)], dtype=[("t", int), ("x", int), ("p", int)])
    assert datasets.from_events([(flat, 0)], (1, 1, 2))[0].tolist() == [[False, True]]
    with pytest.raises(ValueError, match=r"expected events inside of a sensor of 2 x 2 x 2, got 2 outside of it"):
        datasets.from_events([(first, 0)], (2, 2, 2))
    with pytest.raises(ValueError, match=r"expected sensor to be \(width, height, polarities\), got 7"):
        datasets.from_events([(first, 0)], 7)
    with pytest.raises(ValueError, match=r"expected at least one item"):
        datasets.from_events([], (2, 2, 2))


# -- images over time, tasks -------------------------------------------------------------------------------------------


def test_images_over_time() -> None:
    x = torch.arange(18.0).view(2, 9)
    assert torch.equal(datasets.rows(x)[1], x.view(2, 3, 3)[:, 1])
    assert torch.equal(datasets.pixels(x)[4, :, 0], x[:, 4])
    order = datasets.permutation(9, seed=1)
    assert torch.equal(datasets.pixels(x, order)[4, :, 0], x[:, order[4]])
    assert not torch.equal(order, datasets.permutation(9))
    with pytest.raises(ValueError, match=r"rows: expected square images of shape \(B, n \* n\), got \(2, 8\)"):
        datasets.rows(x[:, :8])
    with pytest.raises(ValueError, match=r"pixels: expected images of shape \(B, n\)"):
        datasets.pixels(x[0])
    with pytest.raises(ValueError, match=r"pixels: expected order to have each of 9 pixels once"):
        datasets.pixels(x, torch.zeros(9, dtype=torch.long))


@pytest.mark.parametrize("patterns", [2, 3])
def test_the_order_of_patterns_can_be_read_off(patterns: int) -> None:
    x, target, weights = tasks.order_of_patterns(
        64, patterns=patterns, channels=12, rate=1.0, noise=0.0, generator=torch.Generator().manual_seed(0)
    )
    orders = list(permutations(range(patterns)))
    begins = x[..., :-1].unflatten(-1, (patterns, -1)).amax(-1).argmax(0)  # when each pattern is first seen
    assert [orders[c] for c in target.tolist()] == [tuple(order) for order in begins.argsort(-1).tolist()]
    assert set(target.tolist()) == set(range(len(orders)))
    assert torch.equal(x[..., -1].sum(0), torch.full((64,), 5.0))
    assert weights.sum() == 1
    assert (x[..., :-1].sum(0).unflatten(-1, (patterns, -1)) == 10).all()  # counts are the same whatever the order
    with pytest.raises(ValueError, match=r"expected two or more patterns, and channels that are a multiple of them"):
        tasks.order_of_patterns(1, patterns=1)


def test_copy_memory_can_be_read_off() -> None:
    x, target, weights = tasks.copy_memory(32, delay=7, generator=torch.Generator().manual_seed(0))
    assert x.shape == (27, 32, 9)
    assert torch.equal(x[:10, :, :8].argmax(-1), target[17:])
    assert x[10:, :, :8].sum() == 0
    assert x[..., 8].nonzero()[:, 0].unique().tolist() == [16]
    assert (weights > 0).nonzero()[:, 0].tolist() == list(range(17, 27))
    y = torch.nn.functional.one_hot(target, 8).float() * 50
    assert tt.loss.cross_entropy(y, target, weights).loss < 1e-6
    with pytest.raises(ValueError, match=r"copy_memory: expected delay to be a whole number of at least 1, got 0"):
        tasks.copy_memory(1, delay=0)
