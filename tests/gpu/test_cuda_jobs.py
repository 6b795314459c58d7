"""Jobs on a card: whose it is, what a killed one leaves, workers that share it, replay, a whole run, and a trace."""

import io
import os
import signal
import subprocess
import sys
import time

import bench_gpu
import numpy as np
import pytest
from conftest import (
    REPOSITORY,
    Run,
    environment,
    image_files,
    planned_shards,
    read_requests,
    small_config,
    write_inputs,
)
from darkroom.jobs import devices
from darkroom.jobs.devices import VARIABLE, Devices
from darkroom.make import make_shard
from darkroom.store.shardfile import iter_records
from darkroom.tools.replay import replay
from PIL import Image
from test_engines import filled_config, lines, make, stage_for

from gpu.conftest import used_mib

ROWS = [{"items": [{"prompt": f"a {colour} circle"}]} for colour in ("red", "green", "blue", "purple")]
# Claims the card as a job does, takes a GiB of it, says so, and holds it until it is killed or told to end.
HOLDER = """
import sys, time
from pathlib import Path
from darkroom.config.models import DeviceSection
from darkroom.jobs.devices import Devices
from darkroom.jobs.runtime import job
folder, name = Path(sys.argv[1]), sys.argv[2]
with job(folder / f"{name}.log"):
    own = Devices()
    held = own.claim(DeviceSection(device="cuda", gpus=1), name)
    import torch
    tensor = torch.ones(2**28, device="cuda")
    torch.cuda.synchronize()
    (folder / f"{name}.holds").write_text(f"{','.join(held)} {torch.cuda.device_count()} {float(tensor[-1])}")
    while not (folder / f"{name}.end").exists():
        time.sleep(0.05)
    own.release()
"""
ASKS = """
import sys
from darkroom.config.models import DeviceSection
from darkroom.engines.diffusion import resolve_device
from darkroom.errors import DarkroomError
from darkroom.jobs.devices import Devices
Devices().claim(DeviceSection(device=sys.argv[1], gpus=1), "generate")
try:
    print(resolve_device(sys.argv[2], "generate"))
except DarkroomError as error:
    print(error)
"""


