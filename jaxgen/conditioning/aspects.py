"""The aspect buckets of PixArt: Chen et al., 2310.00426 and 2403.04692, after SDXL (2307.01952).

In units of a sixteenth of the trained side all its tables are one: sides from 8 x 32 to 32 x 8 whose area is
nearly that of the square. Pictures of other sizes are drawn in the nearest bucket, scaled and cut.
"""

# H height, W width, C channels

import jax
import jax.numpy as jnp

from jaxgen.layers.resize import resize

RESOLUTIONS = (256, 512, 1024, 2048)

# Units of height, of the greatest width and of the least; all but one of these have their mirror images too.
_WIDE = (
    (8, 32, 29),
    (9, 28, 26),
    (10, 25, 24),
    (11, 23, 21),
    (12, 21, 20),
    (13, 19, 18),
    (14, 18, 17),
    (15, 17, 16),
)
_NOT_MIRRORED = (11, 21)
# Trained with, but not drawn with by the published pipelines below 2048.
_RARE = {(8, 31), (8, 30), (26, 9), (28, 9), (29, 8), (30, 8), (31, 8)}


def buckets(resolution: int) -> tuple[tuple[int, int], ...]:
    """(height, width) of every bucket of a published resolution, from the widest to the tallest."""
    if resolution not in RESOLUTIONS:
        raise ValueError(
            f'there are no published aspect buckets for a network of {resolution} pixels, only for '
            f'{RESOLUTIONS}; ask for the exact size'
        )
    wide = [(height, width) for height, most, least in _WIDE for width in range(most, least - 1, -1)]
    tall = [(width, height) for height, width in reversed(wide) if (height, width) != _NOT_MIRRORED]
    rare = _RARE if resolution < 2048 else set()
    unit = resolution // 16
    return tuple((h * unit, w * unit) for h, w in (*wide, (16, 16), *tall) if (h, w) not in rare)


def nearest(resolution: int, height: int, width: int) -> tuple[int, int]:
    """The bucket whose published ratio, which has two digits, is nearest to height / width."""
    return min(buckets(resolution), key=lambda sides: abs(round(sides[0] / sides[1], 2) - height / width))


def fit(images_HWC: jax.Array, height: int, width: int) -> jax.Array:
    """Images [..., H, W, C] scaled to cover height x width and cut to it in the middle.

    As the published pipelines do it, bilinear and without smoothing; integers are rounded.
    """
    old_height, old_width = images_HWC.shape[-3:-1]
    if (old_height, old_width) == (height, width):
        return images_HWC
    scale = max(height / old_height, width / old_width)
    # Cut and not rounded, as published; at least what is asked for, whatever the division loses.
    rows, columns = max(height, int(old_height * scale)), max(width, int(old_width * scale))
    scaled = resize(images_HWC.astype(jnp.float32), (rows, columns), 'bilinear')
    top, left = (rows - height) // 2, (columns - width) // 2
    cut = scaled[..., top : top + height, left : left + width, :]
    whole = jnp.issubdtype(images_HWC.dtype, jnp.integer)
    return (jnp.round(cut) if whole else cut).astype(images_HWC.dtype)
