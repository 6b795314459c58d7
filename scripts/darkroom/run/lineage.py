"""What every file of a run is made for, and the path that spells it.

    results/{rows}/{shard}-{rows id}.jsonl
    results/{stage}/{recipe id}/{shard}-{rows id}.parquet
    results/scores/{metric}/{stage}/{scores id}-{recipe id}/{group}-{rows id}.parquet
    results/gallery/{stage}/{shown id}-{recipe id}/{shard}-{rows id}.js

An id is the start of a hash: of a shard's rows and the files they name; of a stage's recipe with the root seed, the samples and
what it starts from; of a metric's recipe. So a file that is wanted for something else has another name: it is missing, and
Snakemake makes it, whatever target it is asked for. The whole digest stands in the file itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from darkroom.config.models import metric_section
from darkroom.identity import digest
from darkroom.plan.groups import Groups
from darkroom.plan.recipe import Recipe
from darkroom.plan.requests import edited_digest, image_digest, score_digest
from darkroom.plan.shards import Plan, Shard
from darkroom.plan.stages import Stage, like
from darkroom.store.manifest import SUFFIX

ID = 8  # hex digits of an id


@dataclass
class Lineage:
    """The digests and paths of one run.

    results: the results folder. stages: the run's, in order. plans: by rows, "prompts" and "edits". groups: by stage, the shards
    that are scored together. recipes: by stage, what decides pixels; metrics: by metric and stage, what decides scores. seed: the root seed;
    samples: per prompt; seeds: by stage, those of every prompt in place of these two. shown: what decides a shard's file of the
    gallery besides its pictures and scores.
    """

    results: str
    stages: list[Stage]
    plans: dict[str, Plan]
    groups: dict[str, Groups]
    recipes: dict[str, Recipe]
    metrics: dict[str, dict[str, Recipe]]
    seed: int
    samples: int
    shown: Any = None
    seeds: dict[str, list[int]] = field(default_factory=dict)
    _stage: dict[str, Stage] = field(init=False)

    def __post_init__(self) -> None:
        self._stage = {stage.name: stage for stage in self.stages}

    # ------------------------------------------------------------------------------------------------ digests

    @cached_property
    def image_digests(self) -> dict[str, dict[str, str]]:
        """stage -> shard -> the digest its file of pictures is made for."""
        found: dict[str, dict[str, str]] = {}
        for stage in self.stages:
            recipe, shards = self.recipes[stage.name], self.plans[stage.rows].shards
            if stage.every:
                found[stage.name] = {name: digest([found[stage.reads or ""][name], recipe]) for name in shards}
            elif stage.reads:
                found[stage.name] = {
                    name: edited_digest(shard, recipe, *self._drawn(stage.name), self._made_by(stage, shard))
                    for name, shard in shards.items()
                }
            else:
                found[stage.name] = {
                    name: image_digest(shard, recipe, *self._drawn(stage.name)) for name, shard in shards.items()
                }
            if stage.model is not None and not stage.every:
                found[stage.name] = {name: digest([one, self._of(stage)]) for name, one in found[stage.name].items()}
        return found

    def _of(self, stage: Stage) -> list[Any]:
        """What decides which of several models a row goes to, besides the row."""
        return [stage.model, stage.models[0] == stage.model]

    def read_by(self, stage: Stage) -> list[Stage]:
        """The stages whose pictures a stage's rows can name: the one it reads, or one for each of several models."""
        return [other for other in self.stages if stage.reads is not None and stage.reads in (other.name, other.like)]

    def _made_by(self, stage: Stage, shard: Shard) -> Any:
        """What decides the images of prompts that a shard's pictures start from, None where they start from none."""
        if not shard.generated:
            return None
        recipes = {
            other.model: self.recipes[other.name]
            | ({"seeds": self.seeds[other.name]} if other.name in self.seeds else {})
            for other in self.read_by(stage)
            if other.model is None or other.model in shard.generators
        }
        return recipes.get(None) or [[model, recipe] for model, recipe in recipes.items()]

    def _drawn(self, stage: str) -> tuple[int | list[int], int]:
        """What decides the seeds of a stage's requests, and how many there are of a prompt."""
        seeds = self.seeds.get(stage)
        return (self.seed, self.samples) if seeds is None else (seeds, len(seeds))

    @cached_property
    def score_digests(self) -> dict[str, dict[str, dict[str, str]]]:
        """metric -> stage -> group -> the digest its score file is made for."""
        return {
            metric: {
                stage: {
                    name: score_digest([self.image_digests[stage][shard] for shard in shards], recipe)
                    for name, shards in self.groups[stage].members.items()
                }
                for stage, recipe in recipes.items()
            }
            for metric, recipes in self.metrics.items()
        }

    @cached_property
    def shard_score_digests(self) -> dict[str, dict[str, Any]]:
        """stage -> shard -> the digests of its scores by metric, in whichever file they are; of its images, where it has none."""
        return {
            stage: {
                name: [score_digest([images], recipes[stage]) for recipes in self.metrics.values() if stage in recipes]
                or [images]
                for name, images in digests.items()
            }
            for stage, digests in self.image_digests.items()
        }

    # ------------------------------------------------------------------------------------------------ ids in paths

    @cached_property
    def stems(self) -> dict[str, dict[str, str]]:
        """rows -> shard -> "{shard}-{rows id}"."""
        return {
            rows: {name: f"{name}-{_rows_id(shard)}" for name, shard in plan.shards.items()}
            for rows, plan in self.plans.items()
        }

    @cached_property
    def recipe_ids(self) -> dict[str, dict[str, str]]:
        """stage -> shard -> the id of how its pictures are made; a stage has one, or two where it reads another stage.

        An edit of edits has that of the edits, whatever its depth: `_rows_id` holds what they start from.
        """
        found: dict[str, dict[str, str]] = {}
        for stage in self.stages:
            parts = [stage.name, self.recipes[stage.name], *self._drawn(stage.name)]
            parts += [] if stage.model is None or stage.every else self._of(stage)
            own = digest(parts, ID)
            from_files = dict.fromkeys(self.plans[stage.rows].shards, own)
            if stage.every:
                before = found[stage.reads or ""]
                after = {one: digest([*parts, one], ID) for one in set(before.values())}
                from_files = {name: after[one] for name, one in before.items()}
            elif read := self.read_by(stage):
                of = {other.model: next(iter(found[other.name].values())) for other in read}
                starts: dict[tuple[str | None, ...], str] = {}
                for name, shard in self.plans[stage.rows].shards.items():
                    if shard.generated:
                        made_by = tuple(shard.generators) or (None,)
                        if made_by not in starts:
                            starts[made_by] = digest([*parts, *(of[model] for model in made_by)], ID)
                        from_files[name] = starts[made_by]
            found[stage.name] = from_files
        return found

    @cached_property
    def group_ids(self) -> dict[str, dict[str, tuple[str, str]]]:
        """stage -> group -> (recipe id, "{group}-{rows id}")."""
        found: dict[str, dict[str, tuple[str, str]]] = {}
        for stage, groups in self.groups.items():
            stems, recipes = self.stems[self._stage[stage].rows], self.recipe_ids[stage]
            found[stage] = {}
            for name, shards in groups.members.items():
                if shards == [name]:
                    found[stage][name] = recipes[name], stems[name]
                else:
                    made = sorted({recipes[shard] for shard in shards})
                    members = digest([[recipes[shard], stems[shard]] for shard in shards], ID)
                    found[stage][name] = (made[0] if len(made) == 1 else digest(made, ID)), f"{name}-{members}"
        return found

    @cached_property
    def score_ids(self) -> dict[str, dict[str, str]]:
        """metric -> stage -> the id of its recipe."""
        return {
            metric: {stage: digest(recipe, ID) for stage, recipe in recipes.items()}
            for metric, recipes in self.metrics.items()
        }

    def metrics_of(self, stage: str) -> list[str]:
        """The metrics that score a stage's pictures."""
        return [metric for metric, recipes in self.metrics.items() if stage in recipes]

    @cached_property
    def shown_id(self) -> str:
        """The id of what decides a shard's file of the gallery besides its pictures."""
        return digest([self.shown, self.score_ids], ID)

    # ------------------------------------------------------------------------------------------------ files

    def rows_file(self, rows: str, shard: str) -> str:
        return f"{self.results}/{rows}/{self.stems[rows][shard]}.jsonl"

    def image_file(self, stage: str, shard: str) -> str:
        stem = self.stems[self._stage[stage].rows][shard]
        return f"{self.results}/{stage}/{self.recipe_ids[stage][shard]}/{stem}.parquet"

    def score_file(self, metric: str, stage: str, group: str) -> str:
        recipe, stem = self.group_ids[stage][group]
        return f"{self.results}/scores/{metric}/{stage}/{self.score_ids[metric][stage]}-{recipe}/{stem}.parquet"

    def gallery_file(self, stage: str, shard: str) -> str:
        stem = self.stems[self._stage[stage].rows][shard]
        return f"{self.results}/gallery/{stage}/{self.shown_id}-{self.recipe_ids[stage][shard]}/{stem}.js"

    @cached_property
    def group_of(self) -> dict[str, dict[str, str]]:
        """stage -> shard -> the group it is scored in."""
        return {stage: groups.of_shard() for stage, groups in self.groups.items()}

    def sources_by_stage(self, stage: str, shard: str) -> dict[str, list[str]]:
        """stage -> the files of its pictures that a shard's pictures start from: of the stage that is read, and of its own."""
        found = self._stage[stage]
        if found.reads is None:
            return {}
        if found.every:
            return {found.reads: [self.image_file(found.reads, shard)]}
        of = {other.model: other.name for other in self.read_by(found)}
        named: dict[str, set[str]] = {name: set() for name in (*of.values(), stage)}
        for reference in self.plans[found.rows].references(shard):
            named[stage if reference.edit else of[reference.model]].add(reference.shard)
        return {of: [self.image_file(of, name) for name in sorted(shards)] for of, shards in named.items()}

    def sources(self, stage: str, shard: str) -> list[str]:
        """The files of pictures of this run that a shard's pictures start from, by stage."""
        return [path for files in self.sources_by_stage(stage, shard).values() for path in files]

    def step(self, stage: str, metric: str | None = None) -> "Step":
        """The step that makes a stage's pictures, or a metric's scores of them."""
        if metric is None:
            return Step(stage, stage, None, self._stage[stage].section)
        return Step(f"scores/{metric}/{stage}", stage, metric, metric_section(metric))

    def steps(self) -> "Iterator[Step]":
        """Every step whose files are made shard by shard by a model, in the order they run."""
        for stage in self.stages:
            yield self.step(stage.name)
            for metric in self.metrics_of(stage.name):
                yield self.step(stage.name, metric)

    def files(self, step: "Step") -> Iterator["File"]:
        """The files of a step, in the order of the plan."""
        if step.metric is None:
            digests = self.image_digests[step.stage]
            for name, planned in digests.items():
                yield File(name, self.image_file(step.stage, name), planned, self.sources(step.stage, name))
        else:
            digests = self.score_digests[step.metric][step.stage]
            for name, shards in self.groups[step.stage].members.items():
                images = [self.image_file(step.stage, shard) for shard in shards]
                yield File(name, self.score_file(step.metric, step.stage, name), digests[name], images)


def folders_like(folder: Path) -> list[Path]:
    """Of a stage's folder and those beside it, those of the same stage of the table, by whichever model."""
    return sorted(path for path in folder.parent.glob(f"{like(folder.name)}*") if like(path.name) == like(folder.name))


@dataclass(frozen=True)
class Step:
    """A stage's pictures, or a metric's scores of them.

    name: the folder of its files below the results. section: its section of the config.
    """

    name: str
    stage: str
    metric: str | None
    section: str


@dataclass(frozen=True)
class File:
    """A file of pictures or scores. name: of its shard or group; digest: what it is made for; inputs: files it is made from."""

    name: str
    path: str
    digest: str
    inputs: list[str]

    @property
    def manifest(self) -> str:
        return manifest_of(self.path)


def manifest_of(path: str) -> str:
    """Where the manifest of a shard file lies, as text: names of shard files have an ending. `manifest.manifest_path` is for paths."""
    return path.rpartition(".")[0] + SUFFIX


def _rows_id(shard: Shard) -> str:
    """The id of a shard's rows: of their text, the contents of the files they name, the rows they refer to."""
    return digest([shard.digest, shard.sources, shard.referenced], ID)
