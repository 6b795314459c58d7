"""Make an image again from the record of it in a shard, and compare the pixels."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from darkroom import engines
from darkroom.config.models import Config
from darkroom.config.options import options_of, with_family
from darkroom.engines.base import Failure, Source
from darkroom.errors import DarkroomError
from darkroom.jobs.devices import Devices
from darkroom.jobs.runtime import device_kind, versions
from darkroom.models.hub import HubModel, local_section
from darkroom.plan.recipe import IMAGE_RECIPE_VERSION, image_recipe
from darkroom.plan.requests import Request
from darkroom.plan.stages import STAGES, stages_for
from darkroom.store.images import encode, of_sheet, open_picture
from darkroom.store.shardfile import IMAGE_COLUMNS, ImageRecord, RecordReader, iter_records, read_meta


def _sources(record: ImageRecord, picture: Image) -> Source:
    """What an edit started from, of the picture that its record holds; a tuple where they were several."""
    parts = json.loads(record.get("source_parts") or "[]")
    return tuple(of_sheet(picture, [(part["width"], part["height"]) for part in parts])) if parts else picture


def _section(config: Config, rule: str, path: Path) -> str:
    """The section of the config that a rule's pictures are made by."""
    for stage in stages_for(config, STAGES.values()):
        if stage.rule == rule:
            return stage.section
    raise DarkroomError(f"{path}: made by {rule}, and the config has no such model")


@dataclass
class Comparison:
    """What came out: equal pixels or not, the greatest difference of a value (0 to 255), and how many pixels differ.

    versions: of packages, and the kind of device, that are others now: name -> (then, now).
    """

    record: ImageRecord
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
    config: Config,
    models: Mapping[str, HubModel] | None = None,
    devices: Devices | None = None,
) -> Comparison:
    """Make the image at `position` of a shard file again and compare it with the one that is stored.

    config: for where the model lies and the device; all that decides the pixels comes
    from the shard file. models: those of the hub, by section; devices: from which the one for it is claimed. Raises DarkroomError
    where there is nothing to make, the model is another, or it does not make the same twice.
    """
    meta, record = read_meta(path), RecordReader(path)[position]
    if record["origin"] == "given":
        raise DarkroomError(f"{path}: row {record['row']}: a given image; it was not made here")
    source, stored = record.get("source"), record["image"]
    if stored is None:
        raise DarkroomError(f"{path}: row {record['row']}: was not made: {record['error']}")
    recipe, name = meta["recipe"], _section(config, meta["rule"], path)
    if recipe["version"] != IMAGE_RECIPE_VERSION:
        raise DarkroomError(f"{path}: made by recipe version {recipe['version']}; this is {IMAGE_RECIPE_VERSION}")
    kind = engines.family(recipe["family"], f"{path}: family")
    if not kind.repeats:
        raise DarkroomError(f"{path}: family {kind.name} does not make the same image twice")
    taken = {key: recipe[key] for key in ("family", *kind.recipe_keys)}
    taken |= options_of(recipe) | {"batch_size": 1, "gpus": 1, "negative_prompt": None}
    section = with_family(config.section(name).model_copy(update=taken), name)
    if (identity := kind.model_identity(section)) != recipe["model"]:
        raise DarkroomError(f"{path}: made with model {recipe['model']}; {name}.model of the config is {identity}")
    told: dict[str, Any] = {one.name: record.get(one.name) for one in fields(Request) if one.name in IMAGE_COLUMNS}
    request = Request(**told, source=None, given=None, user_row={})
    if (loras := image_recipe(section).get("loras")) != recipe.get("loras"):
        raise DarkroomError(f"{path}: made with loras {recipe.get('loras')}; {name}.loras of the config are {loras}")
    if devices and kind.local:
        devices.claim(section, name)  # before the engine's libraries are imported
    engine = engines.open_engine(local_section(section, models or {}, name), name)
    engine.prepare([request])
    size = engine.work_size(*request.size)
    sources = [_sources(record, open_picture(source["bytes"], source["path"]).image)] if source else None
    ((_, image),) = engine.make([request], size, sources)
    if isinstance(image, Failure):
        raise DarkroomError(f"{path}: row {record['row']}: {image.reason}")
    # With the losses of the format that it was stored in.
    image = open_picture(encode(image, recipe.get("image_format")), record["key"]).image
    before = np.asarray(open_picture(stored["bytes"], record["key"]).image, np.int16)
    difference = np.abs(np.asarray(image, np.int16) - before)
    then = meta["versions"] | {"device": meta["device"]}
    now = versions(*meta["versions"]) | {"device": device_kind(section.device)}
    others = {name: (was, now.get(name)) for name, was in then.items() if now.get(name) != was}
    return Comparison(record, int(difference.max()), int(difference.any(axis=2).sum()), others)
