"""Only what Snakemake documents is used: a release may rename or drop the rest without a word."""

import re
from pathlib import Path

import pytest
from conftest import REPOSITORY

# What stood here once, and what each did.
PRIVATE = {
    r"\.dag\b": "the graph of jobs",
    r"\bforcefiles\b": "files that are made whatever their inputs say",
    r"\bglobal_resources\b": "resources of the whole run",
    r"\bis_main_process\b": "whether this is the process that the user started",
    r"\blocal_exec\b": "whether jobs run on this host",
    r"\boverwrite_configfiles\b": "the config files of the command line",
    r"\brestart_times\b": "how often a job is tried again",
    r"\b__signature__\b": "an input function's parameters, kept at hand",
    r"\bcurrent_basedir\b": "the folder of the file that is read",
    r"\bsnakemake\.jobs\b": "the class of jobs",
    r"\bJob\.\w+ = ": "a changed class of jobs",
}
FOLDERS = ("docs", "profiles", "scripts", "tests", "training", "workflow")
SUFFIXES = {".py", ".smk", ".sh", ".sbatch", ".md", ".yaml", ""}


def lines():
    """(file, its line) of every line of code and documents in the repository but this file's."""
    inside = [path for folder in FOLDERS for path in sorted((REPOSITORY / folder).rglob("*"))]
    for path in [*REPOSITORY.glob("*.md"), REPOSITORY / "Snakefile", *inside]:
        if path.suffix in SUFFIXES and path.is_file() and path.name != Path(__file__).name:
            for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
                yield f"{path.relative_to(REPOSITORY)}:{number}", line


LINES = list(lines())


def test_there_are_lines():
    assert {place.split(":")[0] for place, _ in LINES} >= {"workflow/Snakefile", "workflow/rules/common.smk"}


@pytest.mark.parametrize("pattern", PRIVATE)
def test_no_private_name_of_snakemake_is_used(pattern):
    assert [place for place, line in LINES if re.search(pattern, line)] == []
