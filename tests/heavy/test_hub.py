"""Fetching from a hub with the real client: which files, what goes wrong on the way, and what is left then."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import FLUX, REPOSITORY
from darkroom.config.load import lora_files
from darkroom.config.models import Generate, Lora
from darkroom.errors import DarkroomError
from darkroom.models.hub import HubModel, judge_files, local_section, pipeline_files
from hubserver import Hub, Repository, model_files, surroundings, tiny_hub

FETCH = """
import json, sys
from pathlib import Path
from darkroom.config.models import Lora
from darkroom.models.hub import HubModel, fetch, report_lines
from darkroom.jobs.runtime import job
with job(None, online=True):
    section, repo, revision, cache, marker = sys.argv[1:]
    lora = Lora.model_validate_json(section) if section[0] == "{" else Lora(model=repo) if ".loras." in section else None
    section = "generate.loras.0" if lora else section
    print(report_lines(section, fetch(HubModel(section, repo, revision, cache, Path(marker), lora))))
"""
TOKEN = "hf_" + "secretsecret" * 3


class Client:
    """A folder with a cache and a marker, and the command that fetches into it."""

    def __init__(self, folder: Path, hub: Hub, cache: Path | None = None):
        self.hub, self.cache, self.marker = hub, cache or folder / "cache", folder / "marker.json"
        self.env = surroundings(hub, HF_HOME=str(folder / "home"), PYTHONPATH=str(REPOSITORY / "scripts"))

    def command(self, section="generate", repo="tiny/flux", revision="main"):
        return [sys.executable, "-c", FETCH, section, repo, revision, str(self.cache), str(self.marker)]

    def fetch(self, *arguments, check=True, **env):
        done = subprocess.run(self.command(*arguments), env=self.env | env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0 or not check, done.stderr
        return done

    def stored(self):
        """Name -> whether the file below the snapshot is whole, of all there are."""
        (snapshot,) = self.cache.glob("models--tiny--flux/snapshots/*")
        files = self.hub.repositories["tiny/flux"].files
        found = [path for path in snapshot.rglob("*") if path.is_file()]
        return {(n := str(path.relative_to(snapshot))): path.read_bytes() == files[n] for path in found}

    def partial(self):
        return list(self.cache.glob("**/*.incomplete"))


@pytest.fixture
def client(tmp_path):
    with tiny_hub() as hub:
        yield Client(tmp_path, hub)


# ------------------------------------------------------------------------------------------------ errors

PICKLES = Repository({"model_index.json": b'{"vae": ["diffusers", "A"]}', "vae/config.json": b"{}", "vae/d.bin": b"x"})
HALF = json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}})
NO_SHARD = {
    "config.json": b"{}",
    "model.safetensors.index.json": HALF.encode(),
    "model-00001-of-00002.safetensors": b"",
}

WRONG = {
    "gated, no token": (
        ("generate", "tiny/gated"),
        {},
        "is gated: accept its licence at {url}/tiny/gated, then log in",
    ),
    "gated, a token without access": (
        ("generate", "tiny/gated"),
        {"HF_TOKEN": TOKEN},
        "is gated, and the token has no access to it: accept its licence at {url}/tiny/gated with the token's account",
    ),
    "a bad token": (("generate", "tiny/flux"), {"HF_TOKEN": "expired"}, "the hub refuses the token; log in again"),
    "wrong branch": (("generate", "tiny/flux", "v2"), {}, "generate.revision: tiny/flux has no revision v2; name"),
    "wrong commit": (("generate", "tiny/flux", "a" * 40), {}, "tiny/flux has no revision aaaa"),
    "no repository": (("judge", "tiny/none"), {}, "judge.model: no tiny/none at {url}, or a private one"),
    "no repository for a token": (
        ("judge", "tiny/none"),
        {"HF_TOKEN": TOKEN},
        "no tiny/none at {url}, or a private one",
    ),
    "no network": (
        ("generate", "tiny/flux"),
        {"HF_ENDPOINT": "http://127.0.0.1:9"},
        "cannot be fetched from http://127.0.0.1:9 (",
    ),
    "told to be offline": (("generate", "tiny/flux"), {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set, so tiny/flux"),
    "no safetensors": (("generate", "tiny/pickles"), {}, "tiny/pickles: vae/ has no weights as plain safetensors"),
    "no pipeline": (("generate", "tiny/judge"), {}, "tiny/judge: not a diffusers pipeline, for it has no model_index"),
    "no judge": (("judge", "tiny/flux"), {}, "tiny/flux: not a transformers model, for it has no config.json"),
    "no model of a metric": (
        ("metrics.clip", "tiny/flux"),
        {},
        "metrics.clip.model: tiny/flux: not a transformers model",
    ),
    "a part is not there": (("judge", "tiny/half"), {}, "names model-00002-of-00002.safetensors, which is not there"),
    "a cache that cannot be": (
        ("generate", "tiny/flux"),
        {"CACHE": "/proc/none"},
        "cache_dir: cannot write /proc/none",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_goes_wrong_is_one_line_with_the_remedy(client, name):
    arguments, env, message = WRONG[name]
    gated = Repository(model_files(FLUX), gated={"another"})
    client.hub.repositories |= {"tiny/gated": gated, "tiny/pickles": PICKLES, "tiny/half": Repository(NO_SHARD)}
    client.cache = Path(env.get("CACHE", client.cache))
    done = client.fetch(*arguments, check=False, **env)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    assert message.format(url=client.hub.url) in lines[0]
    assert TOKEN not in done.stdout + done.stderr and "signature" not in done.stdout + done.stderr
    assert not client.marker.exists()


def test_a_token_with_access_opens_a_gated_model_and_is_written_nowhere(client, tmp_path):
    client.hub.repositories["tiny/flux"].gated = {TOKEN}
    done = client.fetch(HF_TOKEN=TOKEN)
    assert set(client.stored()) == set(model_files(FLUX)) and all(client.stored().values())
    texts = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(TOKEN.encode() in text for text in [done.stdout.encode(), done.stderr.encode(), *texts])


# ---------------------------------------------------------------------------------------- interruptions


def test_a_dropped_connection_goes_on_where_it_broke(client):
    large, ranges = "transformer/diffusion_pytorch_model.safetensors", []
    # The client writes 10 MB at a time.
    client.hub.repositories["tiny/flux"] = Repository(model_files(FLUX) | {large: os.urandom(24 << 20)})

    def drop(handler, name, data):
        if name == large:
            ranges.append(handler.headers.get("Range"))
        return data[: 22 << 20] if ranges == [None] and name == large else data

    client.hub.wound = drop
    client.fetch()
    assert len(ranges) == 2 and re.fullmatch(r"bytes=[1-9]\d*-", ranges[1])
    assert all(client.stored().values()) and not client.partial()


def test_a_killed_fetch_leaves_nothing_that_passes_for_whole_and_goes_on(client):
    slow, release = "transformer/diffusion_pytorch_model.safetensors", threading.Event()

    def stall(handler, name, data):
        if name == slow and not release.is_set():
            handler.send(200, data[:100], {"ETag": '"x"'}, len(data))
            handler.wfile.flush()
            release.wait(300)
            return None
        return data

    client.hub.wound = stall
    process = subprocess.Popen(client.command(), env=client.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until, others = time.monotonic() + 200, set(model_files(FLUX)) - {slow}
    while not client.partial() or set(client.stored()) != others:
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    release.set()
    assert all(client.stored().values()) and not client.marker.exists()
    (left,) = client.partial()
    os.utime(left, (time.time() - 3600,) * 2)
    asked = len(client.hub.got())
    client.fetch()
    assert set(client.stored()) == {*others, slow} and all(client.stored().values()) and not client.partial()
    # The commit is asked for anew, as it was not known; of the files only the one that is missing.
    assert client.hub.got()[asked:] == [slow]
    assert json.loads(client.marker.read_text())["commit"] == client.hub.repositories["tiny/flux"].commit


def test_nothing_is_asked_where_all_is_there(client):
    client.fetch()
    commit = client.hub.repositories["tiny/flux"].commit
    first = client.marker.read_bytes()
    client.hub.stop()
    client.fetch("generate", "tiny/flux", "main")  # the marker knows the commit of main
    client.marker.unlink()
    client.fetch("generate", "tiny/flux", commit)  # and the cache the list of files
    assert json.loads(client.marker.read_text()) == json.loads(first) | {"revision": commit}


def test_a_file_that_was_cut_short_in_the_cache_is_fetched_again(client):
    client.fetch()
    name = "vae/diffusion_pytorch_model.safetensors"
    (path,) = client.cache.glob(f"models--tiny--flux/snapshots/*/{name}")
    path.resolve().write_bytes(b"short")
    asked = len(client.hub.got())
    client.fetch()
    assert all(client.stored().values()) and len(client.hub.got()) == asked + 1


def test_a_full_disk_is_one_line_and_the_rest_is_fetched_later(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    need = sum(map(len, model_files(FLUX).values()))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={need + (1 << 20)}", "tmpfs", str(disk)], check=True)
    try:
        with tiny_hub() as hub:
            client, ballast = Client(tmp_path, hub, disk / "cache"), disk / "ballast"
            ballast.write_bytes(bytes(1 << 21))
            done = client.fetch(check=False)
            assert re.search(
                r"error: generate.cache_dir: tiny/flux needs .* more in .*; free some, or set", done.stderr
            )
            ballast.unlink()

            def fill(handler, name, data):
                """Another user fills the disk while the weights come."""
                if name == "transformer/diffusion_pytorch_model.safetensors":
                    free = os.statvfs(disk)
                    ballast.write_bytes(bytes(max(free.f_bavail * free.f_frsize - 50_000, 0)))
                return data

            hub.wound = fill
            done = client.fetch(check=False)
            assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
            assert f"error: no space left in {client.cache} for tiny/flux; free some" in done.stderr
            assert all(client.stored().values()) and not client.partial() and not client.marker.exists()
            before = len(client.stored())
            assert before < len(model_files(FLUX))
            ballast.unlink()
            hub.wound = lambda handler, name, data: data
            client.fetch()
            assert set(client.stored()) == set(model_files(FLUX)) and all(client.stored().values())
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# ------------------------------------------------------------------------------------------- which files


def test_of_flux_only_the_components_are_taken():
    """The files of FLUX.1-dev: 24 GB lie once more, in one file, beside the components."""
    parts = {"transformer": "diffusion_pytorch_model", "text_encoder_2": "model"}
    numbers = {"transformer": 3, "text_encoder_2": 2}
    wanted, contents = {"model_index.json", "scheduler/scheduler_config.json"}, {}
    for part, stem in parts.items():
        files = [f"{stem}-{n + 1:05}-of-{numbers[part]:05}.safetensors" for n in range(numbers[part])]
        contents[f"{part}/{stem}.safetensors.index.json"] = {"weight_map": dict(enumerate(files))}
        wanted |= {f"{part}/{file}" for file in files} | {
            f"{part}/config.json",
            f"{part}/{stem}.safetensors.index.json",
        }
    wanted |= {"text_encoder/config.json", "text_encoder/model.safetensors", "vae/config.json"}
    wanted |= {"vae/diffusion_pytorch_model.safetensors", "tokenizer_2/spiece.model", "tokenizer_2/tokenizer.json"}
    wanted |= {f"tokenizer/{name}" for name in ("merges.txt", "vocab.json", "tokenizer_config.json")}
    components = ("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "transformer", "vae")
    index = {"_class_name": "FluxPipeline", "image_encoder": [None, None], "safe": True}
    contents["model_index.json"] = index | {name: ["transformers", "C"] for name in components}
    others = {"flux1-dev.safetensors", "ae.safetensors", "dev_grid.jpg", "README.md", "LICENSE.md", ".gitattributes"}
    others |= {"image_encoder/model.safetensors", "transformer/diffusion_pytorch_model.fp16.safetensors"}
    assert pipeline_files(wanted | others, contents.get) == sorted(wanted)


def test_of_a_lora_one_file_is_taken_with_its_card_and_the_engine_is_told_where_it_lies(client):
    files = ["README.md", "a.safetensors", "b.safetensors", "a.bin"]
    assert lora_files(files, "b.safetensors") == ["b.safetensors", "README.md"]
    assert lora_files(["x/a.safetensors", "b.bin"], None) == ["x/a.safetensors"]
    for names, wanted, words in (
        (files, None, "has several files of weights (a.safetensors, b.safetensors); name one as weight_name"),
        (files, "a.bin", "has no weights a.bin; there are a.safetensors, b.safetensors"),
        (["a.bin"], None, "has no weights as safetensors, and others are not loaded"),
    ):
        with pytest.raises(DarkroomError, match=re.escape(words)):
            lora_files(names, wanted)
    done = client.fetch("generate.loras.0", "tiny/flux", "main", check=False)
    assert done.returncode == 1 and "generate.loras.0.model: tiny/flux: has several files of weights (" in done.stderr
    weights = "vae/diffusion_pytorch_model.safetensors"
    lora = Lora(model="tiny/flux", weight_name=weights, scale=2)
    client.fetch(lora.model_dump_json(), "tiny/flux", "main")
    assert client.stored() == {weights: True, "README.md": True}
    hub = HubModel("generate.loras.0", "tiny/flux", "main", str(client.cache), client.marker, lora)
    (found,) = local_section(Generate(loras=[lora]), {hub.section: hub}, "generate").loras
    assert (found.file, found.model, found.scale) == (str(client.cache / _snapshot(hub) / weights), None, 2)
    assert HubModel(
        "generate.loras.0", "tiny/flux", "main", str(client.cache), client.marker, Lora(model="a/b")
    ).outdated


def _snapshot(hub):
    return f"models--tiny--flux/snapshots/{hub.commit}"


def test_of_a_judge_the_transformers_files_are_taken():
    parts = [f"model-0000{n}-of-00005.safetensors" for n in range(1, 6)]
    wanted = {
        "config.json",
        "generation_config.json",
        "merges.txt",
        "vocab.json",
        "tokenizer.json",
        "chat_template.json",
    }
    wanted |= {"preprocessor_config.json", "model.safetensors.index.json", *parts}
    others = {"README.md", "pytorch_model.bin", "modeling_qwen.py", "onnx/model.onnx", "pytorch_model.bin.index.json"}
    index = {"weight_map": {f"layer{n}": part for n, part in enumerate(parts)}}
    assert judge_files(wanted | others, {"model.safetensors.index.json": index}.get) == sorted(wanted)


# -------------------------------------------------------------------------------------------- the marker


def test_a_marker_holds_for_its_model_and_revision_alone(client):
    client.fetch("generate", "tiny/flux", "main")
    cache, commit = str(client.cache), client.hub.repositories["tiny/flux"].commit

    def model(repo="tiny/flux", revision="main", cache_dir=cache):
        return HubModel("generate", repo, revision, cache_dir, client.marker)

    assert model().commit == model(revision=commit).commit == commit
    assert model().digest == model(revision=commit).digest == json.loads(client.marker.read_text())["digest"]
    assert not model().outdated and not model(revision=commit).outdated
    assert model(repo="tiny/other").commit is None and model(revision="v1").commit is None
    assert model(revision="b" * 40).commit == "b" * 40
    for other in (model(repo="tiny/other"), model(revision="b" * 40), model(cache_dir="elsewhere")):
        assert other.outdated
    client.marker.write_text("[]")
    assert model().commit is None and model().outdated
