"""Spoken digits as spikes, and the encoder for other recordings of sound."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import _checks
from .files import find
from .recordings import Recordings, read_packed

FSDD_FILE = "fsdd_spikes.npz"


class SpokenDigits(NamedTuple):
    """The official split: takes 0 to 4 of each speaker and digit are for testing."""

    train: Recordings
    test: Recordings


def spoken_digits(data: str | Path | None = None) -> SpokenDigits:
    """The Free Spoken Digit Dataset as spikes: 3,000 recordings of ten digits by six speakers.

    Jakobovski et al., github.com/Jakobovski/free-spoken-digit-dataset, CC BY-SA 4.0. 120 channels: 40 mel bands, each
    with a sustained, an onset and an offset channel; steps of 5 ms, 28 to 456 of them. Each recording has `speaker` (0
    to 5) and `index`, the number of the take.

    Args:
        data: the folder with `fsdd_spikes.npz`, or with `fsdd/` that holds it; by default that which the environment
            variable TRACETORCH_DATA names.

    Raises:
        FileNotFoundError: the file is not there.
    """
    found = read_packed(find("spoken_digits", FSDD_FILE, "fsdd", data), "speaker", "index", "split")
    return SpokenDigits(found.subset(found.split == 0), found.subset(found.split == 2))


def encode_wav(path: str | Path, **parameters: Any) -> Tensor:
    """Spikes of a WAV file: what `encode_audio` makes of its samples.

    Args:
        path: an uncompressed file of 8, 16, 24 or 32 bits, of any sampling rate and number of channels.
        parameters: those of `encode_audio`.

    Returns:
        (T, 120) bool, or (T, 3 * bands).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not such a file; what `encode_audio` refuses.
    """
    try:
        with wave.open(str(path), "rb") as file:
            width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
            content = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise ValueError(
            f"encode_wav: expected {path} to be an uncompressed WAV file, but it is not ({error or 'it ends early'}). "
            f"Convert it, or read it otherwise and call encode_audio."
        ) from error
    content = content[: len(content) // (width * channels) * width * channels]
    if width == 3:  # to the upper bytes of 32 bits
        padded = np.zeros((len(content) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(content, np.uint8).reshape(-1, 3)
        samples = padded.view("<i4")[:, 0]
    else:
        samples = np.frombuffer(content, {1: "u1", 2: "<i2", 4: "<i4"}[width])
    return encode_audio(samples.reshape(-1, channels), rate, **parameters)


def encode_audio(
    samples: Any,
    rate: float,
    *,
    bands: int = 40,
    low_hz: float = 60.0,
    high_hz: float = 3900.0,
    step_ms: float = 5.0,
    window_ms: float = 25.0,
    range_db: float = 36.0,
    reference_db: Any = None,
    sustained: float = 0.32,
    change_db: float = 6.0,
) -> Tensor:
    """Sound as spikes: mel bands, each with a sustained, an onset and an offset channel.

        power p        of the spectrum of the last `window_ms` (Hann), averaged over the band's triangle
        level l        1 + (10 log10 p - reference) / range_db, within 0 and 1
        sustained      an integrate-and-fire neuron with the input `sustained * l`
        onset, offset  the level rose, or fell, by `change_db`; one spike per step, until caught up

    It has the layout of the file that `spoken_digits` reads, and similar rates, but does not give the same spikes.
    Only numpy is needed. A step uses no later samples. Levels are absolute: scale a recording that is much quieter than
    close speech, or lower `reference_db`.

    Args:
        samples: (S,) or (S, channels), which are averaged; floats from -1 to 1, or integers of full scale.
        rate: samples per second, at least twice `high_hz`.
        bands: how many, equally wide and equally spaced in mel, 2595 log10(1 + Hz / 700).
        low_hz: where the lowest band begins, in Hz.
        high_hz: where the highest band ends, in Hz.
        step_ms: milliseconds per step.
        window_ms: milliseconds of sound that a spectrum is made of, at least a step.
        range_db: how far below the reference, in dB, the level is 0.
        reference_db: the power in a band, in dB of full scale, where the level is 1: a number, or (bands,), such as the
            mean over a corpus and some 28 dB above. By default loud speech: -26 up to 500 Hz, falling from there by 7
            per octave. A sine of full scale has -4 in a low band, -8 in a high one.
        sustained: spikes per step of a sustained channel at level 1, in [0, 1].
        change_db: by how much the level must have changed for a spike of an onset or offset channel, in dB.

    Returns:
        (T, 3 * bands) bool: the sustained channels from the lowest band to the highest, then onset, then offset.
        T is the number of whole steps in the recording.

    Raises:
        TypeError: a number of bands that is not whole.
        ValueError: samples of another shape or dtype, not finite, or less than a step of them; a parameter outside its
            range.

    >>> tone = 0.03 * np.sin(2 * np.pi * 1000 * np.arange(8000) / 8000)
    >>> spikes = encode_audio(tone, 8000)
    >>> spikes.shape, int(spikes[:, :40].sum(0).argmax())    # the band around 1 kHz
    (torch.Size([200, 120]), 17)
    """
    where = "encode_audio"
    _checks.at_least_one(where, "bands", bands)
    for name, value in (("rate", rate), ("step_ms", step_ms), ("window_ms", window_ms), ("range_db", range_db)):
        _checks.positive(where, name, value)
    _checks.positive(where, "change_db", change_db)
    _checks.fraction(where, "sustained", sustained)
    if not 0 <= low_hz < high_hz <= rate / 2:
        raise ValueError(
            f"{where}: expected 0 <= low_hz < high_hz <= half the rate, {rate / 2:g}, got {low_hz:g} and {high_hz:g}. "
            f"Lower high_hz, or take sound sampled faster."
        )
    if window_ms < step_ms:
        raise ValueError(
            f"{where}: expected window_ms of at least step_ms, {step_ms:g}, got {window_ms:g}. "
            f"Sound between the windows would be lost."
        )
    sound = _mono(where, samples)
    ends = (
        (np.arange(1, int(len(sound) / rate * 1000 / step_ms + 1e-9) + 1) * step_ms * rate / 1000).round().astype(int)
    )
    if not len(ends):
        raise ValueError(
            f"{where}: expected at least a step of {step_ms * rate / 1000:g} samples, got {len(sound)}. "
            f"Leave out recordings as short as this."
        )
    edges = _hertz(np.linspace(_mel(low_hz), _mel(high_hz), bands + 2))
    reference = np.asarray(_speech_db(edges[1:-1]) if reference_db is None else reference_db, dtype=float)
    if reference.shape not in ((), (bands,)) or not np.isfinite(reference).all():
        raise ValueError(
            f"{where}: expected reference_db to be a number, or one for each of {bands} bands, got {reference_db!r}. "
            f"Leave it out for speech."
        )
    decibel = 10 * np.log10(_band_powers(sound, ends, rate, edges, window_ms) + 1e-20)
    level = np.clip(1 + (decibel - reference) / range_db, 0, 1)  # (T, bands)
    counts = np.floor(sustained * level.cumsum(0))  # of spikes up to each step: what a reset by subtraction gives
    spikes = np.diff(counts, axis=0, prepend=0) > 0
    return torch.from_numpy(np.concatenate([spikes, *_changes(level, change_db / range_db)], axis=1))


def _mono(where: str, samples: Any) -> np.ndarray:
    """(S,) float64 from -1 to 1."""
    sound = np.asarray(samples)
    if sound.ndim not in (1, 2) or sound.dtype.kind not in "iuf":
        raise ValueError(
            f"{where}: expected samples of shape (S,) or (S, channels), floats or integers, got {sound.shape} "
            f"{sound.dtype}. Put the channels last."
        )
    if sound.dtype.kind in "iu":
        half = 2.0 ** (8 * sound.dtype.itemsize - 1)
        sound = sound / half - (sound.dtype.kind == "u")
    if not np.isfinite(sound).all():
        raise ValueError(f"{where}: expected finite samples, got NaN or infinity. Repair the recording.")
    return (sound if sound.ndim == 1 else sound.mean(1)).astype(np.float64)


def _band_powers(sound: np.ndarray, ends: np.ndarray, rate: float, edges: np.ndarray, window_ms: float) -> np.ndarray:
    """(T, bands): the mean power in each band, of the windows that end at `ends`, with silence before the start."""
    width = max(round(window_ms * rate / 1000), 2)
    hann = np.hanning(width + 2)[1:-1]
    padded = np.concatenate([np.zeros(width), sound])
    size = 4 * 2 ** (width - 1).bit_length()  # finer than the narrowest bands
    hertz = np.fft.rfftfreq(size, 1 / rate)
    rising = (hertz - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - hertz) / np.diff(edges)[1:, None]
    triangles = np.clip(np.minimum(rising, falling), 0, None)  # (bands, frequencies)
    narrow = triangles.sum(1) == 0  # between two frequencies of the spectrum: the nearest one
    triangles[narrow, np.abs(hertz - edges[1:-1, None]).argmin(1)[narrow]] = 1
    triangles /= triangles.sum(1, keepdims=True)
    powers = np.empty((len(ends), len(edges) - 2))
    for start in range(0, len(ends), 1024):  # a minute of sound needs no more memory than seconds
        part = ends[start : start + 1024]
        frames = padded[part[:, None] + np.arange(width)] * hann
        spectrum = np.abs(np.fft.rfft(frames, size) / hann.sum()) ** 2
        powers[start : start + 1024] = 2 * spectrum @ triangles.T
    return powers


def _mel(hertz: float) -> float:
    return float(2595 * np.log10(1 + hertz / 700))


def _hertz(mel: np.ndarray) -> np.ndarray:
    return np.asarray(700 * (10 ** (mel / 2595) - 1))


def _speech_db(hertz: np.ndarray) -> np.ndarray:
    """What is loud in each band of speech."""
    return np.asarray(-26 - 7 * np.log2(np.maximum(hertz, 500) / 500))


def _changes(level: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Where the level rose and fell by the threshold since the last spikes, which it follows; from silence."""
    up, down = np.zeros(level.shape, bool), np.zeros(level.shape, bool)
    followed = np.zeros(level.shape[1])  # in thresholds, whole
    for t, now in enumerate(level / threshold):
        up[t], down[t] = now >= followed + 1, now <= followed - 1
        followed += up[t].astype(float) - down[t]
    return up, down
