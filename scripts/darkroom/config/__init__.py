"""The config: read, checked, with every default."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def home() -> Path:
    """The folder that holds `config/rubrics` and `resources/gallery`.

    That is the repository, where the library lies in one; an installed library brings its own copies along.
    """
    repository = _PACKAGE.parents[1]
    return repository if (repository / "config/rubrics").is_dir() else _PACKAGE / "_home"
