"""Pictures for people: grids of images, each over its caption, and files that are never half written."""

import io
import textwrap
from collections.abc import Sequence

import numpy as np
from etils import epath
from PIL import Image, ImageDraw, ImageFont

MARGIN = 6
LEAST_SIDE = 128


def grid(
    images: Sequence[np.ndarray],
    captions: Sequence[str] = (),
    columns: int | None = None,
    marks: Sequence[bool] = (),
    beside: Sequence[np.ndarray] = (),
) -> np.ndarray:
    """One uint8 picture of all images, small ones enlarged without smoothing, captions under them.

    marks: a green or red frame around each image, right or wrong. beside: pictures of the same height, one to
    the left of each.
    """
    if len(beside):
        images = [np.concatenate(pair, axis=1) for pair in zip(beside, images, strict=True)]
    columns = columns or int(np.ceil(np.sqrt(len(images))))
    height, width = images[0].shape[:2]
    zoom = max(1, LEAST_SIDE // min(height, width))
    height, width = height * zoom, width * zoom
    font = ImageFont.load_default(size=11)
    letters = max(8, int(width / font.getlength('n' * 10) * 10))
    lines = [textwrap.wrap(caption, letters) for caption in captions]
    text_height = 14 * max((len(line) for line in lines), default=0)
    rows = -(-len(images) // columns)
    cell = (width + 2 * MARGIN, height + text_height + 2 * MARGIN)
    sheet = Image.new('RGB', (cell[0] * columns, cell[1] * rows), 'white')
    pen = ImageDraw.Draw(sheet)
    for i, image in enumerate(images):
        left, top = cell[0] * (i % columns) + MARGIN, cell[1] * (i // columns) + MARGIN
        if len(marks):
            frame = (left - 3, top - 3, left + width + 2, top + height + 2)
            pen.rectangle(frame, outline='#2a9d3a' if marks[i] else '#d03030', width=3)
        sheet.paste(Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST), (left, top))
        if lines:
            pen.multiline_text((left, top + height + 2), '\n'.join(lines[i]), 'black', font, spacing=2)
    return np.asarray(sheet)


def save(path: epath.PathLike, image: np.ndarray) -> None:
    """Write a PNG whole or not at all."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, 'PNG')
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + '.part')
    temporary.write_bytes(buffer.getvalue())
    temporary.replace(path)
