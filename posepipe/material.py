"""What a report has gathered before it is laid out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from posepipe.cases import Case, Film
from posepipe.comparing import Comparison
from posepipe.results import Result
from posepipe.runs import Run


@dataclass(frozen=True, eq=False)
class Material:
    """All that goes into a page; `plots` are PNGs by name, `cases` and `films` lie by the name of their run."""

    title: str
    results: Sequence[Result]
    runs: Sequence[Run]
    tables: Mapping[str, pa.Table]
    plots: Mapping[str, bytes]
    cases: Mapping[str, Sequence[Case]]
    comparisons: Sequence[Comparison]
    films: Mapping[str, Sequence[Film]]
    provenance: Mapping[str, Any]
    min_confidence: float

    def rows(self, name: str) -> list[dict[str, Any]]:
        return self.tables[name].to_pylist() if name in self.tables else []
