"""Spoken digits as spikes, and the encoder that makes spikes of sound."""

from __future__ import annotations

import wave
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import _checks
from .files import find
from .recordings import Recordings

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
    with np.load(find("spoken_digits", FSDD_FILE, "fsdd", data)) as file:
        found = Recordings(
            file["spikes"],
            file["ptr"],
            file["label"],
            channels=int(file["channels"]),
            step=float(file["step_ms"]) / 1000,
            classes=file["classes"].tolist(),
            speaker=file["speaker"],
            index=file["index"],
            split=file["split"],
        )
    return SpokenDigits(found.subset(found.split == 0), found.subset(found.split == 2))


class Sound(NamedTuple):
    """A sound."""

    samples: np.ndarray  # (S,) float64, in [-1, 1]
    rate: int  # samples per second


def read_wav(path: str | Path) -> Sound:
    """A wav file of 8 or 16 bits; several channels are averaged.

    Raises:
        ValueError: another width or format, or an empty file.
    """
    try:
        with wave.open(str(path), "rb") as file:
            width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
            content = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise ValueError(
            f"read_wav: expected {path} to be a wav file of PCM samples, got {str(error) or 'the end too early'}. "
            f"Convert it to 16-bit PCM."
        ) from error
    if width not in (1, 2) or not content:
        raise ValueError(
            f"read_wav: expected {path} to hold samples of 8 or 16 bits, got {8 * width} bits in {len(content)} bytes. "
            f"Convert it to 16-bit PCM."
        )
    kind, zero = (np.dtype(np.uint8), 128) if width == 1 else (np.dtype("<i2"), 0)
    samples = np.frombuffer(content, kind).astype(np.float64) - zero
    return Sound(samples.reshape(-1, channels).mean(1) / 2 ** (8 * width - 1), rate)


