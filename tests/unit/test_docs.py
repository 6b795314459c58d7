"""What the documents say of files, columns and keys is so, and the configurations they show pass the check."""

import hashlib
import json
import re
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY
from darkroom.config.load import load_config
from darkroom.config.models import Config
from darkroom.config.reference import schema_text, with_tables
from darkroom.config.values import sections_of
from darkroom.engines.families import FLUX_DEV
from darkroom.errors import DarkroomError
from darkroom.exports import TRAINING
from darkroom.metrics.rubric import load_rubric
from darkroom.metrics.score import score_columns
from darkroom.models.licences import check_licences, models_of
from darkroom.plan.stages import ROWS
from darkroom.store.shardfile import EDITED_COLUMNS
from darkroom.tables.kind import TABLE_COLUMNS
from jsonschema import Draft202012Validator

DOCUMENTS = [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("config/*.md")]
PRESETS = sorted((REPOSITORY / "config/presets").glob("*.yaml"))
# A block that begins with the comment `# profiles/...` is a profile's.
SNIPPETS = [
    pytest.param(block, id=f"{path.name}-{number}")
    for path in DOCUMENTS
    for number, block in enumerate(re.findall(r"^```yaml\n(.*?)^```", path.read_text(), re.M | re.S), 1)
    if not block.startswith("# profiles/")
]


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize("snippet", SNIPPETS)
def test_a_configuration_in_a_document_passes_the_check(snippet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("prompts.jsonl", "edits.jsonl"):
        Path(name).write_text('{"prompt": "a"}\n')
    Path("labels.csv").write_text("key,label\n")
    load_config({"prompts": "prompts.jsonl", "edits": "edits.jsonl"} | yaml.safe_load(snippet), [".", REPOSITORY])


def test_the_examples_of_extensions_are_parts_of_files_that_the_tests_run():
    blocks = re.findall(r"^```python\n# (\S+)\n(.*?)^```", (REPOSITORY / "docs/extending.md").read_text(), re.M | re.S)
    assert {name for name, _ in blocks} == {f"tests/extensions/{n}.py" for n in ("flat_colour", "brightness", "invert")}
    for name, block in blocks:
        text = (REPOSITORY / name).read_text()
        for part in block.split("\n...\n"):
            assert part.strip("\n") in text, name


def test_there_are_some():
    assert len(SNIPPETS) > 5


def test_every_key_has_its_line_in_the_reference():
    text = (REPOSITORY / "config/README.md").read_text()
    sections = sections_of(Config)
    keys = {key for section in sections.values() for key in section.model_fields} | set(Config.model_fields)
    assert {key for key in keys - set(sections) if not re.search(rf"`(\w+\.)?{key}`", text)} == set()


def test_the_reference_and_the_schema_are_made_from_the_models():
    written = (REPOSITORY / "config/README.md").read_text()
    remedy = "PYTHONPATH=scripts python -m darkroom.config.reference writes them"
    assert with_tables(written) == written, remedy
    assert (REPOSITORY / "config/schema.json").read_text() == schema_text(), remedy


@pytest.mark.parametrize("name", ["config.yaml", *(f"presets/{path.name}" for path in PRESETS)])
def test_the_schema_for_editors_lets_the_configs_through_that_come_with_darkroom(name):
    check = Draft202012Validator(json.loads((REPOSITORY / "config/schema.json").read_text()))
    config = yaml.safe_load((REPOSITORY / "config" / name).read_text())
    check.validate(config)
    assert not check.is_valid(config | {"promts": "x"}) and not check.is_valid(config | {"generate": {"steps": 0}})


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_loads_and_says_what_its_licences_limit(path, tmp_path, monkeypatch):
    """Its models are known by their names: their families, which settings reach them, their licences, and what these ask of exports."""
    monkeypatch.chdir(tmp_path)
    given = {rows: f"{rows}.jsonl" for rows in ROWS}
    for name in given.values():
        Path(name).write_text("{}\n")
    preset = yaml.safe_load(path.read_text())
    if "generate" in preset and "edit" not in preset:
        given["edits"] = None
    config = load_config(preset | given, [tmp_path, REPOSITORY])
    models = models_of(config)
    assert all(model.licence.name != "unknown" for model in models)
    check_licences(config, TRAINING)
    limited = {model.licence.name for model in models if model.licence.limits}
    assert all(name in path.read_text() for name in limited - {FLUX_DEV})
    if limited:
        everything = config.with_section("export", formats=list(TRAINING), acknowledge_licences=[])
        with pytest.raises(DarkroomError, match=r"^config: export\.formats: "):
            check_licences(everything, TRAINING)


def test_every_column_is_explained():
    text = (REPOSITORY / "docs/output.md").read_text()
    named = set(re.findall(r"`(\w+)`", text))
    rubric = load_rubric(REPOSITORY / "config/rubrics/default.yaml")
    columns = set(EDITED_COLUMNS) | set(TABLE_COLUMNS) | {"selected", "label"}
    for kind in ("images", "edited"):
        columns |= set(score_columns(rubric.columns(kind)))
    suffixed = {name for name in columns if re.search("_(mass|reply|error)$", name)}
    assert columns - suffixed <= named
    assert {name.rsplit("_", 1)[0] for name in suffixed} <= named


def test_links_lead_somewhere():
    for document in DOCUMENTS:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document}: {target}"


@pytest.mark.parametrize(
    ("name", "most"), [("shapes-flux", 12_000_000), ("shapes-judge", 16_000_000), ("shapes-clip", 2_000_000)]
)
def test_an_embedded_model_is_whole_and_small(name, most):
    folder = REPOSITORY / "resources/models" / name
    files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    sums = dict(line.split("  ")[::-1] for line in files.pop("SHA256SUMS").decode().splitlines())
    assert sum(map(len, files.values())) < most
    assert files.pop("README.md")
    assert sums == {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}
