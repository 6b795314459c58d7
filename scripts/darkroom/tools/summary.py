"""What a results folder holds, as text for a terminal: counts, scores, time, and where to look."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from darkroom.errors import DarkroomError
from darkroom.jobs.history import benchmarks
from darkroom.metrics.base import mass_warning
from darkroom.run.workflow import Workflow
from darkroom.tables.yields import read_yields
from darkroom.tools.failures import lines as failure_lines
from darkroom.tools.prune import superseded_line


def ending(workflow: Workflow) -> Iterator[str]:
    """What the end of a run says: the summary, where the tables are those of this run; what failed; what superseded files hold."""
    if workflow.tables.is_made():
        yield summary(workflow) + "\n"
    for line in failure_lines(workflow):
        yield f"{line}; `darkroom failures` lists them"
    if superseded := superseded_line(workflow):
        yield superseded


def summary(workflow: Workflow) -> str:
    """The summary of a finished run. Raises DarkroomError where there is no table."""
    results, scores = workflow.results(), workflow.results("scores.parquet")
    if not scores.exists():
        raise DarkroomError(f"{scores}: no such file; run snakemake first")
    lines, table = [""], results / "yield.csv"
    yields = read_yields(table) if table.exists() else {}
    for kind, count in _count(workflow, scores).items():
        lines.append(
            f"{kind:>8}: {count.rows} rows, {count.requests} requests, {count.requests - count.failed} images,"
            f" {count.failed} failed, {count.selected} selected; {_taken(workflow, kind)}"
        )
        if (found := yields.get(kind)) is not None:
            steps = zip(found.steps, found.left, strict=True)
            lines.append(f"{'':10}{', '.join(f'{step}: {left}' for step, left in steps)} (left after each step)")
        means = ((name, *count.scores.get(name, (0.0, 0))) for name in workflow.catalogue.score_names(kind))
        told = ", ".join(f"{name} {total / number:.2f}" for name, total, number in means if number)
        lines.append(f"{'':10}{told} (means)")
        for score, mass in workflow.catalogue.masses(kind).items():
            if warning := mass_warning(score, *count.scores.get(mass, (0.0, 0))):
                lines.append(f"{'':10}{warning}")
    if (duplicates := workflow.duplicates_file()) and workflow.duplicates and workflow.duplicates.is_made():
        repeated = {kind: told["set"] for kind, told in duplicates.diversity().items()}
        told = ", ".join(f"{one['repeated']} of {one['images']} {kind}" for kind, one in repeated.items())
        lines.append(f"  duplicates: {told} repeat another" if told else "  duplicates: of sources or prompts alone")
    rejected = sum(shard.rejected for plan in workflow.plans.values() for shard in plan.shards.values())
    lines.append(f"  judged: {_taken(workflow)}; rejected rows: {rejected}")
    lines.append("")
    if (results / "gallery/index.html").exists():
        lines.append(f"Open     {results}/gallery/index.html in a browser: every image, its scores and reasons")
    lines.append(f"Look at  {results}/dataset/           your rows with their images (PNG) and scores")
    lines.append(f"         {results}/scores.csv         one line per image: scores, replies, reasons")
    lines.append(f"         {results}/images/*/*.parquet the shards; Hugging Face datasets shows them as pictures")
    if (results / "plots").exists():
        told = "yield, scores, failures, time; `make report` puts them into report.zip"
        lines.append(f"         {results}/plots/           {told}")
    lines.append(f"         {results}/yield.csv          how many images each step of the selection leaves")
    lines.append(f"         {results}/rejected.jsonl     rows that could not be used, with line and reason")
    return "\n".join(lines)


@dataclass
class _Count:
    """What the table holds of one kind of images. scores: name -> (sum, how many)."""

    rows: int = 0
    requests: int = 0
    failed: int = 0
    selected: int = 0
    scores: dict[str, tuple[float, int]] = field(default_factory=dict)


def _count(workflow: Workflow, scores: Path) -> dict[str, _Count]:
    """kind -> its counts, read in parts: a table can be larger than the memory of the host that ends a run."""
    import pyarrow.compute as pc

    from darkroom.tables.read import Table

    counts = {kind: _Count() for kind in workflow.plans}
    last = dict.fromkeys(counts)  # a row's images stand together
    numbers = {
        name: None
        for kind in counts
        for name in (*workflow.catalogue.score_names(kind), *workflow.catalogue.names(kind, "mass"))
    }
    for batch in Table(scores).batches(["kind", "row", "error", "selected", *numbers]):
        for kind, count in counts.items():
            part = batch.filter(pc.equal(batch["kind"], kind))
            rows = part["row"].to_pylist()
            count.rows += sum(row != before for row, before in zip(rows, [last[kind], *rows], strict=False))
            last[kind] = rows[-1] if rows else last[kind]
            count.requests += len(part)
            count.failed += len(part) - part["error"].null_count
            count.selected += pc.sum(part["selected"]).as_py() or 0
            for name in numbers:
                total, number = count.scores.get(name, (0.0, 0))
                values = part[name]
                count.scores[name] = total + (pc.sum(values).as_py() or 0), number + pc.count(values).as_py()
    return counts


def _taken(workflow: Workflow, kind: str | None = None) -> str:
    """The time that the jobs took in all which made images of a kind, or, where none is named, which scored images."""
    steps = [step for step in workflow.lineage.steps() if (step.name == kind if kind else step.metric is not None)]
    found = [benchmarks(workflow.history_folder(step)) for step in steps]
    seconds, jobs = sum(one.total for one in found), sum(one.jobs for one in found)
    read = sum(len(one.seconds) for one in found)
    return f"{seconds:.0f} s" if read == jobs else f"about {seconds:.0f} s, as the newest {read} of {jobs:,} jobs tell"
