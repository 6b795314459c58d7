"""The workflow on a real Slurm cluster, which cluster.sh brings up on this machine: the profile, and the batch script.

Few tests, because a job costs seconds and Snakemake looks after its jobs seldom; what they are compared with is made meanwhile.
"""

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import FLUX, JUDGE, REPOSITORY, environment, shards
from PIL import Image

HERE = Path(__file__).parent
PATIENCE = 1800  # seconds; a bound for machines that are busy with other things, not what anything takes
BIN = Path(sys.executable).parent

if os.geteuid() or not shutil.which("apt-get"):
    reason = "LEFT OUT: the tests on Slurm bring up a cluster of their own, which takes root on Debian"
    if os.environ.get("CI"):
        raise RuntimeError(reason)
    pytest.skip(reason, allow_module_level=True)

pytestmark = pytest.mark.slurm


# ------------------------------------------------------------------------------------------------ what tests work with


def slurm(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def cluster(*command):
    subprocess.run([str(HERE / "cluster.sh"), *command], check=True, stdin=subprocess.DEVNULL, timeout=PATIENCE)


def queue():
    """Every job there was, oldest first: id, state, partition, rule and wildcards, node, start, end, memory, limit."""
    names = ("id", "state", "partition", "comment", "node", "start", "end", "memory", "limit")
    lines = slurm("squeue", "-h", "--states=all", "-o", "%A|%T|%P|%k|%N|%S|%e|%m|%l").splitlines()
    jobs = [SimpleNamespace(**dict(zip(names, line.split("|"), strict=True))) for line in lines]
    return sorted(jobs, key=lambda job: int(job.id))


def jobs_of(folder):
    """The jobs that were submitted from a checkout."""
    ids = {path.stem for path in folder.glob(".snakemake/slurm_logs/**/*.log")}
    return [job for job in queue() if job.id in ids]


def minutes(limit):
    """Slurm's [days-][hours:]minutes:seconds in minutes."""
    days, _, clock = limit.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    return int(days or 0) * 1440 + sum(n * 60**place for place, n in enumerate(reversed(parts))) / 60


def until(condition, what, process=None, job=None):
    """The first true value of condition(), within PATIENCE, and while the process or the job goes on."""
    end = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < end, f"{what}: not in {PATIENCE} s"
        assert process is None or process.poll() is None, f"{what}: snakemake ended before"
        assert job is None or not ended(job), f"{what}: the job ended before"
        time.sleep(0.3)
    return value


class Checkout:
    """A copy of the repository, as a user has it, with a file that says what Slurm's jobs did."""

    def __init__(self, folder, pace=0.0):
        self.folder, self.observed, self.results = folder, folder / ".observed", folder / "results"
        ignored = shutil.ignore_patterns(".*", "results", "build", "tests", "__pycache__")
        shutil.copytree(REPOSITORY, folder, symlinks=True, ignore=ignored)
        self.observed.mkdir()
        self.pace(pace)

    def pace(self, seconds):
        (self.observed / "pace").write_text(str(seconds))

    def noted(self, name):
        path = self.observed / f"{name}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def job_logs(self):
        """Logs of image jobs that have read what they are to make."""
        return [path for path in self.results.glob("logs/*_images/*/*.log") if "to make" in path.read_text()]

    @property
    def environment(self):
        own = {"DARKROOM_OBSERVED": str(self.observed), "PYTHONPATH": str(HERE / "observed")}
        return environment() | own | {"PATH": f"{BIN}:{os.environ['PATH']}"}

    def start(self, *arguments):
        self.log = self.folder / "run.log"
        with self.log.open("a") as out:
            command = [str(BIN / "snakemake"), *arguments]
            if "slurm" in arguments:  # the profile is as it comes; these are a test's impatience
                command += ["--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "10"]
            return subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )

    def finish(self, process):
        """Its exit status; nothing hangs for ever."""
        try:
            return process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()
            raise

    def said(self):
        return self.log.read_text()


def write_rows(folder, device, edit_model=FLUX, edits_alone=False):
    """160 prompts in four shards, and an edit of a picture on the CPU; the judge asks nothing."""
    rows = [{"id": f"k{n}", "prompt": "a red circle"} for n in range(160)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "edits.jsonl").write_text('{"id": "e", "prompt": "make the circle blue", "images": "red.png"}\n')
    Image.new("RGB", (64, 64), (250, 0, 0)).save(folder / "red.png")
    (folder / "silent.yaml").write_text("images: []\nedited: []\n")
    common = {"steps": 1, "max_sequence_length": 20}
    config = {
        "prompts": None if edits_alone else "prompts.jsonl",
        "edits": "edits.jsonl",
        "shards": {"size": 40},
        "generate": common | {"model": str(FLUX), "device": device, "width": 64, "height": 64},
        "edit": common | {"model": str(edit_model), "device": "cpu"},
        "judge": {"model": str(JUDGE), "device": "cpu", "rubric": "silent.yaml", "shards_per_job": 1},
    }
    (folder / "my.yaml").write_text(yaml.safe_dump(config))


def cut_off_model(folder):
    shutil.copytree(FLUX, folder / "cut-off")
    (folder / "cut-off/vae/diffusion_pytorch_model.safetensors").write_bytes(b"cut off")
    return folder / "cut-off"


@pytest.fixture(scope="module", autouse=True)
def running_cluster():
    cluster("start")
    stop = threading.Event()

    def release():
        """Slurm lets a job that is put back wait for two minutes. Some seconds it needs: before, the node still refuses it."""
        waiting = Counter()
        while not stop.wait(2):
            with contextlib.suppress(subprocess.SubprocessError):
                lines = slurm("squeue", "-h", "-t", "PD", "-o", "%A %r").splitlines()
                held = {line.split()[0] for line in lines if line.endswith("BeginTime")}
                waiting = Counter({job: waiting[job] + 1 for job in held})
                for job in held:
                    if waiting[job] > 3:
                        slurm("scontrol", "update", f"jobid={job}", "StartTime=now")

    thread = threading.Thread(target=release)
    thread.start()
    yield
    stop.set()
    thread.join()
    cluster("stop")


def submit(checkout, *options):
    """The id of a job that runs the batch script, on the node that is there for them."""
    done = subprocess.run(
        ["sbatch", "--parsable", "--partition=long", "--mem=6000", *options]
        + ["profiles/batch/darkroom.sbatch", "--configfile", "my.yaml"],
        cwd=checkout.folder,
        env=checkout.environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


def said_by(checkout, job):
    log = checkout.folder / f"darkroom-{job}.log"
    return log.read_text() if log.exists() else ""


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    """The batch script at work, with less time than it needs: (checkout, job id)."""
    checkout = Checkout(tmp_path_factory.mktemp("batch") / "darkroom", pace=3.0)
    write_rows(checkout.folder, "auto")
    # Longer than a busy machine takes for a start, shorter than the images take.
    return checkout, submit(checkout, "--gpus=2", "--cpus-per-task=8", "--time=3", "--signal=B:USR1@30")


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The rows on this machine, without Slurm: what gives the shards, at the end of a run that begins now."""
    checkout = Checkout(tmp_path_factory.mktemp("local") / "darkroom")
    write_rows(checkout.folder, "cpu")
    process = checkout.start("-j1", "--configfile", "my.yaml")

    def result():
        assert checkout.finish(process) == 0, checkout.said()
        return shards(checkout)

    return result


# ------------------------------------------------------------------------------------------------------------- tests


def test_the_demonstration_through_the_profile(tmp_path, batch, reference, request):
    """The profile as it comes, on a cluster whose jobs may run for an hour.

    Jobs that ask for a GPU are on the gpu partition with a device each, the others on cpu; the files are the same.
    """
    checkout = Checkout(tmp_path / "darkroom")
    files = ("config/config.yaml", "config/presets/demo-gpu.yaml")
    process = checkout.start("--profile", "slurm", "--configfile", *files)
    assert checkout.finish(process) == 0, checkout.said()
    jobs = jobs_of(checkout.folder)
    rules = Counter((job.comment.split("_wildcards_")[0].removeprefix("rule_"), job.partition) for job in jobs)
    assert rules == {
        ("generate_images_many", "gpu"): 3,
        ("generate_images_few", "gpu"): 3,
        ("edit_images", "gpu"): 4,
        ("score_images", "gpu"): 3,
        ("score_clip", "cpu"): 3,
        ("merge_scores", "cpu"): 1,
        ("write_dataset", "cpu"): 1,
        ("gallery_shard", "cpu"): 10,
        ("gallery_index", "cpu"): 1,
        ("draw_plots", "cpu"): 1,
    }
    places = {}
    for line in checkout.noted("jobs"):
        places.setdefault(line["job"], set()).add((line["node"], line["devices"]))
    assert all(len(places[job.id]) == 1 for job in jobs)
    on_gpu = [job for job in jobs if job.partition == "gpu"]
    assert all(devices in ("0", "1") for job in on_gpu for _, devices in places[job.id])
    together = [(a, b) for a, b in itertools.combinations(on_gpu, 2) if a.start < b.end and b.start < a.end]
    assert together and all(places[a.id] != places[b.id] for a, b in together)
    assert shards(checkout) == shards(request.getfixturevalue("demonstration"))  # not made before, but meanwhile


def test_whatever_ends_a_job_costs_no_more_than_the_image_in_hand(tmp_path, batch, reference):
    """In the middle of four shards: a time limit, scancel, a memory kill, a node's death; then SIGINT, and a restart.

    Beside them a job with a model that cannot be loaded, whose retries end before they load anything.
    """
    checkout = Checkout(tmp_path / "darkroom", pace=2.0)
    write_rows(checkout.folder, "auto", cut_off_model(tmp_path))
    command = ("--profile", "slurm", "--configfile", "my.yaml", "--until", "generate_images", "edit_images")
    process = checkout.start(*command)

    def of_rule(rule):
        return [job for job in jobs_of(checkout.folder) if job.comment.startswith(f"rule_{rule}")]

    def kept():
        scratch = checkout.results / ".darkroom/scratch/images"
        return {folder.name: len(list(folder.glob("*/*.png"))) for folder in scratch.glob("*")}

    until(lambda: len(kept()) == 4 and min(kept().values()) >= 2, "images in four shards", process)
    first = {job.comment.rpartition("_")[2]: job for job in of_rule("generate_images")}
    assert len(first) == 4 and all(job.partition == "gpu" for job in first.values())
    # Two jobs share a node; the one that dies with the node of another is cancelled before.
    lost, cancelled, limited, hungry = sorted(first.values(), key=lambda job: job.node)
    assert lost.node == cancelled.node != limited.node == hungry.node
    slurm("scancel", cancelled.id)
    (checkout.observed / f"hog-{hungry.id}").touch()
    # Slurm looks every half minute whose time is almost over.
    slurm("scontrol", "update", f"jobid={limited.id}", f"TimeLimit={minutes_since(limited.start) + 2}")
    until(lambda: ended(cancelled.id), "the cancelled job's end")
    cluster("kill-node", lost.node)
    slurm("scontrol", "update", f"node={lost.node}", "state=down", "reason=test")
    cluster("start-node", lost.node)
    until(lambda: "down" not in slurm("sinfo", "-h", "-n", lost.node, "-o", "%T"), "the node's return")

    def again():
        second = {job.comment.rpartition("_")[2]: job for job in of_rule("generate_images") if job.id not in ids}
        return second if len(second) == 3 else None

    ids = {job.id for job in first.values()}
    second = until(again, "three jobs submitted again", process)
    for old in (cancelled, limited, hungry):
        new = second[old.comment.rpartition("_")[2]]
        assert int(new.memory.rstrip("M")) > 1.4 * int(old.memory.rstrip("M"))
        assert minutes(new.limit) > 1.5 * minutes(old.limit)
    assert state(limited.id) == "FAILED"  # it ended by itself, before its time was over
    made = len(checkout.noted("images"))
    until(lambda: len(checkout.noted("images")) > made + 2, "more images", process)
    until(lambda: len(of_rule("edit_images")) == 3, "the last try of the job without a model", process)
    process.send_signal(signal.SIGINT)
    assert checkout.finish(process) == 1
    until(lambda: not running(checkout), "the end of all jobs")
    said = checkout.said()
    assert "error: interrupted," in said and "of 160 kept" not in said
    edits = of_rule("edit_images")
    assert len(edits) == 3 and all(job.partition == "cpu" for job in edits)
    (log,) = checkout.results.glob("logs/edit_images/*/*.log")
    assert log.read_text().startswith("error: not tried again: ") and "edit.model: cannot load" in said

    checkout.pace(0)
    write_rows(checkout.folder, "auto")
    assert checkout.finish(checkout.start(*command)) == 0, checkout.said()[len(said) :]
    expected = {name: digest for name, digest in reference().items() if "scores" not in name}
    found = shards(checkout)
    assert found == {name: expected[name] for name in found} and len(found) == 3 * 5
    # The image in hand when a job was ended from outside; none where it was told in time.
    makers = {}
    for image in checkout.noted("images"):
        makers.setdefault(image["key"], []).append(image["job"])
    assert len(makers) == 160 + 1
    lost_images = Counter(job for jobs in makers.values() for job in jobs[:-1])
    assert lost_images[limited.id] == 0 and max(lost_images.values(), default=0) <= 2
    assert sum(lost_images.values()) <= 3 + 4


def minutes_since(start):
    return int((time.time() - time.mktime(time.strptime(start, "%Y-%m-%dT%H:%M:%S"))) // 60)


def state(job):
    return next(j.state for j in queue() if j.id == job)


def ended(job):
    return state(job) not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED")


def running(checkout):
    return [job for job in jobs_of(checkout.folder) if not ended(job.id)]


def test_the_batch_script_goes_on_over_several_submissions(batch, reference):
    """161 images at three seconds each on two devices are more than one start can make, on any machine."""
    checkout, job = batch
    # It has been at work since the first test, and may be over by now.
    until(lambda: said_by(checkout, job).count(f"of job {job} on") > 1 or ended(job), "a second start")
    images = len(checkout.noted("images"))
    until(lambda: len(checkout.noted("images")) > images or ended(job), "more images")
    checkout.pace(0)
    until(lambda: ended(job), "the end of the job")
    said = said_by(checkout, job)
    assert state(job) == "COMPLETED", said
    assert "back into the queue" in said and said.rstrip().endswith("darkroom: done")
    made = Counter(image["key"] for image in checkout.noted("images"))
    assert len(made) == 161 and set(made.values()) == {1}
    assert shards(checkout) == reference()


def test_the_batch_script_does_not_go_on_for_nothing(tmp_path, batch):
    """Where a model cannot be loaded, and where each submission is told to stop before its first image."""
    failing, stuck = Checkout(tmp_path / "failing"), Checkout(tmp_path / "stuck")
    write_rows(failing.folder, "auto", cut_off_model(tmp_path), edits_alone=True)
    write_rows(stuck.folder, "auto")
    jobs = {checkout: submit(checkout, "--gpus=1", "--cpus-per-task=4", "--time=20") for checkout in (failing, stuck)}
    for start in (1, 2):
        until(lambda: stuck.job_logs(), "a job that loads its model", job=jobs[stuck])
        slurm("scancel", "--batch", "--signal=USR1", jobs[stuck])
        until(lambda n=start: said_by(stuck, jobs[stuck]).count("back into the queue") == n, "its return to the queue")
        shutil.rmtree(stuck.results / "logs")
    for checkout, job in jobs.items():
        until(lambda job=job: ended(job), "the end of the job")
        assert state(job) == "FAILED", said_by(checkout, job)
    assert "error: nothing was finished in two starts" in said_by(stuck, jobs[stuck]) and not stuck.noted("images")
    said = said_by(failing, jobs[failing])
    assert (
        "edit.model: cannot load" in said
        and "ended with status 1" in said
        and said.count(f"of job {jobs[failing]} on") == 1
    )
