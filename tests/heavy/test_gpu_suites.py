"""What needs a card, as far as a CPU can try it: the tests are collected, every part of the benchmark runs tiny, wheels are to be had."""

import ast
import json
import os
import re
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, distribution

import bench_gpu
import gpu_models
import pytest
from conftest import REPOSITORY, environment
from packaging.requirements import Requirement

sys.path.append(str(REPOSITORY / "envs"))
import gpu_wheels

MEASURED = REPOSITORY / "docs/measured.jsonl"
WHEELS = [sys.executable, str(REPOSITORY / "envs/gpu_wheels.py")]
WEIGHTS = ["weights-flux", "weights-klein", "weights-judge", "weights-qwen3-vl"]  # what the other parts work with
TINY = {"tiny": True, "device": "cpu", "images": 1, "steps": 2, "side": 64}
OTHERS = [name for name, (_, needs) in bench_gpu.PARTS.items() if "card" not in needs and name not in WEIGHTS]
RECORD = {"part": "generate", "device": "cuda", "tiny": False, "what": "job, its work", "batch": 1, "unit": "picture"}
RECORD |= {"steps": 10, "side": 512, "seconds": 1.25, "gib": 30.5}


def written_tests():
    """The names of the functions that test in tests/gpu, contract included."""
    names = set()
    for path in [*REPOSITORY.glob("tests/gpu/test_*.py"), REPOSITORY / "tests/contract/engine.py"]:
        tree = ast.parse(path.read_text())
        names |= {
            node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name[:5] == "test_"
        }
    return names


def test_every_test_for_a_card_is_collected_and_runs_or_is_left_out_by_name():
    arguments = ["tests/gpu", "--on", "cpu", "-k", "trace or (replay and float32)", "-v", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments], cwd=REPOSITORY, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    passed = re.findall(r"^\S+::(\w+)\S* PASSED", done.stdout, re.M)
    assert len(passed) == 3
    reasons = dict(re.findall(r"^LEFT OUT: (\S+): (needs .+)$", done.stdout, re.M))
    assert any("::test_two_workers" in name and "NVIDIA card" in reason for name, reason in reasons.items())
    # On a machine without a card all of it is left out, each by name.
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/gpu", "-p", "no:cacheprovider"],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED, done.stdout[-3000:]
    named = set(re.findall(r"^LEFT OUT: \S+::(test_\w+)\S*: needs an NVIDIA card that PyTorch sees", done.stdout, re.M))
    assert named == written_tests()


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench")
    setting = bench_gpu.Setting(out, out / "models", **TINY)
    for name in WEIGHTS:
        bench_gpu.run_part(name, setting)
    assert [record["part"] for record in bench_gpu.read(setting.results)] == WEIGHTS
    return setting


@pytest.mark.parametrize("name", OTHERS)
def test_every_part_of_the_benchmark_runs_tiny_on_the_cpu(setting, name):
    assert bench_gpu.lacking(name, "cpu") == []
    before = len(bench_gpu.read(setting.results))
    bench_gpu.run_part(name, setting)
    records = bench_gpu.read(setting.results)[before:]
    assert records and all(record["tiny"] and record["device"] == "cpu" for record in records)
    assert bench_gpu.table(bench_gpu.read(setting.results)).startswith("**Of tiny models or of a CPU")
    assert bench_gpu.step_seconds(records) is None


