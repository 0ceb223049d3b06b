"""Confidence intervals by resampling people: weights drawn from their ids, weighted sums that add up.

The Poisson bootstrap: each resample counts each person as often as an independent Poisson(1) draw says, so that a resample is a sum over
people like any other count, in one pass (Chamandy, Muralidharan, Najmi, Naidu: "Estimating Uncertainty for Massive Data Streams", Google,
2012; Oza and Russell: "Online Bagging and Boosting", AISTATS 2001). The draws are a hash of the person's id: the sums do not depend on how
the people were cut into chunks, and two runs on the same people are resampled alike, so that their difference has an interval too.

People of one video are alike and are resampled one by one: take the intervals for lower bounds of the uncertainty.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from math import exp, factorial

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 1000
LEVEL = 0.95
_PEOPLE_AT_A_TIME = 1024  # 4 MB of weights
_DRAWS_PER_HASH = 4  # 16 bits each


def person_keys(sample_ids: Iterable[str]) -> NDArray[np.uint64]:
    """(N,) 64 bits of each id's hash."""
    digests = b"".join(hashlib.blake2b(sample_id.encode(), digest_size=8).digest() for sample_id in sample_ids)
    return np.frombuffer(digests, dtype=np.uint64)


def resample(keys: NDArray[np.uint64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(1000, K) sums of (N, K) values over the people, each counted as often as the resample draws it.

    Whole numbers are summed without rounding.
    """
    sums = np.zeros((NUM_RESAMPLES, values.shape[1]))
    for start in range(0, len(keys), _PEOPLE_AT_A_TIME):
        part = slice(start, start + _PEOPLE_AT_A_TIME)
        sums += _weights(keys[part]) @ values[part].astype(np.float32)
    return sums


def interval(scores: NDArray[np.float64], num_people: int) -> tuple[float, float]:
    """The middle 95 % of a score's resamples; NaN for fewer than two people. A resample that drew nobody has no score (NaN)."""
    known = scores[np.isfinite(scores)]
    if num_people < 2 or not known.size:
        return np.nan, np.nan
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _weights(keys: NDArray[np.uint64]) -> NDArray[np.float32]:
    """(1000, N) Poisson(1) draws."""
    steps = np.arange(1, NUM_RESAMPLES // _DRAWS_PER_HASH + 1, dtype=np.uint64)
    # splitmix64: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014; wraps around on purpose.
    bits = keys[:, None] + steps * np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    return _POISSON[bits.view(np.uint16)].T


def _poisson_table() -> NDArray[np.float32]:
    """(65536,) the Poisson(1) quantile of each of the 16-bit numbers."""
    cumulative = np.cumsum([exp(-1) / factorial(count) for count in range(12)])
    return np.searchsorted(cumulative, (np.arange(2**16) + 0.5) / 2**16, side="right").astype(np.float32)


_POISSON = _poisson_table()
