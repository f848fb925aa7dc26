"""The request: everything a sampler is asked for, the same for every family of generators.

Image-to-image, in-painting, forced tokens and per-image seeds are all fields of it.
"""

from typing import Any

import flax.struct
from jax import Array


@flax.struct.dataclass
class Request:
    """What to draw: conditions, one key an image, and what is already there.

    cond, null: the condition and what guidance steers away from. init: latents to start from or keep;
    mask: 1 where to paint, 0 where init stays; start: the share of the schedule to walk (1 = all of it,
    from pure noise).
    """

    cond: Any
    null: Any
    keys: Array
    init: Array | None = None
    mask: Array | None = None
    start: Array | float = 1.0
