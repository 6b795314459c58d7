"""What jobs ask the cluster for."""

import itertools

from darkroom.run.needs import HUB_MODEL_BYTES, image_minutes, judge_minutes, memory_mb

FLUX = HUB_MODEL_BYTES["generate"]


def test_more_of_everything_for_larger_models_more_requests_and_every_retry():
    memory = [memory_mb(size, attempt) for size in (10**7, FLUX) for attempt in (1, 2, 3)]
    assert memory == sorted(set(memory)) and memory_mb(FLUX, 1, 4) > memory_mb(FLUX, 1)
    assert memory[3] > FLUX / 10**6  # the weights pass through it
    for minutes in (
        [image_minutes(FLUX, 200, 28, 2**20, attempt) for attempt in (1, 2, 3)],
        [image_minutes(size, 100, 28, 2**20, 1) for size in (10**7, FLUX)],
        [image_minutes(FLUX, 200, 28, pixels, 1) for pixels in (2**18, 2**20, 2**22)],
        [judge_minutes(17 * 10**9, requests, 1) for requests in (100, 10_000)],
        [judge_minutes(size, 10_000, 1) for size in (10**7, 17 * 10**9, 144 * 10**9)],
        [judge_minutes(17 * 10**9, 200, attempt) for attempt in (1, 2, 3)],
    ):
        assert minutes[0] >= 10 and all(later > earlier for earlier, later in itertools.pairwise(minutes))
    assert image_minutes(FLUX, 200, 28, 2**20, 2) >= 2 * image_minutes(FLUX, 200, 28, 2**20, 1) - 1
