"""One run of the workflow: its checked config, the plans of its rows, and what is made of them.

The Snakefile asks it what to make; the scripts ask it how. It imports nothing heavy.
"""

import difflib
import itertools
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from darkroom.config import home
from darkroom.config.load import load_config, used_sections
from darkroom.config.models import Config, DeviceSection, ModelSource, StageSection
from darkroom.engines import family
from darkroom.errors import DarkroomError
from darkroom.exports import CUT, MARKED, SUMS, TRAINING, VERSION
from darkroom.identity import digest
from darkroom.jobs.history import RECORD_SUFFIX
from darkroom.metrics import catalogue_of, metrics_of
from darkroom.metrics.base import Catalogue, Metric
from darkroom.metrics.formulas import METRIC as SCORES
from darkroom.metrics.formulas import Computed, formulas_of, of_kinds, with_formulas
from darkroom.metrics.rubric import JUDGE, load_rubric
from darkroom.models.hub import HubModel, hub_models, local_section, marker_bytes, with_commits
from darkroom.models.licences import check_licences, model_of, models_of
from darkroom.plan.groups import Groups, load_groups, make_groups
from darkroom.plan.reach import Reach, ReachOfSeveral
from darkroom.plan.recipe import Recipe, image_recipe
from darkroom.plan.shards import Plan, base_folder, hold_results, load_plan, make_plan, name_of, rows_digest, write_json
from darkroom.plan.stages import ROWS, STAGES, Stage, used_stages
from darkroom.rows.fields import Fields
from darkroom.rows.labels import Labels, labels_digest, read_labels
from darkroom.rows.read import Reading
from darkroom.run.against import earlier_digests, earlier_sets
from darkroom.run.events import EventWriter
from darkroom.run.lineage import Lineage, Step, manifest_of
from darkroom.run.needs import gpus_of, known_bytes, shards_together
from darkroom.run.outputs import Output
from darkroom.run.state import Shown, State, look, touch_stamp
from darkroom.store.columns import TABLE_COLUMNS
from darkroom.views.figures import Plot, figures
from darkroom.views.gallery import GALLERY_VERSION, site_digest, site_files

if TYPE_CHECKING:
    from darkroom.exports.base import Export
    from darkroom.tables.duplicates import DuplicatesFile, EarlierSet
    from darkroom.tables.kind import Kind, ShardFiles

SAMPLED = 1000  # rows of a shard whose types are looked at before anything runs
TABLE_VERSION = 7  # raise it when the code of the tables changes what they hold
PLOTS_VERSION = 4  # the same for the plots
DUPLICATES_VERSION = 1  # and for what is found to be duplicates
_NO_DEVICE = DeviceSection(device="cpu")
REASONS = 3  # why rows were rejected, told in a line


class NothingDrawn(DarkroomError):
    """The rows of a trial have no edits."""


