"""Prompt alignment on the shapes: does a picture show what its caption says? Read from pixels alone.

A pixel is taken apart as background + amount x (colour - background); connected pixels are an object;
its shape is the one which, drawn with the same area and centroid, covers it best. A picture counts
where the background, the number of objects and every attribute of every object are right. The
idea of scoring by attributes and by whole prompts is that of GenEval (Ghosh et al. 2023, arXiv:2310.11513).
"""

# Shapes: H, W picture, P pixels (H * W), C colour channels (3), K palette colours.

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy  # whose rooms open when they are used: drawing needs none of them

from jaxgen.config import Count, Seed, Size
from jaxgen.data import shapes_draw, shapes_scene

ATTRIBUTES = ('size', 'colour', 'shape', 'place')

_PALETTE_KC = np.array(list(shapes_scene.COLOURS.values()), np.float32)
_COLOUR_TOLERANCE = 50.0  # about half the distance of the two nearest palette colours
_BACKGROUND_TOLERANCE = 30.0
_FOREGROUND = 0.5  # the least amount of colour that makes a pixel an object's
_SPECK = 0.005  # part of the picture under which a blob is dirt, not an object: 5 pixels of 32 x 32
_MINORITY = 0.25  # part of a blob that a second colour must hold to be an object that touches
_OVERLAP = 0.7  # the least overlap with the best shape
_SOFTNESS = (0.0, 0.5, 0.9)  # blurs of the drawn shapes, in pixels of 32 x 32
_SIZE_TOLERANCE = 0.25  # relative


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a picture shows: its background and objects; None stands for what is no word of the grammar."""

    background: str | None
    objects: tuple[dict[str, str | None], ...]


def _nearest(value_C: np.ndarray, palette: dict[str, tuple[int, int, int]], tolerance: float) -> str | None:
    distances = {name: float(np.linalg.norm(value_C - np.float32(rgb))) for name, rgb in palette.items()}
    name = min(distances, key=distances.__getitem__)
    return name if distances[name] <= tolerance else None


def _background(pixels_PC: np.ndarray) -> np.ndarray:
    """The colour most of the picture has: the median, then the mean of all that is near it."""
    median_C = np.median(pixels_PC, axis=0)
    near_P = np.linalg.norm(pixels_PC - median_C, axis=-1) < _BACKGROUND_TOLERANCE
    return pixels_PC[near_P].mean(0) if near_P.any() else median_C


def _unmix(pixels_PC: np.ndarray, background_C: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How much of each palette colour lies over the background, and the residual that leaves: both [P, K]."""
    offset_PC = pixels_PC - background_C
    direction_KC = _PALETTE_KC - background_C
    amount_PK = offset_PC @ direction_KC.T / np.maximum((direction_KC**2).sum(-1), 1.0)
    amount_PK = np.clip(amount_PK, 0.0, 1.25)
    residual_PKC = offset_PC[:, None] - amount_PK[..., None] * direction_KC
    return amount_PK, np.linalg.norm(residual_PKC, axis=-1)


def _blobs(colour_HW: np.ndarray, foreground_HW: np.ndarray) -> list[np.ndarray]:
    """Masks of the objects: connected pixels, cut by colour where two objects touch."""
    least = _SPECK * foreground_HW.size
    labels_HW, _ = scipy.ndimage.label(foreground_HW)
    blobs = []
    for window_index, window in enumerate(scipy.ndimage.find_objects(labels_HW), start=1):
        blob_HW = np.zeros_like(foreground_HW)
        blob_HW[window] = labels_HW[window] == window_index
        area = blob_HW.sum()
        if area < least:
            continue
        votes = np.bincount(colour_HW[blob_HW], minlength=len(_PALETTE_KC))
        shares = [index for index in np.flatnonzero(votes) if votes[index] >= max(_MINORITY * area, least)]
        if len(shares) < 2:
            blobs.append(blob_HW)
            continue
        for index in shares:
            parts_HW, count = scipy.ndimage.label(blob_HW & (colour_HW == index))
            sizes = scipy.ndimage.sum_labels(parts_HW > 0, parts_HW, np.arange(1, count + 1))
            blobs += [parts_HW == part for part, size in enumerate(sizes, start=1) if size >= least]
    return blobs


def _fit(amount_HW: np.ndarray) -> tuple[str | None, float, tuple[float, float]]:
    """The shape that covers these amounts best, with its extent and middle as parts of the picture."""
    side = len(amount_HW)
    points = (np.arange(side) + 0.5) / side
    mass = float(amount_HW.sum())
    x = float((amount_HW.sum(0) * points).sum() / mass)
    y = float((amount_HW.sum(1) * points).sum() / mass)
    best: tuple[float, str | None, float, tuple[float, float]] = (_OVERLAP, None, 0.0, (x, y))
    for shape in shapes_scene.SHAPES:
        extent = float(np.sqrt(mass / shapes_draw.FILL[shape])) / side
        middle = (x, y - shapes_draw.DROP[shape] * extent)
        drawn_HW = shapes_draw.coverage(shape, middle, extent, side)
        for soft in _SOFTNESS:
            soft_HW = scipy.ndimage.gaussian_filter(drawn_HW, soft * side / 32) if soft else drawn_HW
            overlap = float(np.minimum(amount_HW, soft_HW).sum() / np.maximum(amount_HW, soft_HW).sum())
            if overlap > best[0]:
                best = (overlap, shape, extent, middle)
    return best[1:]


