"""Requests: the images to make of a row, with their seeds and keys."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from darkroom.config.models import Sampling, StageSection
from darkroom.config.options import CACHE_KEYS, IMAGE_OPTIONS
from darkroom.engines import family
from darkroom.identity import digest, request_seed
from darkroom.plan.recipe import Recipe
from darkroom.plan.shards import Shard


@dataclass(slots=True)
class Request:
    """One image to make, or a given one to take over.

    width and height in pixels; None keeps the source's. source and given: a reference,
    as in `darkroom.rows.read`; more: further sources of the one image. user_row: the user's own row. key: see `request_key`; set
    once the source is known. source_sha256: of the source's content; of several sources a hash of theirs, which are parts_sha256.
    """

    row: str
    item: int
    sample: int
    prompt: str
    negative_prompt: str | None
    seed: int
    width: int | None
    height: int | None
    steps: int | None
    guidance: float | None
    true_cfg: float | None
    source: dict[str, Any] | None
    given: dict[str, Any] | None
    user_row: dict[str, Any]
    more: list[dict[str, Any]] = field(default_factory=list)
    key: str = ""
    source_sha256: str | None = None
    parts_sha256: list[str] = field(default_factory=list)
    given_sha256: str | None = None

    @property
    def sources(self) -> list[dict[str, Any]]:
        """All that it starts from."""
        return [] if self.source is None else [self.source, *self.more]

    @property
    def contents(self) -> list[tuple[dict[str, Any], str | None]]:
        """Each of them with the SHA-256 of its content."""
        known = self.parts_sha256 if self.more else [self.source_sha256] * len(self.sources)
        return list(zip(self.sources, known, strict=True))

    @property
    def name(self) -> str:
        return f"row {self.row}, item {self.item}, sample {self.sample}"

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels, of a request whose source is known."""
        assert self.width is not None and self.height is not None
        return self.width, self.height


def expand(
    row: dict[str, Any], section: StageSection, seed: int | list[int], samples: int, every: bool = False
) -> list[Request]:
    """The requests of a normal row, in order (item, then sample).

    section: `generate` or `edit` of the config, for what the row leaves open; seed: the root seed, or the list of
    those of every prompt; samples: images per prompt where the row names none. A given image is one request, whatever the
    samples. every: the requests of a stage that makes one picture from each picture of another: they have its place for their
    source, and its size. What the row says of steps, guidance and a negative prompt is for the picture that they start from.
    """
    return expand_rows([row], section, seed, samples, every)


def expand_rows(
    rows: Iterable[dict[str, Any]], section: StageSection, seed: int | list[int], samples: int, every: bool = False
) -> list[Request]:
    """The requests of several rows, as `expand` has those of one."""
    sampling = section.sampling
    if every:
        return [_after(request, sampling) for row in rows for request in _expand(row, Sampling(), seed, samples)]
    return [request for row in rows for request in _expand(row, sampling, seed, samples)]


def _expand(row: dict[str, Any], sampling: Sampling, seed: int | list[int], samples: int) -> list[Request]:
    options, read = row["options"], row.get("read", ())
    requests = []
    for item, entry in enumerate(row["items"]):
        given = entry.get("given")
        for sample in range(1 if given else options.get("samples", samples)):
            requests.append(
                Request(
                    row=row["id"],
                    item=item,
                    sample=sample,
                    prompt=entry["prompt"],
                    negative_prompt=options.get("negative_prompt", sampling.negative_prompt),
                    seed=request_seed(seed, row["id"], item, sample, options.get("seed")),
                    width=options.get("width", sampling.width),
                    height=options.get("height", sampling.height),
                    steps=options.get("steps", sampling.steps),
                    guidance=_number(options.get("guidance", sampling.guidance)),
                    true_cfg=_number(sampling.true_cfg),
                    source=_of_sample(entry.get("source"), sample),
                    more=entry.get("more", []),
                    given=given,
                    user_row={name: value for name, value in row["row"].items() if name not in read},
                )
            )
    return requests


def _of_sample(reference: dict[str, Any] | None, sample: int) -> dict[str, Any] | None:
    """A reference that leaves the sample open is to that of the same number."""
    return reference | {"sample": sample} if reference and reference.get("sample", sample) is None else reference


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)


def _after(request: Request, sampling: Sampling) -> Request:
    return replace(
        request,
        source={"row": request.row, "item": request.item, "sample": request.sample},
        given=None,
        width=None,
        height=None,
        negative_prompt=sampling.negative_prompt,
        steps=sampling.steps,
        guidance=_number(sampling.guidance),
        true_cfg=_number(sampling.true_cfg),
    )


def request_key(request: Request, recipe: Recipe, source: str | None, given: str | None) -> str:
    """The identity of the request's result: a hash of everything that decides its pixels, and of nothing else.

    source and given: the SHA-256 of the content of these images, None where there is none. Equal key, equal
    pixels on one kind of device, whatever the shard, the batch, the order or the machine.
    """
    return request_keys(recipe)(request, source, given)


def request_keys(recipe: Recipe) -> Callable[[Request, str | None, str | None], str]:
    """`request_key` for many requests of a recipe: a function of the request and its images."""
    kind = family(recipe["family"])
    common = {name: recipe[name] for name in ("version", "family", "model", *kind.recipe_keys)}
    common |= {
        name: recipe[name] for name in (*IMAGE_OPTIONS, *CACHE_KEYS.values(), "loras", "image_format") if name in recipe
    }

    def key(request: Request, source: str | None, given: str | None) -> str:
        if request.given:  # one that cannot be read has no content; its name stands for it
            return digest(["given", given or request.given, source])
        decides = common | {name: getattr(request, name) for name in kind.settings}
        if kind.reads_negative(request):
            decides["negative_prompt"] = request.negative_prompt
        decides["source"] = source
        return digest(decides)

    return key


def image_digest(shard: Shard, recipe: Recipe, seed: int | list[int], samples: int) -> str:
    """The digest an image shard is made for: its rows, the images they name, the recipe and the root seed, or the seeds."""
    return digest([shard.digest, shard.sources, recipe, seed, samples])


def edited_digest(
    shard: Shard, recipe: Recipe, seed: int | list[int], samples: int, generate_recipe: Recipe | None
) -> str:
    """The digest of a shard of edits: as `image_digest`, and what decides the images of this run it starts from.

    generate_recipe: of those images that were made from prompts, None where it starts from none.
    """
    parts: list[Any] = [image_digest(shard, recipe, seed, samples)]
    if shard.referenced:
        parts += [shard.referenced, generate_recipe]
    return digest(parts)


def score_digest(images: list[str], recipe: Recipe) -> str:
    """The digest of a score file: of the image shards it judges, by their digests, and the judge's recipe."""
    return digest([images[0] if len(images) == 1 else images, recipe])
