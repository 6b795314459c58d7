"""One run of the workflow: its checked config, the plans of its rows, and the digest of every file it makes.

The Snakefile asks it what to make; the scripts ask it how. It imports nothing heavy.
"""

import os
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from darkroom.config.load import load_config
from darkroom.errors import DarkroomError
from darkroom.exports import CUT, MARKED, SUMS, TRAINING, VERSION
from darkroom.identity import digest
from darkroom.jobs.history import RECORD_SUFFIX
from darkroom.metrics.rubric import Rubric, load_rubric
from darkroom.models.hub import HubModel, hub_models, local_section, marker_bytes
from darkroom.models.identity import model_bytes
from darkroom.models.licences import check_licences, models_of
from darkroom.plan.groups import Groups, load_groups, make_groups
from darkroom.plan.recipe import image_recipe, judge_recipe
from darkroom.plan.requests import edited_digest, image_digest, score_digest
from darkroom.plan.shards import Plan, hold_results, load_plan, make_plan, rows_digest, write_json
from darkroom.rows.labels import Labels, labels_digest, read_labels
from darkroom.run.needs import HUB_MODEL_BYTES
from darkroom.run.notes import Notes
from darkroom.views.gallery import GALLERY_VERSION, site_digest

if TYPE_CHECKING:
    from darkroom.exports.base import Export
    from darkroom.tables.kind import Kind

ROWS = {"images": "prompts", "edited": "edits"}  # kind of image -> its rows in the config
RULES = {"images": "generate_images", "edited": "edit_images"}
SECTIONS = {"images": "generate", "edited": "edit"}
TABLE_VERSION = 2  # raise it when the code of the tables changes what they hold
PLOTS_VERSION = 1  # the same for the plots


@dataclass
class Plot:
    """A plot of the report, or a page: its caption is workflow/report/<name>.rst; kind: of which images, None for all."""

    name: str
    category: str
    images: str
    figure: str
    kind: str | None = None
    page: bool = False
    folder: Path = Path("plots")

    @property
    def path(self) -> Path:
        """The file that the report shows."""
        stem = f"{self.kind}_{self.name}" if self.kind else self.name
        return self.folder / (stem + (".html" if self.page else ".svg"))

    @property
    def files(self) -> list[Path]:
        return [self.path] if self.page else [self.path, self.path.with_suffix(".png")]


