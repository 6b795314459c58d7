"""Hashes that name things: row ids, seeds, keys and digests.

Everything is hashed as canonical JSON (sorted keys, no spaces, UTF-8), so that the same content has the same
name on every machine and in every process.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

KEY_LENGTH = 32  # hex digits of a key
SEED_BITS = 53  # a seed survives CSV, JSON and JavaScript, whose numbers are float64
_ENCODER = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def canonical(value: Any) -> bytes:
    """`value` as canonical JSON bytes. Raises ValueError for NaN, infinities and lone surrogates."""
    return _ENCODER.encode(value).encode("utf-8")


def digest(value: Any, length: int = KEY_LENGTH) -> str:
    """The first `length` hex digits (4 bits each) of the SHA-256 of `value` as canonical JSON."""
    return hashlib.sha256(canonical(value)).hexdigest()[:length]


def digests(first: Any) -> Callable[..., str]:
    """A function of `rest` that gives `digest([first, *rest])`; `first` is hashed once for all of them. `rest` may not be empty."""
    begun = hashlib.sha256(b"[" + canonical(first) + b",")

    def of(*rest: Any) -> str:
        whole = begun.copy()
        whole.update(canonical(rest)[1:])
        return whole.hexdigest()[:KEY_LENGTH]

    return of


def request_seed(root: int | Sequence[int], row: str, item: int, sample: int, own: int | None = None) -> int:
    """The seed of one request, below 2**53: a hash of (root seed, row id, sample), never of a position or a time.

    Args:
        root: the seed of the config; or its list of seeds, of which each sample has one, whatever the row.
        row: the row id.
        item: which prompt or source image of the row, from 0; it is hashed only if it is not 0.
        sample: which sample, from 0.
        own: the row's own seed, if it has one. The row's first image uses it unchanged; for the others it replaces the
            root seed and the row id.
    """
    if own is not None and item == 0 and sample == 0:
        return own
    if own is None and not isinstance(root, int):
        return root[sample]
    parts: list[Any] = [root, row] if own is None else [own]
    parts += [sample] if item == 0 else [sample, item]
    return int(digest(parts, 16), 16) >> (64 - SEED_BITS)
