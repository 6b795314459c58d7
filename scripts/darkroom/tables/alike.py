"""Which of many things are alike: by content, by hashes that differ in few bits, by vectors of nearly the same direction.

Things are numbers, 0 and up; what is known of them are the rows of arrays. Nothing here compares every two of them: equal ones are
found by sorting, hashes by buckets of their parts, vectors in cells of neighbours.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

BLOCK = 128  # things that are looked up together: what is like one of them is held in memory
EDGES = 4_000_000  # pairs that are held before they are put together
PART = 16  # bits of a hash that are looked up as one
EVERY = 10_000  # vectors up to which each is compared with every other
CELLS_SEEN = 32  # cells of vectors that are looked through for each, above that
_NONE = np.int64(2**63 - 1)
_BITS, _STEPS = 32, 1_000_000  # of the number of a thing; of a distance of 1

Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]  # numbers of the ones, of the others, their distances


class Alike:
    """What is alike among so many things: pairs are added, the more telling ways first."""

    def __init__(self, number: int):
        self.number = number
        self.way = np.full(number, -1, np.int8)  # by which each was first found to be like another; -1: by none
        self._best = np.full(number, _NONE)  # distance and number of the nearest, in one number that can be compared
        self._edges: list[tuple[np.ndarray, np.ndarray]] = []
        self._held = 0
        self._known = self.way.astype(np.int64)  # groups as they were when pairs were last put together

    def add(self, way: int, pairs: Pairs) -> None:
        """Take pairs that were found by a way; the way of each thing is the first that finds any."""
        one, other, distance = pairs
        far = np.round(distance * _STEPS).astype(np.int64) << _BITS
        for ends, starts in ((one, other), (other, one)):
            open_ = (self.way[ends] < 0) | (self.way[ends] == way)
            np.minimum.at(self._best, ends[open_], far[open_] | starts[open_])
            self.way[ends[open_]] = way
        new = (self._known[one] < 0) | (self._known[one] != self._known[other])
        self._edges.append((one[new], other[new]))
        self._held += int(new.sum())
        if self._held > EDGES:
            self._known = self.groups()
            kept = np.flatnonzero((self._known >= 0) & (self._known != np.arange(self.number)))
            self._edges, self._held = [(kept, self._known[kept])], len(kept)

    @property
    def nearest(self) -> np.ndarray:
        """Of each thing the other that is most like it by its way, of several the first; -1: none."""
        return np.where(self._best < _NONE, self._best & ((1 << _BITS) - 1), -1)

    @property
    def distance(self) -> np.ndarray:
        """How far that one is; infinite where there is none."""
        return np.where(self._best < _NONE, (self._best >> _BITS) / _STEPS, np.inf)

    def groups(self) -> np.ndarray:
        """Of each thing the first of its group, -1 where it is alone: what is alike in steps is one group."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        if not self._edges:
            return np.full(self.number, -1, np.int64)
        one, other = (np.concatenate(ends) for ends in zip(*self._edges, strict=True))
        graph = coo_array((np.ones(len(one), bool), (one, other)), shape=(self.number, self.number))
        _, label = connected_components(graph, directed=False)
        _, first, count = np.unique(label, return_index=True, return_counts=True)
        return np.where(count[label] > 1, first[label], -1)


def first_equal(values: np.ndarray) -> np.ndarray:
    """Of each row of an array of bytes, the first row that equals it."""
    if not len(values):
        return np.zeros(0, np.int64)
    whole = np.ascontiguousarray(values).view(np.dtype((np.void, values.shape[1]))).ravel()
    _, first, label = np.unique(whole, return_index=True, return_inverse=True)
    return first[label]


def equal_pairs(numbers: np.ndarray, values: np.ndarray) -> tuple[Pairs, np.ndarray, np.ndarray]:
    """What is equal among things, at distance 0, and the things and values that are then left, each value once.

    numbers: of the things; values: a row of bytes of each.
    """
    first = first_equal(values)
    own = np.arange(len(values))
    twice = first != own
    pairs = numbers[first[twice]], numbers[twice], np.zeros(int(twice.sum()))
    return pairs, numbers[~twice], values[~twice]


def tell_much(hashes: np.ndarray) -> np.ndarray:
    """Whether each hash tells what its picture looks like.

    That of a picture with structure has half of its bits set. One with less than a quarter is of a picture of one colour, or of plain
    stripes: all these have much the same hash, whatever the colour.
    """
    return np.bitwise_count(hashes).sum(1, dtype=np.int64) >= hashes.shape[1] * 8 // 4


