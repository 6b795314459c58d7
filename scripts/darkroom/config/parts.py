"""What sections of the config have in common that name a model, or whose jobs compute on devices."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from darkroom.config.values import PathText, Refused, Section

# The least value of resources that Snakemake or a cluster counts; all others are a whole number or text.
_COUNTED = {"threads": 1, "gpu": 0, "mem_mb": 1, "disk_mb": 1, "nodes": 1, "tasks": 1, "cpus_per_task": 1}


def _check_resources(resources: dict[str, int | str]) -> dict[str, int | str]:
    checked: dict[str, int | str] = {}
    for name, value in resources.items():
        if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII):
            raise Refused(f"{name}: a resource is named with letters, digits and _")
        if isinstance(value, str) and value.isdecimal():
            value = int(value)  # from the command line
        least = _COUNTED.get(name)
        if least is not None and not (isinstance(value, int) and value >= least):
            raise Refused(f"{name}: expected a whole number of at least {least}, got {value!r}")
        if isinstance(value, int) and value < 0:
            raise Refused(f"{name}: must be at least 0, got {value}")
        if value == "":
            raise Refused(f"{name}: must not be empty, got ''")
        checked[name] = value
    return checked


Model = Annotated[
    PathText | None,
    Field(
        description="A folder, or owner/name on the Hugging Face hub. Only safetensors are loaded, and no code of the model's."
        " Null where the family needs none.",
    ),
]
Revision = Annotated[
    str | None,
    Field(
        description="Commit of a hub model, 40 digits. It is part of what decides whether images are made again, so nothing is made"
        " before it is known: where this names a branch or a tag, or nothing (`main`), `darkroom fetch` looks the"
        " commit up, once for this `results`, and prints the line to put here."
    ),
]
CacheDir = Annotated[
    PathText | None,
    Field(
        description="The hub's cache folder, where models are fetched to and read from; null is `HF_HOME`'s. On a cluster it"
        " must be on a disk that the nodes see."
    ),
]
Device = Annotated[
    Literal["auto", "cuda", "cpu"],
    Field(description="`auto` is CUDA where there is one. With `cpu` the jobs ask for no GPU."),
]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    Field(description="`auto` is bfloat16 on CUDA, float32 on the CPU."),
]
Resources = Annotated[
    dict[str, int | str],
    Field(
        description="What a job of this stage asks for, in place of what is worked out: resources of Snakemake and its executors,"
        " such as `{mem_mb: 48000, runtime: 240, threads: 8, gpu: 1, slurm_partition: a100}`."
    ),
    AfterValidator(_check_resources),
]
Gpus = Annotated[
    int,
    Field(
        ge=1,
        le=64,
        description="GPUs of a job. With more than one, as many processes, each with a GPU and a copy of the model, share the"
        " shard's images; the results are the same. With `device: cpu` it counts for nothing.",
    ),
]


class ModelSource(Section):
    """Where a model is: what sections have that name one."""

    model: Model
    revision: Revision = None
    cache_dir: CacheDir = None

    @property
    def model_name(self) -> str:
        """`model` of a section that must have one."""
        assert self.model is not None, "asked for where the family needs no model"
        return self.model


class DeviceSection(Section):
    """What sections have whose jobs can compute on devices; also for metrics of extensions that need one."""

    device: Device = "auto"
    gpus: Gpus = 1
    resources: Resources = Field(default={})
