"""snapshots.py: which people and epochs are kept, and the table that grows with them."""

import numpy as np
import pytest

from posepipe import snapshots, storage


@pytest.mark.parametrize(
    ("num_epochs", "number", "expected"),
    [(14, 6, [1, 2, 3, 5, 8, 14]), (300, 4, [1, 7, 45, 300]), (3, 6, [1, 2, 3]), (1, 6, [1]), (9, 1, [9])],
)
def test_epochs_lie_closer_together_at_the_beginning(num_epochs, number, expected):
    assert snapshots.choose_epochs(num_epochs, number) == expected


def test_people_are_spread_over_those_with_a_label():
    truth = np.full((10, 2, 2), np.nan)
    truth[[1, 2, 5, 6, 9], 0] = 3
    assert snapshots.choose_people(truth, 3).tolist() == [1, 5, 9]
    assert snapshots.choose_people(truth, 99).tolist() == [1, 2, 5, 6, 9]
    assert snapshots.choose_people(truth, 0).tolist() == snapshots.choose_people(truth[:1], 3).tolist() == []


def test_the_table_grows_by_epochs_and_comes_back_from_its_file(tmp_path):
    truth = np.array([[[1.0, 2], [np.nan, np.nan]], [[3, 4], [5, 6]]])
    table = snapshots.start(["a#0", "b#1"], [b"A", b"B"], truth)
    for epoch in (1, 4):
        table = snapshots.extend(table, epoch, np.full((2, 2, 2), float(epoch)))
    storage.write_table(str(tmp_path / snapshots.SNAPSHOTS_FILE), table)
    kept = storage.read_table(str(tmp_path / snapshots.SNAPSHOTS_FILE))
    assert kept.schema.equals(snapshots.SNAPSHOT)
    first, second = kept.to_pylist()
    assert (first["sample_id"], first["crop"], first["epochs"], first["points"]) == ("a#0", b"A", [1, 4], [[1.0] * 4, [4.0] * 4])
    np.testing.assert_array_equal(first["truth"], [1, 2, np.nan, np.nan])
    assert second["truth"] == [3, 4, 5, 6]


def test_a_table_of_nobody_stays_empty():
    table = snapshots.extend(snapshots.start([], [], np.empty((0, 2, 2))), 1, np.empty((0, 2, 2)))
    assert (table.num_rows, table.schema.equals(snapshots.SNAPSHOT)) == (0, True)


def test_every_column_says_what_it_holds():
    assert all(field.metadata[b"doc"] for field in snapshots.SNAPSHOT)
