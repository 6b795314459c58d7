"""Configurations: defaults, and one line that names key and remedy for everything that is wrong."""

import os
from pathlib import Path

import pytest
import yaml
from darkroom.config.load import is_folder_name, load_config
from darkroom.errors import DarkroomError

SCHEMA = Path(__file__).resolve().parents[2] / "workflow/schemas/config.schema.yaml"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"prompt": "a"}\n')
    Path("model").mkdir()
    Path("rubric.yaml").write_text("images: []\n")
    os.mkfifo("fifo.jsonl")
    return tmp_path


def config(text="{}"):
    base = {"prompts": "rows.jsonl", "generate": {"model": "./model"}}
    base["judge"] = {"model": "./model", "rubric": "rubric.yaml"}
    for key, value in yaml.safe_load(text).items():
        base[key] = base[key] | value if isinstance(value, dict) and isinstance(base.get(key), dict) else value
    return base


def test_defaults_are_filled_in_and_the_given_config_is_left_alone(folder):
    given = config()
    filled = load_config(given, SCHEMA)
    assert given == config()
    properties = yaml.safe_load(SCHEMA.read_text())["properties"]
    for key, sub in properties.items():
        assert key in filled
        if "properties" in sub:
            assert list(sub["properties"]) != [] and set(filled[key]) == set(sub["properties"])
    assert (filled["generate"]["width"], filled["edit"]["width"], filled["shards"]["size"]) == (1024, None, 100)


def test_every_key_has_a_default_and_a_description():
    def check(where, sub):
        for name, value in sub.get("properties", {}).items():
            assert "default" in value, f"{where}{name}"
            assert value["type"] == "object" if "properties" in value else "description" in value, f"{where}{name}"
            check(f"{where}{name}.", value)

    check("", yaml.safe_load(SCHEMA.read_text()))


def test_an_empty_section_is_all_defaults(folder):
    assert load_config(config("shards:"), SCHEMA)["shards"] == {"size": 100}
    export = load_config(config("export:"), SCHEMA)["export"]
    assert (export["formats"], export["preferences"]["margin"]) == (["folder"], 0)
    export["formats"].append("parquet")  # a default is nobody's own
    assert load_config(config("export:"), SCHEMA)["export"]["formats"] == ["folder"]


