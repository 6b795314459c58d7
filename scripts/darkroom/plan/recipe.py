"""What decides the pixels of an image, and the scores of a judge, apart from the request itself."""

import json
from typing import Any

from darkroom.config.options import image_options, judge_options
from darkroom.engines import family
from darkroom.models.identity import model_identity

# Raise one of these when a change of the code changes what it makes from the same input: the digests of all
# shards of that stage change with it, and their requests are made again.
IMAGE_RECIPE_VERSION = 1
JUDGE_RECIPE_VERSION = 1

_SETTINGS = ("width", "height", "steps", "guidance", "true_cfg")  # what a section says for requests that do not
_JUDGE_KEYS = ("engine", "dtype", "temperature", "top_p", "max_tokens", "min_pixels", "max_pixels")


def image_recipe(section: dict[str, Any]) -> dict[str, Any]:
    """The recipe of `generate` or `edit`: model identity and sampler settings, without what cannot change a pixel."""
    kind = family(section["family"])
    keys = ("family", *kind.recipe_keys, *(name for name in _SETTINGS if name in kind.settings))
    recipe = {key: section[key] for key in keys} | image_options(section)
    recipe |= {"version": IMAGE_RECIPE_VERSION, "model": kind.model_identity(section)}
    return json.loads(json.dumps(recipe))


def judge_recipe(section: dict[str, Any], rubric_digest: str) -> dict[str, Any]:
    """The recipe of the judge: model identity, settings and the digest of the rubric's questions."""
    recipe = {key: section[key] for key in _JUDGE_KEYS} | judge_options(section)
    recipe |= {"version": JUDGE_RECIPE_VERSION, "model": model_identity(section), "rubric": rubric_digest}
    return json.loads(json.dumps(recipe))
