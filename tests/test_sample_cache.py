"""sample_cache.py: samples in the order of their ids, the crop alone or with its margin, views of what lies in shared memory."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from test_samples import SIZE, build_sample, person, picture, to_table

from posepipe import images
from posepipe.sample_cache import SampleCache

WIDTH, HEIGHT = 6, 9
MARGIN = (2, 3)
STORED = (HEIGHT + 6, WIDTH + 4, 3)


class Dataset:
    """As ray.data.Dataset: hands out tables."""

    def __init__(self, *tables: pa.Table) -> None:
        self._tables = tables

    def iter_batches(self, batch_size: None, batch_format: str):
        assert (batch_size, batch_format) == (None, "pyarrow")
        return iter(self._tables)


def table_of(numbers, stored):
    """Samples of the people of these numbers, with pixels of their own instead of the JPEG."""
    rows = [build_sample(picture(), person(person_index=number), "person", SIZE) for number in numbers]
    column = pa.array([each.tobytes() for each in stored], pa.binary(len(stored[0].tobytes())))
    return to_table(*rows).drop_columns(["crop"]).append_column("pixels", column)


@pytest.fixture
def pictures():
    return np.random.default_rng(0).integers(0, 256, (4, *STORED), dtype=np.uint8)


@pytest.fixture
def cache(pictures):
    """People 0 to 3 in two tables, out of order; the first table is a part of a larger one."""
    first = table_of([3, 2, 1], pictures[[3, 2, 1]]).slice(1)
    return SampleCache(Dataset(first, table_of([0, 3], pictures[[0, 3]])), (WIDTH, HEIGHT), MARGIN)


def test_samples_come_in_the_order_of_their_ids(cache, pictures):
    assert cache.labels["sample_id"].tolist() == [f"a.jpg#{number}" for number in range(4)]
    assert len(cache) == 4
    for number in range(4):
        np.testing.assert_array_equal(cache.with_margin([number])[0].permute(1, 2, 0), pictures[number])


def test_the_crop_is_the_middle_of_what_is_stored(cache, pictures):
    wide, inner = cache.with_margin([2, 0]), cache.pixels([2, 0])
    assert (wide.shape, wide.dtype) == ((2, 3, *STORED[:2]), torch.uint8)
    assert (inner.shape, inner.dtype) == ((2, 3, HEIGHT, WIDTH), torch.uint8)
    np.testing.assert_array_equal(inner.permute(0, 2, 3, 1), pictures[[2, 0], 3:-3, 2:-2])
    assert cache.margin == MARGIN


def test_without_a_margin_both_are_the_same(pictures):
    cache = SampleCache(Dataset(table_of([0, 1], pictures[:2])), (STORED[1], STORED[0]))
    assert torch.equal(cache.pixels([1, 0]), cache.with_margin([1, 0]))


def test_nobody_asked_for_is_an_empty_batch_of_the_same_shape(cache):
    assert cache.pixels([]).shape == (0, 3, HEIGHT, WIDTH)
    assert cache.with_margin([]).shape == (0, 3, *STORED[:2])


def test_what_is_handed_out_is_a_copy(cache, pictures):
    cache.pixels([1]).zero_()
    np.testing.assert_array_equal(cache.with_margin([1])[0].permute(1, 2, 0), pictures[1])


def test_pixels_of_another_size_are_refused(pictures):
    with pytest.raises(ValueError, match=r"expected pixels of 12 x 15 px, got 450 bytes"):
        SampleCache(Dataset(table_of([0], pictures[:1])), (WIDTH, HEIGHT), (3, 3))


def test_encoded_pictures_are_decoded_when_they_are_asked_for(pictures):
    rows = [build_sample(picture(), person(person_index=number), "person", SIZE) for number in (1, 0)]
    for row, pixels in zip(rows, pictures[[1, 0]], strict=True):
        row["crop"] = images.encode_jpeg(pixels)
    cache = SampleCache(Dataset(to_table(*rows)), (WIDTH, HEIGHT), MARGIN, num_threads=2)
    expected = np.stack([images.decode_jpeg(images.encode_jpeg(pixels)) for pixels in pictures[:2]])
    np.testing.assert_array_equal(cache.with_margin([0, 1]).permute(0, 2, 3, 1), expected)
    np.testing.assert_array_equal(cache.pixels([1]).permute(0, 2, 3, 1), expected[1:, 3:-3, 2:-2])
    assert cache.with_margin([]).shape == (0, 3, *STORED[:2])
    other = SampleCache(Dataset(to_table(*rows)), (WIDTH, HEIGHT), (3, 3))
    with pytest.raises(ValueError, match=r"expected pictures of 12 x 15 px, got 10 x 15"):
        other.pixels([0])
