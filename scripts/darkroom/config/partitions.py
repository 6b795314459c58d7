"""The file of a cluster's partitions, which the profile for Slurm names: checked before the executor reads it."""

import difflib
from collections.abc import Collection
from pathlib import Path

from darkroom.config.load import read_config_file
from darkroom.errors import DarkroomError

_CLUSTER = {"slurm_cluster", "cluster", "clusters"}  # which cluster a partition is of; no limit


def check_partitions(path: str | Path, limits: Collection[str]) -> None:
    """See that each partition of the file has only limits that the executor knows. Raises DarkroomError, in one line.

    limits: the names of those that it knows.
    """
    partitions = read_config_file(path).get("partitions")
    if not isinstance(partitions, dict) or not all(isinstance(own, dict) for own in partitions.values()):
        raise DarkroomError(
            f"{path}: expected `partitions:` and below it a line for each, such as `gpu: {{max_gpu: 8}}`"
        )
    for name, own in partitions.items():
        for unknown in [limit for limit in own if limit not in {*limits, *_CLUSTER}]:
            near = difflib.get_close_matches(str(unknown), limits, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(limits))}"
            raise DarkroomError(f"{path}: partition {name}: unknown limit {unknown}; {hint}")
