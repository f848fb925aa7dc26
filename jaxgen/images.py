"""Pictures as people have them, made into uint8 RGB of one size.

Files may be turned (EXIF), grey, 16 bit, paletted, CMYK or see-through; whatever they are, what comes out
is an upright RGB picture on white.
"""

import io

import numpy as np
from etils import epath
from PIL import Image, ImageOps


def decode(data: bytes) -> Image.Image:
    """An encoded picture (JPEG, PNG, WebP ...) as an upright RGB one."""
    with Image.open(io.BytesIO(data)) as image:
        return to_rgb(ImageOps.exif_transpose(image))


def read(path: str, size: int | tuple[int, int]) -> np.ndarray:
    """The middle of a file's picture, cut to a size; one that cannot be read is a ValueError that says so."""
    try:
        image = decode(epath.Path(path).expanduser().read_bytes())
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f'the picture {path} cannot be read: {error}.') from None
    return crop(fit(image, size), size)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB: 16 bits keep their upper 8, what is see-through is laid on white."""
    if image.mode.startswith('I') or image.mode == 'F':
        values = np.asarray(image).astype(np.float64)
        # Pillow's own conversion would clip at 255 and leave a white picture.
        scale = 257.0 if image.mode.startswith('I') else 1.0
        return Image.fromarray(np.clip(np.round(values / scale), 0, 255).astype(np.uint8)).convert('RGB')
    if image.has_transparency_data:
        image = image.convert('RGBA')
        return Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image).convert('RGB')
    return image.convert('RGB')


def fit(image: Image.Image, size: int | tuple[int, int]) -> Image.Image:
    """The picture just covering a square's side, or (height, width); halved by averages, then bicubic."""
    height, width = sides(size)
    factor = 1
    while min(image.height / height, image.width / width) >= 2 * factor:
        factor *= 2
    if factor > 1:
        image = image.reduce(factor)
    scale = max(height / image.height, width / image.width)
    fitted = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    return image if fitted == image.size else image.resize(fitted, Image.Resampling.BICUBIC)


def crop(image: Image.Image, size: int | tuple[int, int], along: float = 0.5) -> np.ndarray:
    """A part of a picture that `fit` made; `along` in [0, 1] says where on the long side it lies."""
    height, width = sides(size)
    left, top = round((image.width - width) * along), round((image.height - height) * along)
    return np.asarray(image.crop((left, top, left + width, top + height)))


def sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width; one number is a square."""
    return (size, size) if isinstance(size, int) else size