@dataclass
class Workflow:
    """One run.

    config: checked, with defaults. stages: those that make pictures, in the order they run. row_plans: by rows, "prompts" and
    "edits". plans and groups: by stage, the shards, and those that are scored together. recipes: by stage, what decides pixels. metrics: what
    scores the images, the judge first.
    models: section -> its model of the hub. against: the folder of each earlier set -> a hash of what it holds.
    """

    config: Config
    stages: list[Stage]
    row_plans: dict[str, Plan]
    metrics: list[Metric]
    groups: dict[str, Groups]
    recipes: dict[str, Recipe] = field(default_factory=dict)
    models: dict[str, HubModel] = field(default_factory=dict)
    against: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        config: dict[str, Any],
        planned: bool = False,
        unpinned: bool = False,
        folder: str | Path = ".",
    ) -> "Workflow":
        """Check the config and plan the rows.

        Args:
            config: as the user wrote it.
            planned: take the plan that is there, without a look at the rows.
            unpinned: let hub models pass whose commit is not known; nothing can be made with them.
            folder: where relative paths of the config are looked for, before `config.home()`.

        Raises DarkroomError: one line that says what is wrong with the config, the rubric or the rows.
        """
        checked = load_config(config, [Path(folder).absolute(), home()])
        models = hub_models(checked, unpinned)
        return cls._of_checked(with_commits(checked, models), models, planned)

    @classmethod
    def _of_checked(cls, config: Config, models: dict[str, HubModel], planned: bool) -> "Workflow":
        rubric = load_rubric(config.judge.rubric)
        metrics = metrics_of(config, rubric, lambda name: local_section(used_sections(config)[name], models, name))
        check_licences(config, TRAINING)
        stages = used_stages(config)
        formulas = formulas_of(config.scores)
        catalogue = with_formulas(catalogue_of(metrics, [*STAGES]), formulas)
        _check_scores(config, catalogue)
        embeddings_of(config, metrics)
        plans: dict[str, Plan] = {}
        row_groups: dict[str, Groups] = {}
        together = shards_together(config)
        for rows in ROWS:
            files = config.row_files(rows)
            if not files:
                continue
            if planned:
                plans[rows] = load_plan(config.results, rows)
                row_groups[rows] = load_groups(config.results, rows, plans[rows], together)
                continue
            plans[rows] = make_plan(
                files,
                rows,
                config.shards.size,
                config.results,
                config.samples_of("prompts"),
                plans.get("prompts") if rows == "edits" else None,
                Fields.of(config.rows.model_dump(), rows),
                config.trial,
                reach_of(config, rows),
                config.most_samples(rows),
                reading_of(config, rows),
            )
            row_groups[rows] = make_groups(config.results, rows, plans[rows], together)
            if config.strict and (bad := plans[rows].first_rejected()):
                name, line = plans[rows].place(bad[0])
                path = base_folder(files) / name if len(files) > 1 else files[0]
                raise DarkroomError(f"{path}, line {line}: {bad[1]} (strict: true stops at the first bad row)")
            if not plans[rows].rows_used and plans[rows].left_out:
                raise NothingDrawn(
                    f"{name_of(files)}: no edit starts from one of the {config.trial:,} rows of the trial; take more, or say"
                    " `edits: null`"
                )
            if not plans[rows].rows_used:
                raise DarkroomError(f"{name_of(files)}: {rejected_text(plans[rows])}; no row can be used")
        recipes = {stage.name: image_recipe(config.section(stage.section)) for stage in stages}
        _check_different(stages, recipes)
        groups = {stage.name: row_groups[stage.rows] for stage in stages}
        if config.labels is not None and not planned:
            read_labels(config.labels, labels_digest(config.labels))  # refused before any work, not at its end
        if not planned:
            _check_expressions(config, catalogue, formulas, stages, plans)
        hashed = config.metrics.phash.bits if "phash" in config.duplicates.ways else None
        against = earlier_digests(config.duplicates.against, Path(config.results), planned, hashed)
        return cls(config, stages, plans, metrics, groups, recipes, models, against)

    @classmethod
    def of_job(cls, config: dict[str, Any], unpinned: bool = False) -> "Workflow":
        """The run that a job belongs to, with the plan that the job was submitted with."""
        return cls.open(config, planned=True, unpinned=unpinned)

    # ------------------------------------------------------------------------------------- what there is

    @cached_property
    def plans(self) -> dict[str, Plan]:
        """stage -> the plan of its rows."""
        return {stage.name: self.row_plans[stage.rows] for stage in self.stages}

    def stage(self, name: str) -> Stage:
        """The stage of that name."""
        return next(stage for stage in self.stages if stage.name == name)

    def row_files(self, rows: str) -> list[str]:
        """The user's files of rows, "prompts" or "edits"."""
        return self.config.row_files(rows)

    def row_fields(self, rows: str) -> Fields:
        """Which of the fields of these rows stands for which of ours."""
        return Fields.of(self.config.rows.model_dump(), rows)

    def rows_name(self, rows: str) -> str:
        """These files as a message names them."""
        return name_of(self.row_files(rows))

    def rows_folder(self, rows: str) -> Path:
        """The folder that relative file names in these rows start from."""
        return base_folder(self.row_files(rows), self.row_fields(rows).root)

    def trial_line(self) -> str | None:
        """One line about which rows a trial takes, None where the run is none."""
        if self.config.trial is None:
            return None
        told = [
            f"{plan.rows_used:,} of {plan.rows_used + plan.left_out:,} rows of {self.rows_name(rows)}"
            for rows, plan in self.row_plans.items()
        ]
        others = "; the others are left out" if any(plan.left_out for plan in self.row_plans.values()) else ""
        return f"a trial: {', '.join(told)}, drawn by a hash of their ids{others}"

    def rejected_lines(self) -> Iterator[str]:
        """A line about the rejected rows of each of the user's files that has any, and about labels of no use."""
        for rows, plan in self.row_plans.items():
            if plan.rows_rejected:
                yield f"{self.rows_name(rows)}: {rejected_text(plan)}"
        if wrong := self.wrong_labels():
            told = [f"line {record['line']}: {record['reason']}" for record in wrong[:REASONS]]
            more = ["..."] if len(wrong) > REASONS else []
            yield f"{self.config.labels}: {len(wrong):,} lines of no use: {'; '.join(told + more)}"

    def section(self, stage: str) -> StageSection:
        """The section of the config that a stage works by."""
        return self.config.section(self.stage(stage).section)

    @cached_property
    def lineage(self) -> Lineage:
        """The digests and paths of all files of shards."""
        options = self.config.gallery.model_dump(include={"thumbnail", "preview"})
        return Lineage(
            results=self.config.results,
            stages=self.stages,
            plans=self.row_plans,
            groups=self.groups,
            recipes=self.recipes,
            metrics={
                metric.name: {
                    stage.name: metric.recipe(stage.like)
                    for stage in self.stages
                    # The judge has files, though empty ones, of images and edits that its rubric asks nothing of.
                    if metric.columns(stage.like) or (metric.name == JUDGE and not stage.every)
                }
                for metric in self.metrics
            },
            seed=self.config.seed,
            samples=self.config.samples_per_prompt,
            shown=[GALLERY_VERSION, options, *self._formulas_told],
            seeds=self._seeds,
        )

    @cached_property
    def _seeds(self) -> dict[str, list[int]]:
        """stage -> the seeds of every prompt, where the config lists them."""
        found = {stage.name: self.config.seed_of(stage.section) for stage in self.stages}
        return {name: seeds for name, seeds in found.items() if not isinstance(seeds, int)}

    @cached_property
    def catalogue(self) -> Catalogue:
        """The columns of scores by stage, for all who show or use them."""
        kinds = dict.fromkeys(stage.like for stage in self.stages)
        whole = with_formulas(catalogue_of(self.metrics, [*STAGES]), formulas_of(self.config.scores))
        return Catalogue({kind: whole.columns(kind) for kind in kinds})

    @cached_property
    def formulas(self) -> dict[str, list[Computed]]:
        """kind -> the scores of it that the config works out from others."""
        return of_kinds(formulas_of(self.config.scores), catalogue_of(self.metrics, [*STAGES]))

    def metric(self, name: str) -> Metric:
        """The metric of that name."""
        return next(metric for metric in self.metrics if metric.name == name)

    def results(self, *parts: str) -> Path:
        """A path below the results folder."""
        return Path(self.config.results, *parts)

    def requests(self, stage: str, shard: str) -> int:
        """Images to make in a shard of a stage."""
        made = self.stage(stage)
        return self.plans[stage].shards[shard].requests(self.config.samples_of(made.rows), made.model)

    @cached_property
    def scored_apart(self) -> bool:
        """Whether each shard of images is scored by itself, so that the path of its score file has its name."""
        return all(shards == [name] for groups in self.groups.values() for name, shards in groups.members.items())

    def score_requests(self, stage: str, group: str) -> int:
        """Images to score in a group of shards."""
        return sum(self.requests(stage, shard) for shard in self.groups[stage].members[group])

    def step_requests(self, step: Step, name: str) -> int:
        """Images that a file of a step is about."""
        return self.requests(step.stage, name) if step.metric is None else self.score_requests(step.stage, name)

    def shard_rows(self, rows: str, shard: str, path: Path) -> bytes:
        """The lines of a shard's rows file, which must be the ones that are planned."""
        data = path.read_bytes()
        planned = self.row_plans[rows].shards.get(shard)
        if planned is None:
            raise DarkroomError(
                f"shard {shard} is no longer planned: the rows changed during the run; run snakemake again"
            )
        if rows_digest(data) != planned.digest:
            raise DarkroomError(f"{path}: not the rows that are planned; delete it and run snakemake again")
        return data

    def check_planned(self, path: str, rows: str, shard: str) -> None:
        """See that a file of rows is one that is planned. Raises DarkroomError where the rows changed meanwhile."""
        if shard not in self.row_plans[rows].shards or os.path.normpath(path) != self.lineage.rows_file(rows, shard):
            raise DarkroomError(f"{path}: no longer planned: the rows changed during the run; run snakemake again")

    def device_section(self, step: Step) -> DeviceSection:
        """The section of the config that says which devices a step works on."""
        if step.metric is None:
            return self.config.section(step.section)
        return self.metric(step.metric).needs or _NO_DEVICE

    def gpus(self, step: Step) -> int:
        """GPUs of a job of a step: none where the config says cpu."""
        return gpus_of(self.device_section(step))

    def planned_path(self, path: str, stage: str, name: str, metric: str | None = None) -> Path:
        """The path of a job's file, which must be the planned one.

        path: what the job is to make. name: of the shard, or with `metric` of the group of shards.
        Raises DarkroomError where rows or config changed since it was planned.
        """
        known = self.plans[stage].shards if metric is None else self.groups[stage].members
        if name in known:
            lineage = self.lineage
            planned = lineage.image_file(stage, name) if metric is None else lineage.score_file(metric, stage, name)
            if os.path.normpath(path) == planned:
                return Path(planned)
        raise DarkroomError(f"{path}: no longer planned: rows or config changed during the run; run snakemake again")

    def check_sources(self, stage: str, shard: str) -> None:
        """See that the shards that a shard starts from are the planned ones. Raises DarkroomError where they are not."""
        from darkroom.store.shardfile import check_digest

        for of, files in self.lineage.sources_by_stage(stage, shard).items():
            digests = self.lineage.image_digests[of] if files else {}
            planned = {self.lineage.image_file(of, name): value for name, value in digests.items()}
            for path in files:
                check_digest(path, planned[path])

    # ------------------------------------------------------------------------------------- models

    @cached_property
    def model_bytes(self) -> dict[str, int]:
        """section -> the size of its weights in bytes; of a hub model that is not fetched yet, what it is taken to weigh."""
        sizes = {}
        for name, section in used_sections(self.config).items():
            fetched = name in self.models and self.models[name].fetched
            known = marker_bytes(str(self.models[name].marker)) if fetched else 0
            sizes[name] = known or known_bytes(name, section)
        return sizes

    # ------------------------------------------------------------------------------------- labels

    @cached_property
    def labels_digest(self) -> str | None:
        """What the file of labels holds, None where the config names none."""
        return labels_digest(self.config.labels) if self.config.labels is not None else None

    def labels(self) -> Labels | None:
        """The labels that the config names, None where it names none."""
        if self.config.labels is None or self.labels_digest is None:
            return None
        labels = read_labels(self.config.labels, self.labels_digest)
        labels.partial = self.config.trial is not None
        return labels

    def wrong_labels(self) -> list[dict[str, Any]]:
        """Lines of the file of labels that cannot be used, or, as far as images have been made, are of none; see `Labels.left`."""
        labels = self.labels()
        if labels is None:
            return []
        scores = self.results("scores.parquet")
        labels.used.update(labels.by_key)
        if labels.by_key and scores.exists():
            import pyarrow as pa
            import pyarrow.compute as pc

            from darkroom.tables.read import Table

            wanted, found = pa.array(labels.by_key), set()
            try:
                for batch in Table(scores).batches(["key"]):
                    found.update(batch["key"].filter(pc.is_in(batch["key"], wanted)).to_pylist())
            except (OSError, pa.ArrowException):
                return labels.left()  # the table is made again
            labels.used &= found
        return labels.left()

    # ------------------------------------------------------------------------------------- what jobs leave

    def history_folder(self, step: Step) -> Path:
        """Where the jobs of a step record what they did."""
        return self.results("benchmarks") / self._rule_folder(step)

    def history(self, step: Step, name: str) -> Path:
        """Where the jobs of a shard, or of a group, record what they did."""
        return self.history_folder(step) / f"{name}{RECORD_SUFFIX}"

    def job_log(self, step: Step, path: str) -> Path:
        """What the last job that made the file `path` of a step said."""
        file = PurePosixPath(path)
        return self.results("logs") / self._rule_folder(step) / file.parent.name / f"{file.stem}.log"

    def _rule_folder(self, step: Step) -> Path:
        rule = self.stage(step.stage).rule
        return Path(rule) if step.metric is None else Path("score_images", step.metric, step.stage)

    def history_folders(self) -> dict[str, tuple[Path, list[str]]]:
        """step -> (folder of its jobs' records, its shards or groups in the order of the plan), in the order they run."""
        return {
            step.name: (self.history_folder(step), [file.name for file in self.lineage.files(step)])
            for step in self.lineage.steps()
        }

    def scratch_folder(self, step: Step) -> Path:
        """Where what is finished of a step's unfinished files waits: a folder of images, or a journal of scores, for each."""
        return self.results(".darkroom", "scratch", step.name)

    def journal(self, step: Step, group: str) -> Path:
        """Scores of a group whose file is not written yet."""
        return self.scratch_folder(step) / f"{group}.jsonl"

    # ------------------------------------------------------------------------------------- made of all shards

    def output(self, name: str, files: Iterable[str | Path], planned: str, inputs: list[str]) -> Output:
        """An output of the whole set; its manifest lies in `.darkroom/made`."""
        made = f"{self.config.results}/.darkroom/made/{name}.manifest"
        return Output(name, [str(file) for file in files], planned, inputs, made)

    @cached_property
    def merge_digest(self) -> str:
        plans = {
            stage: plan.id for stage, plan in self.plans.items()
        }  # holds the line numbers that rejected.jsonl tells
        parts = [TABLE_VERSION, plans, self.lineage.shard_score_digests, self.config.select.model_dump()]
        parts.append(self.config.export.prefix)
        by = self.config.report.yield_by
        told: list[Any] = [
            *filter(None, [self.labels_digest, self.duplicates.digest if self.duplicates else None]),
            *self._formulas_told,
            *([{"yield_by": by}] if by else []),
        ]
        return digest([*parts, *told])

    @property
    def _formulas_told(self) -> list[Any]:
        """The formulas as part of a digest; nothing where there are none."""
        return [{"scores": [asdict(one) for one in formulas_of(self.config.scores)]}] if self.config.scores else []

    @cached_property
    def compared_metrics(self) -> list[str]:
        """The metrics whose scores say which pictures are duplicates."""
        wanted = {metric for metric, _ in self._embeddings.values()}
        wanted |= {"phash"} & set(self.config.duplicates.ways)
        return [name for name in self.lineage.metrics if name in wanted]

    @cached_property
    def _embeddings(self) -> dict[str, tuple[str, str]]:
        """Stage of the table -> the metric and column of the embeddings that its pictures are compared by."""
        return embeddings_of(self.config, self.metrics)

    @cached_property
    def duplicates(self) -> Output | None:
        """Which pictures are duplicates; None where the config asks for none."""
        settings = self.config.duplicates
        if not settings.ways:
            return None
        lineage, compared = self.lineage, self.compared_metrics
        planned = digest(
            [
                DUPLICATES_VERSION,
                settings.ways,
                settings.model_dump(exclude={"by", "against"}),
                {stage: plan.id for stage, plan in self.plans.items()},
                lineage.image_digests,
                {name: lineage.metrics[name] for name in compared},
                [[one.name, self.against[str(one.path)]] for one in self.earlier_sets()],
            ]
        )
        inputs = [manifest_of(path) for path in self.compared_files()]
        return self.output("duplicates", [self.results("duplicates.parquet")], planned, inputs)

    def earlier_sets(self) -> "list[EarlierSet]":
        """What pictures are compared with besides each other."""
        return earlier_sets(self.config.duplicates.against, self.results())

    def compared_files(self) -> list[str]:
        """The files of pictures and scores that duplicates are found from."""
        steps = [step for step in self.lineage.steps() if step.metric is None or step.metric in self.compared_metrics]
        return [file.path for step in steps for file in self.lineage.files(step)]

    def find_duplicates(self, path: Path) -> dict[str, Any]:
        """Write what `duplicates` is to be. Returns counts. Raises DarkroomError where a shard or an earlier set is not as planned."""
        from darkroom.tables.duplicates import compared, write_duplicates

        assert self.duplicates is not None, "asked for where the config asks for none"
        kinds = compared(self.kinds(), self.compared_metrics)
        bits, meta = self.config.metrics.phash.bits, {"digest": self.duplicates.digest}
        embeddings = {stage: column for stage, (_, column) in self._embeddings.items()}
        return write_duplicates(kinds, self.config.duplicates, bits, embeddings, self.earlier_sets(), path, meta)

    def duplicates_file(self) -> "DuplicatesFile | None":
        """The file of them, for who reads it."""
        if self.duplicates is None:
            return None
        from darkroom.tables.duplicates import DuplicatesFile

        return DuplicatesFile(Path(*self.duplicates.files), self.duplicates.digest, self.config.duplicates.columns)

    @cached_property
    def tables(self) -> Output:
        """The final tables."""
        files = [self.results(name) for name in ("scores.parquet", "scores.csv", "rejected.jsonl", "yield.csv")]
        inputs = [
            manifest_of(file.path)
            for step in self.lineage.steps()
            if step.metric is not None or not self.lineage.metrics_of(step.stage)
            for file in self.lineage.files(step)
        ]
        inputs += [self.duplicates.made] if self.duplicates else []
        return self.output("tables", files, self.merge_digest, inputs)

    def tables_meta(self) -> dict[str, str]:
        """What scores.parquet says of itself."""
        return {"digest": self.merge_digest, "made_from": self.tables.made_from()}

    def _export_digest(self, format: str) -> str:
        export = self.config.export
        models = [asdict(model) for model in models_of(self.config)]
        parts = [VERSION, format, self.merge_digest, models, export.name, export.licence, export.prefix]
        if format == "folder":
            parts.append(self.config.judge.reply_column)
        if format in CUT:
            parts.append(export.file_mb)
        if format in MARKED:
            parts.append(export.provenance)
        if format == "preferences":
            parts.append(export.preferences.model_dump())
        return digest(parts)

    def export_folder(self, format: str) -> Path:
        return self.results("dataset") if format == "folder" else self.results("exports", format)

    @cached_property
    def exports(self) -> dict[str, Output]:
        """Format -> the files that the workflow knows an export by; SHA256SUMS is the last to be written."""
        found: dict[str, Output] = {}
        for format in self.config.export.formats:
            rows = self.dataset_files().values() if format == "folder" else ()
            files = [*rows, self.export_folder(format) / SUMS]
            name = "dataset" if format == "folder" else format
            found[format] = self.output(name, files, self._export_digest(format), [self.tables.made])
        return found

    @cached_property
    def figures(self) -> list[Plot]:
        """The plots and pages of the report, in its order; none where the config wants none."""
        if not self.config.report.enabled:
            return []
        compared = self.config.duplicates.of if self.duplicates else ()
        scores = {stage.name: len(self.catalogue.scores(stage.name)) for stage in self.stages}
        return figures(self.stages, scores, self.config.labels is not None, self.results("plots"), compared)

    @cached_property
    def plots(self) -> Output | None:
        files = [path for plot in self.figures for path in plot.files]
        planned = digest([PLOTS_VERSION, self.merge_digest])
        return self.output("plots", files, planned, [self.tables.made]) if files else None

    @cached_property
    def gallery(self) -> Output | None:
        """The page of the gallery and its index; None where the config wants none."""
        if not self.config.gallery.enabled:
            return None
        files = [self.results("gallery", name) for name in [*site_files(), "index.js"]]
        planned = digest(
            [GALLERY_VERSION, site_digest(), self.merge_digest, self.lineage.shown_id, self.gallery_about()]
        )
        return self.output("gallery", files, planned, [self.tables.made])

    def outputs(self) -> list[Output]:
        """All of them, in the order they are made."""
        first = filter(None, [self.duplicates])
        return [*first, self.tables, *self.exports.values(), *filter(None, (self.plots, self.gallery))]

    def gallery_files(self) -> Iterator[tuple[str, str, str]]:
        """(stage, shard, path) of every shard's file of the gallery; none where the config wants no gallery."""
        for stage, plan in self.plans.items() if self.gallery else ():
            for shard in plan.shards:
                yield stage, shard, self.lineage.gallery_file(stage, shard)

    def gallery_inputs(self, stage: str, shard: str) -> list[str]:
        """The files that a shard's file of the gallery is made from: its pictures, and its scores by each metric."""
        group = self.lineage.group_of[stage][shard]
        scores = [self.lineage.score_file(metric, stage, group) for metric in self.lineage.metrics_of(stage)]
        return [self.lineage.image_file(stage, shard), *scores]

    # ------------------------------------------------------------------------------------- state

    @cached_property
    def state(self) -> State:
        """What must be made again although it is there, and whose inputs' times do not count: see `run.state`."""
        lineage = self.lineage
        return look(
            (file for step in lineage.steps() for file in lineage.files(step)),
            (
                Shown(
                    path,
                    f"{self.config.results}/gallery/{stage}/{shard}",
                    [manifest_of(file) for file in self.gallery_inputs(stage, shard)],
                )
                for stage, shard, path in self.gallery_files()
            ),
            self.outputs(),
            self.config.retry_failed,
        )

    def wanted(self, step: Step) -> Iterator[str]:
        """Names of the shards, or groups, of a step whose files are missing or to be made again."""
        for file in self.lineage.files(step):
            if file.path in self.state.again or not os.path.exists(file.path) or not os.path.exists(file.manifest):
                yield file.name

    @cached_property
    def stale_models(self) -> set[str]:
        """Markers of hub models that are there while the model is gone or in another cache, and that are needed.

        A model that nothing waits for is not fetched: its weights may have been removed when all was done.
        """
        if not any(model.outdated for model in self.models.values()):
            return set()
        needed = {step.section for step in self.lineage.steps() if next(self.wanted(step), None)}
        return {str(model.marker) for model in self.models.values() if model.used_by in needed and model.outdated}

    @property
    def stamp(self) -> Path:
        """An input of all files that may have to be made again: see `state.touch_stamp`."""
        return self.results(".darkroom", "again")

    def mark_again(self) -> set[str]:
        """The files that must be made again, with the stamp brought up to date; a marker of a model is one of them, too."""
        again = self.state.again | self.stale_models
        touch_stamp(self.stamp, bool(again))
        return again

    def hold(self) -> None:
        """Lock the results folder for the life of this process. Raises DarkroomError where another process holds it."""
        refusal = f"{self.results()}: another run works on these results; wait for its end, or stop it"
        self._lock = hold_results(self.results(), refusal)

    def claim(self) -> EventWriter:
        """Lock the results folder for the life of this process and record the run for whoever watches it.

        Snakemake locks its working folder alone; two of them may name the same results. Returns the log handler that
        records what happens to the run's jobs. Raises DarkroomError where another process holds the folder.
        """
        import psutil

        self.hold()
        events = EventWriter(self.results())
        run = {"host": socket.gethostname(), "pid": os.getpid(), "born": psutil.Process().create_time()}
        run |= {"started": time.time(), "folder": str(Path.cwd()), "config": self.config.model_dump()}
        write_json(self.results(".darkroom", "run.json"), run)
        return events

    # ------------------------------------------------------------------------------------- for readers of the results

    def gallery_about(self) -> dict[str, Any]:
        """What the gallery says of this set, and all of its page that no file of the tables decides.

        `title` for people; `set` for the browser's storage, the same wherever the set lies; `models`, identity -> name; `dataset`,
        whether the original files lie beside the gallery; `cards`, the scores below each picture, None for the first ones.
        """
        files = [PurePosixPath(self.rows_name(rows)).name for rows in self.row_plans]
        return {
            "title": ", ".join(files),
            "set": digest([files, self.config.seed], 8),
            "models": self.model_names,
            "dataset": "folder" in self.exports,
            "cards": self.config.gallery.scores,
        }

    @cached_property
    def model_names(self) -> dict[str, str]:
        """The identity of each model, as recipes have it -> its name."""
        names = {model.section: model.name for model in models_of(self.config)}
        found = {self.recipes[stage.name]["model"]: names[stage.section] for stage in self.stages}
        for metric in self.metrics:
            needs: object = metric.needs
            if isinstance(needs, ModelSource) and needs.model is not None:
                identity = metric.recipe(self.stages[0].like).get("model")
                found |= {identity: model_of(metric.name, needs).name} if identity else {}
        return found

    def user_files(self) -> dict[str, str]:
        """The name of each of the user's files, without its folder, by what it holds."""
        names = {rows: PurePosixPath(self.rows_name(rows)).name for rows in self.row_plans}
        return names | ({"labels": Path(self.config.labels).name} if self.config.labels is not None else {})

    def export(self, format: str) -> "Export":
        """What an export is written from."""
        from darkroom.exports.base import Export

        return Export(
            format=format,
            folder=self.export_folder(format),
            kinds=self.kinds(),
            table=self.results("scores.parquet"),
            table_digest=self.merge_digest,
            catalogue=self.catalogue,
            settings=self.config.export,
            select=self.config.select,
            models=models_of(self.config),
            digest=self.exports[format].digest,
            reply_column=self.config.judge.reply_column,
            rows=self.dataset_files(),
            fields={stage.name: self.row_fields(stage.rows) for stage in self.stages},
            by_label=self.config.labels is not None and self.config.select.labels,
            given={stage.name: self.row_files(stage.rows) for stage in self.stages},
        )

    def dataset_files(self) -> dict[str, Path]:
        """stage -> the file of rows in the data set, in the format of the user's files where they have one that can hold it."""
        files = {}
        for stage in self.stages:
            stem = f"{stage.name}-{stage.rows}" if stage.every or stage.model else stage.rows
            files[stage.name] = self.results("dataset", stem + self.row_plans[stage.rows].ending)
        return files

    def settings(self) -> dict[str, dict[str, Any]]:
        """What the set is made with, section by section, for a reader: what its images and scores depend on, no more."""
        config = self.config
        told: dict[str, dict[str, Any]] = {"rows": {}}
        for rows, plan in self.row_plans.items():
            number = f"{plan.rows_used:,}" + (f" of {plan.rows_used + plan.left_out:,}" if plan.left_out else "")
            rejected = f", {plan.rows_rejected:,} rejected" if plan.rows_rejected else ""
            name = Path(self.rows_name(rows)).name
            deep = sum(shard.rows for shard in plan.shards.values() if shard.depth)
            depth = max((shard.depth for shard in plan.shards.values()), default=0)
            chains = f", {deep:,} of them edits of edits, up to {depth + 1:,} in a chain" if deep else ""
            told["rows"][rows] = f"{name}: {number} rows in {len(plan.shards):,} shards{rejected}{chains}"
        samples = {rows: config.samples_of(rows) for rows in self.row_plans}
        told["rows"] |= {"seed": config.seed, "samples per prompt": next(iter(samples.values()))}
        if len(set(samples.values())) > 1:
            told["rows"]["samples per edit"] = samples["edits"]
        for stage in self.stages:
            told[stage.section] = self._named(self.recipes[stage.name])
            if stage.name in self._seeds:
                told[stage.section] |= {"seeds of each row": ", ".join(map(str, self._seeds[stage.name]))}
        for metric in self.metrics:
            told[metric.name] = self._named(metric.recipe(self.stages[0].like))
        chosen: dict[str, Any] = {
            f"{kind}: least {name}": least
            for kind in self.plans
            for name, least in config.select.least_of(kind).items()
        }
        chosen |= {f"{kind}: {key}": said for kind in self.plans for key, said in config.select.of(kind).cuts.items()}
        told["selection"] = chosen | {"kept of each row": config.select.per_row or "all that reach it"}
        return told

    def _named(self, recipe: Recipe) -> dict[str, Any]:
        """A recipe with its model's name first, and what the model is known by as `identity`."""
        identity = recipe.get("model")
        if identity is None:
            return recipe
        rest = {key: value for key, value in recipe.items() if key != "model"}
        return {"model": self.model_names.get(identity, identity), "identity": identity} | rest

    def kinds(self) -> "list[Kind]":
        """What the tables are made from."""
        from darkroom.tables.kind import Kind

        return [
            Kind(
                name=stage.name,
                plan=self.plans[stage.name],
                samples=self.config.samples_of(stage.rows),
                image_digests=self.lineage.image_digests[stage.name],
                score_digests={
                    metric: self.lineage.score_digests[metric][stage.name]
                    for metric in self.lineage.metrics_of(stage.name)
                },
                groups=self.groups[stage.name].members,
                files=self._files_of(stage),
                rows=stage.rows,
                section=stage.section,
                reads=stage.reads,
                model=stage.model,
                models=stage.models,
                formulas=tuple(self.formulas[stage.like]),
            )
            for stage in self.stages
        ]

    def _files_of(self, stage: Stage) -> "ShardFiles":
        from darkroom.tables.kind import ShardFiles

        lineage = self.lineage
        return ShardFiles(
            rows=lambda shard: Path(lineage.rows_file(stage.rows, shard)),
            images=lambda shard: Path(lineage.image_file(stage.name, shard)),
            scores=lambda metric, group: Path(lineage.score_file(metric, stage.name, group)),
            sources=lambda shard: {
                kind: [Path(path) for path in files]
                for kind, files in lineage.sources_by_stage(stage.name, shard).items()
            },
        )


