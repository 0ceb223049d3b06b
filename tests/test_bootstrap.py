"""bootstrap.py: Poisson weights from ids, sums that do not depend on chunks, intervals of the right width."""

import numpy as np
import pytest

from posepipe import bootstrap
from posepipe.bootstrap import NUM_RESAMPLES, interval, person_keys, resample

KEYS = person_keys(f"{index}.jpg#0" for index in range(3000))


def test_weights_are_poisson_draws_with_mean_and_variance_one():
    weights = bootstrap._weights(KEYS)
    assert weights.shape == (NUM_RESAMPLES, 3000)
    shares = [float(np.mean(weights == count)) for count in range(4)]
    assert shares == pytest.approx([0.3679, 0.3679, 0.1839, 0.0613], abs=0.002)
    assert weights.mean() == pytest.approx(1, abs=0.003)
    assert weights.var() == pytest.approx(1, abs=0.01)


def test_people_and_resamples_are_drawn_independently():
    weights = bootstrap._weights(KEYS[:300]) - 1
    between_people = weights.T @ weights / NUM_RESAMPLES
    between_resamples = weights @ weights.T / 300
    for correlation, limit in ((between_people, 0.2), (between_resamples, 0.35)):
        np.fill_diagonal(correlation, 0)
        assert np.abs(correlation).max() < limit
        assert abs(correlation.mean()) < 0.002


def test_the_sums_of_the_parts_are_the_sums_of_the_whole_to_the_last_digit():
    values = np.random.default_rng(0).integers(0, 17, (3000, 5)).astype(float)
    whole = resample(KEYS, values)
    order = np.random.default_rng(1).permutation(3000)
    parts = [resample(KEYS[part], values[part]) for part in np.split(order, [0, 1, 1500, 1501])]
    np.testing.assert_array_equal(sum(parts), whole)
    assert len(np.unique(whole[:, 0])) > 400


def test_a_person_weighs_the_same_in_every_run():
    np.testing.assert_array_equal(person_keys(["a.jpg#0", "b.jpg#1"])[::-1], person_keys(["b.jpg#1", "a.jpg#0"]))
    assert person_keys(["a.jpg#0"]) != person_keys(["a.jpg#1"])


def test_the_interval_of_a_share_is_as_wide_as_theory_says():
    hits = (np.arange(3000) % 4 == 0).astype(float)
    sums = resample(KEYS, np.column_stack([hits, np.ones(3000)]))
    low, high = interval(sums[:, 0] / sums[:, 1], 3000)
    half = 1.96 * np.sqrt(0.25 * 0.75 / 3000)
    assert (0.25 - low, high - 0.25) == pytest.approx((half, half), rel=0.15)


def test_one_person_has_no_interval():
    assert np.isnan(interval(np.full(NUM_RESAMPLES, 0.5), 1)).all()
    assert np.isnan(interval(np.full(NUM_RESAMPLES, np.nan), 5)).all()


def test_resamples_that_drew_nobody_have_no_say():
    scores = np.where(np.arange(NUM_RESAMPLES) % 2, np.nan, np.linspace(0, 1, NUM_RESAMPLES))
    assert interval(scores, 2) == pytest.approx((0.025, 0.974), abs=0.003)
