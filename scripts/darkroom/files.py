"""Files that are whole or not there, whenever their writer is killed."""

import contextlib
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

_APART = ".part"


@contextlib.contextmanager
def replacing(path: str | Path, apart: bool = True, sync: bool = True) -> Iterator[Path]:
    """A temporary path to write a file to, which takes the place of `path` where the block ends without an error.

    apart: a folder of its own beside `path` holds the temporary file, so that what a killed writer left there goes with
    the next one that ends well, without a look through a folder of 100 000 shards. False, for files that several
    processes may write at once, or whose folder is cleared anyway, puts it beside `path`. sync: have the content on the
    disk before it gets its name. Raises OSError, and removes the temporary file whatever is raised.
    """
    path = Path(path)
    writer = f"{socket.gethostname()}-{os.getpid()}"  # a job that was started anew elsewhere may not be the only one
    folder = path.with_name(f".{path.name}{_APART}") if apart else path.parent
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / (writer if apart else f".{path.name}.{writer}")
    try:
        yield temporary
        if sync:  # else a node's crash can leave the name without the content
            with open(temporary, "rb") as stream:
                os.fsync(stream.fileno())
        os.replace(temporary, path)
        if apart:
            shutil.rmtree(folder, ignore_errors=True)
    except BaseException:
        temporary.unlink(missing_ok=True)
        if apart:
            with contextlib.suppress(OSError):  # another writer's file is in it
                folder.rmdir()
        raise


def target_of(path: Path) -> Path:
    """The file that a killed writer's folder was left beside; of any other path, itself."""
    left = path.suffix == _APART and path.name.startswith(".")
    return path.with_name(path.stem.removeprefix(".")) if left else path


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(p.stat().st_size for p in (path.rglob("*") if path.is_dir() else [path]) if p.is_file())


def remove(path: Path) -> None:
    """Remove a file or a folder."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