@dataclass(frozen=True)
class SpikeEncoder:
    """Makes spikes of sound: each mel band has a channel for what lasts, one for onsets and one for offsets.

        e_t      = log10(power of the band in the frame around step t + 1e-10)       of the sound over its peak
        quiet    = max over steps and bands of e - span
        m_{t+1}  = keep m_t + (1 - keep) max(e_t, quiet)      keep = exp(-step / memory), m_0 = quiet
        sustained: e_t > m_t + margin      and e_t > quiet
        onset:     e_t - e_{t-1} > change  and e_t > quiet
        offset:    e_{t-1} - e_t > change  and e_t or e_{t-1} > quiet

    The layout is that of `spoken_digits`: bands * 3 channels, first all sustained, then all onsets, then all offsets, a
    step of 5 ms. It is not the program that made that file, of which no description is at hand, and spikes of the same
    sound differ: a sustained channel of the file never fires in two steps in a row, these do while the sound lasts.
    Train and test on recordings of one encoder.

    Args:
        bands: mel bands.
        step: seconds between two frames.
        frame: seconds of sound in a frame, at least a step; Hann window.
        low: of the lowest band's lower edge, Hz.
        high: of the highest band's upper edge, Hz; at most half of the sound's rate.
        memory: seconds over which a band's running level is averaged, exponentially.
        margin: powers of ten that a sustained sound lies above it.
        change: powers of ten by which an onset rises, or an offset falls, from one step to the next.
        span: powers of ten below the loudest band and step, under which all is silence.

    Raises:
        ValueError: a value that is not above 0, edges in the wrong order.

    Stevens, Volkmann & Newman 1937 for the mel scale, as 2595 log10(1 + f / 700).

    >>> SpikeEncoder().encode(np.zeros(8000), rate=8000).shape
    torch.Size([200, 120])
    """

    bands: int = 40
    step: float = 0.005
    frame: float = 0.025
    low: float = 60.0
    high: float = 4000.0
    memory: float = 0.2
    margin: float = 0.2
    change: float = 0.25
    span: float = 4.0

    def __post_init__(self) -> None:
        _checks.at_least_one("SpikeEncoder", "bands", self.bands)
        for name in ("step", "frame", "low", "high", "memory", "margin", "change", "span"):
            _checks.positive("SpikeEncoder", name, getattr(self, name))
        if self.low >= self.high or self.frame < self.step:
            raise ValueError(
                f"SpikeEncoder: expected low below high and frames of at least a step, got {self.low} to {self.high} "
                f"Hz and frames of {self.frame} s. The defaults suit speech."
            )

    @property
    def channels(self) -> int:
        """3 * bands."""
        return 3 * self.bands

    def encode_wav(self, path: str | Path) -> Tensor:
        """The spikes (T, channels), bool, of a wav file."""
        return self.encode(*read_wav(path))

    def encode(self, samples: np.ndarray, rate: int) -> Tensor:
        """The spikes of a sound.

        Args:
            samples: (S,) the sound, in any unit: the loudest moment is what others are compared with.
            rate: samples per second.

        Returns:
            (T, channels) bool, T = S / (rate * step), rounded down, at least 1.

        Raises:
            ValueError: no sound; a rate too low for the highest band.
        """
        samples = np.asarray(samples, dtype=np.float64)
        if samples.ndim != 1 or len(samples) == 0 or not np.isfinite(samples).all():
            raise ValueError(
                f"SpikeEncoder: expected samples of shape (S,), finite, at least one, got {samples.shape}. "
                f"Average the channels first."
            )
        if rate < 2 * self.high:
            raise ValueError(
                f"SpikeEncoder: expected at least {2 * self.high:g} samples per second for bands up to {self.high:g} "
                f"Hz, got {rate}. Give a lower high=."
            )
        peak = float(np.abs(samples).max())
        level = self._levels(samples / (peak or 1), rate)
        quiet = float(level.max()) - self.span
        loud = level > max(quiet, _FLOOR_LEVEL + 1)  # where all is silence, nothing is loud
        rise = np.diff(level, axis=0, prepend=level[:1])
        heard = loud | np.roll(loud, 1, axis=0)  # what has just ended too
        heard[0] = loud[0]
        spikes = [loud & (level > self._running(level, quiet) + self.margin), loud & (rise > self.change)]
        return torch.from_numpy(np.concatenate([*spikes, heard & (-rise > self.change)], axis=1))

    def _levels(self, samples: np.ndarray, rate: int) -> np.ndarray:
        """e, (T, bands)."""
        size, hop = max(2, round(self.frame * rate)), self.step * rate
        steps = max(1, int(len(samples) / hop))
        padded = np.pad(samples, (size // 2, size))
        begins = np.round(np.arange(steps) * hop).astype(int)
        frames = padded[begins[:, None] + np.arange(size)] * np.hanning(size)
        power = np.abs(np.fft.rfft(frames, n=max(512, size))) ** 2
        level: np.ndarray = np.log10(power @ self._filters(rate, max(512, size)).T + 10**_FLOOR_LEVEL)
        return level

    def _filters(self, rate: int, size: int) -> np.ndarray:
        """Triangles over the frequencies of a spectrum, (bands, frequencies), equally wide on the mel scale."""
        mel = np.linspace(_mel(self.low), _mel(self.high), self.bands + 2)
        edges = 700 * (10 ** (mel / 2595) - 1)
        frequency = np.fft.rfftfreq(size, 1 / rate)
        low, centre, high = (edges[i : i + self.bands, None] for i in range(3))
        rising, falling = (frequency - low) / (centre - low), (high - frequency) / (high - centre)
        filters = np.clip(np.minimum(rising, falling), 0, None)
        nearest = np.abs(frequency - centre).argmin(1)  # a band narrower than the spectrum's steps has one of them
        filters[np.arange(self.bands), nearest] = np.maximum(filters[np.arange(self.bands), nearest], 0.5)
        return filters

    def _running(self, level: np.ndarray, quiet: float) -> np.ndarray:
        """m, (T, bands): the average before each step, from silence."""
        keep = np.exp(-self.step / self.memory)
        running = np.empty_like(level)
        now = np.full(level.shape[1], quiet)
        for t, e in enumerate(level):
            running[t] = now
            now = keep * now + (1 - keep) * np.maximum(e, quiet)
        return running


_FLOOR_LEVEL = -10.0  # the logarithm of a power that counts as none, the sound's peak being 1


def _mel(frequency: float) -> float:
    return float(2595 * np.log10(1 + frequency / 700))
