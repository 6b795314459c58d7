"""A hub on loopback: what the Hugging Face client asks of the real one, for repositories that are folders.

Answers as the hub does: the commit of a revision, the list of files, then HEAD and GET of each file with the commit, ETag
and size in the headers, ranges, redirects of large files to a store, and errors by code. Files of the store are served
without a token, as the hub's are.
"""

import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from conftest import FLUX, JUDGE, environment

LARGE = 10_000  # bytes; above it a file is in the store (LFS)


@dataclass
class Repository:
    """files: name -> bytes; gated: tokens that may read it, None where everybody may."""

    files: dict[str, bytes]
    gated: set[str] | None = None
    branches: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        listing = json.dumps({name: hashlib.sha256(data).hexdigest() for name, data in sorted(self.files.items())})
        self.commit = hashlib.sha1(listing.encode()).hexdigest()
        self.branches |= {"main": self.commit}


def model_files(folder: Path) -> dict[str, bytes]:
    """The files of an embedded model that a run needs: all but what is for its reader."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    return {name: data for name, data in found.items() if name not in ("README.md", "SHA256SUMS")}


class Hub:
    """repositories: owner/name -> Repository; asked: (method, path) of every request; wound: called before a file is sent."""

    def __init__(self, repositories: dict[str, Repository]):
        self.repositories, self.asked = repositories, []
        self.wound: Callable[[BaseHTTPRequestHandler, str, bytes], bytes | None] = lambda handler, name, data: data
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    def got(self) -> list[str]:
        """Names of the files that were asked for with GET, from a repository or from the store."""
        paths = [path.split("/") for method, path in self.asked if method == "GET"]
        return ["/".join(parts[5:] if parts[3] == "resolve" else parts[4:]) for parts in paths if parts[1] != "api"]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        path = unquote(urlsplit(self.path).path)
        parts = path.strip("/").split("/")
        self.hub.asked.append((self.command, path))
        if parts[0] == "store":
            repository = self.hub.repositories[f"{parts[1]}/{parts[2]}"]
            return self.file(repository, "/".join(parts[3:]), repository.commit)
        api = parts[:2] == ["api", "models"]
        name, rest = ("/".join(parts[2:4]), parts[4:]) if api else ("/".join(parts[:2]), parts[2:])
        repository = self.hub.repositories.get(name)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token == "expired":
            return self.refuse(401, None, "Invalid credentials in Authorization header")
        if repository is None:
            # The hub does not tell a stranger which private names exist.
            return self.refuse(404, "RepoNotFound", "Repository not found") if token else self.refuse(401, None, "")
        if rest[0] not in ("revision", "tree", "resolve"):
            return self.refuse(404, None, "Not found")
        revision = rest[1]
        commit = repository.branches.get(revision, revision)
        if commit != repository.commit:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if rest[0] == "revision":
            return self.send(200, json.dumps({"id": name, "modelId": name, "sha": commit}).encode())
        if rest[0] == "tree":
            return self.send(200, json.dumps([_entry(n, d) for n, d in repository.files.items()]).encode())
        if repository.gated is not None and token not in repository.gated:
            status, text = (403, "and you are not in the authorized list") if token else (401, "Please log in.")
            return self.refuse(status, "GatedRepo", f"Access to model {name} is restricted. {text}")
        file = "/".join(rest[2:])
        data = repository.files.get(file)
        if data is None:
            return self.refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        if len(data) > LARGE:
            headers = {"X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
            headers |= {"X-Repo-Commit": commit, "Location": f"{self.hub.url}/store/{name}/{file}?signature=secret"}
            return self.send(302, b"", headers)
        return self.file(repository, file, commit)

    def file(self, repository, name, commit):
        data = repository.files[name]
        headers = {"ETag": f'"{_git_id(data)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        start = 0
        if wanted := self.headers.get("Range"):
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        sent = data[start:] if self.command == "HEAD" else self.hub.wound(self, name, data[start:])
        if sent is not None:
            self.send(206 if start else 200, sent, headers, len(data) - start)

    def refuse(self, status, code, text, headers=None):
        headers = (headers or {}) | ({"X-Error-Code": code} if code else {}) | {"X-Error-Message": text}
        self.send(status, json.dumps({"error": text}).encode(), headers)

    def send(self, status, body, headers=None, length=None):
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
        if length is not None and length != len(body):
            self.close_connection = True


def _git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _entry(name: str, data: bytes) -> dict:
    entry = {"type": "file", "path": name, "size": len(data), "oid": _git_id(data)}
    if len(data) > LARGE:
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry


# ------------------------------------------------------------------------------- the embedded models, on such a hub

DECOYS = {
    "tiny/flux": [
        *("README.md", "preview.jpg", "flux1.safetensors", "ae.safetensors", "pipeline.py", "unet/model.safetensors"),
        *("text_encoder/pytorch_model.bin", "text_encoder/model.fp16.safetensors", "vae/flax_model.msgpack"),
        *("transformer/model.py", "transformer/diffusion_pytorch_model.bin", "transformer/flux.gguf"),
    ],
    "tiny/judge": ["README.md", "pytorch_model.bin", "modeling.py", "consolidated.safetensors", "original/model.pth"],
}


def tiny_hub(**options: dict) -> Hub:
    """The embedded models as tiny/flux and tiny/judge, beside files that are not to be fetched; options: by `flux`, `judge`."""
    folders = {"flux": FLUX, "judge": JUDGE}
    return Hub(
        {
            f"tiny/{name}": Repository(
                model_files(folder) | dict.fromkeys(DECOYS[f"tiny/{name}"], b"decoy" * 3000), **options.get(name, {})
            )
            for name, folder in folders.items()
        }
    )


def surroundings(hub, **more):
    """The environment of a host that sees the hub, and no user's token."""
    env = {name: value for name, value in environment().items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    return env | {"HF_ENDPOINT": hub.url, "NO_PROXY": "127.0.0.1", "HF_HUB_ETAG_TIMEOUT": "60"} | more
