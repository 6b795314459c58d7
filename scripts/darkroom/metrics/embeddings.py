"""Embeddings as score files hold them: a vector of length 1 as float16, little-endian, in base64."""

import base64
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def packed(vector: "np.ndarray") -> str:
    """The text of a vector, for a column of role "embedding"."""
    return base64.b64encode(vector.astype("<f2").tobytes()).decode("ascii")


def unpacked(text: str) -> "np.ndarray":
    """The vector of a text, float32."""
    import numpy as np

    return np.frombuffer(base64.b64decode(text), "<f2").astype(np.float32)
