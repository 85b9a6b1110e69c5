"""Data to learn from: images, and recordings over time. Whatever else yields tensors does as well.

Shapes: N images of n pixels, in [0, 1]; T steps, B lanes, n channels of spikes.
"""

from .events import SHD_CHANNELS, from_events, heidelberg, read_heidelberg
from .files import DATA_VARIABLE
from .images import (
    MIRRORS,
    MNIST_HASHES,
    PIXELS,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    Images,
    digits,
    mnist,
    permutation,
    pixels,
    rows,
)
from .recordings import Batch, Recordings, StreamWindow, stream
from .spoken import SpokenDigits, encode_audio, encode_wav, spoken_digits
from .watch import smartwatch

__all__ = [
    "DATA_VARIABLE",
    "MIRRORS",
    "MNIST_HASHES",
    "PIXELS",
    "SHD_CHANNELS",
    "TEST_IMAGES",
    "TEST_LABELS",
    "TRAIN_IMAGES",
    "TRAIN_LABELS",
    "Batch",
    "Images",
    "Recordings",
    "SpokenDigits",
    "StreamWindow",
    "digits",
    "encode_audio",
    "encode_wav",
    "from_events",
    "heidelberg",
    "mnist",
    "permutation",
    "pixels",
    "read_heidelberg",
    "rows",
    "smartwatch",
    "spoken_digits",
    "stream",
]