def reading_of(config: Config, rows: str) -> Reading:
    """How the rows of "prompts" or "edits" are read."""
    sections = [config.section(name) for name in config.sections_for("edits")]
    refusals = [family(section.family).no_joining() for section in sections]
    return Reading(
        getattr(sections[0], "sources", "apart"),
        getattr(sections[0], "turns", "last"),
        next(filter(None, refusals), None),
        config.samples_of("edits"),
        tuple(config.models_of(rows)),
        tuple(config.models_of("prompts")),
    )


def reach_of(config: Config, rows: str) -> Reach | ReachOfSeveral:
    """What the settings of rows of "prompts" or "edits" reach."""
    sections, models = config.sections_for(rows), config.models_of(rows)
    if not models:
        return Reach(config.section(sections[0]), rows)
    return ReachOfSeveral(
        {model: Reach(config.section(name), rows, model) for model, name in zip(models, sections, strict=True)}
    )


def _check_different(stages: list[Stage], recipes: dict[str, Recipe]) -> None:
    """See that no two of several models would make the same pictures. Raises DarkroomError."""
    seen: dict[str, str] = {}
    for stage in stages:
        if stage.model is None or stage.every:
            continue
        first = seen.setdefault(digest([stage.like, recipes[stage.name]]), stage.section)
        if first != stage.section:
            raise DarkroomError(
                f"config: {stage.section}: makes the same pictures as {first}; leave one of them out, or change what decides pixels"
            )


