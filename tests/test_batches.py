"""Which tile comes when, and that memory and streaming serve the same batches."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsfer.data.batches import BatchSource, sample_order
from dsfer.errors import DeviceMemoryError, ShardError
from dsfer.memory import enough_memory
from tests.tiles import MemoryTiles


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 30), st.integers(1, 200), st.integers(0, 9))
def test_epochs_show_every_tile_once_per_pass(count, samples, seed):
    order = sample_order(count, samples, seed=seed, sampling="epochs")
    assert len(order) == samples
    for start in range(0, samples - count + 1, count):
        assert sorted(order[start : start + count]) == list(range(count))
    np.testing.assert_array_equal(order, sample_order(count, samples, seed=seed, sampling="epochs"))


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 30), st.integers(1, 200), st.integers(0, 9))
def test_repeated_is_one_shuffle_of_the_repeated_list(count, samples, seed):
    whole = -(-samples // count) * count
    order = sample_order(count, whole, seed=seed, sampling="repeated")
    assert (np.bincount(order, minlength=count) == whole // count).all()
    start = sample_order(count, samples, seed=seed, sampling="repeated")
    np.testing.assert_array_equal(start, order[:samples])


def test_repeated_is_not_epoch_wise():
    order = sample_order(50, 500, seed=0, sampling="repeated")
    assert len(set(order[:50])) < 50


@pytest.mark.parametrize("in_memory", [True, False])
def test_batches_follow_the_order(in_memory):
    tiles = MemoryTiles(10, 16, "train")
    source = BatchSource(tiles, torch.device("cpu"), in_memory=in_memory, workers=1)
    order = np.array([3, 1, 4, 1, 5, 9, 2])
    batches = list(source.batches(order, 3))
    assert [len(pairs) for pairs, _ in batches] == [3, 3, 1]
    pairs, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert pairs.dtype == labels.dtype == torch.uint8
    np.testing.assert_array_equal(pairs.numpy(), tiles.pairs[order])
    np.testing.assert_array_equal(labels.numpy(), tiles.labels[order])


def test_a_cpu_reads_tiles_when_they_are_wanted():
    tiles = CountedTiles(10)
    source = BatchSource(tiles, torch.device("cpu"))
    assert not tiles.read
    assert len(list(source.all(4))) == 3


def test_a_run_continues_in_the_middle_of_an_order():
    source = BatchSource(MemoryTiles(10, 16, "train"), torch.device("cpu"))
    order = sample_order(10, 40, seed=1, sampling="epochs")
    whole = list(source.batches(order, 4))
    rest = list(source.batches(order[3 * 4 :], 4))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(whole[3:], rest, strict=True))


class CountedTiles(MemoryTiles):
    """Notes which tiles were read, and has one that cannot be."""

    def __init__(self, count, damaged=None):
        super().__init__(count, 16, "train")
        self.read, self.damaged = [], damaged

    def __getitem__(self, index):
        self.read.append(index)
        if index == self.damaged:
            raise ShardError("damaged", where="shard-000000.tar", mend="run the shard stage again")
        return super().__getitem__(index)


def test_streaming_reads_no_further_ahead_than_its_workers():
    tiles = CountedTiles(20)
    source = BatchSource(tiles, torch.device("cpu"), in_memory=False, workers=2)
    batches = source.batches(np.arange(20), 2)
    next(batches)
    batches.close()
    assert len(tiles.read) <= 6


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_tile_that_cannot_be_read_is_named_by_the_error(in_memory):
    tiles = CountedTiles(10, damaged=5)
    with pytest.raises(ShardError, match="shard-000000"):
        source = BatchSource(tiles, torch.device("cpu"), in_memory=in_memory)
        list(source.all(2))


def test_tiles_are_read_once_into_memory():
    tiles = CountedTiles(150)
    source = BatchSource(tiles, torch.device("cpu"), in_memory=True)
    for _ in range(2):
        pairs = torch.cat([pairs for pairs, _ in source.all(4)])
    np.testing.assert_array_equal(pairs.numpy(), tiles.pairs)
    assert sorted(tiles.read) == list(range(150))


def test_tiles_too_large_for_the_memory_of_a_gpu_name_the_parameter(monkeypatch):
    def too_much(*_shape, **_kind):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(torch, "empty", too_much)
    with (
        pytest.raises(DeviceMemoryError, match=r"in_memory: .*memory .*set in_memory: false\.$"),
        enough_memory(32),  # as training builds its sources
    ):
        BatchSource(CountedTiles(10), torch.device("cpu"), in_memory=True)
