"""Recordings, events and sounds at their edges: what chooses, what is read otherwise, what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tracetorch import datasets
from tracetorch.datasets import Recordings

LENGTHS = (4, 1, 6)
EVENTS = [("t", int), ("x", int), ("p", int)]  # no y, as in recordings of sound
RATE = 8000


def recordings() -> Recordings:
    return Recordings(np.ones((sum(LENGTHS), 3), dtype=bool), np.cumsum([0, *LENGTHS]), [5, 6, 7], take=[0, 1, 2])


# -- what chooses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "indices"),
    [
        ([2, 0], [2, 0]),
        ([-1, -3], [2, 0]),
        (torch.tensor([0, 1, 2], dtype=torch.uint8), [0, 1, 2]),
        (torch.tensor([True, False, True]), [0, 2]),
        (np.array([1]), [1]),
    ],
    ids=str,
)
def test_indices_and_masks_choose_the_same_everywhere(chosen, indices: list[int]) -> None:
    part, (x, target, mask) = recordings().subset(chosen), recordings().batch(chosen)
    lengths, labels = [LENGTHS[i] for i in indices], [5 + i for i in indices]
    assert part.take.tolist() == indices
    assert part.steps.tolist() == mask.sum(0).tolist() == x[..., 0].sum(0).tolist() == lengths
    assert part.label.tolist() == target.tolist() == labels


@pytest.mark.parametrize(
    ("chosen", "kind", "message"),
    [
        ([], ValueError, "expected at least one recording to be chosen, got none"),
        ([False] * 3, ValueError, "expected at least one recording to be chosen, got none"),
        (
            [True, False],
            ValueError,
            r"expected indices .* or a bool mask of shape \(3,\), got torch.bool of shape \(2,\)",
        ),
        ([[0]], ValueError, r"expected indices of shape \(M,\), .* got torch.int64 of shape \(1, 1\)"),
        ([0.0], TypeError, "expected indices or a bool mask, got torch.float32. Convert it"),
        ([3], IndexError, "expected indices of 3 recordings, got 3 to 3"),
        ([0, -4], IndexError, "expected indices of 3 recordings, got -4 to 0"),
    ],
    ids=str,
)
def test_choices_of_nothing_are_refused(chosen, kind: type[Exception], message: str) -> None:
    for method in ("subset", "batch"):
        with pytest.raises(kind, match=rf"Recordings.{method}: {message}"):
            getattr(recordings(), method)(chosen)


# -- images ------------------------------------------------------------------------------------------------------------


def test_images_need_not_be_contiguous_and_must_be_a_batch() -> None:
    x = torch.arange(8.0).view(4, 2).t()
    assert torch.equal(datasets.rows(x), datasets.rows(x.contiguous()))
    for image in (torch.tensor(1.0), x[0]):
        with pytest.raises(ValueError, match=r"rows: expected square images of shape \(B, n \* n\)"):
            datasets.rows(image)


def test_the_permutation_is_always_the_same() -> None:
    order = datasets.permutation(784)
    assert order.dtype == torch.int64
    assert order[:5].tolist() == [693, 85, 647, 392, 765]
    with pytest.raises(ValueError, match=r"permutation: expected count to be a whole number of at least 1, got 0"):
        datasets.permutation(0)


# -- events ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("polarity", [0, 1])
def test_a_single_polarity_is_not_looked_at(polarity: int) -> None:
    """Recordings of sound have sensor sizes such as (700, 1, 1), and 1 for each event's p."""
    events = np.array([(0, 3, polarity), (2100, 0, polarity)], dtype=EVENTS)
    assert datasets.from_events([(events, 0)], (4, 1, 1))[0].nonzero().tolist() == [[0, 3], [2, 0]]


class Indexed:
    """A data set of two items that fails in its own way where it ends."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.int64]:
        if i > 1:
            raise OSError("no such recording")
        return np.array([(7, i, 0)], dtype=EVENTS), np.int64(i)


def test_items_come_from_data_sets_and_from_iterators() -> None:
    for items in (Indexed(), (Indexed()[i] for i in range(2))):
        found = datasets.from_events(items, (2, 1, 1))
        assert (found.label.tolist(), [part.tolist() for part in found]) == ([0, 1], [[[True, False]], [[False, True]]])


def test_an_item_without_events_is_one_silent_step_and_long_ones_are_cut() -> None:
    events = np.array([(50, 0, 0), (2050, 1, 0), (9050, 0, 0)], dtype=EVENTS)
    found = datasets.from_events([(events, 0), (events[:0], 1)], (2, 1, 1), longest=3000.0)
    assert found.steps.tolist() == [3, 1]
    assert not found[1].any()


@pytest.mark.parametrize("longest", [0.0, -1.0, float("nan")])
def test_a_longest_that_leaves_nothing_is_refused(longest: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"from_events: expected longest to be a finite number above 0"):
        datasets.from_events([], (1, 1, 1), longest=longest)
    with pytest.raises(ValueError, match=r"read_heidelberg: expected longest to be a finite number above 0"):
        datasets.read_heidelberg(tmp_path / "none.h5", longest=longest)


def test_spikes_before_the_start_are_refused(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "early.h5", "w") as file:
        for name, value in (("times", np.array([-0.02, 0.1])), ("units", np.array([0, 1]))):
            file.create_dataset(f"spikes/{name}", (1,), dtype=h5py.vlen_dtype(value.dtype))[0] = value
        file["labels"] = np.array([0])
    with pytest.raises(ValueError, match=r"read_heidelberg: expected times from 0 on, got -2.0 to 10.0 steps"):
        datasets.read_heidelberg(tmp_path / "early.h5")


# -- sounds ------------------------------------------------------------------------------------------------------------


def test_a_rising_chirp_is_heard_in_one_band_after_the_other() -> None:
    seconds = np.arange(RATE) / RATE
    sustained, onset, offset = datasets.encode_audio(
        0.05 * np.sin(2 * np.pi * (300 + 1200 * seconds) * seconds), RATE
    ).split(40, 1)
    band = torch.arange(40.0)
    for spikes in (sustained, onset, offset):
        heard = spikes[5:-5].nonzero().double()  # without the clicks where it is cut off
        assert torch.corrcoef(heard.T)[0, 1] > 0.95
    at = [(part.double() * band).sum() / part.sum() for part in (onset[50:150], sustained[50:150], offset[50:150])]
    assert at[0] > at[1] > at[2]  # it begins above where it is, and ends below