def rejected_text(plan: Plan) -> str:
    """How many rows of a plan are rejected, and the commonest reasons with the line of the first."""
    told = []
    for reason in plan.reasons[:REASONS]:
        name, line = plan.place(reason.number)
        where = f"{name}, line {line}" if len(plan.files) > 1 else f"line {line}"
        told.append(f"{reason.rows:,} x {reason.text} ({where if reason.rows == 1 else f'first {where}'})")
    if len(plan.reasons) > REASONS:
        told.append("...")
    total = plan.rows_used + plan.rows_rejected + plan.left_out
    return f"{plan.rows_rejected:,} of {total:,} rows rejected: {'; '.join(told)}"


def embeddings_of(config: Config, metrics: list[Metric]) -> dict[str, tuple[str, str]]:
    """Stage of the table -> the first metric, with its column, that embeds pictures which are compared by that.

    Raises DarkroomError where they are to be compared by embeddings, and none embeds any.
    """
    if "embeddings" not in config.duplicates.ways:
        return {}
    found: dict[str, tuple[str, str]] = {}
    for stage in (stage for stage in STAGES if stage in config.duplicates.of):
        for metric in metrics:
            for column in metric.columns(stage):
                if column.role == "embedding":
                    found.setdefault(stage, (metric.name, column.name))
    if not found:
        raise DarkroomError(
            "config: duplicates.by: embeddings: no metric gives any; name one that does under `metrics`, or go by phash"
        )
    return found


