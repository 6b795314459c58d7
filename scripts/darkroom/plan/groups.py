"""Which image shards one judge job scores together, so that several share one start of the engine.

A group is a run of neighbouring shards, at most `judge.shards_per_job` of them, and has one score file, named after the
shard it began with. Groups are kept beside the plan and changed as little as the new plan allows, like the leaves of a
B-tree: a shard that is new joins its neighbour's group, and a group that grows too large is cut in two. So they survive
insertions; shards that are appended touch the last group alone. Which shards are scored together changes no score.
"""

import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from darkroom.errors import DarkroomError
from darkroom.plan.shards import Plan, hold_results, plan_folder, write_json

_KEPT_HOMES = 5  # earlier groups of a shard in whose files its scores are looked for


def group_shards(shards: list[str], most: int, earlier: dict[str, list[str]]) -> dict[str, list[str]]:
    """Group name -> its shards, both in the order of `shards`; earlier: the groups so far, as this function gave them."""
    home = {shard: group for group, members in earlier.items() for shard in members}
    runs: list[tuple[str | None, list[str]]] = []
    begun: set[str] = set()
    for shard in shards:
        group = home.get(shard)
        if not runs or (group is not None and group not in begun):
            if runs and runs[0][0] is None:  # new shards before all others join the first group
                runs[0] = (group, runs[0][1] + [shard])
            else:
                runs.append((group, [shard]))
            if group is not None:
                begun.add(group)
        else:
            runs[-1][1].append(shard)
    groups: dict[str, list[str]] = {}
    for name, members in runs:
        known = [shard for shard in members if home.get(shard) == name] if name else []
        appended = not known or members[: len(known)] == known
        pieces = -(-len(members) // most)
        bounds = [n * most if appended else n * len(members) // pieces for n in range(pieces)] + [len(members)]
        for start, end in itertools.pairwise(bounds):
            piece = members[start:end]
            title = name if name and start == 0 else piece[0]
            while title in groups or (title in begun and title != name):
                title += "x"
            groups[title] = piece
    return groups


@dataclass
class Groups:
    """The groups of a plan: name -> shards. homes: shard -> groups that held it, newest first, where not its own name."""

    members: dict[str, list[str]]
    homes: dict[str, list[str]] = field(default_factory=dict)

    def of_shard(self) -> dict[str, str]:
        """Shard -> the name of its group."""
        return {shard: name for name, shards in self.members.items() for shard in shards}

    def homes_of(self, shard: str) -> list[str]:
        """Names of the score files that may hold scores of a shard of this plan or an earlier one."""
        return list(dict.fromkeys([*self.homes.get(shard, []), shard]))


def load_groups(results: str | Path, kind: str, plan: Plan, most: int) -> Groups:
    """The groups that hold for `plan`, as they were made last."""
    known = _read(plan_folder(results, kind) / "groups.json")
    if known and (known["plan"], known["most"]) == (plan.id, most):
        return Groups(known["groups"], known["homes"])
    if most == 1 and not known:
        return _single(plan)
    raise DarkroomError(f"{plan_folder(results, kind)}: no groups of shards there; run snakemake again")


def make_groups(results: str | Path, kind: str, plan: Plan, most: int) -> Groups:
    """The groups of `plan`, made from those that hold so far where the plan or `most` changed.

    Raises DarkroomError where they would change while another run works on the results.
    """
    path = plan_folder(results, kind) / "groups.json"
    known = _read(path)
    if known is None and most == 1:
        return _single(plan)
    if known and (known["plan"], known["most"]) == (plan.id, most):
        return Groups(known["groups"], known["homes"])
    refusal = f"config: judge.shards_per_job: to be changed while another run works on {results}"
    if lock := hold_results(results, f"{refusal}; wait for its end, or stop it"):
        lock.release()
    earlier = known["groups"] if known and known["most"] == most else {}
    groups = Groups(group_shards(plan.names, most, earlier))
    groups.homes = dict(known["homes"]) if known else {}
    for shard, name in groups.of_shard().items():
        homes = dict.fromkeys([name, *groups.homes_of(shard)])
        if list(homes) != [shard]:
            groups.homes[shard] = list(homes)[:_KEPT_HOMES]
    write_json(path, {"plan": plan.id, "most": most, "groups": groups.members, "homes": groups.homes})
    return groups


def _single(plan: Plan) -> Groups:
    return Groups({name: [name] for name in plan.names})


def _read(path: Path) -> dict[str, Any] | None:
    try:
        known = json.loads(path.read_bytes())
        return known if {"plan", "most", "groups", "homes"} <= set(known) else None
    except (OSError, ValueError):
        return None
