"""The config: read, checked, with every default."""

from pathlib import Path


def home() -> Path:
    """The folder with the files that come with Darkroom: below it are config/rubrics and resources/gallery.

    That is the repository where the library lies in one, else the library's own copy.
    """
    library = Path(__file__).resolve().parents[1]
    repository = library.parents[1]
    return repository if (repository / "config/rubrics").is_dir() else library / "_home"
