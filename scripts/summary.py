"""Print what a results folder holds: counts, scores, time, and where to look. Usage: summary.py RESULTS"""

import argparse
import sys
from pathlib import Path

import pandas as pd


def job_seconds(results: Path, rule: str) -> float:
    """Seconds that the jobs of a rule took in all, from their benchmark files."""
    return sum(pd.read_csv(path, sep="\t")["s"].sum() for path in (results / "benchmarks" / rule).rglob("*.tsv"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="?", default=Path("results"))
    results = parser.parse_args().results
    if not (results / "scores.parquet").exists():
        sys.exit(f"error: {results}/scores.parquet: no such file; run snakemake first")
    scores = pd.read_parquet(results / "scores.parquet")
    rejected = len((results / "rejected.jsonl").read_bytes().splitlines())
    rules = {"images": "generate_images", "edited": "edit_images"}
    print()
    for kind, table in scores.groupby("kind", sort=False):
        made = table["error"].isna()
        print(
            f"{kind:>8}: {table['row'].nunique()} rows, {len(table)} requests, {made.sum()} images,"
            f" {(~made).sum()} failed, {table['selected'].sum()} selected; {job_seconds(results, rules.get(kind, kind)):.0f} s"
        )
        means = table.select_dtypes("number").drop(columns=["item", "sample", "seed", "width", "height", "steps"])
        means = means.drop(columns=["guidance", "true_cfg"]).mean().dropna()
        print(" " * 10 + ", ".join(f"{name} {value:.2f}" for name, value in means.items()) + " (means)")
    print(f"  judged: {job_seconds(results, 'score_images'):.0f} s; rejected rows: {rejected}")
    print()
    if (results / "gallery/index.html").exists():
        print(f"Open     {results}/gallery/index.html in a browser: every image, its scores and reasons")
    print(f"Look at  {results}/dataset/           your rows with their images (PNG) and scores")
    print(f"         {results}/scores.csv         one line per image: scores, replies, reasons")
    print(f"         {results}/images/*.parquet   the shards; Hugging Face datasets shows them as pictures")
    if (results / "plots").exists():
        print(
            f"         {results}/plots/           yield, scores, failures, time; `make report` puts them into report.zip"
        )
    print(f"         {results}/rejected.jsonl     rows that could not be used, with line and reason")


if __name__ == "__main__":
    main()
