"""Which images are kept."""

from collections.abc import Iterator
from typing import Any


def is_selected(record: dict[str, Any], thresholds: dict[str, float]) -> bool:
    """Whether an image was made and reaches every threshold; a null score reaches none."""
    if record["error"] is not None:
        return False
    return all(record.get(name) is not None and record[name] >= least for name, least in thresholds.items())


def select_rows(
    records: Iterator[dict[str, Any]], thresholds: dict[str, float], per_row: int | None, by_label: bool = True
) -> Iterator[dict[str, Any]]:
    """The records with `selected`.

    per_row: at most so many samples of an item, the best by the first threshold. by_label: `label` decides where there is one: what a
    person rejected is out, and what was accepted is in, also where it is more than `per_row`; it takes the places of others.
    """

    def finish(group: list[dict[str, Any]]) -> list[dict[str, Any]]:
        accepted = []
        for record in group:
            label = record.get("label") if by_label else None
            record["selected"] = label != "reject" and is_selected(record, {} if label == "accept" else thresholds)
            accepted += [record] if label == "accept" and record["selected"] else []
        if per_row is not None:
            by = next(iter(thresholds), None)
            chosen = [record for record in group if record["selected"] and not (by_label and record.get("label"))]
            chosen.sort(key=lambda record: (-record[by] if by else 0, record["sample"]))
            for record in chosen[max(0, per_row - len(accepted)) :]:
                record["selected"] = False
        return group

    group: list[dict[str, Any]] = []
    for record in records:
        if group and (group[0]["row"], group[0]["item"]) != (record["row"], record["item"]):
            yield from finish(group)
            group = []
        group.append(record)
    yield from finish(group)