@dataclass
class Workflow:
    """One run. Plans and groups: kind ("images", "edited") -> Plan, and the shards that are judged together.

    config: checked, with defaults; models: section -> its model of the hub.
    """

    config: dict[str, Any]
    plans: dict[str, Plan]
    rubric: Rubric
    groups: dict[str, Groups]
    recipes: dict[str, dict[str, Any]] = field(default_factory=dict)
    models: dict[str, HubModel] = field(default_factory=dict)

    @classmethod
    def open(
        cls, config: dict[str, Any], schema: Path, roots: list[Path], planned: bool = False, unpinned: bool = False
    ) -> "Workflow":
        """Check the config and plan the rows; planned: take the plan that is there, without a look at the rows.

        unpinned: let hub models pass whose commit is not known; nothing can be made with them.
        Raises DarkroomError: one line that says what is wrong with the config, the rubric or the rows.
        """
        config = load_config(config, schema, roots)
        models = hub_models(config, unpinned)
        rubric = load_rubric(config["judge"]["rubric"])
        _check_selection(config["select"], rubric)
        _check_preferences(config["export"]["preferences"], rubric)
        check_licences(config, TRAINING)
        plans: dict[str, Plan] = {}
        groups: dict[str, Groups] = {}
        together = config["judge"]["shards_per_job"]
        for kind, rows in ROWS.items():
            if config[rows] is None:
                continue
            if planned:
                plans[kind] = load_plan(config["results"], rows)
                groups[kind] = load_groups(config["results"], rows, plans[kind], together)
                continue
            plans[kind] = make_plan(
                config[rows],
                rows,
                config["shards"]["size"],
                config["results"],
                config["samples_per_prompt"],
                plans.get("images") if kind == "edited" else None,
            )
            groups[kind] = make_groups(config["results"], rows, plans[kind], together)
            if config["strict"] and (bad := plans[kind].first_rejected()):
                raise DarkroomError(
                    f"{config[rows]}, line {bad[0]}: {bad[1]} (strict: true stops at the first bad row)"
                )
        recipes = {kind: image_recipe(config[SECTIONS[kind]]) for kind in plans}
        recipes["judge"] = judge_recipe(config["judge"], rubric.digest)
        return cls(config, plans, rubric, groups, recipes, models)

    @classmethod
    def of_job(cls, config: dict[str, Any], scriptdir: str, unpinned: bool = False) -> "Workflow":
        """The run that a job belongs to, from Snakemake's config and the folder of the job's script."""
        repository = Path(scriptdir).parent
        schema = repository / "workflow/schemas/config.schema.yaml"
        return cls.open(config, schema, [Path.cwd(), repository], planned=True, unpinned=unpinned)

    @cached_property
    def image_digests(self) -> dict[str, dict[str, str]]:
        """kind -> shard -> the digest its image file is made for."""
        seed, samples = self.config["seed"], self.config["samples_per_prompt"]
        digests: dict[str, dict[str, str]] = {}
        for kind, plan in self.plans.items():
            recipe = self.recipes[kind]
            if kind == "images":
                digests[kind] = {name: image_digest(s, recipe, seed, samples) for name, s in plan.shards.items()}
            else:
                made_by = self.recipes.get("images")
                digests[kind] = {
                    name: edited_digest(s, recipe, seed, samples, made_by) for name, s in plan.shards.items()
                }
        return digests

    @cached_property
    def shard_score_digests(self) -> dict[str, dict[str, str]]:
        """kind -> shard -> the digest of its scores, in whichever file they are."""
        recipe = self.recipes["judge"]
        return {
            kind: {name: score_digest([images], recipe) for name, images in digests.items()}
            for kind, digests in self.image_digests.items()
        }

    @cached_property
    def score_digests(self) -> dict[str, dict[str, str]]:
        """kind -> group of shards -> the digest its score file is made for."""
        recipe = self.recipes["judge"]
        return {
            kind: {
                name: score_digest([self.image_digests[kind][shard] for shard in shards], recipe)
                for name, shards in groups.members.items()
            }
            for kind, groups in self.groups.items()
        }

    @cached_property
    def merge_digest(self) -> str:
        plans = {kind: plan.id for kind, plan in self.plans.items()}  # holds the line numbers that rejected.jsonl tells
        parts = [TABLE_VERSION, plans, self.shard_score_digests, self.config["select"]]
        return digest(parts if self.config["labels"] is None else [*parts, self.labels_digest])

    @cached_property
    def labels_digest(self) -> str:
        return labels_digest(self.config["labels"])

    def labels(self) -> Labels | None:
        """The labels that the config names, None where it names none."""
        if self.config["labels"] is None:
            return None
        return read_labels(self.config["labels"], self.labels_digest)

    @cached_property
    def gallery_digests(self) -> dict[str, dict[str, str]]:
        """kind -> shard -> the digest its file of the gallery is made for. No threshold or label is part of it."""
        options = {name: self.config["gallery"][name] for name in ("thumbnail", "preview")}
        return {
            kind: {name: digest([GALLERY_VERSION, scores, options]) for name, scores in shards.items()}
            for kind, shards in self.shard_score_digests.items()
        }

    def gallery_digest(self) -> str:
        """The digest of the gallery's page and index."""
        return digest([GALLERY_VERSION, site_digest(), self.merge_digest, self.gallery_digests])

    def export_digest(self, format: str) -> str:
        """What an export is made for, apart from failures that were made at a second try."""
        export = self.config["export"]
        models = [asdict(model) for model in models_of(self.config)]
        parts = [VERSION, format, self.merge_digest, models, export["name"], export["licence"]]
        if format == "folder":
            parts.append(self.config["judge"]["reply_column"])
        if format in CUT:
            parts.append(export["file_mb"])
        if format in MARKED:
            parts.append(export["provenance"])
        if format == "preferences":
            parts.append(export["preferences"])
        return digest(parts)

    def plots_digest(self) -> str:
        return digest([PLOTS_VERSION, self.merge_digest])

    def shard_rows(self, kind: str, shard: str, path: Path) -> bytes:
        """The lines of a shard's prompts file, which must be the ones that are planned."""
        data = path.read_bytes()
        planned = self.plans[kind].shards.get(shard)
        if planned is None:
            raise DarkroomError(
                f"shard {shard} is no longer planned: the rows changed during the run; run snakemake again"
            )
        if rows_digest(data) != planned.digest:
            raise DarkroomError(f"{path}: not the rows that are planned; run snakemake again")
        return data

    def requests(self, kind: str, shard: str) -> int:
        return self.plans[kind].shards[shard].requests(self.config["samples_per_prompt"])

    @cached_property
    def model_bytes(self) -> dict[str, int]:
        """section -> the size of its weights in bytes; of a hub model that is not fetched yet, that of the usual one."""
        sizes = {}
        for section, usual in HUB_MODEL_BYTES.items():
            fetched = section in self.models and self.models[section].fetched
            known = marker_bytes(str(self.models[section].marker)) if fetched else model_bytes(self.config[section])
            sizes[section] = known or usual
        return sizes

    def local_section(self, section: str) -> dict[str, Any]:
        """A section of the config as its engine takes it. Raises DarkroomError where its hub model is not in the cache."""
        return local_section(self.config[section], self.models.get(section))

    def source_shards(self, shard: str) -> list[str]:
        """The image shards that hold the images of this run which a shard of edits starts from, in order."""
        return sorted({reference.shard for reference in self.plans["edited"].references(shard)})

    def score_requests(self, kind: str, group: str) -> int:
        return sum(self.requests(kind, shard) for shard in self.groups[kind].members[group])

    def score_file(self, kind: str, shard: str) -> Path:
        """The file that holds the scores of an image shard."""
        return self.results("scores", kind, f"{self._group_of[kind][shard]}.parquet")

    @cached_property
    def _group_of(self) -> dict[str, dict[str, str]]:
        return {kind: groups.of_shard() for kind, groups in self.groups.items()}

    def record(self, stage: str, shard: str) -> Path:
        """Where the jobs of a shard record what they did; stage: a kind of image, or scores/<kind> with groups for shards."""
        return self.record_folder(stage) / f"{shard}{RECORD_SUFFIX}"

    def record_folder(self, stage: str) -> Path:
        return self.results("benchmarks") / _rule_folder(stage)

    def job_log(self, stage: str, shard: str) -> Path:
        """What the last job of a shard (or of a group) said."""
        return self.results("logs") / _rule_folder(stage) / f"{shard}.log"

    def score_journal(self, kind: str, group: str) -> Path:
        """Scores of a group whose file is not written yet."""
        return self.results(".darkroom", "scratch", "scores", kind, f"{group}.jsonl")

    def export_mark(self, format: str) -> Path:
        """Holds the state that an export was written for; its files are in formats of others and have no room."""
        return self.results(".darkroom", "dataset.digest" if format == "folder" else f"{format}.digest")

    @property
    def plots_mark(self) -> Path:
        """The same for the plots, which also tell the time that jobs took: it is brought up to date with the tables."""
        return self.results(".darkroom", "plots.digest")

    def shard_files(self) -> Iterator[tuple[str, str, Path, str]]:
        """(stage, shard, path, digest) of every image and score file; stage: a kind, or scores/<kind> with groups for shards."""
        for prefix, digests in (("", self.image_digests), ("scores/", self.score_digests)):
            for kind, shards in digests.items():
                for shard, planned in shards.items():
                    yield prefix + kind, shard, self.results(prefix + kind, f"{shard}.parquet"), planned

    @cached_property
    def notes(self) -> Notes:
        return Notes(self.results(".darkroom", "notes.json"))

    def outdated_files(self) -> list[Path]:
        """Files that are there, but were made for something else than is planned now, or are damaged.

        Told from the files themselves: Snakemake's own records can be lost, belong to another working folder, or say of
        a file that a failed job left as it was that it was made anew.
        """
        return [Path(path) for path in self.sorted_files()[1]]

    def sorted_files(self) -> tuple[set[str], set[str]]:
        """(files of shards and tables that are there, those of them that `outdated_files` names), as the rules name them."""
        # Plain strings, and one look at each file: this runs at every parse, for tens of thousands of files.
        notes = self._notes()
        outdated = {path for path, (note, planned) in notes.items() if note and note["digest"] != planned}
        for kind, groups in self.groups.items():
            base = f"{self.config['results']}/{kind}"
            for group, shards in groups.members.items():
                path = f"{self.config['results']}/scores/{kind}/{group}.parquet"
                images = [notes[f"{base}/{shard}.parquet"][0] for shard in shards]
                # Images that were made at a second try are still without scores.
                if (note := notes[path][0]) and all(images):
                    failed = sum(image.get("failed", 0) for image in images)
                    outdated |= {path} if note.get("image_failures") != failed else set()
        there = {path for path, (note, _) in notes.items() if note}
        table = f"{self.config['results']}/scores.parquet"
        # A lost shard comes back as it was.
        failures = self._failures_digest(notes) if len(there) == len(notes) else None
        if note := self.notes.of(table):
            there.add(table)
            if note["digest"] != self.merge_digest or failures not in (None, note.get("failures")):
                outdated.add(table)
        marked = [(self.export_mark(f), self.export_digest(f), files) for f, files in self.export_files().items()]
        for mark, planned, files in [*marked, (self.plots_mark, self.plots_digest(), self.plot_files())]:
            made_for = mark.read_text().split() if mark.exists() else [None, None]
            written = {str(path) for path in files if path.exists()}
            if made_for[0] != planned or failures not in (None, made_for[1]):
                outdated |= written
            there |= written
        if self.config["gallery"]["enabled"]:
            made, stale = self._sorted_gallery(notes, failures)
            there |= made
            outdated |= stale
        self.notes.save()
        return there, outdated

    def _notes(self) -> dict[str, tuple[dict[str, Any] | None, str]]:
        """Every planned file of rows, images and scores -> (what it says of itself, the digest that is planned)."""
        base = self.config["results"]
        planned = {
            f"{base}/{ROWS[kind]}/{shard.name}.jsonl": shard.digest
            for kind, plan in self.plans.items()
            for shard in plan.shards.values()
        }
        for prefix, digests in (("", self.image_digests), ("scores/", self.score_digests)):
            for kind, shards in digests.items():
                planned |= {f"{base}/{prefix}{kind}/{shard}.parquet": value for shard, value in shards.items()}
        return {path: (self.notes.of(path), value) for path, value in planned.items()}

    def outdated_models(self, again: set[str]) -> list[Path]:
        """Markers of hub models that were fetched for something else or are gone, and that are needed.

        again: files to be made again. A model that nothing waits for is not fetched: its weights may have been removed
        when all was done.
        """
        stages = {"images": "generate", "edited": "edit"}
        needed = {
            stages.get(stage, "judge")
            for stage, _, path, _ in self.shard_files()
            if str(path) in again or not path.exists()
        }
        return [model.marker for name, model in self.models.items() if name in needed and model.outdated]

    def _sorted_gallery(self, notes: Any, failures: str | None) -> tuple[set[str], set[str]]:
        """As `sorted_files`, the files of the gallery."""
        there, outdated, base = set(), set(), self.config["results"]
        for kind, digests in self.gallery_digests.items():
            group_of = self._group_of[kind]
            for shard, planned in digests.items():
                path = f"{base}/gallery/{kind}/{shard}.js"
                if not (note := self.notes.of(path)):
                    continue
                there.add(path)
                made_from = [
                    notes[f"{base}/{kind}/{shard}.parquet"],
                    notes[f"{base}/scores/{kind}/{group_of[shard]}.parquet"],
                ]
                failed = [made.get("failed", 0) for made, _ in made_from if made]
                again = len(failed) == 2 and note.get("failures") != failed
                if note["digest"] != planned or again or _packs_lost(Path(path), note):
                    outdated.add(path)
        index = f"{base}/gallery/index.js"
        if note := self.notes.of(index):
            there.add(index)
            if note["digest"] != self.gallery_digest() or failures not in (None, note.get("failures")):
                outdated.add(index)
        return there, outdated

    def gallery_about(self) -> dict[str, str]:
        """What names this set: `title` for people, `set` for the browser's storage, the same wherever the set lies."""
        files = [PurePosixPath(self.config[ROWS[kind]]).name for kind in self.plans]
        return {"title": ", ".join(files), "set": digest([files, self.config["seed"]], 8)}

    def gallery_files(self) -> Iterator[tuple[str, str, Path]]:
        """(kind, shard, path) of every shard's file of the gallery."""
        for kind, plan in self.plans.items():
            for shard in plan.shards:
                yield kind, shard, self.results("gallery", kind, f"{shard}.js")

    def shard_failures(self, kind: str, shard: str) -> list[int]:
        """Failed requests and unreadable replies of a shard, which a second try may have made good."""
        files = self.results(kind, f"{shard}.parquet"), self.score_file(kind, shard)
        return [(self.notes.of(path) or {}).get("failed", 0) for path in files]

    def failed_files(self) -> list[Path]:
        """Shard files in which a request failed, or a reply could not be read, and what is made from them."""
        failed = {
            (stage, shard) for stage, shard, path, _ in self.shard_files() if (self.notes.of(path) or {}).get("failed")
        }
        files = [
            path
            for stage, shard, path, _ in self.shard_files()
            if path.exists() and failed & {(stage, shard), *self._images_of(stage, shard)}
        ]
        self.notes.save()
        exports = [path for files in self.export_files().values() for path in files]
        tables = [self.results("scores.parquet"), *exports, *self.plot_files()]
        if self.config["gallery"]["enabled"]:
            shards = {pair for stage, shard in failed for pair in self._images_of(stage, shard) or [(stage, shard)]}
            tables += [path for kind, shard, path in self.gallery_files() if (kind, shard) in shards]
            tables.append(self.results("gallery", "index.js"))
        return files + [path for path in tables if files and path.exists()]

    def _images_of(self, stage: str, group: str) -> list[tuple[str, str]]:
        """The image shards (kind, shard) that a score file is made from."""
        prefix, _, kind = stage.partition("/")
        return [(kind, shard) for shard in self.groups[kind].members[group]] if prefix == "scores" else []

    def failures_digest(self) -> str:
        """Changes where failed requests or replies were made at a second try, which no other digest tells."""
        return self._failures_digest(self._notes())

    def _failures_digest(self, notes: dict[str, tuple[dict[str, Any] | None, str]]) -> str:
        base = len(self.config["results"]) + 1
        failed = [
            [path[base:], (note or {}).get("failed")] for path, (note, _) in notes.items() if path.endswith(".parquet")
        ]
        return digest(failed, 16)

    def write_mark(self, mark: Path, made_for: str) -> None:
        """Say what an export or the plots are made for: their digest, and the failures that were there."""
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text(f"{made_for} {self.failures_digest()}")

    def claim(self, logs: Iterable[str | Path] = ()) -> None:
        """Keep the results folder for this process until it ends, in whatever way, and say so to whoever watches it.

        Snakemake locks its working folder alone; two of them may name the same results. logs: Snakemake's own of this run.
        Raises DarkroomError where another process holds the folder.
        """
        import psutil

        refusal = f"{self.results()}: another run works on these results; wait for its end, or stop it"
        self._lock = hold_results(self.results(), refusal)
        run = {"host": socket.gethostname(), "pid": os.getpid(), "born": psutil.Process().create_time()}
        run |= {"started": time.time(), "folder": str(Path.cwd()), "logs": [os.path.abspath(log) for log in logs]}
        run["config"] = self.config
        write_json(self.results(".darkroom", "run.json"), run)

    def results(self, *parts: str) -> Path:
        return Path(self.config["results"], *parts)

    def export_folder(self, format: str) -> Path:
        return self.results("dataset") if format == "folder" else self.results("exports", format)

    def export_files(self) -> dict[str, list[Path]]:
        """Format -> the files that the workflow knows an export by; SHA256SUMS is the last to be written."""
        return {
            format: [
                *(self.dataset_files().values() if format == "folder" else ()),
                self.export_folder(format) / SUMS,
            ]
            for format in self.config["export"]["formats"]
        }

    def export(self, format: str) -> "Export":
        """What an export is written from."""
        from darkroom.exports.base import Export

        return Export(
            format=format,
            folder=self.export_folder(format),
            kinds=self.kinds(),
            table=self.results("scores.parquet"),
            table_digest=self.merge_digest,
            rubric=self.rubric,
            settings=self.config["export"],
            select=self.config["select"],
            models=models_of(self.config),
            digest=self.export_digest(format),
            reply_column=self.config["judge"]["reply_column"],
            rows=self.dataset_files(),
        )

    def dataset_files(self) -> dict[str, Path]:
        """kind -> the file of rows in the data set, in the format of the user's file."""
        files = {}
        for kind in self.plans:
            rows = ROWS[kind]
            name = PurePosixPath(self.config[rows]).name
            ending = name[len(name.lower().removesuffix(".gz").rpartition(".")[0]) :]
            files[kind] = self.results("dataset", rows + ending.lower())
        return files

    def plots(self) -> list[Plot]:
        """The plots and pages of the report, in its order; none where the config wants none."""
        if not self.config["report"]["enabled"]:
            return []
        found = [
            Plot("yield", "1 Overview", "all", "rows to kept images"),
            Plot("failures", "1 Overview", "all", "failures by reason"),
            Plot("recipe", "1 Overview", "all", "recipe", page=True),
        ]
        for kind in self.plans:
            stage = {"images": "2 Images", "edited": "3 Edited images"}[kind]
            found += [
                Plot("examples", stage, kind, "best and worst", kind),
                Plot("scores", stage, kind, "score distributions", kind),
                Plot("agreement", stage, kind, "agreement of the scores", kind),
            ]
        found.append(Plot("labels", "4 Judge and people", "all", "scores and labels"))
        found.append(Plot("time", "5 Time", "all", "time and images/s of each job"))
        for plot in found:
            plot.folder = self.results("plots")
        return found

    def plot_files(self) -> list[Path]:
        return [path for plot in self.plots() for path in plot.files]

    def record_folders(self) -> dict[str, tuple[Path, list[str]]]:
        """stage -> (folder of its job records, its shards or groups in the order of the plan), in the order they run."""
        folders: dict[str, tuple[Path, list[str]]] = {}
        for stage, shard, _, _ in self.shard_files():
            folders.setdefault(stage, (self.record_folder(stage), []))[1].append(shard)
        return folders

    def settings(self) -> dict[str, dict[str, Any]]:
        """What the set is made with, section by section, for a reader: what its images and scores depend on, no more."""
        config = self.config
        told: dict[str, dict[str, Any]] = {"rows": {}}
        for kind in self.plans:
            plan = self.plans[kind]
            rows = sum(shard.rows for shard in plan.shards.values())
            told["rows"][ROWS[kind]] = f"{Path(config[ROWS[kind]]).name}: {rows:,} rows in {len(plan.shards):,} shards"
        told["rows"] |= {"seed": config["seed"], "samples per prompt": config["samples_per_prompt"]}
        for name, recipe in self.recipes.items():
            section = SECTIONS.get(name, "judge")
            told[section] = {"name": config[section]["model"], "revision": config[section]["revision"]} | recipe
        chosen = {
            f"{kind}: least {name}": least for kind in self.plans for name, least in config["select"][kind].items()
        }
        told["selection"] = chosen | {"kept of each row": config["select"]["per_row"] or "all that reach it"}
        return told

    def kinds(self) -> "list[Kind]":
        """What the tables are made from."""
        from darkroom.tables.kind import Kind

        return [
            Kind(
                name=kind,
                plan=plan,
                samples=self.config["samples_per_prompt"],
                image_digests=self.image_digests[kind],
                score_digests=self.score_digests[kind],
                groups=self.groups[kind].members,
                prompts=self.results(ROWS[kind]),
                images=self.results(kind),
                scores=self.results("scores", kind),
            )
            for kind, plan in self.plans.items()
        ]


def _packs_lost(path: Path, note: dict[str, Any]) -> bool:
    """Whether packs of a shard's file of the gallery are gone; a look at each costs too much at every parse."""
    try:
        return note.get("packs", 0) > sum(1 for _ in path.with_suffix("").iterdir())
    except FileNotFoundError:
        return note.get("packs", 0) > 0


def _rule_folder(stage: str) -> Path:
    rule, _, kind = stage.partition("/")
    return Path("score_images", kind) if kind else Path(RULES[rule])


def _check_selection(select: dict[str, Any], rubric: Rubric) -> None:
    for kind in ("images", "edited"):
        known = rubric.scores(kind)
        for name in select[kind]:
            if name not in known:
                raise DarkroomError(
                    f"config: select.{kind}: the rubric gives no score {name}; it gives {', '.join(known)}"
                )


def _check_preferences(preferences: dict[str, Any], rubric: Rubric) -> None:
    for kind in ("images", "edited"):
        name, known = preferences[kind], rubric.scores(kind)
        if name is not None and name not in known:
            raise DarkroomError(
                f"config: export.preferences.{kind}: the rubric gives no score {name}; it gives {', '.join(known)}"
            )
