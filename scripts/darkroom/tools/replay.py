"""Make an image again from the record of it in a shard, and compare the pixels."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from darkroom.config.options import options_of
from darkroom.engines.work import batch_arrays, finish_image
from darkroom.errors import DarkroomError
from darkroom.jobs.runtime import device_kind, versions
from darkroom.models.identity import model_identity
from darkroom.plan.recipe import IMAGE_RECIPE_VERSION
from darkroom.plan.requests import Request
from darkroom.store.images import open_picture
from darkroom.store.shardfile import RecordReader, iter_records, read_meta

if TYPE_CHECKING:
    from collections.abc import Callable

    from darkroom.engines.diffusion import Engine

STAGES = {"generate_images": "generate", "edit_images": "edit"}


@dataclass
class Comparison:
    """What came out: equal pixels or not, the greatest difference of a value (0 to 255), and how many pixels differ.

    versions: of packages, and the kind of device, that are others now: name -> (then, now).
    """

    record: dict[str, Any]
    greatest: int
    pixels: int
    versions: dict[str, tuple[str | None, str | None]]

    @property
    def equal(self) -> bool:
        return self.pixels == 0


def find_record(files: Iterable[Path], key: str | None, row: str | None, item: int, sample: int) -> tuple[Path, int]:
    """(shard file, position) of an image that is planned, by its key or by row id, item and sample.

    files: the shard files to look in. Raises DarkroomError where there is none.
    """
    for path in files:
        if not path.exists():
            continue
        for position, record in enumerate(iter_records(path, ["key", "row", "item", "sample"])):
            if record["key"] == key or (record["row"], record["item"], record["sample"]) == (row, item, sample):
                return path, position
    what = f"key {key}" if key else f"row {row}, item {item}, sample {sample}"
    raise DarkroomError(f"no image with {what} among those that are planned")


def replay(
    path: Path,
    position: int,
    sections: dict[str, dict[str, Any]],
    open_engine: "Callable[[dict[str, Any], str], Engine]",
) -> Comparison:
    """Make the image at `position` of a shard file again and compare it with the one that is stored.

    sections: `generate` and `edit` of the config, for where the model lies and the device; all that decides the pixels comes
    from the shard file. Raises DarkroomError where there is nothing to make or the model is another.
    """
    meta, record = read_meta(path), RecordReader(path)[position]
    if record["origin"] == "given":
        raise DarkroomError(f"{path}: row {record['row']}: a given image; it was not made here")
    if record["error"] is not None:
        raise DarkroomError(f"{path}: row {record['row']}: was not made: {record['error']}")
    recipe, name = meta["recipe"], STAGES[meta["rule"]]
    if recipe["version"] != IMAGE_RECIPE_VERSION:
        raise DarkroomError(f"{path}: made by recipe version {recipe['version']}; this is {IMAGE_RECIPE_VERSION}")
    taken = ("family", "dtype", "max_sequence_length")
    section = sections[name] | {key: recipe[key] for key in taken} | options_of(recipe) | {"batch_size": 1}
    if (identity := model_identity(section)) != recipe["model"]:
        raise DarkroomError(f"{path}: made with model {recipe['model']}; {name}.model of the config is {identity}")
    names = (
        "row",
        "item",
        "sample",
        "prompt",
        "negative_prompt",
        "seed",
        "width",
        "height",
        "steps",
        "guidance",
        "true_cfg",
    )
    request = Request(**{key: record[key] for key in names}, source=None, given=None, user_row={}, key=record["key"])
    engine = open_engine(section, name)
    engine.prepare([request])
    size = engine.work_size(request.width, request.height)
    source = open_picture(record["source"]["bytes"], record["source_name"]).image if name == "edit" else None
    array = batch_arrays(engine, [request], size, [source] if source else None)[0]
    image = finish_image(array, (request.width, request.height), engine.edits)
    if isinstance(image, str):
        raise DarkroomError(f"{path}: row {record['row']}: {image}")
    stored = np.asarray(open_picture(record["image"]["bytes"], record["key"]).image, np.int16)
    difference = np.abs(np.asarray(image, np.int16) - stored)
    then = meta["versions"] | {"device": meta["device"]}
    now = versions(*meta["versions"]) | {"device": device_kind(section["device"])}
    others = {name: (was, now.get(name)) for name, was in then.items() if now.get(name) != was}
    return Comparison(record, int(difference.max()), int(difference.any(axis=2).sum()), others)
