"""Compares the rows of a lock with the data of a site: what is there, what has changed, what is missing. M rows."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from tips_ray.curation.selection import places_of
from tips_ray.data.index import Index
from tips_ray.data.sources.selection import ABSENT, CAPTION_CHANGED, IMAGE_CHANGED

pc: Any = pyarrow.compute  # its functions are made when it is imported
THERE, CAPTION, IMAGE, MISSING = "there", "caption changed", "image changed", "missing"
STATES = (THERE, CAPTION, IMAGE, MISSING)
OF_ERRORS = {"": THERE, ABSENT: MISSING, CAPTION_CHANGED: CAPTION, IMAGE_CHANGED: IMAGE}
"""States by what reading a row of a selection says."""
PROBLEMS = pa.schema([("file", pa.string()), ("row", pa.int64()), ("key", pa.string()), ("state", pa.string())])


@dataclass
class Comparison:
    """What was found of the rows of a lock."""

    counts: Counter[str] = field(default_factory=Counter)
    """Rows by state, one of `STATES` or the reason why a row cannot be read."""
    problems: list[pa.Table] = field(default_factory=list)
    """Columns of `PROBLEMS`: the rows that are not there as they were, by file and number in it."""

    def add(self, name: str, rows: pa.Table, state_M: NDArray[np.str_]) -> None:
        """Count the rows of a file of the lock."""
        self.counts.update(state_M.tolist())
        bad_B = np.flatnonzero(state_M != THERE)
        columns = [[name] * len(bad_B), bad_B, rows["key"].take(pa.array(bad_B)), state_M[bad_B].tolist()]
        self.problems.append(pa.table(columns, schema=PROBLEMS))

    def first_problems(self, most: int) -> list[dict[str, Any]]:
        """The first rows that are not there as they were."""
        return pa.concat_tables([PROBLEMS.empty_table(), *self.problems]).slice(0, most).to_pylist()

    @property
    def is_whole(self) -> bool:
        """Whether every row is there as it was."""
        return not self.counts.total() - self.counts[THERE]


class Site:
    """The rows of other data, found by the hashes of their images and captions, and by key."""

    def __init__(self, index: Index, signals: pa.Table) -> None:
        """`signals`: of all rows of the index (`curation.signals.schema`)."""
        self.index, self.signals = index, signals.filter(pc.equal(signals["error"], ""))
        self._pairs = _joined(self.signals)
        self._images = self.signals["image_sha256"].cast(pa.binary()).combine_chunks()
        self._keys = self.signals["key"].combine_chunks()

    def compare(self, rows: pa.Table) -> tuple[NDArray[np.str_], pa.Table]:
        """State of each row of a lock's file, and its place here: columns of `PLACED`.

        A row whose caption has changed has a place too, where reading finds it bad. Others have none.
        """
        pair_M = pc.index_in(_joined(rows), value_set=self._pairs)
        image_M = pc.index_in(rows["image_sha256"].cast(pa.binary()).combine_chunks(), value_set=self._images)
        key_M = pc.index_in(rows["key"].combine_chunks(), value_set=self._keys)
        is_there, has_image, has_key = (found.is_valid().to_numpy(False) for found in (pair_M, image_M, key_M))
        state_M = np.select([is_there, has_image, has_key], [THERE, CAPTION, IMAGE], MISSING)
        return state_M, self._places(pc.coalesce(pair_M, image_M))

    def _places(self, number_M: pa.Array) -> pa.Table:
        is_placed_M = number_M.is_valid().to_numpy(False)
        sample_P = self.signals["sample_id"].to_numpy()[number_M.drop_null().to_numpy()]
        place_M = np.zeros(len(number_M), np.int64)
        place_M[is_placed_M] = np.arange(len(sample_P))
        return places_of(self.index, sample_P).take(pa.array(place_M, mask=~is_placed_M))


def is_in(signals: pa.Table, rows: pa.Table) -> NDArray[np.bool_]:
    """Whether each row of a source is one of a lock, by image and captions; of equal rows the first."""
    found_N = pc.index_in(_joined(signals), value_set=_joined(rows)).fill_null(-1).to_numpy(False)
    is_first_N = np.zeros(len(found_N), np.bool_)
    is_first_N[np.unique(found_N, return_index=True)[1]] = True
    return is_first_N & (found_N >= 0)


def _joined(table: pa.Table) -> pa.Array:
    """Hashes of image and captions side by side."""
    columns = (table[name].cast(pa.binary()).combine_chunks() for name in ("image_sha256", "captions_sha256"))
    return pc.binary_join_element_wise(*columns, pa.scalar(b"", pa.binary()))
