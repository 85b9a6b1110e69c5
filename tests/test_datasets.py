"""The data: digits, and MNIST from a folder, from mirrors that work and from mirrors that do not."""

import gzip
import hashlib
import os
import socket
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from tracetorch import datasets

TRAIN, TEST = 6, 4  # images in the synthetic files


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def synthetic_mnist() -> dict[str, bytes]:
    """The four idx files by name, with a few random images."""
    rng = np.random.default_rng(0)
    files = {}
    for images, labels, count in (
        (datasets.TRAIN_IMAGES, datasets.TRAIN_LABELS, TRAIN),
        (datasets.TEST_IMAGES, datasets.TEST_LABELS, TEST),
    ):
        files[images] = idx(rng.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        files[labels] = idx(np.arange(count, dtype=np.uint8))
    return files


def write_mnist(folder: Path, *, zipped: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in synthetic_mnist().items():
        (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(content, mtime=0) if zipped else content)
    return folder


def assert_synthetic(images: datasets.Images) -> None:
    pixels = np.frombuffer(synthetic_mnist()[datasets.TRAIN_IMAGES], np.uint8, offset=16).reshape(TRAIN, -1)
    torch.testing.assert_close(images.train_x, torch.tensor(pixels, dtype=torch.float32) / 255)
    assert images.test_x.shape == (TEST, 784)
    assert images.train_y.tolist() == list(range(TRAIN))
    assert images.test_y.tolist() == list(range(TEST))
    assert images.train_y.dtype == torch.int64


# -- digits ------------------------------------------------------------------------------------------------------------


def test_digits_are_images_in_the_unit_interval_with_each_class_held_out_alike():
    images = datasets.digits()
    assert images.train_x.shape == (1437, 64)
    assert images.train_x.dtype == torch.float32
    assert images.train_y.dtype == torch.int64
    assert images.train_x.min() == 0
    assert images.train_x.max() == 1
    counts = torch.bincount(images.test_y)
    assert counts.sum() == 360
    assert counts.min() >= 34
    assert counts.max() <= 38


def test_the_split_of_digits_depends_on_the_seed_alone():
    first, again, other = datasets.digits(), datasets.digits(), datasets.digits(seed=1, test_fraction=0.5)
    assert torch.equal(first.test_x, again.test_x)
    assert not torch.equal(first.test_x[:360], other.test_x[:360])
    assert len(other.test_x) == 899


@pytest.mark.parametrize("fraction", [0, 1, -0.5, 2])
def test_digits_refuses_a_fraction_that_leaves_nothing(fraction):
    with pytest.raises(ValueError, match="digits: expected test_fraction between 0 and 1"):
        datasets.digits(test_fraction=fraction)


def test_a_missing_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"scikit-learn.*pip install 'tracetorch-online\[data\]'"):
        datasets.digits()
    monkeypatch.delenv(datasets.DATA_VARIABLE, raising=False)
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ImportError, match=r"pooch.*pip install 'tracetorch-online\[data\]'"):
        datasets.mnist(cache=tmp_path)


# -- MNIST from a folder -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("below", ["", "raw", "MNIST/raw"])
@pytest.mark.parametrize("zipped", [False, True])
def test_the_files_are_found_in_the_folder_and_below_it(tmp_path, below, zipped):
    write_mnist(tmp_path / below, zipped=zipped)
    assert_synthetic(datasets.mnist(tmp_path))


def test_the_environment_names_the_folder_unless_one_is_given(tmp_path, monkeypatch):
    monkeypatch.setenv(datasets.DATA_VARIABLE, str(write_mnist(tmp_path / "named")))
    assert_synthetic(datasets.mnist())
    with pytest.raises(FileNotFoundError, match="given"):
        datasets.mnist(tmp_path / "given")


def test_missing_files_are_named_with_where_they_were_looked_for(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / datasets.TEST_LABELS).unlink()
    with pytest.raises(FileNotFoundError) as caught:
        datasets.mnist(tmp_path)
    message = str(caught.value)
    assert datasets.TEST_LABELS in message
    assert datasets.TRAIN_IMAGES not in message
    for place in (tmp_path, tmp_path / "raw", tmp_path / "MNIST" / "raw"):
        assert str(place) in message


WHOLE = synthetic_mnist()
DAMAGES = {
    "another magic": (datasets.TRAIN_IMAGES, b"\x00\x00\x0d" + WHOLE[datasets.TRAIN_IMAGES][3:], "magic 00000803"),
    "labels for images": (datasets.TEST_IMAGES, WHOLE[datasets.TEST_LABELS], "3 dimension.*got 00000801"),
    "header cut": (datasets.TRAIN_IMAGES, WHOLE[datasets.TRAIN_IMAGES][:9], "a file of 9 bytes"),
    "empty": (datasets.TRAIN_LABELS, b"", "got nothing in a file of 0 bytes"),
    "truncated": (datasets.TRAIN_IMAGES, WHOLE[datasets.TRAIN_IMAGES][:-1], "4704 bytes.*got 4703. The file is trunc"),
    "too long": (datasets.TEST_LABELS, WHOLE[datasets.TEST_LABELS] + b"\x00", "expected .* 4 bytes.*got 5"),
    "gzip truncated": (datasets.TRAIN_IMAGES, gzip.compress(WHOLE[datasets.TRAIN_IMAGES])[:-20], "whole gzip file"),
    "gzip damaged": (datasets.TRAIN_LABELS, b"\x1f\x8b" + b"\xff" * 40, "whole gzip file"),
    "another size": (datasets.TEST_IMAGES, idx(np.zeros((4, 27, 28), np.uint8)), r"28 x 28 pixels, got \(27, 28\)"),
    "another class": (datasets.TEST_LABELS, idx(np.full(4, 10, np.uint8)), "labels from 0 to 9, got 10"),
    "another number": (datasets.TEST_LABELS, idx(np.zeros(3, np.uint8)), "a label for each of 4 images, got 3"),
}


