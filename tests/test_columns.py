"""columns.py: lists of one length become arrays and come back, with NaN for every kind of null."""

import numpy as np
import pyarrow as pa
import pytest

from posepipe.columns import float_array, list_array, list_column, text_array
from posepipe.mpii import PERSON
from posepipe.predictions import PREDICTION
from posepipe.samples import SAMPLE
from posepipe.truths import WIDE_PREDICTION

PAIRS = [[1.0, 2.0], None, [None, 4.0], [5.0, 6.0]]
EXPECTED = [[1, 2], [np.nan, np.nan], [np.nan, 4], [5, 6]]


@pytest.mark.parametrize("cuts", [[], [1], [2], [0, 1, 1, 4]])
def test_nulls_are_nan_in_every_chunking(cuts):
    parts = np.split(np.arange(4), cuts)
    column = pa.chunked_array([pa.array([PAIRS[index] for index in part], pa.list_(pa.float32())) for part in parts])
    np.testing.assert_array_equal(list_array(column, 2), EXPECTED)
    np.testing.assert_array_equal(list_array(column.slice(1, 2), 2), EXPECTED[1:3])


def test_lists_take_the_shape_that_is_asked_for():
    column = pa.chunked_array([pa.array([range(6), range(6, 12)], pa.list_(pa.float64()))])
    np.testing.assert_array_equal(list_array(column, 2, 3), np.arange(12).reshape(2, 2, 3))


@pytest.mark.parametrize("lists", [[[1.0, 2.0, 3.0], [4.0]], [[1.0, 2.0], [3.0]], [[], [1.0, 2.0]]])
def test_lists_of_another_length_are_refused(lists):
    with pytest.raises(ValueError, match="expected lists of 2 values"):
        list_array(pa.chunked_array([pa.array(lists, pa.list_(pa.float64()))]), 2)


def test_no_rows_and_nothing_but_nulls_are_no_fault():
    assert list_array(pa.chunked_array([], pa.list_(pa.float64())), 2).shape == (0, 2)
    assert np.isnan(list_array(pa.chunked_array([pa.array([None, None], pa.list_(pa.float64()))]), 2)).all()


def test_flags_are_one_zero_and_nan():
    column = pa.chunked_array([pa.array([[True, None], [False, True]], pa.list_(pa.bool_()))])
    np.testing.assert_array_equal(list_array(column, 2), [[1, np.nan], [0, 1]])


@pytest.mark.parametrize("value_type", [pa.float32(), pa.float64()])
def test_arrays_come_back_from_their_column(value_type):
    column = list_column(np.array(EXPECTED), value_type)
    assert column.to_pylist() == PAIRS
    assert column.type == pa.list_(value_type)
    np.testing.assert_array_equal(list_array(pa.chunked_array([column]), 2), EXPECTED)


def test_a_list_that_is_null_takes_no_values():
    """Arrow before its version 26 writes no other to Parquet."""
    column = list_column(np.array(EXPECTED), pa.float32())
    assert column.offsets.to_pylist() == [0, 2, 2, 4, 6]
    assert len(column.values) == 6


@pytest.mark.parametrize("schema", [PERSON, SAMPLE, PREDICTION, WIDE_PREDICTION])
def test_no_record_has_lists_that_most_versions_of_arrow_cannot_read(schema):
    assert not any(pa.types.is_fixed_size_list(field.type) for field in schema)


def test_flags_come_back_from_their_column():
    assert list_column(np.array([[1, 0], [np.nan, 1], [np.nan, np.nan]]), pa.bool_()).to_pylist() == [[True, False], [None, True], None]


def test_numbers_and_texts():
    np.testing.assert_array_equal(float_array(pa.chunked_array([pa.array([1, None, 3], pa.int32())])), [1, np.nan, 3])
    assert text_array(pa.chunked_array([pa.array(["a", None])])).tolist() == ["a", None]
