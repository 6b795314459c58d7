"""Exports in a run: made when they are asked for, made again when what they hold changes, and nothing else with them."""

import hashlib
import shutil

from darkroom.exports import FORMATS, TRAINING

TABLES = {"merge_scores": 1, "write_dataset": 1, "export_dataset": 4, "all": 1}


def files(run):
    """path below results -> SHA-256 of every file of every export."""
    paths = [p for top in ("dataset", "exports") for p in (run.results / top).rglob("*") if p.is_file()]
    return {str(p.relative_to(run.results)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


def planned_with(run, **export):
    """The jobs of a dry run with other settings of `export`, by rule, without rule all."""
    kept = run.config["export"]
    run.config["export"] = kept | export
    planned = run.planned()
    run.config["export"] = kept
    return {rule: count for rule, count in planned.items() if rule != "all"}


def test_a_change_makes_the_exports_it_concerns_and_no_image(copy):
    copy.config["export"] = {"formats": list(FORMATS)}
    assert copy.planned() == {"export_dataset": 4, "all": 1}  # the folder export is there
    copy.snakemake()
    first = files(copy)
    assert sum(name.endswith("SHA256SUMS") for name in first) == len(FORMATS)
    shutil.rmtree(copy.folder / ".snakemake")
    assert copy.planned() == {}
    # One selection to another: the tables and the exports, and back to the same bytes.
    shutil.rmtree(copy.results / "logs")
    copy.config["select"] = {"images": {"p_yes": 0.999}, "edited": {}, "per_row": 1}
    assert copy.planned() == TABLES
    copy.snakemake()
    assert copy.planned() == {} and files(copy) != first
    done = copy.darkroom("verify")
    assert all(f" {format} files" in done.stdout for format in FORMATS)
    copy.config["select"] = {}
    copy.snakemake()
    assert files(copy) == first
    assert not any((copy.results / "logs").glob("*_images/*"))  # no job that could load a model
    # Each setting concerns the exports that show it.
    assert planned_with(copy, provenance=False) == {"write_dataset": 1, "export_dataset": 2}
    assert planned_with(copy, file_mb=7, preferences={"margin": 0.5}) == {"export_dataset": 3}
    assert planned_with(copy, name="foxes") == {"write_dataset": 1, "export_dataset": 4}
    assert planned_with(copy, formats=["parquet"]) == planned_with(copy, formats=[]) == {}
    victim = sorted(copy.results.glob("exports/webdataset/*/*.tar"))[0]
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    done = copy.darkroom("verify", check=False)
    assert (
        done.returncode == 1
        and f"error: results/{victim.relative_to(copy.results)}: not what SHA256SUMS" in done.stdout
    )


def test_a_licence_that_limits_training_stops_the_run_before_it_starts(run):
    run.write_rows("prompts.jsonl", [{"prompt": "a red circle"}])
    run.config["generate"] |= {"model": "black-forest-labs/FLUX.1-dev", "revision": 40 * "a"}
    run.config["export"] = {"formats": list(TRAINING)}
    done = run.snakemake("-n", check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "export.acknowledge_licences: [flux-1-dev-non-commercial-license]" in line
    run.config["export"]["acknowledge_licences"] = ["flux-1-dev-non-commercial-license"]
    assert run.planned()["export_dataset"] == 4
