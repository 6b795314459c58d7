"""What a job asks the cluster for, as functions of the model, the work and the attempt."""

# What a model of the hub is taken to weigh, in bytes: FLUX.1-dev in bfloat16 with its text encoders; Qwen2.5-VL-7B.
HUB_MODEL_BYTES = {"generate": 34 * 10**9, "edit": 34 * 10**9, "judge": 17 * 10**9}
_BASE_MB = 3_000  # Python with torch, diffusers or vLLM, without a model
_START_MINUTES = 15  # imports and a cold read of the weights over a network file system


def memory_mb(model_bytes: int, attempt: int) -> int:
    """Host memory in MB: the weights pass through it on their way to the device; half as much again per retry."""
    need = _BASE_MB + 1.3 * model_bytes / 10**6
    return int(need * (1 + 0.5 * (attempt - 1)))


def image_minutes(requests: int, steps: int, pixels: int, attempt: int) -> int:
    """Minutes for a shard of images: 0.5 s per step and megapixel covers FLUX on an 80 GB card; doubled per retry."""
    seconds = requests * steps * 0.5 * max(pixels / 2**20, 0.01)
    return int((_START_MINUTES + seconds / 60) * 2 ** (attempt - 1)) + 1


def judge_minutes(requests: int, attempt: int) -> int:
    """Minutes for a shard of scores: a 7B judge answers a picture's questions in about half a second."""
    return int((_START_MINUTES + requests * 0.5 / 60) * 2 ** (attempt - 1)) + 1


def gallery_minutes(requests: int, attempt: int) -> int:
    """Minutes for a shard of the gallery: a picture of a megapixel is read and reduced twice in a third of a second."""
    return int((5 + requests * 0.5 / 60) * 2 ** (attempt - 1)) + 1
