"""Configurations: defaults, and one line that names key and remedy for everything that is wrong."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from darkroom.config import extensions, home
from darkroom.config.load import load_config, read_config_file
from darkroom.config.models import Config, is_folder_name
from darkroom.config.partitions import check_partitions
from darkroom.config.values import sections_of
from darkroom.errors import DarkroomError
from darkroom.run.jobs import requests_of
from darkroom.run.workflow import Workflow


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"prompt": "a"}\n')
    Path("model").mkdir()
    Path("rubric.yaml").write_text("images: []\n")
    os.mkfifo("fifo.jsonl")
    return tmp_path


@pytest.fixture
def forgotten_extensions():
    """An extension is run once in a process: what a test loaded is gone after it."""
    yield
    for name in [name for name in sys.modules if name.startswith(extensions.PREFIX)]:
        del sys.modules[name]


def config(text="{}"):
    base = {"prompts": "rows.jsonl", "generate": {"model": "./model"}}
    base["judge"] = {"model": "./model", "rubric": "rubric.yaml"}
    for key, value in yaml.safe_load(text).items():
        base[key] = base[key] | value if isinstance(value, dict) and isinstance(base.get(key), dict) else value
    return base


def test_defaults_are_filled_in_and_the_given_config_is_left_alone(folder):
    given = config()
    filled = load_config(given)
    assert given == config()
    written = filled.model_dump()
    assert set(written) == set(Config.model_fields)
    for key, section in sections_of(Config).items():
        assert set(written[key]) == (set() if key == "metrics" else set(section.model_fields))
    assert (filled.generate.width, filled.edit.width, filled.shards.size) == (1024, None, 100)


def test_every_key_has_a_default_and_a_description():
    def check(where, model):
        sections = sections_of(model)
        for name, field in model.model_fields.items():
            assert not field.is_required(), f"{where}{name}"
            assert name in sections or field.description, f"{where}{name}"
        for name, section in sections.items():
            check(f"{where}{name}.", section)

    check("", Config)


def test_a_checked_config_passes_the_check_as_it_is(folder):
    """A run writes it down, and `watch` reads it again."""
    filled = load_config(config("{edits: rows.jsonl, judge: {engine_args: {max_num_seqs: 8}, resources: {gpu: 2}}}"))
    assert load_config(json.loads(json.dumps(filled.model_dump()))) == filled


def test_an_empty_section_is_all_defaults(folder):
    assert load_config(config("shards:")).shards.size == 100
    export = load_config(config("export:")).export
    assert (export.formats, export.preferences.margin) == (["folder"], 0)
    export.formats.append("parquet")  # a default is nobody's own
    assert load_config(config("export:")).export.formats == ["folder"]


def test_whole_numbers_written_as_floats_are_whole_numbers(folder):
    filled = load_config(config("{samples_per_prompt: 2.0, generate: {width: 512.0, seeds: ['4', 2.0]}}"))
    assert (filled.generate.seeds, filled.samples_of("prompts"), filled.seed_of("edit")) == ([4, 2], 2, 0)
    found = filled.samples_per_prompt, filled.generate.width
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
        ("generate: {steps: 1.5}", "generate.steps: expected a whole number or null, got 1.5"),
        ("generate: {guidance: .nan}", "generate.guidance: expected a finite number, got nan"),
        ("generate: {guidance: -.inf}", "generate.guidance: expected a finite number, got -inf"),
        ("select: {images: {p_yes: .nan}}", "select.images.p_yes: expected a finite number, got nan"),
        ("select: {images: {p_yes: high}}", "select.images.p_yes: expected a number, got 'high'"),
        ("select: {images: 3}", "select.images: expected a section, got 3"),
        ("generate: 5", "generate: expected a section, got 5"),
        ("generate: {device: gpu}", "generate.device: expected one of auto, cuda, cpu, got 'gpu'"),
        ("seed: true", "seed: expected a whole number, got True"),
        ("seed: 1e3", "seed: expected a whole number, got '1e3'"),
        ("strict: 1", "strict: expected true or false, got 1"),
        ("generate: {seeds: [1, 2, 1]}", "generate.seeds: must not name anything twice, got [1, 2, 1]"),
        ("generate: {seeds: [1, -1]}", "generate.seeds.1: must be at least 0, got -1"),
        ("generate: {seeds: 4}", "generate.seeds: expected a list or null, got 4"),
        (
            "samples_per_prompt: 2\nedit: {seeds: [1, 2, 3]}",
            "edit.seeds: lists 3, and samples_per_prompt is 2; leave out one of them",
        ),
        (
            "edit: {image_format: {jpeg: 0}}",
            "edit.image_format: expected webp-lossless, {png: 0 to 9} or {jpeg: 1 to 100}, got {'jpeg': 0}",
        ),
        ("generate: {image_format: {gif: 1}}", "generate.image_format: expected webp-lossless, {png: 0 to 9} or"),
        ("generate: {image_format: webp}", "generate.image_format: expected webp-lossless"),
        ("shards: {size: 0}", "shards.size: must be at least 1, got 0"),
        ("judge: {top_p: 0}", "judge.top_p: must be above 0, got 0"),
        ("judge: {gpus: 0}", "judge.gpus: must be at least 1, got 0"),
        ("judge: {shards_per_job: 0}", "judge.shards_per_job: must be at least 1, got 0"),
        ("judge: {shards_per_job: 1001}", "judge.shards_per_job: must be at most 1000, got 1001"),
        ("judge: {shards_per_job: all}", "judge.shards_per_job: expected auto or a whole number, got 'all'"),
        ("judge: {engine: transformers, gpus: 2}", "judge.gpus: engine transformers uses one GPU"),
        ("results: ''", "results: must not be empty, got ''"),
        ("prompts: [rows.jsonl, b]", "prompts.1: no such file: b"),
        ("prompts: [rows.jsonl, rows.jsonl]", "prompts: names "),
        ("prompts: none/*.jsonl", "prompts: no file fits the pattern none/*.jsonl"),
        ("prompts: []", "prompts: "),
        ("prompts: 5", "prompts: expected text or a list or null, got 5"),
        ("rows: {preset: laion}", "rows.preset: expected one of null, dataflow, llava"),
        (
            "rows: {encoding: cp12525}",
            "rows.encoding: no encoding that Python knows: cp12525; some are cp1252, gb18030, shift_jis, utf-16",
        ),
        ("rows: {encoding: base64}", "rows.encoding: no encoding that Python knows: base64; some are"),
        ("rows: {edits: {encoding: no}}", "rows.edits.encoding: "),
        ("rows: {delimiter: ab}", "rows.delimiter: expected one character that is no quote and no line end, got 'ab'"),
        ("rows: {delimiter: '\"'}", "rows.delimiter: expected one character that is no quote and no line end"),
        ("rows: {root: gone}", "rows.root: no such folder: gone"),
        ("rows: {promts: caption}", "unknown key rows.promts; did you mean prompt?"),
        ("prompts: " + "x" * 300, "prompts: no such file: xxx"),
        ("prompts: ", "prompts and edits are both null; name a file of rows under at least one"),
        ("prompts: gone.jsonl", "prompts: no such file: gone.jsonl"),
        ("edits: gone.jsonl", "edits: no such file: gone.jsonl"),
        ("prompts: model", "prompts: not a file: model"),
        ("prompts: fifo.jsonl", "prompts: not a file: fifo.jsonl"),
        ("results: rows.jsonl", "results: not a folder: rows.jsonl"),
        ("results: rows.jsonl/deeper", "results: not a folder: rows.jsonl"),
        ("generate: {model: null}", "generate.model: must be given, for family auto needs one"),
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
        (
            "judge: {rubric: edits}",
            "judge.rubric: no such file: edits; those that come with Darkroom are default, defects,",
        ),
        (
            "judge: {min_pixels: 9000, max_pixels: 4096}",
            "judge.min_pixels: 9000 is above max_pixels, 4096; no picture could be both",
        ),
        (
            "judge: {min_pixels: 2000000}",
            "judge.min_pixels: 2000000 is above max_pixels, 1048576; no picture could be b",
        ),
    ],
)
def test_a_wrong_config_is_one_line_that_names_the_key(folder, text, message):
    with pytest.raises(DarkroomError) as error:
        load_config(config(text))
    assert str(error.value).startswith(f"config: {message}") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "p_yes: 50",
            "select.images.p_yes: the score goes from 0 to 1, so no picture reaches 50; name a value between",
        ),
        (
            "p_yes: 1.01",
            "select.images.p_yes: the score goes from 0 to 1, so no picture reaches 1.01; name a value between",
        ),
        ("p_yes: -1", "select.images.p_yes: the score goes from 0 to 1, so every picture that has a score reaches -1;"),
        (
            "prompt_alignment: 0.9",
            "select.images.prompt_alignment: the score goes from 1 to 10, so every picture that has",
        ),
        ("beauty: 1", "select.images: no metric gives a score beauty; there are p_yes"),
    ],
)
def test_a_threshold_outside_its_score_s_range_is_one_line(folder, text, message):
    given = config(f"select: {{images: {{{text}}}}}")
    del given["judge"]["rubric"]
    with pytest.raises(DarkroomError) as error:
        Workflow.open(given)
    assert str(error.value).startswith(f"config: {message}") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("select: {images: {where: p_yse > 1}}", "select.images.where: no column p_yse; did you mean p_yes?"),
        ("select: {images: {where: reason > 1}}", "select.images.where: Cannot compare values of type VARCHAR"),
        ("select: {images: {order_by: [p_yes, beauty]}}", "select.images.order_by: no column beauty; there are"),
        ("select: {images: {quota: {by: topic, each: 5}}}", "select.images.quota.by: no column topic; there are"),
        ("report: {yield_by: topic}", "report.yield_by: no column topic; there are"),
        ("scores: {worth: p_yes * }", "scores.worth: not an expression that DuckDB reads: syntax error"),
        ("scores: {worth: p_yes > 1}", "scores.worth: expected a number, and this gives true or false"),
        ("scores: {worth: p_yes * p_followed}", "scores.worth: no kind of picture has p_followed, p_yes as"),
        (
            "{scores: {worth: p_yes / 2}, select: {images: {worth: 2}}}",
            "select.images.worth: the score goes from 0 to 1",
        ),
    ],
)
def test_an_expression_that_does_not_fit_is_one_line_before_anything_runs(folder, text, message):
    given = config(text)
    del given["judge"]["rubric"]
    with pytest.raises(DarkroomError) as error:
        Workflow.open(given)
    assert str(error.value).startswith(f"config: {message}") and "\n" not in str(error.value)


def test_expressions_see_what_is_said_of_duplicates_where_that_is_asked_for(folder):
    given = config("select: {images: {distinct: duplicate_group, where: duplicate_distance is null}}")
    del given["judge"]["rubric"]
    with pytest.raises(DarkroomError, match=r"^config: select\.images\.where: no column duplicate_distance; "):
        Workflow.open(given)
    given["duplicates"] = {"by": "exact"}
    assert Workflow.open(given).duplicates is not None


def test_expressions_see_the_users_fields_and_change_the_tables_alone(folder):
    Path("rows.jsonl").write_text('{"prompt": "a", "category": "x", "Label": 1}\n')
    runs = []
    for text in (
        "{}",
        "select: {images: {where: category <> 'x' and Label > 0 and darkroom_label is null, p_yes: 0.5}}",
        "scores: {worth: p_yes / 2}",
    ):
        given = config(text)
        del given["judge"]["rubric"]
        runs.append(Workflow.open(given))
    plain, selected, computed = runs
    assert len({run.merge_digest for run in runs}) == 3
    assert (
        plain.lineage.shard_score_digests
        == selected.lineage.shard_score_digests
        == computed.lineage.shard_score_digests
    )
    # What is text in some rows is text; what is a number in these may be text in others.
    for where in ("category > 5", "Label = 'many' and category > 5"):
        given["select"] = {"images": {"where": where}}
        with pytest.raises(DarkroomError, match=r"select\.images\.where: Cannot compare values of type VARCHAR"):
            Workflow.open(given)
    given["select"] = {"images": {"where": "Label = 'many' or Label > 5"}}
    with pytest.raises(DarkroomError, match=r"select\.images\.where: Could not convert string 'many' to"):
        Workflow.open(given)
    given["select"] = {"images": {"where": "Label = 'many'"}}
    Workflow.open(given)
    assert "worth" in computed.catalogue.score_names("images") and computed.kinds()[0].formulas[0].text == "p_yes / 2"


def test_scores_of_the_gallery_that_no_metric_gives_are_one_line(folder):
    given = config("gallery: {scores: [p_yes, beauty]}")
    del given["judge"]["rubric"]
    with pytest.raises(DarkroomError) as error:
        Workflow.open(given)
    assert str(error.value).startswith("config: gallery.scores: no metric gives a score beauty; there are p_yes, ")
    assert "\n" not in str(error.value)
    given["gallery"]["scores"].pop()
    assert Workflow.open(given).gallery_about()["cards"] == ["p_yes"]


def test_a_list_of_seeds_says_how_many_images_there_are_and_which_edits_have_a_source(folder):
    rows = [{"id": "a", "prompt": "a"}, {"id": "b", "prompt": "b"}, {"id": "c", "prompt": "c", "samples": 4}]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    edits = [{"prompt": "red", "images": {"row": "a", "sample": sample}} for sample in (2, 3)]
    Path("edits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in edits))
    given = config("{edits: edits.jsonl, generate: {seeds: [5, 8, 2]}, edit: {model: ./model, family: flux-kontext}}")
    del given["judge"]["rubric"]
    run = Workflow.open(given)
    (shard,) = run.plans["images"].shards
    made = [(r.row, r.seed) for r in requests_of(run, "images", run.plans["images"].read(shard))]
    assert made == [(row, seed) for row in "ab" for seed in (5, 8, 2)] and run.requests("images", shard) == 6
    assert [plan.rows_rejected for plan in run.row_plans.values()] == [1, 1]
    assert (run.config.samples_of("edits"), run.settings()["generate"]["seeds of each row"]) == (1, "5, 8, 2")


# Each key that names a file or folder, and what of it is found in the folder $DATA/in.
PATHS = {
    "prompts: PATH/rows.jsonl": lambda config: config.prompts,
    "prompts: [PATH/rows.jsonl]": lambda config: config.prompts[0],
    "prompts: PATH/ro*.jsonl": lambda config: config.prompts[0],
    "edits: PATH/rows.jsonl": lambda config: config.edits,
    "rows: {root: PATH}": lambda config: config.rows.root,
    "rows: {edits: {root: PATH}}": lambda config: config.rows.edits.root,
    "results: PATH/new": lambda config: config.results,
    "labels: PATH/rows.jsonl": lambda config: config.labels,
    "container: PATH/rows.jsonl": lambda config: config.container,
    "extensions: [PATH/nothing.py]": lambda config: config.extensions[0],
    "generate: {model: PATH/model}": lambda config: config.generate.model,
    "generate: {model: a/b, local_dir: PATH/model}": lambda config: config.generate.local_dir,
    "generate: {cache_dir: PATH/new}": lambda config: config.generate.cache_dir,
    "{edits: rows.jsonl, edit: {model: PATH/model}}": lambda config: config.edit.model,
    "edit: {cache_dir: PATH/new}": lambda config: config.edit.cache_dir,
    "judge: {model: PATH/model}": lambda config: config.judge.model,
    "judge: {cache_dir: PATH/new}": lambda config: config.judge.cache_dir,
    "judge: {rubric: PATH/rubric.yaml}": lambda config: config.judge.rubric,
}


def naming(text, path):
    """A config that says `text`, with `path` for PATH."""
    return config(json.dumps(yaml.safe_load(text)).replace("PATH", path))


@pytest.mark.parametrize("text", PATHS)
def test_home_and_variables_are_expanded_in_every_path(folder, monkeypatch, text, forgotten_extensions):
    inside = folder / "in"
    (inside / "model").mkdir(parents=True)
    for name in ("rows.jsonl", "rubric.yaml", "nothing.py"):
        (inside / name).touch()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("DATA", str(folder))
    monkeypatch.setenv("IN", "in")
    for path in ("~/in", "$DATA/in", "${DATA}/$IN"):
        found = PATHS[text](load_config(naming(text, path) | {"edit": {"model": "./model"}} | naming(text, path)))
        assert found.startswith(f"{inside}")


@pytest.mark.parametrize("text", PATHS)
def test_a_variable_that_is_not_set_or_an_unknown_user_is_one_line(folder, monkeypatch, text):
    monkeypatch.setenv("EMPTY", "")
    for path, message in {
        "$NOT_SET_HERE/in": "the variable NOT_SET_HERE is not set; set it, or write the folder's name out",
        "${EMPTY}/in": "the variable EMPTY is not set; set it, or write the folder's name out",
        "~nobody-here/in": "there is no user nobody-here; a folder of this name is written ./~nobody-here",
    }.items():
        with pytest.raises(DarkroomError) as error:
            load_config(naming(text, path))
        assert re.fullmatch(rf"config: [a-z_.0]+: {re.escape(path)}\S*: {message}", str(error.value))


def test_signs_that_are_no_variable_stay(folder):
    assert load_config(config("results: 'a$/5$ b~'")).results == "a$/5$ b~"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("generate: {width: '8'}", "generate.width: must be at least 16, got 8"),
        ("generate: {steps: '1.5'}", "generate.steps: expected a whole number or null, got '1.5'"),
        ("generate: {guidance: '.nan'}", "generate.guidance: expected a finite number, got nan"),
        ("strict: '1'", "strict: expected true or false, got '1'"),
        ("judge: {engine_args: {max_model_len: '.inf'}}", "judge.engine_args.max_model_len: expected a whole number"),
        ("generate: {resources: {gpu: -1}}", "generate.resources.gpu: expected a whole number of at least 0, got -1"),
        ("judge: {resources: {threads: many}}", "judge.resources.threads: expected a whole number of at least 1, got"),
        ("edit: {resources: {slurm extra: x}}", "edit.resources.slurm extra: a resource is named with letters,"),
        ("edit: {resources: {slurm_extra: ''}}", "edit.resources.slurm_extra: must not be empty, got ''"),
        ("edit: {resources: {runtime: 1.5}}", "edit.resources.runtime: expected a whole number or text, got 1.5"),
        ("edit: {resources: {runtime: true}}", "edit.resources.runtime: expected a whole number or text, got True"),
        ("edit: {resources: [a]}", "edit.resources: expected a section, got ['a']"),
        ("metrics: {beauty: {}}", "unknown key metrics.beauty; known here: "),
        ("extensions: gone.py", "extensions: expected a list, got 'gone.py'"),
        ("extensions: [gone.py]", "extensions.0: no such file: gone.py"),
        ("extensions: [model]", "extensions.0: not a file: model"),
        ("extensions: [1]", "extensions.0: expected text, got 1"),
        ("generate: {family: flux-kontext}", "generate.family: flux-kontext edits images; use flux, flux2-klein, "),
        ("edit: {family: flux}", "edit.family: flux makes images from text alone; use flux-kontext, flux2-klein, "),
        ("generate: {steps: '" + "[" * 5000 + "'}", "generate.steps: expected a whole number or null, got '[[["),
        ("{generate: {width: 1}, promts: x}", "unknown key promts; did you mean prompts?"),
    ],
)
def test_values_as_text_extensions_and_resources_are_checked_too(folder, text, message):
    test_a_wrong_config_is_one_line_that_names_the_key(folder, text, message)


def test_text_is_read_as_yaml_where_no_text_is_wanted(folder):
    """Snakemake hands over what is below a section on its command line as text."""
    given = """
    edits: 'null'
    seed: '7'
    strict: 'true'
    retry_failed: 'true'
    generate: {steps: '40', width: '512.0', guidance: '2', true_cfg: '1.5', compile: 'false', cache: 'null', revision: ''}
    edit: {width: '64', height: 'null'}
    judge: {engine_args: {max_num_seqs: '16', quantization: fp8}, resources: {mem_mb: '4000', runtime: 2h}}
    select: {images: {p_yes: '0.5'}, per_row: '2'}
    export: {name: '2024', formats: [folder], preferences: {margin: '0.1'}}
    """
    filled = load_config(config(given))
    assert (filled.edits, filled.seed, filled.strict, filled.retry_failed) == (None, 7, True, True)
    generate = {"steps": 40, "width": 512, "guidance": 2, "true_cfg": 1.5, "compile": False, "cache": None}
    assert filled.generate.model_dump(include=set(generate)) == generate and filled.generate.revision is None
    assert [type(getattr(filled.generate, key)) for key in ("steps", "width", "guidance")] == [int, int, int]
    assert (filled.edit.width, filled.edit.height) == (64, None)
    assert filled.judge.engine_args == {"max_num_seqs": 16, "quantization": "fp8"}
    assert filled.judge.resources == {"mem_mb": 4000, "runtime": "2h"}
    assert filled.select.model_dump() == {"images": {"p_yes": 0.5}, "edited": {}, "per_row": 2, "labels": True}
    assert (filled.export.name, filled.export.preferences.margin) == ("2024", 0.1)


def test_numbers_stay_as_they_are_written(folder):
    """2 and 2.0 are two recipes; a check must not turn one into the other."""
    filled = load_config(config("{generate: {guidance: 2, true_cfg: 2.0}, select: {images: {p_yes: 1}}}"))
    found = filled.generate.guidance, filled.generate.true_cfg, filled.select.least_of("images")["p_yes"]
    assert [type(value) for value in found] == [int, float, int]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: 1\nb: [1, 2\nc: 3\n", "my.yaml, line 3: not valid YAML: expected ',' or ']'"),
        (b"a: 1\n\tb: 2\n", "my.yaml, line 2: not valid YAML: found character '\\t' that cannot start any token"),
        (b"a: b: c\n", "my.yaml, line 1: not valid YAML: mapping values are not allowed here"),
        (
            b"prompts: *.jsonl\n",
            "my.yaml, line 1: not valid YAML: expected alphabetic or numeric character, but found '.'; a value that begins with *"
            " stands in quotes",
        ),
        (b"a: {[1]: 2}\n", "my.yaml, line 1: not valid YAML: found unhashable key"),
        (b"a: !!python/object/apply:os.system [ls]\n", "my.yaml, line 1: not valid YAML: could not determine a con"),
        (b"a: 2024-13-45\n", "my.yaml: not valid YAML: month must be in 1..12"),
        (b"a: \x00\n", "my.yaml: not valid YAML: unacceptable character #x0000"),
        (b"a: \xff\n", "my.yaml: not UTF-8 text; save it as UTF-8"),
        (b"[" * 3000, "my.yaml: not valid YAML: "),
        (b"- a\n- b\n", "my.yaml: expected keys with values, such as `prompts: rows.jsonl`"),
        (b"", "my.yaml: expected keys with values, such as `prompts: rows.jsonl`"),
        (None, "my.yaml: No such file or directory"),
    ],
)
def test_a_config_file_that_cannot_be_read_is_one_line_with_its_line(folder, content, message):
    if content is not None:
        Path("my.yaml").write_bytes(content)
    with pytest.raises(DarkroomError) as error:
        read_config_file("my.yaml")
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_a_config_file_is_read_as_it_stands(folder):
    Path("my.yaml").write_text("prompts: rows.jsonl\ngenerate:\n  steps: 3\n")
    assert read_config_file("my.yaml") == {"prompts": "rows.jsonl", "generate": {"steps": 3}}


def test_what_comes_with_darkroom_is_found_from_any_folder(folder):
    assert (home() / "config/rubrics/default.yaml").is_file() and (home() / "resources/gallery").is_dir()
    given = config()
    del given["judge"]["rubric"]
    assert load_config(given).judge.rubric == str(home() / "config/rubrics/default.yaml")
    given["judge"]["rubric"] = "safety"
    assert load_config(given).judge.rubric == str(home() / "config/rubrics/safety.yaml")
    Path("safety").write_text("images: []")  # a file of one's own comes first
    assert load_config(given, [Path.cwd(), home()]).judge.rubric == str(Path.cwd() / "safety")


def test_reading_the_config_is_cheap_at_parse_time():
    code = "import time; import darkroom.config.load as load; import sys; "
    code += (
        "heavy = {'torch', 'numpy', 'pandas', 'pyarrow', 'jsonschema'} & set(sys.modules); assert not heavy, heavy; "
    )
    code += "print(time.process_time())"
    env = os.environ | {"PYTHONPATH": str(home() / "scripts")}
    runs = [subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True) for _ in range(3)]
    assert min(float(run.stdout) for run in runs) < 0.4


def test_what_is_not_used_need_not_be_there(folder):
    load_config(config("edit: {model: ./gone}"))
    with pytest.raises(DarkroomError, match=r"edit\.model: no such folder"):
        load_config(config("{edits: rows.jsonl, edit: {model: ./gone}}"))


def test_files_are_found_in_the_first_root_that_has_them(folder, tmp_path):
    for root in ("one", "two"):
        (tmp_path / root / "model").mkdir(parents=True)
        (tmp_path / root / "rubric.yaml").touch()
    (tmp_path / "two" / "rows.jsonl").touch()
    filled = load_config(config(), [tmp_path / "one", tmp_path / "two"])
    assert filled.prompts == str(tmp_path / "two/rows.jsonl")
    assert filled.generate.model == str(tmp_path / "one/model")


def test_folders_and_hub_names_are_told_apart(folder):
    Path("owner/name").mkdir(parents=True)
    assert [is_folder_name(name) for name in ("black-forest-labs/FLUX.1-dev", "Qwen/Qwen2.5-VL-7B-Instruct")] == [
        False
    ] * 2
    for name in ("./a/b", "/a/b", "../b", "a/b/c", "gpt2", "owner/name", "~/b", "a\nb/c"):
        assert is_folder_name(name), name


LIMITS = ("max_runtime", "max_mem_mb", "max_gpu", "available_gpu_models")


def test_the_partitions_that_the_profile_comes_with_are_right():
    check_partitions(home() / "profiles/slurm/partitions.yaml", LIMITS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("partitions: {gpu: {max_gpus: 8}}", "p.yaml: partition gpu: unknown limit max_gpus; did you mean max_gpu?"),
        (
            "partitions: {gpu: {cluster: a, zzz: 8}}",
            "p.yaml: partition gpu: unknown limit zzz; known: available_gpu_models,",
        ),
        (
            "partitions: {gpu: }",
            "p.yaml: expected `partitions:` and below it a line for each, such as `gpu: {max_gpu: 8}`",
        ),
        ("partitions: [gpu]", "p.yaml: expected `partitions:`"),
        ("gpu: {max_gpu: 8}", "p.yaml: expected `partitions:`"),
        ("partitions:\n  gpu: {max_gpu: 8\n", "p.yaml, line 3: not valid YAML: "),
    ],
)
def test_a_wrong_file_of_partitions_is_one_line(folder, text, message):
    Path("p.yaml").write_text(text)
    with pytest.raises(DarkroomError) as error:
        check_partitions("p.yaml", LIMITS)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