def _check_scores(config: Config, catalogue: Catalogue) -> None:
    """Scores that the config selects or prefers by are there, and thresholds within their range. Raises DarkroomError."""
    named = [(f"select.{stage}", stage, list(config.select.least_of(stage))) for stage in STAGES]
    preferred = {stage: config.export.preferences.score_of(stage) for stage in STAGES}
    named += [(f"export.preferences.{stage}", stage, [name]) for stage, name in preferred.items() if name is not None]
    for where, stage, names in named:
        known = catalogue.score_names(stage)
        for name in names:
            if name not in known:
                raise DarkroomError(
                    f"config: {where}: no metric gives a score {name}; there are {', '.join(known) or 'none'}"
                )
    every = list(dict.fromkeys(name for kind in catalogue.kinds for name in catalogue.score_names(kind)))
    for name in config.gallery.scores or []:
        if name not in every:
            raise DarkroomError(f"config: gallery.scores: no metric gives a score {name}; there are {', '.join(every)}")
    for stage in STAGES:
        limits = {column.name: column.limits for column in catalogue.columns(stage)}
        for name, least in config.select.least_of(stage).items():
            low, high = limits[name]
            if not low <= least <= high:
                wrong = "no picture reaches" if least > high else "every picture that has a score reaches"
                raise DarkroomError(
                    f"config: select.{stage}.{name}: the score goes from {low:g} to {high:g}, so {wrong} {least:g};"
                    " name a value between"
                )


