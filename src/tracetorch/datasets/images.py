"""Images to learn from: scikit-learn's small digits, and MNIST from a folder or from its mirrors.

Shapes: N images of n pixels, in [0, 1].
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import _checks
from .files import DATA_VARIABLE, missing

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"

MNIST_HASHES = {
    f"{TRAIN_IMAGES}.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    f"{TRAIN_LABELS}.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    f"{TEST_IMAGES}.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    f"{TEST_LABELS}.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
"""The files of MNIST and their sha256."""

PIXELS = 28
"""Rows and columns of an image of MNIST."""


class Images(NamedTuple):
    """Labelled images, some of them held out for testing."""

    train_x: Tensor  # (N, n) float32 in [0, 1]
    train_y: Tensor  # (N,) int64 classes
    test_x: Tensor
    test_y: Tensor


def digits(*, test_fraction: float = 0.2, seed: int = 0) -> Images:
    """The 1,797 digits of 8 x 8 pixels that come with scikit-learn (the extra `data`).

    Args:
        test_fraction: the share of each class that is held out, in (0, 1).
        seed: of the draw of what is held out.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: a fraction outside (0, 1).

    >>> digits().test_x.shape
    torch.Size([360, 64])
    """
    if not 0 < test_fraction < 1:
        raise ValueError(f"digits: expected test_fraction between 0 and 1, got {test_fraction}. 0.2 is usual.")
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise missing("digits", "scikit-learn") from error
    pixels, classes = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        pixels, classes, test_size=test_fraction, random_state=seed, stratify=classes
    )
    return Images(_scaled(train_x, 16), _classes(train_y), _scaled(test_x, 16), _classes(test_y))


def mnist(
    data: str | Path | None = None,
    *,
    urls: Sequence[str] = MIRRORS,
    hashes: Mapping[str, str] = MNIST_HASHES,
    cache: str | Path | None = None,
) -> Images:
    """The 70,000 digits of 28 x 28 pixels of MNIST.

    Read from a folder: `data`, or else the one that the environment variable TRACETORCH_DATA names. Where neither is
    given they are downloaded once with pooch (the extra `data`).

    Args:
        data: the folder with the four idx files, gzipped or not; they may lie in its `raw` or `MNIST/raw` too.
        urls: addresses of folders to download from, tried in turn.
        hashes: the sha256 of each file to download, by name.
        cache: the folder for downloads; by default `mnist` in the user's cache for tracetorch.

    Raises:
        FileNotFoundError: the folder lacks files.
        ValueError: a file is not what it should be.
        ImportError: pooch is needed and not installed.
        ConnectionError: no mirror could be reached.
        RuntimeError: a mirror sent something else than the file, and no other sent the file.
    """
    folder = data or os.environ.get(DATA_VARIABLE)
    files = _find(Path(folder)) if folder else _download(urls, hashes, cache)
    images = Images(
        train_x=_images(files[TRAIN_IMAGES]),
        train_y=_labels(files[TRAIN_LABELS]),
        test_x=_images(files[TEST_IMAGES]),
        test_y=_labels(files[TEST_LABELS]),
    )
    for x, y, name in (
        (images.train_x, images.train_y, TRAIN_LABELS),
        (images.test_x, images.test_y, TEST_LABELS),
    ):
        if len(x) != len(y):
            raise ValueError(
                f"mnist: expected {files[name]} to hold a label for each of {len(x)} images, got {len(y)}. "
                f"Take all four files from one source."
            )
    return images


# -- the same images over time -----------------------------------------------------------------------------------------


def rows(x: Tensor) -> Tensor:
    """The rows of square images as steps: (B, n * n) -> (n, B, n). MNIST row by row has 28 steps of 28 inputs.

    Raises:
        ValueError: x is no batch of square images.

    >>> rows(torch.arange(4.0).view(1, 4))
    tensor([[[0., 1.]],
    <BLANKLINE>
            [[2., 3.]]])
    """
    side = math.isqrt(x.shape[-1]) if x.ndim == 2 else 0
    if x.ndim != 2 or side * side != x.shape[1]:
        raise ValueError(f"rows: expected square images of shape (B, n * n), got {tuple(x.shape)}. Flatten them first.")
    return x.reshape(len(x), side, side).transpose(0, 1)


def pixels(x: Tensor, order: Tensor | None = None) -> Tensor:
    """The pixels as steps of a single input: (B, n) -> (n, B, 1). MNIST pixel by pixel has 784 steps.

    Args:
        x: images (B, n).
        order: (n,) the order in which pixels come, such as `permutation(784)`; by default row by row.

    Raises:
        ValueError: x is no batch of flat images; an order that has not each pixel once.

    >>> pixels(torch.tensor([[5.0, 6.0]]), order=torch.tensor([1, 0])).flatten()
    tensor([6., 5.])
    """
    if x.ndim != 2:
        raise ValueError(f"pixels: expected images of shape (B, n), got {tuple(x.shape)}. Flatten them first.")
    if order is not None:
        if not torch.equal(order.sort().values, torch.arange(x.shape[1], device=order.device)):
            raise ValueError(
                f"pixels: expected order to have each of {x.shape[1]} pixels once, got shape {tuple(order.shape)}. "
                f"Give permutation({x.shape[1]})."
            )
        x = x[:, order]
    return x.t()[..., None]


def permutation(count: int, seed: int = 0) -> Tensor:
    """A random order (n,) of n pixels, int64, the same for a seed wherever it is drawn: permuted MNIST's.

    Args:
        count: n.
        seed: of the draw, with numpy's Mersenne twister, which stays as it is.

    Raises:
        TypeError: a count that is not a whole number.
        ValueError: a count below 1.

    >>> permutation(5)
    tensor([2, 0, 1, 3, 4])
    """
    _checks.at_least_one("permutation", "count", count)
    return torch.from_numpy(np.random.RandomState(seed).permutation(count).astype(np.int64))


# -- where the files are -----------------------------------------------------------------------------------------------


def _find(folder: Path) -> dict[str, Path]:
    """The four files by name, in the folder or where torchvision puts them below it."""
    places = [folder, folder / "raw", folder / "MNIST" / "raw"]
    found, missing = {}, []
    for name in (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS):
        candidates = [place / file for place in places for file in (name, f"{name}.gz")]
        path = next(filter(Path.is_file, candidates), None)
        if path is None:
            missing.append(name)
        else:
            found[name] = path
    if missing:
        raise FileNotFoundError(
            f"mnist: expected {', '.join(missing)} (plain, or with .gz) in {', '.join(map(str, places))}, found none "
            f"there. Put them into one of these folders, or give none ({DATA_VARIABLE} unset too) to download them."
        )
    return found


def _download(urls: Sequence[str], hashes: Mapping[str, str], cache: str | Path | None) -> dict[str, Path]:
    """The four files by name, in the cache."""
    try:
        import pooch
    except ImportError as error:
        raise missing("mnist", "pooch") from error
    folder = pooch.os_cache("tracetorch") / "mnist" if cache is None else Path(cache)
    return {name.removesuffix(".gz"): _retrieve(name, urls, hashes, folder) for name in hashes}


def _retrieve(name: str, urls: Sequence[str], hashes: Mapping[str, str], folder: Path) -> Path:
    """One file, from the cache or from the first mirror that sends it unharmed."""
    import pooch

    failures, corrupted = [], False
    for url in urls:
        address = f"{url.rstrip('/')}/{name}"
        try:
            # pooch keeps nothing of a download that has another hash.
            return Path(pooch.retrieve(address, known_hash=f"sha256:{hashes[name]}", fname=name, path=folder))
        except ValueError:
            failures.append(f"{address}, which sent something else (its sha256 differs)")
            corrupted = True
        except OSError as error:
            failures.append(f"{address}, which failed ({type(error).__name__}: {error})")
    kind = RuntimeError if corrupted else ConnectionError
    raise kind(
        f"mnist: expected a mirror to send {name}, none did. Get the files {', '.join(hashes)} some other way, put "
        f"them into a folder, and give it: --data DIR, {DATA_VARIABLE}=DIR or mnist(DIR). Tried: {'; '.join(failures)}."
    )


# -- what is in them ---------------------------------------------------------------------------------------------------


def _images(path: Path) -> Tensor:
    pixels = _read_idx(path, dimensions=3)
    if pixels.shape[1:] != (PIXELS, PIXELS):
        raise ValueError(
            f"mnist: expected {path} to hold images of {PIXELS} x {PIXELS} pixels, got {pixels.shape[1:]}. "
            f"Take the files of MNIST."
        )
    return _scaled(pixels.reshape(len(pixels), -1), 255)


def _labels(path: Path) -> Tensor:
    labels = _read_idx(path, dimensions=1)
    if labels.size and labels.max() > 9:
        raise ValueError(f"mnist: expected {path} to hold labels from 0 to 9, got {labels.max()}. Get the file anew.")
    return _classes(labels)


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    """An idx file of bytes: 0, 0, 8 (unsigned bytes), the number of dimensions, their sizes (big-endian), the data."""
    content = _decompressed(path)
    start = 4 * (1 + dimensions)
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) < start:
        raise ValueError(
            f"mnist: expected {path} to start as an idx file of unsigned bytes with {dimensions} dimension(s), "
            f"magic {bytes([0, 0, 8, dimensions]).hex()}, got {content[:4].hex() or 'nothing'} in a file of "
            f"{len(content)} bytes. Get the file anew."
        )
    sizes = [int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4)]
    if len(content) - start != math.prod(sizes):
        raise ValueError(
            f"mnist: expected {path} to hold {math.prod(sizes)} bytes after its header, as its sizes {sizes} say, "
            f"got {len(content) - start}. The file is truncated or damaged: get it anew."
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(sizes)


def _decompressed(path: Path) -> bytes:
    content = path.read_bytes()
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"mnist: expected {path} to be a whole gzip file, but it is truncated or damaged ({error}). Get it anew."
        ) from error


def _scaled(pixels: np.ndarray, largest: int) -> Tensor:
    return torch.tensor(pixels, dtype=torch.float32) / largest


def _classes(labels: np.ndarray) -> Tensor:
    return torch.tensor(labels, dtype=torch.int64)