def test_whole_numbers_written_as_floats_are_whole_numbers(folder):
    filled = load_config(config("{samples_per_prompt: 2.0, generate: {width: 512.0}}"), SCHEMA)
    found = filled["samples_per_prompt"], filled["generate"]["width"]
    assert found == (2, 512) and all(type(value) is int for value in found)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("promts: x", "unknown key promts; did you mean prompts?"),
        ("generate: {stesp: 3}", "unknown key generate.stesp; did you mean steps?"),
        ("generate: {zzz: 3}", "unknown key generate.zzz; known here: attention, batch_size, cache"),
        ("select: {image: {}}", "unknown key select.image; did you mean images?"),
        ("1: x", "unknown key 1; a key is text"),
        ("{1: x, on: y}", "unknown key 1; a key is text"),
        ("generate: {on: y}", "unknown key generate.True; a key is text"),
        ("generate: {width: -64}", "generate.width: must be at least 16, got -64"),
        ("generate: {width: 9000}", "generate.width: must be at most 8192, got 9000"),
        ("generate: {width: wide}", "generate.width: expected a whole number or null, got 'wide'"),
        ("generate: {steps: 1.5}", "generate.steps: expected a whole number, got 1.5"),
        ("generate: {guidance: .nan}", "generate.guidance: expected a finite number, got nan"),
        ("generate: {guidance: -.inf}", "generate.guidance: expected a finite number, got -inf"),
        ("select: {images: {p_yes: .nan}}", "select.images.p_yes: expected a finite number, got nan"),
        ("select: {images: {p_yes: high}}", "select.images.p_yes: expected a number, got 'high'"),
        ("select: {images: }", "select.images: expected a section, got null"),
        ("generate: 5", "generate: expected a section, got 5"),
        ("generate: {device: gpu}", "generate.device: expected one of auto, cuda, cpu, got 'gpu'"),
        ("seed: true", "seed: expected a whole number, got True"),
        ("seed: 1e3", "seed: expected a whole number, got '1e3'"),
        ("strict: 1", "strict: expected true or false, got 1"),
        ("shards: {size: 0}", "shards.size: must be at least 1, got 0"),
        ("judge: {top_p: 0}", "judge.top_p: must be above 0, got 0"),
        ("judge: {gpus: 0}", "judge.gpus: must be at least 1, got 0"),
        ("judge: {engine: transformers, gpus: 2}", "judge.gpus: engine transformers uses one GPU"),
        ("results: ''", "results: must not be empty, got ''"),
        ("prompts: [a, b]", "prompts: expected text or null, got ['a', 'b']"),
        ("prompts: " + "x" * 300, "prompts: no such file: xxx"),
        ("prompts: ", "prompts and edits are both null; name a file of rows under at least one"),
        ("prompts: gone.jsonl", "prompts: no such file: gone.jsonl"),
        ("edits: gone.jsonl", "edits: no such file: gone.jsonl"),
        ("prompts: model", "prompts: not a file: model"),
        ("prompts: fifo.jsonl", "prompts: not a file: fifo.jsonl"),
        ("results: rows.jsonl", "results: not a folder: rows.jsonl"),
        ("results: rows.jsonl/deeper", "results: not a folder: rows.jsonl"),
        ("generate: {model: ./gone}", "generate.model: no such folder: ./gone (a hub model is written owner/name)"),
        ("generate: {model: flux}", "generate.model: no such folder: flux (a hub model is written owner/name)"),
        ("generate: {model: ./rows.jsonl}", "generate.model: not a folder: ./rows.jsonl"),
        ("generate: {model: a/b, local_dir: gone}", "generate.local_dir: no such folder: gone"),
        ("export: {formats: [tfrecord]}", "export.formats.0: expected one of folder, imagefolder, parquet, webdataset"),
        ("export: {formats: parquet}", "export.formats: expected a list, got 'parquet'"),
        (
            "export: {formats: [folder, folder]}",
            "export.formats: must not name anything twice, got ['folder', 'folder']",
        ),
        ("export: {name: ../x}", "export.name: may hold letters, digits, . _ and -, at most 96 characters, got '../x'"),
        ("export: {acknowledge_licences: true}", "export.acknowledge_licences: expected a list, got True"),
        ("container: gone.sif", "container: no such file: gone.sif (an address has a ://)"),
        ("judge: {rubric: gone.yaml}", "judge.rubric: no such file: gone.yaml"),
    ],
)
def test_a_wrong_config_is_one_line_that_names_the_key(folder, text, message):
    with pytest.raises(DarkroomError) as error:
        load_config(config(text), SCHEMA)
    assert str(error.value).startswith(f"config: {message}") and "\n" not in str(error.value)


def test_what_is_not_used_need_not_be_there(folder):
    load_config(config("edit: {model: ./gone}"), SCHEMA)
    with pytest.raises(DarkroomError, match=r"edit\.model: no such folder"):
        load_config(config("{edits: rows.jsonl, edit: {model: ./gone}}"), SCHEMA)


def test_files_are_found_in_the_first_root_that_has_them(folder, tmp_path):
    for root in ("one", "two"):
        (tmp_path / root / "model").mkdir(parents=True)
        (tmp_path / root / "rubric.yaml").touch()
    (tmp_path / "two" / "rows.jsonl").touch()
    filled = load_config(config(), SCHEMA, [tmp_path / "one", tmp_path / "two"])
    assert filled["prompts"] == str(tmp_path / "two/rows.jsonl")
    assert filled["generate"]["model"] == str(tmp_path / "one/model")


def test_folders_and_hub_names_are_told_apart(folder):
    Path("owner/name").mkdir(parents=True)
    assert [is_folder_name(name) for name in ("black-forest-labs/FLUX.1-dev", "Qwen/Qwen2.5-VL-7B-Instruct")] == [
        False
    ] * 2
    for name in ("./a/b", "/a/b", "../b", "a/b/c", "gpt2", "owner/name", "~/b", "a\nb/c"):
        assert is_folder_name(name), name
