"""Snakemake and its jobs without their start: nearly all that a small set takes is imports, and the tests make hundreds.

As a script it imports Snakemake once and then forks a process for each command that it reads, a line of JSON: `arguments`
of Snakemake, `folder` to work in, `env`, `out` and `err` (files for what it prints) and `timeout` in seconds. For each it
prints the exit status. `run` sends a command to such a process; everything that Snakemake does is its own.

Such a Snakemake starts its jobs' scripts by a stand-in for Python, which has each run in a process forked from one that has
imported the libraries of models, and nothing of this repository (`warm_jobs.py`). Tests that kill, count or watch processes
start Snakemake, and so its jobs, as a user does.
"""

import atexit
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import warm_jobs

_IMPORTING = 180  # seconds after which jobs import for themselves
LATER = ("nbformat", "pydantic", "smart_open")  # what a run imports besides


@cache
def _server() -> "subprocess.Popen[str]":
    folder = tempfile.mkdtemp(prefix="warm-")
    atexit.register(shutil.rmtree, folder)
    server = subprocess.Popen(
        [sys.executable, __file__, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/"
    )
    atexit.register(server.terminate)
    return server


def run(arguments: list[str], folder: Path, env: dict[str, str], timeout: float) -> "subprocess.CompletedProcess[str]":
    """What `python -m snakemake ARGUMENTS` in the folder gives. Raises TimeoutExpired after as many seconds."""
    server = _server()
    assert server.stdin and server.stdout
    with tempfile.NamedTemporaryFile("r") as out, tempfile.NamedTemporaryFile("r") as err:
        files = {"out": out.name, "err": err.name}
        asked = {"arguments": arguments, "folder": str(folder), "env": env, "timeout": timeout} | files
        server.stdin.write(json.dumps(asked) + "\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        if status == -signal.SIGALRM:
            raise subprocess.TimeoutExpired(arguments, timeout, out.read(), err.read())
        return subprocess.CompletedProcess(arguments, status, out.read(), err.read())


def _become_snakemake(asked: dict[str, Any], python: str) -> None:
    """Make this process what was asked for; returns when Snakemake does not. python: what starts its jobs."""
    from snakemake.cli import main

    os.setsid()
    signal.alarm(int(asked["timeout"]))  # ends the process by the signal
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["env"])
    for number, name, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, asked["out"], os.O_WRONLY),
        (2, asked["err"], os.O_WRONLY),
    ):
        os.dup2(os.open(name, flags), number)
    sys.path[0] = asked["folder"]  # as `python -m` has it
    sys.argv = ["snakemake", *asked["arguments"]]
    sys.executable = python
    main()


def _wait_for(file: Path) -> None:
    until = time.monotonic() + _IMPORTING
    while not file.exists() and time.monotonic() < until:
        time.sleep(0.1)


def _serve() -> None:
    folder = Path(sys.argv[1])
    python = warm_jobs.start(folder)
    from snakemake.cli import get_argument_parser

    get_argument_parser()  # imports the plugins
    for module in LATER:
        import_module(module)
    for line in sys.stdin:
        sys.stdout.flush()
        asked = json.loads(line)
        if python != sys.executable and "-n" not in asked["arguments"]:
            _wait_for(folder / warm_jobs.READY)  # else a first job would record what the imports of all take
        process = os.fork()
        if not process:
            _become_snakemake(asked, python)
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    _serve()
