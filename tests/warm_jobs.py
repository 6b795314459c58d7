"""Scripts of jobs in processes that have imported the libraries of models already.

`start` begins a server, and gives the path of a stand-in for Python that has a script run by it: in a process of its own, forked for
it, with the stand-in's arguments, folder, environment and open files, which is sent the stand-in's signals and ends with it.
Anything else, and a script for which Python is set otherwise by its environment, is run by Python itself.
"""

import atexit
import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

# What jobs import of them, here and there by way of the embedded models' own files.
MODULES = """
    torch torchvision pydantic yaml psutil snakemake.script qwen_vl_utils xgrammar.contrib.hf
    diffusers.pipelines.flux.pipeline_flux diffusers.pipelines.flux.pipeline_flux_kontext
    diffusers.models.autoencoders.autoencoder_tiny transformers.models.clip.tokenization_clip
    transformers.models.auto.modeling_auto transformers.models.auto.processing_auto transformers.generation
    transformers.models.qwen2_5_vl.modeling_qwen2_5_vl transformers.models.qwen2_5_vl.processing_qwen2_5_vl
    vllm.entrypoints.llm vllm.model_executor.models.qwen2_5_vl vllm.v1.core.sched.scheduler vllm.v1.worker.cpu_worker
    vllm.v1.attention.backends.cpu_attn
""".split()
# As a job has it before it imports them.
QUIET = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
QUIET |= {"TQDM_DISABLE": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
QUIET |= {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
CARD = Path("/dev/nvidiactl")  # a card's driver, which does not survive a fork
READY = "ready"
PATH = "PYTHONPATH"  # a job's own, of which each is told
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGURG, signal.SIGHUP)

STAND_IN = """#!{python} -IS
import json, os, signal, socket, sys
settings = {{name: value for name, value in os.environ.items() if name.startswith("PYTHON")}}
path = settings.pop("PYTHONPATH", "").split(os.pathsep)
itself = settings != {settings!r} or any(os.path.exists(os.path.join(folder, "sitecustomize.py")) for folder in path)
if itself or len(sys.argv) < 2 or not sys.argv[1].endswith(".py"):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
with socket.socket(socket.AF_UNIX) as line:
    line.connect({path!r})
    asked = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)], ensure_ascii=True).encode()
    socket.send_fds(line, [len(asked).to_bytes(8, "big")], [0, 1, 2])
    line.sendall(asked)
    for number in {signals}:
        signal.signal(number, lambda number, _: line.send(bytes([number])))
    status = int(line.makefile().readline())
if status < 0:
    if -status in {signals}:
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


def start(folder: Path, modules: Sequence[str] = MODULES) -> str:
    """The path of the stand-in, in a folder that stays; the server ends with this process. `READY` in the folder: it has imported all.

    This Python instead where there is a card, and where the tests run at full size (`make test-all`): there jobs start as a user's.
    modules: what it imports; those that are not there are left out.
    """
    if CARD.exists() or os.environ.get("DARKROOM_TEST_ALL"):
        return sys.executable
    path, stand_in = folder / "jobs", folder / "python"
    settings = {name: value for name, value in os.environ.items() if name.startswith("PYTHON") and name != PATH}
    of_this = {"python": sys.executable, "settings": settings, "path": str(path), "signals": tuple(map(int, SIGNALS))}
    stand_in.write_text(STAND_IN.format(**of_this))
    stand_in.chmod(0o755)
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen(64)
    above, below = os.pipe()
    if not os.fork():
        os.close(below)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)  # what is written to stdout is for whoever asked for a Snakemake
        _import(modules)
        (folder / READY).touch()
        _serve(server, above)
        os._exit(0)
    os.close(above)
    os.set_inheritable(below, False)
    server.close()
    return str(stand_in)


def _import(modules: Sequence[str]) -> None:
    """Import what there is of these, as a job would."""
    os.environ.update(QUIET)
    for module in modules:
        with contextlib.suppress(ImportError):
            import_module(module)
    gc.freeze()  # what is not looked at stays shared


def _serve(server: socket.socket, above: int) -> None:
    """Run what stand-ins ask for, until nobody has the other end of `above`."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that keep a job
    while True:
        ready, _, _ = select.select([server, above], [], [])
        if above in ready:
            return
        line, _ = server.accept()
        if not os.fork():
            server.close()
            os.close(above)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _keep(line)
        line.close()


def _keep(line: socket.socket) -> None:
    """Run a script in another process, and tell its status to the stand-in that asked for it."""
    head, files, _, _ = socket.recv_fds(line, 8, 3)
    asked = json.loads(line.makefile("rb").read(int.from_bytes(head, "big")))
    process = os.fork()
    if not process:
        line.close()
        _become(*asked, files)
    ended = os.pidfd_open(process)
    while ended not in (ready := select.select([line, ended], [], [])[0]):
        if ready:
            number = line.recv(1)
            os.kill(process, number[0] if number else signal.SIGKILL)
            if not number:
                break
    _, status = os.waitpid(process, 0)
    with contextlib.suppress(OSError):  # the stand-in was killed
        line.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def _become(arguments: list[str], folder: str, environment: dict[str, str], files: list[int]) -> None:
    """Make this process one that runs a script; ends it."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    ours, theirs = (filter(None, one.get(PATH, "").split(os.pathsep)) for one in (os.environ, environment))
    for place in {*ours} & {*sys.path}:
        sys.path.remove(place)
    sys.path[:1] = [str(Path(arguments[0]).parent), *theirs]
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = arguments
    try:
        runpy.run_path(arguments[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        if not isinstance(end.code, int | None):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # to take all these modules apart takes longer than many a job
