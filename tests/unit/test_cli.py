"""The command takes configs as Snakemake does, and says in one line what is wrong with what it was told."""

import os
import re
import subprocess
import sys

import pytest
import yaml
from conftest import REPOSITORY
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
    assert read_config(paths, SETTINGS) == expected


def test_without_a_file_it_is_the_repository_s():
    default = yaml.safe_load((REPOSITORY / "config/config.yaml").read_text())
    assert read_config([], ["seed=7"]) == default | {"seed": 7}


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


def test_every_command_has_its_help_and_stands_in_the_usage(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    commands = re.findall(r"^    (\w+) ", capsys.readouterr().out, re.M)
    assert {"plan", "watch", "verify", "prune", "replay", "failures", "summary", "fetch"} == set(commands)
    told = (REPOSITORY / "docs/usage.md").read_text()
    for command in commands:
        with pytest.raises(SystemExit) as left:
            main([command, "--help"])
        assert left.value.code == 0 and "--configfile" in capsys.readouterr().out
        assert f"darkroom {command}" in told


def test_an_error_is_one_line_and_exit_code_1(tmp_path):
    (tmp_path / "c.yaml").write_text("promts: x.jsonl\n")
    command = [sys.executable, "-m", "darkroom", "plan", "--configfile", "c.yaml"]
    env = os.environ | {"PYTHONPATH": str(REPOSITORY / "scripts")}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: config: unknown key promts; did you mean prompts?\n"
