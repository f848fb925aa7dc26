"""From pictures to the normalised pixels that frozen vision networks were trained on.

The shorter side is resized by an antialiased filter, the middle cropped, and every channel brought to the
mean and deviation of CLIP's data (2103.00020) or of ImageNet. On the host PIL resizes bytes, as published
processors do; on the device the same filter works on floats, with a gradient and without rounding.
"""

# B batch, H and W rows and columns, C channels

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from PIL import Image

from jaxgen.layers.resize import resize

FILTERS = {'bicubic': Image.Resampling.BICUBIC, 'bilinear': Image.Resampling.BILINEAR}


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """The shorter side after resizing, the side of the crop, and the statistics of a channel."""

    shorter: int
    crop: int
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    method: str = 'bicubic'

    def __post_init__(self) -> None:
        if self.method not in FILTERS or self.crop > self.shorter:
            raise ValueError(
                f'method is {self.method!r}, shorter {self.shorter}, crop {self.crop}; the method is one of '
                f'{", ".join(FILTERS)}, and the crop at most as large as the shorter side.'
            )

    def on_host(self, picture: Image.Image | np.ndarray) -> np.ndarray:
        """A picture, or its bytes [H, W, 3], as float32 [crop, crop, 3]."""
        if not isinstance(picture, Image.Image):
            picture = Image.fromarray(picture)
        picture = picture.convert('RGB')
        columns, rows = picture.size
        rows, columns = self._resized(rows, columns)
        pixels_HWC = np.asarray(picture.resize((columns, rows), FILTERS[self.method]))
        return self._normalised(self._middle(pixels_HWC).astype(np.float32) / 255)

    def on_device(self, x_BHWC: Array) -> Array:
        """Pictures in [-1, 1] as [B, crop, crop, 3]."""
        size = self._resized(*x_BHWC.shape[1:3])
        if size != x_BHWC.shape[1:3]:
            x_BHWC = resize(x_BHWC, size, self.method, antialias=True)
        return self._normalised(jnp.clip(self._middle(x_BHWC) / 2 + 0.5, 0, 1))

    def _resized(self, rows: int, columns: int) -> tuple[int, int]:
        shorter = min(rows, columns)
        return self.shorter * rows // shorter, self.shorter * columns // shorter

    def _middle(self, x: Array | np.ndarray) -> Array | np.ndarray:
        top, left = (x.shape[-3] - self.crop) // 2, (x.shape[-2] - self.crop) // 2
        return x[..., top : top + self.crop, left : left + self.crop, :]

    def _normalised(self, x: Array | np.ndarray) -> Array | np.ndarray:
        return (x - np.float32(self.mean)) / np.float32(self.deviation)


CLIP = Preprocess(224, 224, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
DINOV2 = Preprocess(256, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

_PLACES = ('size', 'crop_size', 'resample')
_STATISTICS = {'image_mean': CLIP.mean, 'image_std': CLIP.deviation}


def from_config(published: Mapping[str, Any]) -> Preprocess:
    """What a published preprocessor_config.json asks for."""
    size, crop = published.get('size', 224), published.get('crop_size', 224)
    shorter = size.get('shortest_edge') if isinstance(size, Mapping) else size
    sides = set(crop.values()) if isinstance(crop, Mapping) else {crop}
    steps = ('do_resize', 'do_center_crop', 'do_rescale', 'do_normalize')
    methods = {int(number): name for name, number in FILTERS.items()}
    method = methods.get(published.get('resample', int(FILTERS['bicubic'])))
    if shorter is None or len(sides) != 1 or method is None or not all(published.get(s, True) for s in steps):
        given = {name: value for name, value in published.items() if name in (*_PLACES, *steps)}
        raise ValueError(
            f'a preprocessor_config.json with {given} is not implemented: it has to resize the shorter side '
            '(bicubic or bilinear), crop a square, rescale and normalise.'
        )
    mean, deviation = (tuple(published.get(name, absent)) for name, absent in _STATISTICS.items())
    return Preprocess(shorter, sides.pop(), mean, deviation, method)