@pytest.fixture(autouse=True)
def host(tmp_path, monkeypatch):
    """Locks of the test's own, and the first card alone."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(devices.tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv(VARIABLE, devices.visible_devices()[0] if devices.visible_devices() else "")


def child(code, *arguments, **more):
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY / "scripts"), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more)


def wait_for(condition, what, seconds=90):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"waited in vain for {what}"
        time.sleep(0.1)


def config_of(tmp_path, device, name="generate", **options):
    return filled_config({"device": device, "batch_size": 1, "steps": 2} | options, name, tmp_path)


@pytest.mark.needs("card", "nvidia-smi")
def test_a_killed_job_leaves_neither_memory_nor_lock_behind_and_the_next_has_the_card(tmp_path):
    before = used_mib()
    jobs = {name: child(HOLDER, tmp_path, name) for name in ("first",)}
    try:
        wait_for((tmp_path / "first.holds").exists, "the first job to have the card")
        assert (tmp_path / "first.holds").read_text() == f"{os.environ[VARIABLE]} 1 1.0"
        assert used_mib() >= before + 1024
        jobs["second"] = child(HOLDER, tmp_path, "second")
        log = tmp_path / "second.log"
        wait_for(lambda: log.exists() and "waiting for" in log.read_text(), "the second job to wait")
        assert f"pid {jobs['first'].pid}" in log.read_text() and not (tmp_path / "second.holds").exists()
        jobs["first"].send_signal(signal.SIGKILL)
        jobs["first"].wait()
        wait_for((tmp_path / "second.holds").exists, "the second job to have the card")
        (tmp_path / "second.end").touch()
        assert jobs["second"].wait(timeout=60) == 0
        wait_for(lambda: used_mib() < before + 256, "the card's memory to be free again")
    finally:
        for process in jobs.values():
            process.kill()
            process.wait()


@pytest.mark.needs("card")
@pytest.mark.parametrize(
    ("claims", "asks", "answer"),
    [
        ("cuda", "auto", "cuda"),
        ("cpu", "auto", "cpu"),
        ("cpu", "cuda", "generate.device is cuda, but torch sees no GPU; ask for one, or set device: cpu"),
    ],
)
def test_a_job_sees_the_card_that_it_claimed_and_without_a_claim_none(claims, asks, answer):
    text, _ = child(ASKS, claims, asks).communicate(timeout=120)
    assert text.splitlines()[-1] == answer


@pytest.mark.needs("card", "nvidia-smi")
def test_two_workers_on_one_card_make_the_file_that_one_process_makes(tmp_path, monkeypatch):
    """The card under two names: its number, and its UUID."""
    query = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader", "-i", os.environ[VARIABLE]]
    uuid = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    files = []
    for names in ([os.environ[VARIABLE]], [os.environ[VARIABLE], uuid]):
        monkeypatch.setenv(VARIABLE, ",".join(names))
        folder = tmp_path / str(len(names))
        folder.mkdir()
        stage = stage_for(config_of(tmp_path, "cuda", gpus=len(names)).generate, "generate", folder)
        own = Devices()
        requests = read_requests(lines(*ROWS), stage.section, 0, 1)
        make_shard(requests, folder / "s.parquet", stage, [], [], devices=own)
        assert list(own.held) == names
        own.release()
        files.append((folder / "s.parquet").read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["generate", "edit"])
def test_replay_on_the_same_card_is_equal_to_the_pixel(tmp_path, device, name, dtype):
    config = config_of(tmp_path, device, name, dtype=dtype)
    Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(tmp_path / "source.png")
    source = {"source": {"path": "source.png"}} if name == "edit" else {}
    rows = [{"items": [row["items"][0] | source]} for row in ROWS]
    counts, _ = make(stage_for(getattr(config, name), name, tmp_path), lines(*rows), tmp_path / "s.parquet")
    assert counts["made"] == len(ROWS)
    for position in (3, 0):
        found = replay(tmp_path / "s.parquet", position, config)
        assert found.equal and not found.versions


@pytest.mark.needs("snakemake", "judge")
def test_a_whole_run_is_made_on_the_card_and_made_again_it_is_the_same(tmp_path, device):
    runs = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        judge = {"engine": "transformers", "device": device}
        config = small_config(edits="edits.jsonl", judge=judge, shards={"size": 100})
        for stage in ("generate", "edit"):
            config[stage] |= {"device": device, "batch_size": 1}
        run = Run(tmp_path / name, config, environment() | {"PYTHONPATH": os.environ.get("PYTHONPATH", "")})
        write_inputs(run)
        # Made again up to the pictures: replies of the judge are compared by the tests of its engines.
        run.snakemake(*([] if name == "one" else ["--until", "edit_images"]))
        assert name == "two" or run.planned() == {}
        assert {record["error"] is None for path in image_files(run) for record in iter_records(path)} == {True}
        log = next(run.results.glob("logs/generate_images/**/*.log")).read_text()
        assert f"device {device}, dtype torch.{'bfloat16' if device == 'cuda' else 'float32'}" in log
        runs.append(planned_shards(run))
    images = [{path: sha for path, sha in run.items() if path.startswith(("images", "edited"))} for run in runs]
    assert images[0] == images[1] and images[0]


def test_a_trace_of_a_job_shows_the_card_and_the_cpu(tmp_path, device, record_property):
    """How much of the finishing falls into the card's computing is in the report's properties; bench_gpu's `trace` says it for real sizes."""
    stage = stage_for(config_of(tmp_path, device).generate, "generate", tmp_path)
    with bench_gpu.traced(tmp_path / "trace.json", device) as events:
        make_shard(read_requests(lines(*ROWS), stage.section, 0, 1), tmp_path / "s.parquet", stage, [], [])
    found = bench_gpu.overlap(events)
    for name, seconds in found.items():
        record_property(name, seconds)
    assert found["finishing"] > 0 and found["overlap"] <= found["finishing"]
    assert (found["computing"] > 0) == (device == "cuda")
    pictures = [
        np.asarray(Image.open(io.BytesIO(record["image"]["bytes"]))) for record in iter_records(tmp_path / "s.parquet")
    ]
    assert len(pictures) == len(ROWS) and all(picture.any() for picture in pictures)
