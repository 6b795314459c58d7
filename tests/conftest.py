"""Real runs of the workflow in a temporary folder."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import warm
import yaml
from darkroom.config.models import StageSection
from darkroom.run.workflow import Workflow
from darkroom.tools.prune import superseded_files
from filelock import FileLock
from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent
FLUX = REPOSITORY / "resources/models/shapes-flux"
JUDGE = REPOSITORY / "resources/models/shapes-judge"
CLIP = REPOSITORY / "resources/models/shapes-clip"


FLAT_COLOUR = REPOSITORY / "tests/extensions/flat_colour.py"
COLOURS = ["red", "green", "blue", "yellow", "purple", "orange"]
PROMPTS = [
    {"id": f"p{n}", "prompt": f"a {COLOURS[n % 6]} circle on a pink background", "group": n // 4, "note": f"nr {n}"}
    for n in range(10)
]
PROMPTS[3] |= {"samples": 3, "steps": 1}
PROMPTS[5] |= {"width": 48, "height": 80}
EDITS = [
    {"id": "e0", "prompt": "change the circle to blue", "images": [{"row": "p0", "sample": 0}]},
    {"id": "e1", "prompt": "remove the circle", "images": [{"row": "p3", "sample": 2}]},
    {"id": "e2", "prompt": "make the circle red", "images": "square.png"},
    {"id": "e3", "prompt": "make the circle red", "images": "not-there.png"},
    {"id": "e4", "prompt": "make the circle red", "images": [{"row": "nobody", "sample": 0}]},
]
BAD = [b'{"prompt": "cut off', b'{"id": "p1", "prompt": "an id that is taken"}', b'{"prompt": 7}']


def write_inputs(run, prompts=PROMPTS, edits=EDITS):
    run.write_rows("prompts.jsonl", [*prompts[:4], *BAD, *prompts[4:]])
    run.write_rows("edits.jsonl", edits)
    Image.new("RGB", (64, 64), (245, 215, 30)).save(run.folder / "square.png")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Units are light, unless they say that they are long."""
    for item in items:
        if item.path.parent.name == "unit" and item.get_closest_marker("long") is None:
            item.add_marker("light")


def small_config(**changes: Any) -> dict[str, Any]:
    """A config for the embedded models with few steps; sections in `changes` are merged into it."""
    config: dict[str, Any] = {
        "prompts": "prompts.jsonl",
        "edits": None,
        "gallery": {"enabled": False},
        "report": {"enabled": False},
        "samples_per_prompt": 1,
        "shards": {"size": 4},
        "generate": {"model": str(FLUX), "device": "cpu", "width": 64, "height": 64},
        "edit": {"model": str(FLUX), "device": "cpu"},
        "judge": {"model": str(JUDGE), "device": "cpu", "max_tokens": 64, "rubric": "shapes", "shards_per_job": 1},
    }
    for section in ("generate", "edit"):
        config[section] |= {"steps": 2, "max_sequence_length": 20, "batch_size": 4}
    for key, value in changes.items():
        if isinstance(value, dict) and value.get("family") not in (None, "flux", "flux-kontext", "auto"):
            config[key] = {
                name: kept for name, kept in config[key].items() if name not in ("steps", "max_sequence_length")
            }
        config[key] = config[key] | value if isinstance(config.get(key), dict) else value
    return config


