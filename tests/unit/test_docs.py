"""Every configuration that the documents show passes the check of the configuration."""

import re
from pathlib import Path

import pytest
import yaml
from darkroom.config import load_config

REPOSITORY = Path(__file__).resolve().parents[2]
SCHEMA = REPOSITORY / "workflow/schemas/config.schema.yaml"
DOCUMENTS = [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("config/*.md")]
# A block that begins with the comment `# profiles/...` is a profile's.
SNIPPETS = [
    pytest.param(block, id=f"{path.name}-{number}")
    for path in DOCUMENTS
    for number, block in enumerate(re.findall(r"^```yaml\n(.*?)^```", path.read_text(), re.M | re.S), 1)
    if not block.startswith("# profiles/")
]


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_a_configuration_in_a_document_passes_the_check(snippet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("prompts.jsonl", "edits.jsonl"):
        Path(name).write_text('{"prompt": "a"}\n')
    load_config(
        {"prompts": "prompts.jsonl", "edits": "edits.jsonl"} | yaml.safe_load(snippet), SCHEMA, [".", REPOSITORY]
    )


def test_there_are_some():
    assert len(SNIPPETS) > 5


def test_every_key_has_its_line_in_the_reference():
    text = (REPOSITORY / "config/README.md").read_text()
    properties = yaml.safe_load(SCHEMA.read_text())["properties"]
    keys = {key for section in properties.values() for key in section.get("properties", {})} | set(properties)
    sections = {name for name, section in properties.items() if "properties" in section}
    assert {key for key in keys - sections if not re.search(rf"`(\w+\.)?{key}`", text)} == set()