@pytest.mark.parametrize(("name", "content", "match"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_named(tmp_path, name, content, match):
    (write_mnist(tmp_path) / name).write_bytes(content)
    with pytest.raises(ValueError, match=match) as caught:
        datasets.mnist(tmp_path)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.skipif(datasets.DATA_VARIABLE not in os.environ, reason="TRACETORCH_DATA names no folder with MNIST")
def test_the_real_mnist():
    images = datasets.mnist()
    assert images.train_x.shape == (60_000, 784)
    assert images.test_x.shape == (10_000, 784)
    assert torch.bincount(images.train_y)[:3].tolist() == [5923, 6742, 5958]
    assert abs(images.train_x.mean().item() - 0.1307) < 1e-4


# -- MNIST from mirrors ------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    """This machine's own addresses are reached directly, whatever the surroundings say."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass


class Mirror:
    """A folder served on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = write_mnist(folder, zipped=True)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=folder))
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/"

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def mirrors(tmp_path, monkeypatch):
    """Two mirrors with the synthetic files."""
    monkeypatch.delenv(datasets.DATA_VARIABLE, raising=False)
    both = [Mirror(tmp_path / "first"), Mirror(tmp_path / "second")]
    yield both
    for mirror in both:
        mirror.stop()


@pytest.fixture
def dead_url():
    """An address where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/"


HASHES = {
    f"{name}.gz": hashlib.sha256(gzip.compress(content, mtime=0)).hexdigest()
    for name, content in synthetic_mnist().items()
}


def test_a_download_is_kept_for_the_next_time(mirrors, dead_url, tmp_path):
    cache = tmp_path / "cache"
    assert_synthetic(datasets.mnist(urls=[mirrors[0].url], hashes=HASHES, cache=cache))
    assert {path.name for path in cache.iterdir()} == set(HASHES)
    assert_synthetic(datasets.mnist(urls=[dead_url], hashes=HASHES, cache=cache))


def test_the_cache_is_the_users_own_unless_given(mirrors, tmp_path, monkeypatch):
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / "home" / project)
    assert_synthetic(datasets.mnist(urls=[mirrors[0].url], hashes=HASHES))
    assert len(list((tmp_path / "home" / "tracetorch" / "mnist").iterdir())) == 4


@pytest.mark.parametrize("harm", ["corrupted", "absent", "dead"])
def test_the_next_mirror_steps_in(mirrors, dead_url, tmp_path, harm):
    urls = [mirror.url.rstrip("/") for mirror in mirrors]
    file = mirrors[0].folder / f"{datasets.TRAIN_LABELS}.gz"
    if harm == "corrupted":
        file.write_bytes(b"something else")
    elif harm == "absent":
        file.unlink()
    else:
        urls[0] = dead_url
    assert_synthetic(datasets.mnist(urls=urls, hashes=HASHES, cache=tmp_path / "cache"))


def test_a_corrupted_file_in_the_cache_is_fetched_anew(mirrors, tmp_path):
    cache = write_mnist(tmp_path / "cache", zipped=True)
    (cache / f"{datasets.TEST_IMAGES}.gz").write_bytes(b"damaged")
    assert_synthetic(datasets.mnist(urls=[mirrors[0].url], hashes=HASHES, cache=cache))


def test_corrupted_everywhere_keeps_nothing_and_says_what_failed(mirrors, tmp_path):
    for mirror in mirrors:
        (mirror.folder / f"{datasets.TRAIN_IMAGES}.gz").write_bytes(b"something else")
    cache = tmp_path / "cache"
    with pytest.raises(RuntimeError, match=f"{datasets.TRAIN_IMAGES}.gz.*sha256 differs.*sha256 differs") as caught:
        datasets.mnist(urls=[mirror.url for mirror in mirrors], hashes=HASHES, cache=cache)
    assert all(mirror.url in str(caught.value) for mirror in mirrors)
    assert not list(cache.iterdir())


def test_offline_says_how_to_bring_the_files(dead_url, tmp_path, monkeypatch):
    monkeypatch.delenv(datasets.DATA_VARIABLE, raising=False)
    with pytest.raises(
        ConnectionError, match=r"--data DIR, TRACETORCH_DATA=DIR.*Tried: http://127\.0\.0\.1.*ConnectionError"
    ) as caught:
        datasets.mnist(urls=[dead_url], hashes=HASHES, cache=tmp_path / "cache")
    assert all(name in str(caught.value) for name in datasets.MNIST_HASHES)
