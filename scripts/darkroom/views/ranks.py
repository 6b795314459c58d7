"""Scores by rank: how far they agree, and how far apart two of them put a picture.

Scores of different metrics have different ranges, and mean different things by a half. What can be compared is the order that they put
the pictures in, so a value stands for its rank: the share of the pictures that are below it.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

SAMPLED = 100_000  # pictures of a kind whose ranks are known exactly; of more, so many are drawn
QUANTILES = 101  # numbers by which a page tells a rank from a value


def ranks_in(ordered: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The rank of each value among those in order: 0 the lowest, 1 the highest, the middle of its equals; nan for nan."""
    if not len(ordered):
        return np.full(len(values), np.nan)
    below, through = (np.searchsorted(ordered, values, side=side) for side in ("left", "right"))
    ranks = ((below + through - 1) / 2).clip(0, len(ordered) - 1) / max(len(ordered) - 1, 1)
    return np.where(np.isnan(values), np.nan, ranks if len(ordered) > 1 else 0.5)


class Sample:
    """The scores of a kind's pictures: of all up to `most`, else of so many, drawn by their keys.

    A key is a hash, so the smallest ones are drawn by lot, and whatever the order of the table, they are the same.

    Attributes:
        names: of the scores.
        pictures: [score, score] how many pictures have both, of all that were added.
        lowest, highest: of all values that were added, by score; inf and -inf where there are none.
    """

    def __init__(self, names: Sequence[str], most: int = SAMPLED):
        self.names = list(names)
        self.most = most
        self.pictures = np.zeros((len(self.names), len(self.names)), int)
        self.lowest, self.highest = np.full(len(self.names), np.inf), np.full(len(self.names), -np.inf)
        self._keys: list[np.ndarray] = []
        self._values: list[np.ndarray] = []
        self._ordered: dict[str, np.ndarray] = {}

    def add(self, keys: Sequence[str], values: np.ndarray) -> None:
        """Add pictures. values: [pictures, scores], nan where there is none."""
        there = ~np.isnan(values)
        self.pictures += (there.T.astype(float) @ there.astype(float)).astype(int)
        self.lowest = np.fmin(self.lowest, np.where(there, values, np.inf).min(0, initial=np.inf))
        self.highest = np.fmax(self.highest, np.where(there, values, -np.inf).max(0, initial=-np.inf))
        self._keys.append(np.array(keys, object))
        self._values.append(values)
        self._ordered.clear()
        if sum(map(len, self._keys)) > 2 * self.most:
            self._draw()

    def _draw(self) -> None:
        keys, values = np.concatenate(self._keys), np.concatenate(self._values)
        drawn = np.argsort(keys, kind="stable")[: self.most]
        self._keys, self._values = [keys[drawn]], [values[drawn]]

    @property
    def values(self) -> np.ndarray:
        """The scores of the pictures that were drawn, [pictures, scores]."""
        if len(self._keys) != 1 or len(self._keys[0]) > self.most:
            self._keys, self._values = (
                self._keys or [np.empty(0, object)],
                self._values or [np.empty((0, len(self.names)))],
            )
            self._draw()
        return self._values[0]

    def ordered(self, name: str) -> np.ndarray:
        """The values of a score, the lowest first."""
        if name not in self._ordered:
            column = self.values[:, self.names.index(name)]
            self._ordered[name] = np.sort(column[~np.isnan(column)])
        return self._ordered[name]

    def ranks(self, name: str, values: np.ndarray) -> np.ndarray:
        """The ranks of values of a score, see `ranks_in`."""
        return ranks_in(self.ordered(name), values)

    def quantiles(self, name: str) -> list[float]:
        """By which a rank is told from a value: all values of a score in order, or `QUANTILES` of them at equal distances."""
        ordered = self.ordered(name)
        if len(ordered) > QUANTILES:
            ordered = ordered[np.linspace(0, len(ordered) - 1, QUANTILES).round().astype(int)]
        return [float(value) for value in ordered]

    def correlations(self) -> np.ndarray:
        """Spearman's rank correlation of every two scores over the pictures that have both, [score, score].

        nan where one of the two is the same for all of them.
        """
        values = self.values
        there = ~np.isnan(values)
        own = [_unit(values[there[:, one], one]) for one in range(len(self.names))]
        found = np.full((len(self.names), len(self.names)), np.nan)
        for a in range(len(self.names)):
            for b in range(a + 1):
                both = there[:, a] & there[:, b]
                units = [own[x] if both.sum() == there[:, x].sum() else _unit(values[both, x]) for x in (a, b)]
                found[a, b] = found[b, a] = np.clip(units[0] @ units[1], -1, 1) if both.any() else np.nan
        return found


def add_batch(samples: Mapping[str, Sample], batch: pa.RecordBatch) -> None:
    """Add the images of a part of the table that were made; it has kind, key, error and all scores. samples: of each kind."""
    kinds, keys = (np.array(batch[name].to_pylist(), object) for name in ("kind", "key"))
    made = batch["error"].is_null().to_numpy(zero_copy_only=False)
    for kind, sample in samples.items():
        places = np.flatnonzero((kinds == kind) & made)
        values = [batch[name].cast(pa.float64()).to_numpy(zero_copy_only=False)[places] for name in sample.names]
        sample.add(list(keys[places]), np.column_stack(values) if values else np.empty((len(places), 0)))


def _unit(values: np.ndarray) -> np.ndarray:
    """Ranks as a vector of mean 0 and length 1; nan where all are equal."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    centred = (np.cumsum(counts) - counts / 2)[places] - len(values) / 2
    length = np.linalg.norm(centred)
    return centred / length if length > 0 else np.full(len(values), np.nan)


def least_agreeing(names: Sequence[str], correlations: np.ndarray, most: int) -> list[tuple[str, str]]:
    """The pairs of scores that agree least, the least first, each score in one pair at most; at most so many."""
    pairs = [(correlations[a, b], a, b) for a in range(len(names)) for b in range(a + 1, len(names))]
    chosen: list[tuple[str, str]] = []
    for value, a, b in sorted(pairs, key=lambda pair: (np.nan_to_num(pair[0], nan=2), *pair[1:])):
        taken = {name for pair in chosen for name in pair}
        if len(chosen) < most and not np.isnan(value) and taken.isdisjoint((names[a], names[b])):
            chosen.append((names[a], names[b]))
    return chosen
