"""Edits of edits: how deep each is, and which cannot be made, as they start from themselves or from what is not there.

The depth of an edit is 0 where it starts from no other edit, else one more than the deepest of those that it starts from. Shards
hold edits of one depth (`darkroom.plan.shards`), so that each starts from shards of lesser depths, and none, by whatever way,
from itself.
"""

from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from darkroom.errors import RowError

_CYCLE_TOLD = 8  # edits of a cycle that are named


@dataclass
class Edit:
    """A row that starts from other edits, or that others start from.

    number: of the row. items and samples: what it makes. sources: the references to other edits, as in `darkroom.rows.read`.
    generated: whether it starts from images of this run's prompts. depth, reason and generated are final once `resolve` was
    called; reason: why it cannot be made; left_out: it starts from a row that is no part of the trial. models: which of several it goes to.
    generators: which of several made the images of prompts that it starts from, if only by way of others; final like `generated`.
    """

    number: int
    items: int
    samples: int
    sources: list[dict[str, Any]]
    generated: bool = False
    models: list[str] | None = None
    generators: set[str] = field(default_factory=set)
    depth: int = 0
    reason: str | None = None
    left_out: bool = False
    names: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.names = list(dict.fromkeys(source["edit"] for source in self.sources))


def resolve(edits: Mapping[str, Edit], left_out: Collection[str] = ()) -> None:
    """Set depth, reason and left_out of every edit, each by its id.

    left_out: ids of edits that start from images of rows that are no part of a trial; what starts from them is none either.
    """
    after: dict[str, list[str]] = {}
    waits: dict[str, int] = {}
    for name, edit in edits.items():
        known = [source for source in edit.names if source in edits]
        waits[name] = len(known)
        for source in known:
            after.setdefault(source, []).append(name)
    ready = deque(name for name, number in waits.items() if not number)
    while ready:
        name = ready.popleft()
        _settle(edits[name], edits, left_out)
        for following in after.get(name, ()):
            waits[following] -= 1
            if not waits[following]:
                ready.append(following)
    # What is left is on a cycle, or starts from one: following the first source that is left leads onto it.
    left = {name: next(s for s in edits[name].names if waits.get(s)) for name, number in waits.items() if number}
    for cycle in _cycles(left):
        told = [f"{name!r} from {left[name]!r}" for name in cycle[:_CYCLE_TOLD]]
        more = ", ..." if len(cycle) > _CYCLE_TOLD else ""
        what = f"the edits start from each other, {', '.join(told)}{more}"
        for name in cycle:
            edits[name].reason = f"images: {what if len(cycle) > 1 else f'the edit {name!r} starts from itself'}"
    for name, source in left.items():
        if edits[name].reason is None:
            edits[name].reason = _rejected(source)


def _settle(edit: Edit, edits: Mapping[str, Edit], left_out: Collection[str]) -> None:
    """Set what follows for an edit from those that it starts from, which are settled."""
    try:
        for source in edit.sources:
            if source["edit"] in left_out:
                edit.left_out = True
                continue
            before = edits.get(source["edit"])
            if before is None:
                raise RowError(f"images: refers to edit {source['edit']!r}, which is not among the edits")
            if before.reason is not None:
                raise RowError(_rejected(source["edit"]))
            edit.left_out |= before.left_out
            if lacking := [name for name in edit.models or () if name not in (before.models or ())]:
                raise RowError(
                    f"models: {lacking[0]} makes no edit {source['edit']!r} that this one could start from; name it in that row, too"
                )
            check_counts(source, f"edit {source['edit']!r}", before.items, before.samples)
    except RowError as error:
        edit.reason = str(error)
        return
    found = [edits[name] for name in edit.names if name in edits]
    edit.depth = max((before.depth + 1 for before in found), default=0)
    edit.generated |= any(before.generated for before in found)
    edit.generators = edit.generators.union(*(before.generators for before in found))


def _rejected(source: str) -> str:
    return f"images: refers to edit {source!r}, which is rejected"


def check_counts(source: Mapping[str, Any], of: str, items: int, samples: int) -> None:
    """Raises RowError where a reference names an item or a sample that its row, `of` in words, does not make."""
    for part, count in (("item", items), ("sample", samples)):
        if source[part] is not None and source[part] >= count:
            raise RowError(f"images: refers to {part} {source[part]} of {of}, which has {count} (from 0)")


def _cycles(following: Mapping[str, str]) -> Iterator[list[str]]:
    """The cycles of a graph in which each node leads to one other, each from its first node in the order of the graph."""
    seen: dict[str, str] = {}  # node -> where the walk began that came by
    for start in following:
        node = start
        while node not in seen:
            seen[node] = start
            node = following[node]
        if seen[node] == start:
            cycle = [node]
            while following[cycle[-1]] != node:
                cycle.append(following[cycle[-1]])
            yield cycle
