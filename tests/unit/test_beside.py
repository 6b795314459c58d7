"""What goes on beside an engine: pictures are written and sources read while it works; in order, bounded, and nothing goes unsaid."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque

import pytest
from conftest import REPOSITORY
from darkroom.config.models import Edit, Generate
from darkroom.engines.base import Engine, Failure
from darkroom.engines.work import AHEAD, UNWRITTEN, ShardJob, work
from darkroom.errors import DarkroomError, Interrupted
from darkroom.jobs.beside import Beside, ahead
from darkroom.jobs.runtime import clear_disk_errors, stop_requested
from darkroom.make import identify, make_shard
from darkroom.plan.requests import Request
from darkroom.store import shardfile
from darkroom.store.images import encode_png
from darkroom.store.scratch import Scratch
from darkroom.store.sources import Sources
from PIL import Image

SOON = 10.0  # seconds, for what comes in a few milliseconds
SIZE = (24, 16)


class StandIn(Engine):
    """Makes a picture of one colour of each request, and notes when: `made`, in order; told: of each as it is made."""

    def __init__(self, told=lambda request: None, takes_cpu=False):
        self.made, self.told, self.takes_cpu = [], told, takes_cpu
        self.sources, self.prepared_in = [], set()

    def prepare_source(self, source, size):
        self.prepared_in.add(threading.current_thread())
        return source.resize(size)

    def make(self, batch, size, sources):
        for number, request in enumerate(batch):
            self.made.append(request.key)
            self.sources.append(sources[number].getpixel((0, 0))[0] if sources else None)
            self.told(request)
            bad = request.prompt == "bad"
            yield request, Failure("no picture") if bad else Image.new("RGB", SIZE, (request.seed, 0, 0))


class SlowDisk(Scratch):
    """A picture is written when its time has come: `may` is called with its key. written: the keys, in order; threads: what wrote."""

    def __init__(self, folder, may=lambda key: None):
        super().__init__(folder)
        self.may, self.written, self.threads = may, [], set()

    def put(self, key, data):
        self.threads.add(threading.current_thread())
        self.may(key)
        super().put(key, data)
        self.written.append(key)


def requests(number, edits=False, **prompts):
    return [
        Request(
            row=f"r{n}",
            item=0,
            sample=0,
            prompt=prompts.get(f"k{n}", "good"),
            negative_prompt=None,
            seed=n + 1,
            width=SIZE[0],
            height=SIZE[1],
            steps=1,
            guidance=1.0,
            true_cfg=1.0,
            source={"path": f"{n}.png"} if edits else None,
            given=None,
            user_row={},
            key=f"k{n}",
        )
        for n in range(number)
    ]


def reports(folder, engine, scratch, todo, batch=1, edits=False):
    """What `work` reports; in the end, what each request of `todo` came to is on the disk."""
    section = (Edit if edits else Generate)(batch_size=batch)
    job = ShardJob("edit" if edits else "generate", section, {"family": "flux"}, "d", folder, "rule", scratch, edits)
    sources = Sources(folder, [])
    return work(job, todo, {request.key: SIZE for request in todo}, 0, 1, lambda section, name: engine, sources)


def until(happened):
    end = time.monotonic() + SOON
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_jobs_that_compile_keep_the_code_in_the_results(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    told = []
    for compile in (False, True):
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")

        def open_engine(section, name):
            told.append(os.environ.get("TORCHINDUCTOR_CACHE_DIR"))
            return StandIn()

        section, scratch = Generate(family="flux", compile=compile), Scratch(tmp_path / "scratch")
        job = ShardJob(
            "generate", section, {"family": "flux"}, "d", tmp_path, "r", scratch, compiled=tmp_path / "compiled"
        )
        assert list(work(job, [], {}, 0, 1, open_engine)) == [(0, {})]
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    assert told == [None, str(tmp_path / "compiled")]


def wait_for(event):
    assert event.wait(SOON)


def test_reports_come_in_order_each_when_its_pictures_are_written(tmp_path):
    """The first picture of every three is the last of them to be written."""
    others: dict[str, threading.Event] = {f"k{n}": threading.Event() for n in range(9)}

    def may(key):
        if int(key[1:]) % 3 == 0:
            wait_for(others[f"k{int(key[1:]) + 1}"])
        others[key].set()

    scratch, todo = SlowDisk(tmp_path / "scratch", may), requests(9, k4="bad")
    others["k4"].set()
    engine, seen = StandIn(), []
    for done, failed in reports(tmp_path, engine, scratch, todo):
        seen += [("failed", key, reason) for key, reason in failed.items()] or ([len(seen)] if done else [])
        # Those before it and its own are on the disk.
        assert all(scratch.has(key) for key in engine.made[: len(seen)] if key != "k4")
    assert engine.made == [f"k{n}" for n in range(9)]
    assert seen == [0, 1, 2, 3, ("failed", "k4", "no picture"), 5, 6, 7, 8]
    for request in todo:
        data = encode_png(Image.new("RGB", SIZE, (request.seed, 0, 0)))
        assert scratch.get(request.key) == (None if request.key == "k4" else data)


@pytest.mark.parametrize(("batch", "bound"), [(1, UNWRITTEN), (UNWRITTEN + 2, UNWRITTEN + 2)])
def test_the_engine_works_on_while_pictures_are_written_but_no_further_than_the_bound(tmp_path, batch, bound):
    disk, engine = threading.Event(), StandIn()
    scratch = SlowDisk(tmp_path / "scratch", lambda key: wait_for(disk))
    told = []
    thread = threading.Thread(
        target=lambda: told.extend(reports(tmp_path, engine, scratch, requests(3 * bound), batch=batch))
    )
    thread.start()
    until(lambda: len(engine.made) == bound + 1)  # one more is in hand, and waits for a place
    time.sleep(0.1)
    assert len(engine.made) == bound + 1 and not scratch.written
    disk.set()
    thread.join(SOON)
    assert sum(done for done, _ in told) == 3 * bound == len(scratch.written)


@pytest.mark.parametrize("batch", [1, 2])
def test_sources_of_the_next_batch_are_read_while_the_engine_works_and_no_others(tmp_path, batch, monkeypatch):
    number = 4 * batch
    for n in range(number):
        Image.new("RGB", SIZE, (100 + n, 0, 0)).save(tmp_path / f"{n}.png")
    read, real = [], Sources.read

    def noted(self, reference, sha256=None):
        picture = real(self, reference, sha256)
        read.append(reference["path"])
        return picture

    def told(request):
        hoped = min(batch * (len(engine.made[::batch]) + AHEAD), number)
        until(lambda: len(read) >= hoped)
        time.sleep(0.02)
        assert len(read) == hoped

    monkeypatch.setattr(Sources, "read", noted)
    engine, scratch = StandIn(told), SlowDisk(tmp_path / "scratch")
    assert sum(done for done, _ in reports(tmp_path, engine, scratch, requests(number, True), batch, True)) == number
    assert engine.sources == [100 + n for n in range(number)]
    assert threading.current_thread() not in engine.prepared_in | scratch.threads


def test_beside_an_engine_that_takes_the_cpu_goes_nothing(tmp_path):
    for n in range(3):
        Image.new("RGB", SIZE, (100 + n, 0, 0)).save(tmp_path / f"{n}.png")
    scratch = SlowDisk(tmp_path / "scratch")
    engine = StandIn(lambda request: seen.append(len(scratch.written)), takes_cpu=True)
    seen: list[int] = []
    assert [done for done, _ in reports(tmp_path, engine, scratch, requests(3, True), edits=True)] == [0, 1, 1, 1]
    assert seen == [0, 1, 2] and engine.prepared_in == scratch.threads == {threading.current_thread()}


def test_a_source_that_cannot_be_read_is_a_reason_in_its_place(tmp_path, capsys):
    for n in (0, 2):
        Image.new("RGB", SIZE, (100 + n, 0, 0)).save(tmp_path / f"{n}.png")
    (tmp_path / "1.png").write_bytes(b"no picture")
    engine, scratch = StandIn(), SlowDisk(tmp_path / "scratch")
    told = list(reports(tmp_path, engine, scratch, requests(4, True), 2, True))
    assert [done for done, _ in told] == [0, 2, 2] and engine.made == ["k0", "k2"]
    assert list(told[1][1]) == ["k1"] and told[1][1]["k1"].startswith("image 1.png: cannot be read as an image")
    assert told[2][1] == {"k3": "image 3.png: No such file or directory in the rows' folder; rows.root names another"}
    assert "r1" in capsys.readouterr().out


def test_what_breaks_a_job_while_sources_are_read_comes_after_what_was_made_before(tmp_path, monkeypatch):
    Image.new("RGB", SIZE).save(tmp_path / "0.png")
    real = Sources.read

    def broken(self, reference, sha256=None):
        if reference["path"] == "1.png":
            raise DarkroomError("a.parquet: damaged; delete it and run again")
        return real(self, reference, sha256)

    monkeypatch.setattr(Sources, "read", broken)
    engine, scratch = StandIn(), SlowDisk(tmp_path / "scratch", lambda key: time.sleep(0.05))
    with pytest.raises(DarkroomError, match=r"^a\.parquet: damaged"):
        list(reports(tmp_path, engine, scratch, requests(3, True), edits=True))
    assert engine.made == ["k0"] == scratch.written


def test_a_full_disk_ends_the_job_with_its_line_and_keeps_the_rest(tmp_path):
    def may(key):
        if key == "k2":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "scratch/k2.png")
        time.sleep(0.01)

    engine, scratch = StandIn(), SlowDisk(tmp_path / "scratch", may)
    with (
        pytest.raises(DarkroomError, match=r"^no space left for scratch/k2\.png; free some and run again"),
        clear_disk_errors(),
    ):
        list(reports(tmp_path, engine, scratch, requests(40)))
    assert len(engine.made) <= 3 + UNWRITTEN
    assert sorted(scratch.written) == sorted(set(engine.made) - {"k2"})


def test_an_engine_that_fails_keeps_what_it_made(tmp_path):
    def told(request):
        if request.key == "k3":
            raise DarkroomError("generate: the endpoint is gone")

    engine, scratch = StandIn(told), SlowDisk(tmp_path / "scratch", lambda key: time.sleep(0.02))
    with pytest.raises(DarkroomError, match=r"^generate: the endpoint is gone$"):
        list(reports(tmp_path, engine, scratch, requests(9)))
    assert sorted(scratch.written) == ["k0", "k1", "k2"]


def test_told_to_stop_it_writes_what_is_made(tmp_path):
    def told(request):
        if request.key == "k3":
            stop_requested.set()  # what the handler of SIGTERM does

    engine, scratch = StandIn(told), SlowDisk(tmp_path / "scratch", lambda key: time.sleep(0.05))
    try:
        with pytest.raises(Interrupted, match=r"^interrupted$"):
            list(reports(tmp_path, engine, scratch, requests(9)))
    finally:
        stop_requested.clear()
    assert engine.made == ["k0", "k1", "k2", "k3"] and sorted(scratch.written) == engine.made


KILLED = """
import sys, time
from pathlib import Path
from test_beside import SlowDisk, StandIn, reports, requests
folder = Path(sys.argv[1])
made = open(folder / "made", "a", buffering=1)
engine = StandIn(lambda request: print(request.key, file=made))
list(reports(folder, engine, SlowDisk(folder / "scratch", lambda key: time.sleep(0.02)), requests(10_000)))
"""


def test_a_kill_costs_the_pictures_in_flight_alone(tmp_path):
    """Of a disk that is slower than the engine, so that as many wait as ever may."""
    path = os.pathsep.join(str(REPOSITORY / folder) for folder in ("scripts", "tests", "tests/unit"))
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], env=os.environ | {"PYTHONPATH": path})
    made = tmp_path / "made"
    until(lambda: made.exists() and len(made.read_text().split()) >= 3 * UNWRITTEN)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    keys, scratch = made.read_text().split(), Scratch(tmp_path / "scratch")
    lost = [key for key in keys if not scratch.has(key)]
    assert 1 <= len(lost) <= UNWRITTEN + 1  # those that wait, and the one in hand
    for number, key in enumerate(keys):
        assert key in lost or scratch.get(key) == encode_png(Image.new("RGB", SIZE, (number + 1, 0, 0)))


def looked_at(folder, number, threads):
    """What `identify` finds of so many edits, and what it leaves in the scratch folder."""
    scratch, todo, failures = Scratch(folder / f"scratch-{threads}"), requests(number, True), {}
    for n, request in enumerate(todo):
        request.source = {"path": f"{n // 2}.png"}  # two edits of each source
        request.width = request.height = None
    recipe = {"version": 1, "family": "flux", "model": "m", "dtype": "bfloat16", "max_sequence_length": 512}
    job = ShardJob("edit", Edit(), recipe, "d", folder, "rule", scratch, True)
    found = Sources(folder, [], scratch)
    sizes = identify(todo, job, found, failures, threads)
    left = {path.name: path.read_bytes() for path in scratch.folder.rglob("*.png")}
    return [request.key for request in todo], sizes, failures, found.spooled, found.sound, left


def test_sources_are_looked_at_side_by_side_with_the_same_result(tmp_path, monkeypatch):
    for n in range(20):  # some are the same picture, in a format that is stored otherwise
        picture = Image.new("RGB", (24 + n % 3, 16), (n % 5, 0, 0))
        picture.convert("L" if n % 2 else "RGB").save(tmp_path / f"{n}.png")
    (tmp_path / "7.png").write_bytes(b"no picture")
    in_turn = looked_at(tmp_path, 42, 1)
    assert list(in_turn[2]) == [14, 15, 40, 41] and in_turn[3] and in_turn[4] and len(set(in_turn[1].values())) == 3
    read, busy, most, real = [], [], [], Sources.read

    def noted(self, reference, sha256=None):
        read.append(reference["path"])
        busy.append(None)
        most.append(len(busy))
        time.sleep(0.005)
        try:
            return real(self, reference, sha256)
        finally:
            busy.pop()

    monkeypatch.setattr(Sources, "read", noted)
    assert looked_at(tmp_path, 42, 3) == in_turn
    assert sorted(read) == sorted(f"{n}.png" for n in range(21)) and 2 <= max(most) <= 3


# --------------------------------------------------------------------------------------------------------- the means


def fail(text):
    raise DarkroomError(text)


@pytest.mark.parametrize("most", [0, 1, 3])
def test_results_are_those_of_calls_in_turn(most):
    assert list(ahead(lambda n: n * n, range(20), most)) == [n * n for n in range(20)]
    with Beside[int](2, most) as beside:
        calls = [beside.call(pow, n, 2) for n in range(20)]
    assert [call.result() for call in calls] == [n * n for n in range(20)]


@pytest.mark.parametrize("most", [0, 2])
def test_an_error_of_a_call_is_raised_though_nobody_asks(most):
    with pytest.raises(DarkroomError, match=r"^the disk$"), Beside[None](1, most) as beside:
        beside.call(fail, "the disk")


def test_of_two_errors_one_is_raised_and_the_other_said(capsys):
    with pytest.raises(DarkroomError, match=r"^the engine$"), Beside[None](1, 2) as beside:
        beside.call(fail, "the disk")
        fail("the engine")
    assert "the disk" in capsys.readouterr().out
    with pytest.raises(DarkroomError, match=r"^the disk$"), Beside[None](1, 2) as beside:
        beside.call(fail, "the disk")
        raise Interrupted("interrupted")


def test_what_is_not_asked_for_is_not_read():
    seen = deque()
    results = ahead(seen.append, range(100), 2)
    next(results)
    results.close()
    assert len(seen) <= 3


RECIPE = {"version": 1, "family": "flux", "model": "m", "dtype": "bfloat16", "max_sequence_length": 512}


def whole_job(folder, threads, told=lambda request: None, strict=False, batch=1, **prompts):
    """`make_shard` of nine requests of two alternating sizes; the shard file."""
    folder.mkdir(exist_ok=True)
    todo = requests(9, **prompts)
    for n, request in enumerate(todo):
        request.width += n % 2  # of another size, so that they are not made in their order
    scratch = Scratch(folder / "scratch")
    section = Generate(batch_size=batch, device="cpu")
    job = ShardJob("generate", section, RECIPE, "d", folder, "rule", scratch, strict=strict)
    path, engine = folder / "shard.parquet", StandIn(told)
    engine.work_size = lambda width, height: (width, height)
    make = engine.make
    engine.make = lambda batch, size, sources: (
        (request, made if isinstance(made, Failure) else made.resize(request.size))
        for request, made in make(batch, size, sources)
    )
    try:
        make_shard(todo, path, job, [], [], lambda section, name: engine, threads=threads)
    finally:
        stop_requested.clear()
    return path


def left_of(folder):
    """What is there besides the pictures of the scratch folder."""
    return sorted(path.name for path in folder.iterdir() if path.name != "scratch")


def test_a_shard_written_beside_the_engine_is_the_one_written_after_it(tmp_path, monkeypatch):
    monkeypatch.setattr(shardfile, "GROUP_ROWS", 2)
    after = whole_job(tmp_path / "after", 1, k2="bad", k5="bad")
    part = tmp_path / "beside/.shard.parquet.part"

    def told(request):  # before the last picture is made, the first of the shard are written down
        if request.row == "r5":
            until(lambda: len(list((tmp_path / "beside/scratch").rglob("*.png"))) >= 5)
        if request.row == "r7":
            until(lambda: part.exists() and sum(path.stat().st_size for path in part.iterdir()) > 100)

    beside = whole_job(tmp_path / "beside", 4, told, k2="bad", k5="bad")
    assert beside.read_bytes() == after.read_bytes()
    assert beside.with_suffix(".manifest").read_bytes() == after.with_suffix(".manifest").read_bytes()
    errors = [record["error"] for record in shardfile.iter_records(beside)]
    assert [number for number, error in enumerate(errors) if error] == [2, 5]
    assert left_of(beside.parent) == ["shard.manifest", "shard.parquet"]
    assert not (tmp_path / "beside/scratch").exists()


def test_a_job_that_does_not_end_well_leaves_no_shard_file(tmp_path):
    def ends(error, told=lambda request: None, **options):
        with pytest.raises(error) as raised:
            whole_job(tmp_path / "job", 4, told, **options)
        assert left_of(tmp_path / "job") == []
        return str(raised.value)

    def broken(request):
        if request.row == "r5":
            raise DarkroomError("generate: the endpoint is gone")

    assert ends(DarkroomError, broken) == "generate: the endpoint is gone"
    told = ends(Interrupted, lambda request: request.row == "r5" and stop_requested.set())
    assert told == "interrupted, 1 of 2 kept; run again to go on from there"
    assert ends(DarkroomError, strict=True, k8="bad") == "strict: row r8, item 0, sample 0 failed: no picture"
    assert whole_job(tmp_path / "job", 4).read_bytes() == whole_job(tmp_path / "other", 1).read_bytes()


def test_what_keeps_the_shard_file_from_being_written_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(shardfile, "GROUP_ROWS", 2)

    # Somebody clears the folder.
    monkeypatch.setattr(Scratch, "get", lambda self, key: None)
    with pytest.raises(DarkroomError, match="gone while the job ran; run again"):
        whole_job(tmp_path / "job", 4)
    assert left_of(tmp_path / "job") == []
