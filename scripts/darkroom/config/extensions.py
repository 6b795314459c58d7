"""Python files of the user, named by `extensions` in the config, that register what the workflow has not by itself."""

import importlib.util
import re
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path

from darkroom.errors import DarkroomError

PREFIX = "darkroom_extension_"


def load(paths: Iterable[str | Path]) -> None:
    """Run each file as the module `darkroom_extension_<stem>`, once per process; what it registers stays.

    The module is in sys.modules, so "module:function" can name what is in it. Raises DarkroomError, one line with file
    and line, where a file cannot be run, and where two files would be the same module.
    """
    for path in paths:
        _load(Path(path).resolve())


def module_name(path: str | Path) -> str:
    """The name under which an extension is imported."""
    return PREFIX + re.sub(r"\W", "_", Path(path).stem)


def _load(path: Path) -> None:
    name = module_name(path)
    if (there := sys.modules.get(name)) is not None:
        if there.__file__ != str(path):
            raise DarkroomError(f"{path}: {there.__file__} is an extension of the same name; rename one of them")
        return
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise DarkroomError(f"{path}: an extension is a Python file, with a name that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise DarkroomError(f"{path}{_line(error, path)}: {_reason(error)}") from error


def _line(error: BaseException, path: Path) -> str:
    """ ", line N" of the extension itself, wherever below it the error arose."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f", line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f", line {lines[-1]}" if lines else ""


def _reason(error: BaseException) -> str:
    said = (error.msg if isinstance(error, SyntaxError) else str(error)).splitlines() or [""]
    return said[0] if isinstance(error, DarkroomError) else f"{type(error).__name__}: {said[0]}".removesuffix(": ")
