"""The command takes configs as Snakemake does, and says in one line what is wrong with what it was told."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY
from darkroom.config.load import names_rows
from darkroom.errors import DarkroomError
from darkroom.tools.cli import main, read_config
from snakemake.cli import parse_config
from snakemake.common.configfile import load_configfile
from snakemake.utils import update_config

FILES = (
    {"prompts": "a.jsonl", "generate": {"steps": 4, "width": 64}, "select": {"images": {"p_yes": 0.5}}},
    {"generate": {"steps": 8}, "edits": None, "export": {"formats": ["folder", "parquet"]}},
    {"export": {"formats": ["parquet"]}, "generate": None},
)
SETTINGS = ["results=trial", "samples_per_prompt=2", "generate={height: 32}", "strict=True", "labels=a=b.csv"]


def darkroom(folder, *arguments):
    """The command, in a folder."""
    env = os.environ | {"PYTHONPATH": str(REPOSITORY / "scripts")}
    command = [sys.executable, "-m", "darkroom", *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def written(folder, *contents):
    paths = [folder / f"{number}.yaml" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_text(yaml.safe_dump(content))
    return paths


@pytest.mark.parametrize("number", [1, 2, 3])
def test_configs_are_merged_as_snakemake_merges_them(tmp_path, number):
    paths = written(tmp_path, *FILES[:number])
    expected = {}
    for path in paths:
        update_config(expected, load_configfile(path))
    update_config(expected, parse_config(SETTINGS))
    expected["generate"]["height"] = int(expected["generate"]["height"])  # Snakemake leaves numbers in braces as text
    assert read_config(paths, SETTINGS) == (expected, False)


def test_without_rows_it_is_the_demonstration(tmp_path):
    default = yaml.safe_load((REPOSITORY / "config/config.yaml").read_text())
    assert read_config([], ["seed=7"]) == (default | {"seed": 7}, True)
    assert read_config([], ["edits=null"]) == (default | {"edits": None}, True)
    assert read_config(written(tmp_path, {"seed": 7}), []) == (default | {"seed": 7}, True)
    for own in ({"prompts": "a.jsonl"}, {"prompts": None, "edits": None}):
        assert read_config(written(tmp_path, own), ["seed=7"]) == (own | {"seed": 7}, False)


def test_the_demonstration_says_that_it_is_one(tmp_path):
    done = darkroom(tmp_path, "plan")
    assert done.returncode == 0 and done.stdout.startswith("stage ")
    assert done.stderr.startswith("this is the demonstration, config/config.yaml, since no config names rows;")


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (["prompts=a.jsonl"], "prompts"),
        (["prompts=[a.jsonl, b.jsonl]", "seed=1"], "prompts"),
        (["edits=a.jsonl", "prompts=null"], "edits"),
        (["edits=a.jsonl", "prompts=b.jsonl", "results=mine"], "prompts and edits"),
    ],
)
def test_rows_on_the_command_line_need_a_config_file(settings, names):
    with pytest.raises(DarkroomError) as raised:
        read_config([], settings)
    assert str(raised.value).startswith(f"--config names {names} without a config file")
    assert "--configfile my.yaml" in str(raised.value) and "\n" not in str(raised.value)


def test_a_null_of_snakemake_s_command_line_is_one():
    given = parse_config(["edits=null"])
    assert given["edits"] is not None  # it is text
    assert not names_rows(given, has_file=False)


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        (b"a: [", [], r"0.yaml, line 1: not valid YAML"),
        (b"- a\n", [], r"0.yaml: expected keys with values"),
        (b"\xff\xfe\x00", [], r"0.yaml: not UTF-8 text"),
        (b"a: 1", ["b"], r"--config b: expected KEY=VALUE"),
        (b"a: 1", ["b=["], r"--config b=\[: while parsing"),
        (None, [], r"0.yaml: No such file or directory"),
    ],
)
def test_what_is_no_config_is_one_line(tmp_path, content, settings, message):
    path = tmp_path / "0.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DarkroomError, match=message) as raised:
        read_config([path], settings)
    assert "\n" not in str(raised.value)


def test_make_shows_the_line_of_a_config_that_is_missing(tmp_path):
    """The command is that of the environment in which the tests run."""
    (tmp_path / "bin").symlink_to(Path(sys.executable).parent)
    command = ["make", "-s", "-o", f"{tmp_path}/.ready", f"VENV={tmp_path}", "plan", "CONFIG=nope.yaml"]
    env = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    env["PYTHONPATH"] = str(REPOSITORY / "scripts")
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines()[0] == "error: nope.yaml: No such file or directory"


def test_a_config_in_json_may_be_indented_by_tabs(tmp_path):
    (tmp_path / "c.json").write_text('{\n\t"prompts": "a.jsonl",\n\t"seed": 1\n}\n')
    assert read_config([tmp_path / "c.json"], []) == (load_configfile(tmp_path / "c.json"), False)


def test_every_command_has_its_help_and_stands_in_the_usage(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    commands = re.findall(r"^    (\w+) ", capsys.readouterr().out, re.M)
    assert {"plan", "preview", "trial", "watch", "verify", "prune", "replay", "failures", "summary", "fetch"} == set(commands)
    told = (REPOSITORY / "docs/usage.md").read_text()
    for command in commands:
        with pytest.raises(SystemExit) as left:
            main([command, "--help"])
        assert left.value.code == 0 and "--configfile" in capsys.readouterr().out
        assert f"darkroom {command}" in told


def test_an_error_is_one_line_and_exit_code_1(tmp_path):
    (tmp_path / "c.yaml").write_text("promts: x.jsonl\n")
    done = darkroom(tmp_path, "plan", "--configfile", "c.yaml")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: config: unknown key promts; did you mean prompts?\n"


@pytest.mark.parametrize("name", ["CONFIG", "config"])
@pytest.mark.parametrize("target", ["plan", "verify", "prune", "watch", "failures", "report"])
def test_make_takes_the_config_in_capitals_or_not(tmp_path, target, name):
    command = ["make", "-n", "-o", f"{tmp_path}/.ready", f"VENV={tmp_path}", target, f"{name}=my.yaml"]
    env = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("--configfile my.yaml")
