"""What decides the pixels of an image, and the scores of a judge, apart from the request itself."""

import json
from dataclasses import fields
from typing import Any

from darkroom.config.models import PNG_6, Judge, Sampling, StageSection
from darkroom.config.options import image_options, judge_options
from darkroom.engines import family
from darkroom.models.identity import lora_identity, model_identity

# Raise one of these when a change of the code changes what it makes from the same input: the digests of all
# shards of that stage change with it, and their requests are made again.
IMAGE_RECIPE_VERSION = 1
JUDGE_RECIPE_VERSION = 2

_SETTINGS = tuple(one.name for one in fields(Sampling))  # what a section says for requests that do not
Recipe = dict[str, Any]  # plain JSON: it is digested, and stored with what was made by it
_WRITING = ("temperature", "top_p", "max_tokens")  # how the judge writes a reply of several words
_JUDGE_KEYS = ("engine", "dtype", *_WRITING, "min_pixels", "max_pixels")


def image_recipe(section: StageSection) -> Recipe:
    """The recipe of `generate` or `edit`: model identity and sampler settings, without what cannot change a pixel."""
    kind = family(section.family)
    recipe = {key: getattr(section, key) for key in ("family", *kind.recipe_keys)}
    recipe |= {name: getattr(section.sampling, name) for name in _SETTINGS if name in kind.settings}
    if section.sampling.negative_prompt is not None:
        recipe["negative_prompt"] = section.sampling.negative_prompt
    recipe |= image_options(section)
    if section.image_format != PNG_6:
        recipe["image_format"] = section.image_format
    if loras := section.options.loras:
        recipe["loras"] = [{"model": lora_identity(lora), "scale": lora.scale} for lora in loras]
    recipe |= {"version": IMAGE_RECIPE_VERSION, "model": kind.model_identity(section)}
    return json.loads(json.dumps(recipe))


def judge_recipe(section: Judge, rubric: Any) -> Recipe:
    """The recipe of the judge: model identity, settings and what stands for the questions it is asked."""
    recipe = {key: getattr(section, key) for key in _JUDGE_KEYS} | judge_options(section)
    recipe |= {"version": JUDGE_RECIPE_VERSION, "model": model_identity(section), "rubric": rubric}
    return json.loads(json.dumps(recipe))


def question_recipe(section: Judge, question: dict[str, Any], drawn: bool) -> Recipe:
    """The recipe of one question. drawn: its reply is written word by word; else the settings of that do not decide it."""
    recipe = judge_recipe(section, question)
    return recipe if drawn else {key: value for key, value in recipe.items() if key not in _WRITING}