def near_hashes(hashes: np.ndarray, most: int, among: np.ndarray | None = None) -> Iterator[Pairs]:
    """Pairs of hashes that differ in `most` bits or fewer, all of them, each once.

    hashes: rows of bytes. among: others to compare them with, in place of each other; pairs are (hash, other).
    Of two hashes of n parts that differ in so many bits, one part differs in most // n bits or fewer: those that share such a part are
    compared whole. Memory: that of the hashes, some times over.
    """
    import faiss

    there = hashes if among is None else among
    if not len(hashes) or not len(there):
        return
    bits = hashes.shape[1] * 8
    index = faiss.IndexBinaryMultiHash(bits, bits // PART, PART)
    index.nflip = most // (bits // PART)
    index.add(np.ascontiguousarray(there))
    for start in range(0, len(hashes), BLOCK):
        block = np.ascontiguousarray(hashes[start : start + BLOCK])
        limits, _, found = index.range_search(block, most + 1)  # nearer than that
        one = np.repeat(np.arange(start, start + len(block)), np.diff(limits.astype(np.int64)))
        if among is None:
            one, found = one[one < found], found[one < found]
        yield one, found, np.bitwise_count(hashes[one] ^ there[found]).sum(1, dtype=np.int64).astype(float)


def normalised(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length 1 (float32); those of none stay as they are."""
    vectors = np.array(vectors, np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=vectors, where=lengths > 0)


def near_vectors(vectors: np.ndarray, least: float) -> Iterator[Pairs]:
    """Pairs of vectors whose cosine is `least` or more, each once; their distance is 1 less the cosine.

    vectors: of length 1. Up to `EVERY` all pairs are found. Of more, each is compared with those that lie in the cells next to it, around
    vectors taken from among them at even steps; it costs a few pairs in a thousand where `least` is 0.9 or more.
    """
    import faiss

    number, size = vectors.shape if len(vectors) else (0, 1)
    if not number:
        return
    index: Any = faiss.IndexFlatIP(size)
    if number > EVERY:
        cells, middles = 4 * math.isqrt(number), index
        middles.add(np.ascontiguousarray(vectors[np.linspace(0, number - 1, cells).astype(int)]))
        index = faiss.IndexIVFFlat(middles, size, cells, faiss.METRIC_INNER_PRODUCT)
        index.is_trained, index.nprobe = True, min(CELLS_SEEN, cells)
    index.add(np.ascontiguousarray(vectors))
    for start in range(0, number, BLOCK):
        block = np.ascontiguousarray(vectors[start : start + BLOCK])
        limits, cosines, found = index.range_search(block, least)
        one = np.repeat(np.arange(start, start + len(block)), np.diff(limits.astype(np.int64)))
        kept = one < found
        # Both lie on rounded numbers: as many digits as a float32 has are the same wherever it was computed.
        yield one[kept], found[kept], np.maximum(np.round(1 - cosines[kept].astype(float), 6), 0)


def mean_distance(features: np.ndarray, groups: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each group how many things it has, and the mean distance of two of them; nan where there are fewer than two.

    features: hashes (rows of bytes), whose distance is the share of bits that differ, or vectors of length 1, of which it is 1 less the
    cosine. groups: the number of each thing's group, below `number`; -1: none.
    """
    counts = np.bincount(groups[groups >= 0], minlength=number)
    means = np.full(number, np.nan)
    hashed = features.dtype == np.uint8
    order = np.argsort(groups, kind="stable")
    order = order[np.searchsorted(groups[order], 0) :]
    ends = np.cumsum(counts)
    for group in np.flatnonzero(counts > 1):
        places, total = order[ends[group] - counts[group] : ends[group]], np.float64(counts[group])
        sums = np.zeros(features.shape[1] * (8 if hashed else 1))
        for start in range(0, len(places), 65_536):
            part = features[places[start : start + 65_536]]
            sums = sums + (np.unpackbits(part, axis=1) if hashed else part).sum(0, dtype=np.float64)
        pairs = total * (total - 1)
        if hashed:
            means[group] = 2 * (sums * (total - sums)).sum() / (pairs * features.shape[1] * 8)
        else:
            means[group] = 1 - (np.square(sums).sum() - total) / pairs
    return counts, np.round(means, 6)
