"""Files are whole or not there, and what a killed writer left goes with the next one."""

import subprocess
import sys

import pytest
from conftest import REPOSITORY
from darkroom.exports.base import replace_files
from darkroom.files import replacing, size_of, target_of

KILLED = """
import os, signal, sys
from darkroom.files import replacing
with replacing(sys.argv[1]) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def kill_a_writer(path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=REPOSITORY / "scripts")
    assert done.returncode == -9


def write(path, text, **options):
    with replacing(path, **options) as temporary:
        temporary.write_text(text)


@pytest.mark.parametrize("before", ["old", None])
def test_what_killed_writers_left_goes_with_the_next(tmp_path, before):
    path = tmp_path / "deeper" / "3cd978ff64ca.parquet"
    if before:
        write(path, before)
    for _ in range(2):  # each under a name of its own
        kill_a_writer(path)
    assert (path.read_text() if path.exists() else None) == before
    (left,) = (other for other in path.parent.iterdir() if other != path)
    assert target_of(left) == path and size_of(left) == 2 * len("half")
    write(path, "new")
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("apart", [True, False])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, apart):
    path = tmp_path / "scores.parquet"
    write(path, "old", apart=apart)
    with pytest.raises(KeyboardInterrupt), replacing(path, apart=apart) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_that_fails_spares_the_file_of_another(tmp_path):
    path = tmp_path / "scores.parquet"
    kill_a_writer(path)  # or one on another node that is still at it
    with pytest.raises(ValueError), replacing(path):
        raise ValueError
    assert [size_of(left) for left in tmp_path.iterdir()] == [len("half")]


def test_what_is_no_folder_of_a_killed_writer_is_what_it_is(tmp_path):
    for name in ("3cd978ff64ca.parquet", ".hidden", "video.part"):
        assert target_of(tmp_path / name) == tmp_path / name


def test_an_export_removes_what_a_killed_one_left(tmp_path):
    kill_a_writer(tmp_path / ".train-00001.parquet")
    write(tmp_path / ".train-00000.parquet", "whole")
    replace_files(tmp_path, [tmp_path / ".train-00000.parquet"], ["train-00000-of-00001.parquet"])
    assert [path.name for path in tmp_path.iterdir()] == ["train-00000-of-00001.parquet"]
