"""One run of the workflow: its checked config, the plans of its rows, and the digest of every file it makes.

The Snakefile asks it what to make; the scripts ask it how. It imports nothing heavy.
"""

import os
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from darkroom.config import load_config
from darkroom.errors import DarkroomError
from darkroom.identity import digest
from darkroom.notes import Notes
from darkroom.plan import Plan, hold_results, load_plan, make_plan, rows_digest, write_json
from darkroom.recipe import image_recipe, judge_recipe, model_bytes
from darkroom.records import RECORD_SUFFIX
from darkroom.requests import edited_digest, image_digest, score_digest
from darkroom.resources import HUB_MODEL_BYTES
from darkroom.rubric import Rubric, load_rubric

if TYPE_CHECKING:
    from darkroom.tables import Kind

ROWS = {"images": "prompts", "edited": "edits"}  # kind of image -> its rows in the config
RULES = {"images": "generate_images", "edited": "edit_images"}
SECTIONS = {"images": "generate", "edited": "edit"}
PLOTS_VERSION = 1  # the same for the plots
TABLE_VERSION = 1  # raise it when the code of the tables or the data set changes what they hold


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
    """config: checked, with defaults; plans: kind ("images", "edited") -> Plan."""

    config: dict[str, Any]
    plans: dict[str, Plan]
    rubric: Rubric
    recipes: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, config: dict[str, Any], schema: Path, roots: list[Path], planned: bool = False) -> "Workflow":
        """Check the config and plan the rows; planned: take the plan that is there, without a look at the rows.

        Raises DarkroomError: one line that says what is wrong with the config, the rubric or the rows.
        """
        config = load_config(config, schema, roots)
        rubric = load_rubric(config["judge"]["rubric"])
        _check_selection(config["select"], rubric)
        plans: dict[str, Plan] = {}
        for kind, rows in ROWS.items():
            if config[rows] is None:
                continue
            if planned:
                plans[kind] = load_plan(config["results"], rows)
                continue
            plans[kind] = make_plan(
                config[rows],
                rows,
                config["shards"]["size"],
                config["results"],
                config["samples_per_prompt"],
                plans.get("images") if kind == "edited" else None,
            )
            if config["strict"] and (bad := plans[kind].first_rejected()):
                raise DarkroomError(
                    f"{config[rows]}, line {bad[0]}: {bad[1]} (strict: true stops at the first bad row)"
                )
        recipes = {kind: image_recipe(config[SECTIONS[kind]]) for kind in plans}
        recipes["judge"] = judge_recipe(config["judge"], rubric.digest)
        return cls(config, plans, rubric, recipes)

    @classmethod
    def of_job(cls, config: dict[str, Any], scriptdir: str) -> "Workflow":
        """The run that a job belongs to, from Snakemake's config and the folder of the job's script."""
        repository = Path(scriptdir).parent
        schema = repository / "workflow/schemas/config.schema.yaml"
        return cls.open(config, schema, [Path.cwd(), repository], planned=True)

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
    def score_digests(self) -> dict[str, dict[str, str]]:
        """kind -> shard -> the digest its score file is made for."""
        recipe = self.recipes["judge"]
        return {
            kind: {name: score_digest(images, recipe) for name, images in digests.items()}
            for kind, digests in self.image_digests.items()
        }

    def merge_digest(self) -> str:
        plans = {kind: plan.id for kind, plan in self.plans.items()}  # holds the line numbers that rejected.jsonl tells
        return digest([TABLE_VERSION, plans, self.score_digests, self.config["select"]])

    def dataset_digest(self) -> str:
        return digest([self.merge_digest(), self.config["judge"]["reply_column"]])

    def plots_digest(self) -> str:
        return digest([PLOTS_VERSION, self.merge_digest()])

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

    def image_work(self, kind: str, shard: str) -> tuple[int, int, int]:
        """(requests, steps, pixels) of an image shard, as the config has them.

        An edit counts as two megapixels, for Kontext attends to source and result; true_cfg runs every step twice.
        """
        section = self.config[SECTIONS[kind]]
        pixels = (section["width"] or 1024) * (section["height"] or 1024) * (2 if kind == "edited" else 1)
        return self.requests(kind, shard), section["steps"] * (2 if section["true_cfg"] > 1 else 1), pixels

    def model_bytes(self, section: str) -> int:
        """The size of a stage's weights in bytes; for a model of the hub, that of the usual one."""
        return model_bytes(self.config[section]) or HUB_MODEL_BYTES[section]

    def source_shards(self, shard: str) -> list[str]:
        """The image shards that hold the images of this run which a shard of edits starts from, in order."""
        return sorted({reference[3] for reference in self.plans["edited"].shards[shard].references})

    def record(self, stage: str, shard: str) -> Path:
        """Where the jobs of a shard record what they did; stage: a kind of image, or scores/<kind>."""
        return self.results("benchmarks") / _rule_folder(stage) / f"{shard}{RECORD_SUFFIX}"

    def job_log(self, stage: str, shard: str) -> Path:
        """What the last job of a shard said."""
        return self.results("logs") / _rule_folder(stage) / f"{shard}.log"

    @property
    def dataset_mark(self) -> Path:
        """Holds the state that the data set was written for; its files are in the user's own format and have no room."""
        return self.results(".darkroom", "dataset.digest")

    @property
    def plots_mark(self) -> Path:
        """The same for the plots, which also tell the time that jobs took: it is brought up to date with the tables."""
        return self.results(".darkroom", "plots.digest")

    def shard_files(self) -> Iterator[tuple[str, str, Path, str]]:
        """(stage, shard, path, digest) of every image and score file; stage: a kind, or scores/<kind>."""
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
        outdated = []
        for kind, plan in self.plans.items():
            for shard in plan.shards.values():
                path = self.results(ROWS[kind], f"{shard.name}.jsonl")
                if (note := self.notes.of(path)) and note["digest"] != shard.digest:
                    outdated.append(path)
        for stage, shard, path, planned in self.shard_files():
            note = self.notes.of(path)
            images = self.notes.of(self.results(stage.removeprefix("scores/"), f"{shard}.parquet"))
            # Images that were made at a second try are still without scores.
            again = (
                note and images and stage.startswith("scores/") and note.get("image_failures") != images.get("failed")
            )
            if note and (note["digest"] != planned or again):
                outdated.append(path)
        table = self.results("scores.parquet")
        note = self.notes.of(table)
        whole = all(self.notes.of(path) for _, _, path, _ in self.shard_files())
        failures = self.failures_digest() if whole else None  # a lost shard comes back as it was
        if note and (note["digest"] != self.merge_digest() or failures not in (None, note.get("failures"))):
            outdated.append(table)
        for mark, planned, files in self._marked():
            made_for = mark.read_text().split() if mark.exists() else []
            if made_for[:1] != [planned] or (failures is not None and made_for[1:] != [failures]):
                outdated += [path for path in files if path.exists()]
        self.notes.save()
        return outdated

    def failed_files(self) -> list[Path]:
        """Shard files in which a request failed, or a reply could not be read, and what is made from them."""
        failed = {
            (stage, shard) for stage, shard, path, _ in self.shard_files() if (self.notes.of(path) or {}).get("failed")
        }
        files = [
            path
            for stage, shard, path, _ in self.shard_files()
            if path.exists() and failed & {(stage, shard), (stage.removeprefix("scores/"), shard)}
        ]
        self.notes.save()
        tables = [self.results("scores.parquet"), *(path for _, _, marked in self._marked() for path in marked)]
        return files + [path for path in tables if files and path.exists()]

    def failures_digest(self) -> str:
        """Changes where failed requests or replies were made at a second try, which no other digest tells."""
        failed = [
            [stage, shard, (self.notes.of(path) or {}).get("failed")] for stage, shard, path, _ in self.shard_files()
        ]
        return digest(failed, 16)

    def _marked(self) -> list[tuple[Path, str, list[Path]]]:
        """(mark, digest that is planned, files) of what has no room for a digest in its files."""
        return [
            (self.dataset_mark, self.dataset_digest(), list(self.dataset_files().values())),
            (self.plots_mark, self.plots_digest(), [path for plot in self.plots() for path in plot.files]),
        ]

    def set_mark(self, mark: Path, made_for: str) -> None:
        """Note what files without room for a digest are made for: that, and the failures that were there."""
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
        """The plots and pages of the report, in its order."""
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
        found += [Plot("labels", "4 Judge and people", "all", "scores and labels")]
        found += [Plot("time", "5 Time", "all", "time and images/s of each job")]
        for plot in found:
            plot.folder = self.results("plots")
        return found

    def record_folders(self) -> dict[str, tuple[Path, list[str]]]:
        """stage -> (folder of its job records, names of its jobs in the order of the plan), in the order they run."""
        folders: dict[str, tuple[Path, dict[str, None]]] = {}
        for stage, _, path, _ in self.shard_files():
            folders.setdefault(stage, (self.record(stage, path.stem).parent, {}))[1].setdefault(path.stem)
        return {stage: (folder, list(names)) for stage, (folder, names) in folders.items()}

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
        from darkroom.tables import Kind

        return [
            Kind(
                name=kind,
                plan=plan,
                samples=self.config["samples_per_prompt"],
                image_digests=self.image_digests[kind],
                score_digests=self.score_digests[kind],
                prompts=self.results(ROWS[kind]),
                images=self.results(kind),
                scores=self.results("scores", kind),
            )
            for kind, plan in self.plans.items()
        ]


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