def _check_expressions(
    config: Config, catalogue: Catalogue, formulas: list[Computed], stages: list[Stage], plans: dict[str, Plan]
) -> None:
    """Formulas, and expressions of `select`, are such, over columns that there are and of types that fit. Raises DarkroomError."""
    named = [one for stage in stages for one in config.select.of(stage.name).expressions(f"select.{stage.name}")]
    by = config.report.yield_by
    if not (formulas or named or by):
        return
    from darkroom.tables.sql import Checker

    for stage in dict.fromkeys(stage.like for stage in stages):
        formula_columns = {column.name for column in catalogue.columns(stage) if column.metric == SCORES}
        checker = Checker(
            {name: type_ for name, type_ in catalogue.types(stage).items() if name not in formula_columns}
        )
        for formula in formulas:
            if formula.name in formula_columns:
                checker.check(formula.where, formula.text, "number")
                checker.add(formula.name, "float")
                checker.add(formula.error, "text")
    own = {name.casefold(): name for plan in plans.values() for name in plan.columns}
    ours: dict[str, str] = {**TABLE_COLUMNS, "model": "text", "label": "text"}
    for stage in dict.fromkeys(stage.name for stage in stages):
        ours |= catalogue.types(stage)
    ours |= config.duplicates.columns
    types: dict[str, Any] = {name: type_ for name, type_ in ours.items() if name.casefold() not in own}
    types |= {config.export.prefix + name: type_ for name, type_ in ours.items() if name.casefold() in own}
    checker = Checker(types | dict.fromkeys(own.values()))
    sampled = _sampled_types(plans) if named else {}
    for key, text, wanted in named:
        columns = checker.check(key, text, wanted).columns
        known = {name: sampled[name] for name in columns if checker.types[name] is None and sampled.get(name)}
        refusals = []
        # Later rows can make text of any other type, and of text nothing else.
        for guess in itertools.product(*(dict.fromkeys((type_, "text")) for type_ in known.values())):
            try:
                Checker(checker.types | dict(zip(known, guess, strict=True))).check(key, text, wanted)
                break
            except DarkroomError as error:
                refusals.append(error)
        else:
            raise refusals[0]
    if by and by not in checker.types:
        near = difflib.get_close_matches(by, checker.types, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(checker.types)}"
        raise DarkroomError(f"config: report.yield_by: no column {by}; {hint}")


def _sampled_types(plans: dict[str, Plan]) -> dict[str, str]:
    """The types of the fields of some of the user's rows, of those that hold no lists or objects."""
    from darkroom.tables.fields import FieldTypes

    types = FieldTypes()
    for plan in plans.values():
        names = plan.names
        for name in dict.fromkeys((names[0], names[len(names) // 2], names[-1])):
            for line in map(json.loads, plan.read(name).splitlines()[:SAMPLED]):
                types.add(line.get("row", {}))
    return {field: type_ for field, type_ in types.types.items() if isinstance(type_, str)}