def _object(
    blob_HW: np.ndarray, amount_HWK: np.ndarray, residual_HWK: np.ndarray, background_C: np.ndarray
) -> dict[str, str | None]:
    index = int(np.argmin((residual_HWK[blob_HW] ** 2).mean(0)))
    # The blob's rim: pixels less than half covered belong to the shape's area too.
    reach_HW = scipy.ndimage.binary_dilation(blob_HW, iterations=1 + len(blob_HW) // 64)
    amount_HW = np.where(reach_HW, amount_HWK[..., index], 0.0)
    full = float(np.percentile(amount_HW[blob_HW], 75))
    seen_C = background_C + full * (_PALETTE_KC[index] - background_C)
    spread = float(np.sqrt((residual_HWK[blob_HW][:, index] ** 2).mean()))
    exact = np.hypot(np.linalg.norm(seen_C - _PALETTE_KC[index]), spread) <= _COLOUR_TOLERANCE
    shape, extent, (x, y) = _fit(np.minimum(amount_HW / max(full, 1e-3), 1.0))
    sizes = {name: abs(extent / size - 1) for name, size in shapes_scene.SIZES.items()}
    size = min(sizes, key=sizes.__getitem__)
    places = {name: np.hypot(x - a, y - b) for name, (a, b) in shapes_scene.PLACES.items()}
    return {
        'size': size if sizes[size] <= _SIZE_TOLERANCE else None,
        'colour': list(shapes_scene.COLOURS)[index] if exact else None,
        'shape': shape,
        'place': min(places, key=places.__getitem__),
    }


def read(image: np.ndarray) -> Reading:
    """What one square uint8 picture [H, W, 3] shows."""
    if image.ndim != 3 or image.shape[0] != image.shape[1] or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f'a picture of {image.dtype} {image.shape}; give a square one, uint8 [H, H, 3]')
    pixels_PC = image.reshape(-1, 3).astype(np.float32)
    background_C = _background(pixels_PC)
    amount_PK, residual_PK = _unmix(pixels_PC, background_C)
    colour_P = residual_PK.argmin(-1)
    foreground_P = np.take_along_axis(amount_PK, colour_P[:, None], 1)[:, 0] >= _FOREGROUND
    grid = image.shape[:2]
    amount_HWK, residual_HWK = amount_PK.reshape(*grid, -1), residual_PK.reshape(*grid, -1)
    blobs = _blobs(colour_P.reshape(grid), foreground_P.reshape(grid))
    return Reading(
        _nearest(background_C, shapes_scene.BACKGROUNDS, _BACKGROUND_TOLERANCE),
        tuple(_object(blob_HW, amount_HWK, residual_HWK, background_C) for blob_HW in blobs),
    )


def compare(reading: Reading, scene: shapes_scene.Scene) -> dict[str, float]:
    """For each attribute, which part of the objects asked for has it right, under their best pairing."""
    right = np.array(
        [
            [[found[name] == getattr(asked, name) for name in ATTRIBUTES] for found in reading.objects]
            for asked in scene.objects
        ],
        np.float32,
    ).reshape(len(scene.objects), len(reading.objects), len(ATTRIBUTES))
    pairs = scipy.optimize.linear_sum_assignment(right.sum(-1), maximize=True)
    rates = dict(zip(ATTRIBUTES, (right[pairs].sum(0) / len(scene.objects)).tolist(), strict=True))
    rates['count'] = float(len(reading.objects) == len(scene.objects))
    rates['background'] = float(reading.background == scene.background)
    rates['alignment'] = float(min(rates.values()) == 1.0)
    return rates


@dataclasses.dataclass(frozen=True)
class Alignment:
    """Held-out prompts to draw pictures for, and the judge of those pictures, square ones."""

    prompts: int
    objects: tuple[int, ...]
    seed: int
    square = True

    def examples(self) -> list[dict[str, Any]]:
        """The prompts as examples without a picture; the numbers of objects take turns."""
        examples = []
        for index in range(self.prompts):
            rng = np.random.default_rng((self.seed, index))
            scene = shapes_scene.draw_scene(rng, 'test', self.objects[index % len(self.objects)])
            wording = int(rng.integers(shapes_scene.WORDINGS))
            examples.append(
                {'caption': shapes_scene.caption(scene, wording), 'label': shapes_scene.label(scene)}
            )
        return examples

    def judge(self, image: np.ndarray, example: Mapping[str, Any]) -> bool:
        """Whether the picture shows all that the example's caption says, and nothing more."""
        return compare(read(image), shapes_scene.parse(example['caption']))['alignment'] == 1.0

    def score(self, images: np.ndarray, examples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """The part of pictures [N, H, W, 3] judged right ('alignment'), and the rate of each attribute."""
        if len(images) != len(examples) or not len(examples):
            raise ValueError(f'{len(images)} pictures for {len(examples)} examples; give one for each')
        rates = [
            compare(read(image), shapes_scene.parse(example['caption']))
            for image, example in zip(images, examples, strict=True)
        ]
        return {name: float(np.mean([rate[name] for rate in rates])) for name in rates[0]}


def build(
    prompts: Count = 256, objects: Sequence[Size] = (1, 2), seed: Seed = 20_000, data_name: str = 'shapes'
) -> Alignment:
    """The metric with `prompts` held-out prompts, which take turns in having so many `objects`."""
    if data_name not in ('shapes', 'pairs'):
        raise ValueError(
            f"alignment judges pictures of the data 'shapes', not of '{data_name}'; leave metric out."
        )
    if prompts < 1 or not objects:
        raise ValueError(f'prompts={prompts} and objects={tuple(objects)}; give at least one of each')
    return Alignment(prompts, tuple(objects), seed)
