"""What a results folder holds, as text for a terminal: counts, scores, time, and where to look."""

import csv
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from darkroom.errors import DarkroomError
from darkroom.run.workflow import Workflow


def summary(workflow: Workflow) -> str:
    """The summary of a finished run. Raises DarkroomError where there is no table."""
    results, scores = workflow.results(), workflow.results("scores.parquet")
    if not scores.exists():
        raise DarkroomError(f"{scores}: no such file; run snakemake first")
    numbers = {name: None for kind in workflow.plans for name in workflow.catalogue.score_names(kind)}
    table = pq.read_table(scores, columns=["kind", "row", "error", "selected", *numbers])
    lines = [""]
    for kind in workflow.plans:
        part = table.filter(pc.equal(table["kind"], kind))
        rows, failed = len(part["row"].unique()), len(part) - part["error"].null_count
        lines.append(
            f"{kind:>8}: {rows} rows, {len(part)} requests, {len(part) - failed} images, {failed} failed,"
            f" {pc.sum(part['selected']).as_py() or 0} selected; {_job_seconds(results, workflow.stage(kind).rule):.0f} s"
        )
        means = {name: pc.mean(part[name]).as_py() for name in numbers}
        told = ", ".join(f"{name} {value:.2f}" for name, value in means.items() if value is not None)
        lines.append(f"{'':10}{told} (means)")
    rejected = sum(shard.rejected for plan in workflow.plans.values() for shard in plan.shards.values())
    lines.append(f"  judged: {_job_seconds(results, 'score_images'):.0f} s; rejected rows: {rejected}")
    lines.append("")
    if (results / "gallery/index.html").exists():
        lines.append(f"Open     {results}/gallery/index.html in a browser: every image, its scores and reasons")
    lines.append(f"Look at  {results}/dataset/           your rows with their images (PNG) and scores")
    lines.append(f"         {results}/scores.csv         one line per image: scores, replies, reasons")
    lines.append(f"         {results}/images/*/*.parquet the shards; Hugging Face datasets shows them as pictures")
    if (results / "plots").exists():
        told = "yield, scores, failures, time; `make report` puts them into report.zip"
        lines.append(f"         {results}/plots/           {told}")
    lines.append(f"         {results}/rejected.jsonl     rows that could not be used, with line and reason")
    return "\n".join(lines)


def _job_seconds(results: Path, rule: str) -> float:
    """Seconds that the jobs of a rule took in all, from their benchmark files."""
    total = 0.0
    for path in (results / "benchmarks" / rule).rglob("*.tsv"):
        with open(path, encoding="utf-8", newline="") as stream:
            total += sum(float(line["s"]) for line in csv.DictReader(stream, delimiter="\t"))
    return total
