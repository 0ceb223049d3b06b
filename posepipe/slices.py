"""Groups of people and joints that are scored apart: visibility, head size, labelled joints, activity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from posepipe.metrics import FloatArray
from posepipe.people import People

MAX_ACTIVITIES = 20
_LABELLED = {"all 16 joints labelled": (16, 16), "12 to 15": (12, 15), "8 to 11": (8, 11), "1 to 7": (1, 7)}

Slice = tuple[str, str]  # what is sliced by, and the name of the group


@dataclass(frozen=True)
class Slicing:
    """Where the groups begin and end: fixed for a whole run, so that the counts of its parts add."""

    head_size_edges: tuple[float, float] | None
    """The terciles of the head sizes, image px; None where nobody has one."""
    activities: tuple[str, ...]
    """Those that have a group of their own; the others are one."""

    def groups(self, people: People) -> dict[Slice, NDArray[np.bool_]]:
        """Which joints belong to each group: (N, 16), or (N, 1) where all of a person's do."""
        masks: dict[Slice, NDArray[np.bool_]] = {
            ("joint", "visible"): people.is_visible == 1,
            ("joint", "occluded"): people.is_visible == 0,
            ("joint", "visibility unknown"): np.isnan(people.is_visible),
        }
        if self.head_size_edges is not None:
            low, high = self.head_size_edges
            sizes = people.head_size[:, None]
            masks["head size", f"small, below {low:.0f} px"] = sizes < low
            masks["head size", f"middle, {low:.0f} to {high:.0f} px"] = (sizes >= low) & (sizes < high)
            masks["head size", f"large, from {high:.0f} px"] = sizes >= high
        num_labelled = people.is_annotated.sum(axis=1)[:, None]
        for name, (least, most) in _LABELLED.items():
            masks["labelled joints", name] = (num_labelled >= least) & (num_labelled <= most)
        if self.activities:
            activity = people.activity[:, None]
            for name in self.activities:
                masks["activity", name] = np.asarray(activity == name, bool)
            is_known = np.array([value is not None for value in people.activity], bool)[:, None]
            masks["activity", "other activities"] = is_known & ~np.isin(people.activity.astype(str), self.activities)[:, None]
            masks["activity", "activity unknown"] = ~is_known
        return masks


def choose_slicing(head_sizes: FloatArray, activities: Iterable[str | None]) -> Slicing:
    """The terciles of the head sizes (N,) that are known, and the most frequent activities."""
    known = head_sizes[np.isfinite(head_sizes) & (head_sizes > 0)]
    edges = tuple(np.quantile(known, [1 / 3, 2 / 3]).tolist()) if known.size else None
    counts = Counter(activity for activity in activities if activity)
    common = sorted(counts, key=lambda name: (-counts[name], name))[:MAX_ACTIVITIES]
    return Slicing(edges, tuple(common))
