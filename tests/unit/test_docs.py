"""What the documents say of files and columns is so."""

import re

from conftest import REPOSITORY
from darkroom.judge import score_columns
from darkroom.rubric import load_rubric
from darkroom.shardfile import EDITED_COLUMNS
from darkroom.tables import TABLE_COLUMNS


def test_every_column_is_explained():
    text = (REPOSITORY / "docs/output.md").read_text()
    named = set(re.findall(r"`(\w+)`", text))
    rubric = load_rubric(REPOSITORY / "config/rubrics/default.yaml")
    columns = set(EDITED_COLUMNS) | set(TABLE_COLUMNS) | {"selected"}
    for kind in ("images", "edited"):
        columns |= set(score_columns(rubric, kind))
    suffixed = {name for name in columns if re.search("_(mass|reply|error)$", name)}
    assert columns - suffixed <= named
    assert {name.rsplit("_", 1)[0] for name in suffixed} <= named


def test_links_lead_somewhere():
    for document in [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("config/*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document}: {target}"
