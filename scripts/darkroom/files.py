"""Write files so that each is either complete or absent, even if the writer is killed."""

import contextlib
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

_APART = ".part"


@contextlib.contextmanager
def replacing(path: str | Path, apart: bool = True, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path to write to; when the block ends without an error, it replaces `path`.

    The temporary file is removed if anything is raised.

    Args:
        path: the file to write; its folder is made.
        apart: put the temporary file into a folder of its own beside `path`. The next writer that finishes removes that
            folder, with what a killed writer left in it, and need not search a folder of 100 000 shards. Use False for
            files that several processes or threads may write at once, or whose folder is cleared anyway.
        sync: have the content on the disk before the file gets its name.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    # A job that was started anew elsewhere may not be the only one, nor a thread in its process.
    writer = f"{socket.gethostname()}-{os.getpid()}-{threading.get_native_id()}"
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
    """The file that a killed writer was about to make, if `path` is the folder it left behind; else `path` itself."""
    left = path.suffix == _APART and path.name.startswith(".")
    return path.with_name(path.stem.removeprefix(".")) if left else path


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(p.stat().st_size for p in (path.rglob("*") if path.is_dir() else [path]) if p.is_file())


def remove(path: Path) -> None:
    """Remove a file or a folder."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