@dataclass
class Run:
    """A folder in which the workflow runs; `config` is written to config.yaml before each run; env: its environment."""

    folder: Path
    config: dict[str, Any] = field(default_factory=small_config)
    env: dict[str, str] | None = None

    @property
    def results(self) -> Path:
        return self.folder / "results"

    def write_rows(self, name: str, rows: list[Any]) -> Path:
        """Rows as JSONL; a bytes object is a line as it stands."""
        lines = [row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows]
        (self.folder / name).write_bytes(b"".join(line + b"\n" for line in lines))
        return self.folder / name

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "snakemake", *self.arguments(*arguments)]

    def arguments(self, *more: str) -> list[str]:
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump(self.config))
        # --configfile adds to the repository's own config, so every key that matters is set here.
        return [
            *("--snakefile", str(REPOSITORY / "Snakefile")),
            *("--directory", str(self.folder), "--configfile", str(path), "--workflow-profile", "none"),
            *("--rerun-triggers", "mtime", "--rerun-incomplete", "--cores", "2", *more),
        ]

    def snakemake(self, *arguments: str, check: bool = True, timeout: float = 1800) -> subprocess.CompletedProcess[str]:
        if self.env is None:
            done = warm.run(self.arguments(*arguments), self.folder, environment(), timeout)
        else:
            done = subprocess.run(
                self.command(*arguments),
                capture_output=True,
                text=True,
                timeout=timeout,
                env=self.env,
                stdin=subprocess.DEVNULL,
            )
        if check and done.returncode:
            logs = "\n".join(f"== {p}\n{p.read_text()[-3000:]}" for p in self.results.glob("logs/**/*.log"))
            raise AssertionError(f"snakemake failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}\n{logs}")
        return done

    def darkroom(
        self, *arguments: str, config: bool = True, check: bool = True, answer: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """The command `darkroom` in the folder; config: about the run's config, else without any; answer: to its question."""
        if config:
            self.command()  # writes config.yaml
            arguments = (*arguments, "--configfile", "config.yaml")
        done = subprocess.run(
            [sys.executable, "-m", "darkroom", *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=900,
            env=(self.env or environment()) | {"PYTHONPATH": str(REPOSITORY / "scripts")},
            input=answer,
        )
        assert not check or done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done

    def planned(self, *arguments: str) -> dict[str, int]:
        """rule -> number of jobs that a dry run would start."""
        return self.jobs(self.snakemake("-n", *arguments).stdout)

    @staticmethod
    def jobs(text: str) -> dict[str, int]:
        """rule -> number of jobs, from what a dry run says."""
        counts: dict[str, int] = {}
        for line in text.partition("Job stats:")[2].partition("total")[0].splitlines():
            words = line.split()
            if len(words) == 2 and words[1].isdigit():
                counts[words[0]] = int(words[1])
        return counts


@pytest.fixture
def flat_colour():
    """The family flat-colour, which an extension brings; it is gone after the test."""
    from darkroom.config import extensions
    from darkroom.engines import FAMILIES

    extensions.load([FLAT_COLOUR])
    yield FAMILIES["flat-colour"]
    del FAMILIES["flat-colour"], sys.modules[extensions.module_name(FLAT_COLOUR)]


@pytest.fixture
def forgotten():
    """What extensions register in a test is gone after it."""
    from darkroom import engines, metrics
    from darkroom.config import extensions, models
    from darkroom.plan import stages

    tables = [models.SECTIONS, models.METRICS, stages.STAGES, engines.FAMILIES, metrics.METRICS]
    kept, before = [dict(table) for table in tables], set(sys.modules)
    yield
    for table, there in zip(tables, kept, strict=True):
        table.clear()
        table.update(there)
    for name in set(sys.modules) - before:
        if name.startswith(extensions.PREFIX):
            del sys.modules[name]


def read_requests(lines: bytes, section: StageSection, seed: int, samples: int) -> list[Any]:
    """The requests of the lines of a shard of rows; rejected rows have none."""
    from darkroom.plan.requests import expand

    rows = [row for row in map(json.loads, lines.splitlines()) if "rejected" not in row]
    return [request for row in rows for request in expand(row, section, seed, samples)]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def shards(run):
    """name below results -> SHA-256, of everything that must be equal when made twice."""
    kinds = (
        "prompts/*",
        "edits/*",
        "images*/**/*.*",
        "edited*/**/*.*",
        "scores/**/*.*",
        "scores.*",
        "rejected.jsonl",
        "yield.csv",
        "dataset/**/*.*",
        "gallery/**/*.*",
    )
    return {
        str(path.relative_to(run.results)): hashlib.sha256(path.read_bytes()).hexdigest()
        for pattern in kinds
        for path in run.results.glob(pattern)
        if path.is_file()
    }


def opened(run, planned=True) -> Workflow:
    """The run as it is planned, with paths that hold in this process; planned: not anew."""
    return Workflow.open(run.config | {"results": str(run.results)}, planned=planned, folder=run.folder)


def planned_shards(run):
    """As `shards`, without the files of earlier settings, which stay until they are pruned."""
    workflow = opened(run)
    superseded = {str(path.relative_to(run.results)) for path in superseded_files(workflow)}
    return {name: sha256 for name, sha256 in shards(run).items() if name not in superseded}


def image_files(run, stage="images") -> list[Path]:
    """The planned files of pictures of a stage, in the order of the rows."""
    workflow = opened(run)
    return [Path(workflow.lineage.image_file(stage, shard)) for shard in workflow.plans[stage].names]


def score_files(run, stage="images", metric="judge") -> list[Path]:
    """The planned score files of a stage's pictures, in the order of the rows."""
    lineage = opened(run).lineage
    return [Path(file.path) for file in lineage.files(lineage.step(stage, metric))]


def made(run):
    """Images that the jobs of the last run say they made."""
    return sum(
        int(n)
        for p in run.results.glob("logs/*_images/*/*.log")
        for n in re.findall(r"done: (\d+) made", p.read_text())
    )


def clear_logs(run):
    shutil.rmtree(run.results / "logs")


def made_once(tmp_path_factory, name: str, make: Callable[[Path], None]) -> Path:
    """The folder that `make` makes, by whichever process of pytest-xdist needs it first; tests leave it as it is."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, whole = base / name, base / f"{name}.made"
    with FileLock(base / f"{name}.lock"):
        if not whole.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of one that failed
            make(folder)
            whole.touch()
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run; tests work on copies of it."""
    config = small_config(edits="edits.jsonl", shards={"size": 3})

    def make(folder: Path) -> None:
        folder.mkdir()
        run = Run(folder, config)
        write_inputs(run)
        run.snakemake()

    return Run(made_once(tmp_path_factory, "finished", make), config)


@pytest.fixture(scope="session")
def demonstration(tmp_path_factory):
    """A checkout in which the demonstration was made, as `make demo` does."""

    def make(folder: Path) -> None:
        # In continuous integration it was made just before, by `make demo` on the same commit.
        left_out = () if os.environ.get("CI") else ("results",)
        shutil.copytree(REPOSITORY, folder, ignore=shutil.ignore_patterns(".*", *left_out, "build", "tests"))
        if (REPOSITORY / "results/.darkroom").exists() and not left_out:
            shutil.copytree(REPOSITORY / "results/.darkroom", folder / "results/.darkroom")
        command = [sys.executable, "-m", "snakemake", "-j2", "--quiet", "all"]
        subprocess.run(command, cwd=folder, env=environment(), check=True, stdin=subprocess.DEVNULL, timeout=1800)

    return Run(made_once(tmp_path_factory, "demonstration", make))


def copied(run: Run, folder: Path) -> Run:
    """A run on a copy of another's folder."""
    shutil.copytree(run.folder, folder)
    return Run(folder, json.loads(json.dumps(run.config)))


@pytest.fixture
def copy(finished, tmp_path):
    return copied(finished, tmp_path / "copy")


# A real Chromium, and a page that must neither log an error nor ask for anything outside.

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]


def chromium():
    """The browser's path; installed where it may be, else None."""
    if not shutil.which("chromium") and os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"]
        subprocess.run(
            command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        )
    return shutil.which("chromium")


@pytest.fixture(scope="session")
def browser():
    path = chromium()
    if path is None:
        reason = "LEFT OUT: the tests in a browser need Chromium (on Debian, root may have it installed)"
        if os.environ.get("CI"):
            raise RuntimeError(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def page(browser, request):
    options = getattr(request, "param", {})
    context = browser.new_context(accept_downloads=True, **{"viewport": {"width": 1280, "height": 800}} | options)
    found = context.new_page()
    found.wrong = []
    found.on("console", lambda message: message.type in ("error", "warning") and found.wrong.append(message.text))
    found.on("pageerror", lambda error: found.wrong.append(str(error)))
    found.on(
        "request", lambda asked: asked.url.startswith(("file:", "data:", "blob:")) or found.wrong.append(asked.url)
    )
    yield found
    context.close()
    assert found.wrong == []