def test_a_part_is_a_process_whose_end_costs_no_figure_of_another(setting, tmp_path):
    command = [sys.executable, str(REPOSITORY / "tests/bench/bench_gpu.py"), "--tiny", "--out", str(tmp_path)]
    done = subprocess.run(
        [*command, "--parts", "edit,machine,option-nf4"], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 1  # edit has no model
    records = bench_gpu.read(tmp_path / "bench.jsonl")
    outcomes = {record["part"]: record["outcome"] for record in records if "outcome" in record}
    assert outcomes.pop("option-nf4").startswith("left out: needs card")
    assert outcomes == {"edit": "failed with 1", "machine": "done"}
    assert "error: " in done.stderr and "run the part weights-flux first" in done.stderr
    assert "- edit: failed with 1" in done.stdout and "Python 3." in done.stdout
    assert bench_gpu.run_process(["sleep", "60"], 0.2) == "ended after 0 s"
    assert bench_gpu.run_process(["bash", "-c", "kill -9 $$"], 5) == "killed by signal 9"


def test_the_table_of_what_a_card_gave(tmp_path):
    machine = {"part": "machine", "device": "cuda", "tiny": False, "card": "C", "driver": "1.2", "memory": "80 GiB"}
    machine |= {"cuda": "13", "python": "3.12", "cpus": 16, "versions": {"torch": "2"}}
    path = tmp_path / "bench.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in (machine, RECORD)) + '{"part": "cut o')
    text = bench_gpu.table(bench_gpu.read(path))
    assert text.startswith("C, 80 GiB, driver 1.2, CUDA 13, 16 CPUs;\nPython 3.12, torch 2.\n")
    assert "\n| generate | job, its work | 1 | 10, 512 x 512 | 1.25 | picture | 30.5 |\n" in text
    assert "- a step of a megapixel in a job: 0.5 s (`run/needs.py` reckons with 0.25)\n" in text
    other = [machine | {"card": "D"}, {"part": "batch", "device": "cuda", "tiny": False, "outcome": "failed with 1"}]
    assert bench_gpu.table([machine, RECORD, *other, machine, RECORD]).split("\nD, ")[0].count("| 1.25 |") == 2
    assert bench_gpu.table([machine, RECORD, *other]).partition("\nD, ")[2].endswith("\n\n- batch: failed with 1\n")
    assert bench_gpu.step_seconds([RECORD | {"tiny": True}, RECORD | {"device": "cpu"}]) is None


def test_what_a_trace_says_of_card_and_cpu():
    def event(kind, name, start, duration):
        return {"ph": "X", "cat": kind, "name": name, "ts": start * 1e6, "dur": duration * 1e6}

    events = [event("kernel", "a", 0, 2), event("kernel", "b", 1, 2), event("kernel", "c", 5, 1)]
    events += [event("user_annotation", "finish", 2, 2), event("user_annotation", "other", 5, 1), {"ph": "M"}]
    assert bench_gpu.overlap(events) == {"computing": 4.0, "idle": 2.0, "finishing": 2.0, "overlap": 1.0}


def test_the_measured_figures_in_the_documents_are_those_of_a_card():
    """docs/measured.jsonl is the bench.jsonl of a run on a card; without it nothing may stand there."""
    section = (
        (REPOSITORY / "docs/cards.md").read_text().partition("<!-- measured -->\n")[2].partition("<!-- end -->")[0]
    )
    records = bench_gpu.read(MEASURED)
    assert section == bench_gpu.table(records)
    assert not any(record["tiny"] or record["device"] != "cuda" for record in records)
    measured = bench_gpu.step_seconds(records)
    assert measured is None or measured <= bench_gpu.built_in()


def test_the_real_models_have_the_sizes_that_the_documents_reckon_with():
    text = (REPOSITORY / "docs/cards.md").read_text()
    names = {
        "transformer": "transformer",
        "text_encoder_2": "T5-XXL, the encoder",
        "text_encoder": "CLIP-L",
        "vae": "VAE",
    }
    names["judge"] = "Qwen2.5-VL-7B"
    with gpu_models.made_there("meta", "bfloat16"):
        for name, row in names.items():
            number = sum(parameter.numel() for parameter in gpu_models.part(name, gpu_models.REAL).parameters())
            (written,) = re.findall(rf"^\| {row} \| ([\d.e]+) \|", text, re.M)
            assert number == pytest.approx(float(written), rel=0.06)


def needed(names, given):
    """Normal names of distributions that these need, themselves included, of what is installed here."""
    found, todo = set(), list(names)
    while todo:
        name = gpu_wheels.normal(todo.pop())
        if name in found or name in given:
            continue
        found.add(name)
        try:
            texts = distribution(name).requires or ()
        except PackageNotFoundError:
            assert name == "bitsandbytes"  # for cards alone; it needs what is given
            continue
        requirements = map(Requirement, texts)
        todo += [one.name for one in requirements if not one.marker or one.marker.evaluate({"extra": ""})]
    return found


def test_the_lock_for_a_card_is_all_that_each_group_needs_besides_pytorch_and_transformers():
    given, locked = set(gpu_wheels.GIVEN), gpu_wheels.locked()
    assert set(locked) == set(gpu_wheels.GROUPS)
    for group, (names, _) in gpu_wheels.GROUPS.items():
        found = needed(names.split(), given)
        assert set(locked[group]) == found
        given |= found


def test_all_wheels_are_to_be_had_for_the_newest_python():
    done = subprocess.run([*WHEELS, "collect", "--dry-run", "--python", "3.13"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"Python 3.13: {sum(map(len, gpu_wheels.locked().values()))} wheels are to be had" in done.stdout


def test_what_a_machine_has_is_not_brought_and_a_group_can_be_left_out(tmp_path):
    (tmp_path / "have.txt").write_text("python==3.12\nPyArrow==25.0\npillow==12.0\n")
    there, python = gpu_wheels.read_have(str(tmp_path / "have.txt"))
    names = [name.partition("==")[0] for name in gpu_wheels.wanted("nf4,workflow", there, "pillow")]
    assert python == "3.12" and "pyarrow" not in names and {"pillow", "diffusers", "torchao"} <= set(names)
    assert not {"bitsandbytes", "snakemake"} & set(names)
    with pytest.raises(SystemExit, match="--without core: expected some of judge, int8, nf4, workflow"):
        gpu_wheels.wanted("core", {})


def test_wheels_are_unpacked_into_a_folder_and_those_of_another_python_refused(tmp_path):
    def wheel(name):
        with zipfile.ZipFile(tmp_path / name, "w") as files:
            files.writestr("brought.py", "here = 1\n")
            files.writestr("brought-1.data/purelib/other.py", "here = 2\n")
            files.writestr("brought-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: brought\nVersion: 1\n")

    install = [*WHEELS, "install", "--from", str(tmp_path), "--into", str(tmp_path / "site")]
    assert "no wheels" in subprocess.run(install, capture_output=True, text=True).stderr
    wheel("brought-1-py3-none-any.whl")
    subprocess.run(install, check=True, capture_output=True)
    code = "import brought, other, importlib.metadata as m; print(brought.here, other.here, m.version('brought'))"
    env = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "2", "1"]
    wheel("compiled-1-cp310-cp310-manylinux_2_28_x86_64.whl")
    done = subprocess.run(install, capture_output=True, text=True)
    assert done.returncode == 1 and "is not for Python" in done.stderr


def test_what_is_missing_is_said_at_once():
    done = subprocess.run(
        [*WHEELS, "check"], env=environment() | {"PATH": ""}, capture_output=True, text=True, timeout=10
    )
    assert done.returncode == 1
    missing = re.findall(r"^MISSING: (.*)", done.stdout, re.M)
    assert missing == [
        "PyTorch is installed without CUDA",
        "nvidia-smi shows no card (no NVIDIA card, or no driver)",
    ]
    assert "LEFT OUT: bitsandbytes is not installed (for quantization: nf4)" in done.stdout
