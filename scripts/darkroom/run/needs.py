"""What a job asks the cluster for, as functions of the model, the work and the attempt.

Too little costs a retry, which asks for more and goes on with what is finished; too much costs a longer wait in the queue.
"""

# What a model of the hub is taken to weigh, in bytes: FLUX.1-dev in bfloat16 with its text encoders; Qwen2.5-VL-7B.
HUB_MODEL_BYTES = {"generate": 34 * 10**9, "edit": 34 * 10**9, "judge": 17 * 10**9}
# Times as long as with all weights on the GPU: once for each image, or for each step.
OFFLOAD_TIME = {"none": 1, "model": 2, "sequential": 5}
_PROCESS_MB = 3_000  # Python with torch, diffusers or vLLM, without a model, and the two Snakemakes around it
_START_MINUTES = 10  # imports from a network file system, on a busy node
_LOAD_BYTES_PER_MINUTE = 3 * 10**9  # 50 MB/s, a cold read over a network file system


def memory_mb(model_bytes: int, attempt: int, processes: int = 1, held: int = 0) -> int:
    """Host memory in MB: the weights pass through it on their way to the device; half as much again per retry.

    The same where diffusers offloads them: then they stay. processes: how many work together; a judge that is spread over
    GPUs has one for each. held: bytes that vLLM keeps there besides.
    """
    need = _PROCESS_MB * processes + (1.3 * model_bytes + held) / 10**6
    return int(need * (1 + 0.5 * (attempt - 1)))


def image_minutes(model_bytes: int, requests: int, steps: int, pixels: int, attempt: int) -> int:
    """Minutes for a shard of images of `pixels` each: 0.5 s per step and megapixel covers FLUX on an 80 GB card, and
    smaller models, no slower on smaller ones; doubled per retry."""
    return _minutes(model_bytes, requests * steps * 0.5 * max(pixels / 2**20, 0.01), attempt)


def judge_minutes(model_bytes: int, requests: int, attempt: int) -> int:
    """Minutes for a shard of scores: a 7B judge answers a picture's questions in about half a second, one ten times as
    large on as many GPUs as it needs in three; doubled per retry."""
    slower = max(model_bytes / HUB_MODEL_BYTES["judge"], 1) ** 0.8
    return _minutes(model_bytes, requests * 0.5 * slower, attempt)


def _minutes(model_bytes: int, seconds: float, attempt: int) -> int:
    once = _START_MINUTES + model_bytes / _LOAD_BYTES_PER_MINUTE + seconds / 60
    return int(once * 2 ** (attempt - 1)) + 1


def gallery_minutes(requests: int, attempt: int) -> int:
    """Minutes for a shard of the gallery: a picture of a megapixel is read and reduced twice in a third of a second."""
    return int((5 + requests * 0.5 / 60) * 2 ** (attempt - 1)) + 1
