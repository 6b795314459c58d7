"""The stand-in by which the tests' runs start their jobs does what Python does."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from conftest import REPOSITORY
from warm_jobs import CARD

pytestmark = pytest.mark.skipif(CARD.exists(), reason="jobs start without it where there is a card")

SERVER = """
import sys
sys.path[0] = sys.argv[1]
from pathlib import Path
from warm_jobs import start
print(start(Path(sys.argv[2]), ["json", "no_such_module"]), flush=True)
sys.stdin.read()
"""
SCRIPTS = {
    "told": "import os, sys; print(sys.argv, os.getcwd(), os.environ['MINE'], sys.path[0], sys.executable, __name__)",
    "read": "import sys; print(sys.stdin.read()); print('error', file=sys.stderr)",
    "status": "import sys; sys.exit(3)",
    "words": "import sys; sys.exit('words')",
    "nothing": "import sys; sys.exit()",
    "raised": "def f():\n    raise ValueError('wrong')\nf()",
    "killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "ending": "import atexit; atexit.register(print, 'at the end')",
}
WAITING = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print(os.getpid(), flush=True)
time.sleep(60)
"""


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    env = {name: value for name, value in os.environ.items() if name != "DARKROOM_TEST_ALL"}
    folder = tmp_path_factory.mktemp("warm")
    command = [sys.executable, "-c", SERVER, str(REPOSITORY / "tests"), str(folder)]
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        yield server.stdout.readline().strip()
        server.stdin.close()


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_does_what_it_does_with_python(stand_in, tmp_path, name):
    (tmp_path / "script.py").write_text(SCRIPTS[name])

    def done(python):
        command = [python, str(tmp_path / "script.py"), "one", "狐"]
        env = os.environ | {"MINE": "狐"}
        run = subprocess.run(command, cwd=tmp_path, env=env, input="sent", capture_output=True, text=True, timeout=60)
        return run.returncode, run.stdout, run.stderr.splitlines()[-1:]

    assert done(stand_in) == done(sys.executable)


def test_signals_reach_the_script_and_it_ends_with_its_stand_in(stand_in, tmp_path):
    (tmp_path / "script.py").write_text(WAITING)
    for number, status in ((signal.SIGTERM, 7), (signal.SIGKILL, -signal.SIGKILL)):
        started = subprocess.Popen([stand_in, str(tmp_path / "script.py")], stdout=subprocess.PIPE, text=True)
        script = int(started.stdout.readline())
        assert script != started.pid
        started.send_signal(number)
        assert started.wait(30) == status
        until = time.monotonic() + 30
        while os.path.exists(f"/proc/{script}"):
            assert time.monotonic() < until
            time.sleep(0.05)


def test_python_that_is_set_otherwise_starts_anew(stand_in, tmp_path):
    (tmp_path / "script.py").write_text(
        "import os, sys; print(os.getppid(), 'json' in sys.modules, sys.flags.optimize)"
    )
    env = os.environ | {"PYTHONOPTIMIZE": "1"}
    run = subprocess.run([stand_in, str(tmp_path / "script.py")], env=env, capture_output=True, text=True, check=True)
    assert re.fullmatch(rf"{os.getpid()} False 1\n", run.stdout)


def test_a_job_finds_modules_where_its_own_path_says(stand_in, tmp_path):
    (tmp_path / "found.py").write_text("WHERE = __file__")
    script = tmp_path / "scripts/script.py"
    script.parent.mkdir()
    script.write_text("import os, sys, found; print(found.WHERE, sys.path); print(os.getppid())")
    env = os.environ | {"PYTHONPATH": f"{tmp_path / 'none'}{os.pathsep}{tmp_path}"}

    def done(python):
        run = subprocess.run([python, str(script)], env=env, capture_output=True, text=True, check=True)
        return run.stdout.splitlines()

    kept, anew = done(stand_in), done(sys.executable)
    assert kept[0] == anew[0] and str(tmp_path / "found.py") in kept[0]
    assert kept[1] != anew[1] == str(os.getpid())
    (tmp_path / "sitecustomize.py").touch()  # which a process that has started does not read
    assert done(stand_in) == anew
