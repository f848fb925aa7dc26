"""Pictures of coloured shapes: how one shape covers the pixels, and how a scene is painted.

Lengths are fractions of the picture's side, with (0, 0) the top left corner, so that one scene is
the same picture at every resolution. Edges are antialiased by supersampling.
"""

# Shapes: R picture side in pixels, C colour channels (3).

import numpy as np

from jaxgen.data.shapes_scene import BACKGROUNDS, COLOURS, PLACES, SIZES, Object, Scene

ARM = 0.38  # thickness of the cross's arms, as a part of its extent: thick enough to survive at 32 pixels
JITTER = 0.012  # how far, as a part of the picture, a shape may lie from the middle of its place
STRETCH = 0.03  # how far, as a part of itself, a shape's extent may differ from its size's
SUPERSAMPLING = 4

# What part of its bounding square a shape covers, and how far below the square's middle its centroid lies.
FILL = {'circle': np.pi / 4, 'square': 1.0, 'triangle': 0.5, 'cross': 2 * ARM - ARM**2}
DROP = {'circle': 0.0, 'square': 0.0, 'triangle': 1 / 6, 'cross': 0.0}


def _inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which points are in the shape whose bounding square is [-1, 1] x [-1, 1], y downwards."""
    if shape == 'circle':
        return x**2 + y**2 <= 1
    within = (np.abs(x) <= 1) & (np.abs(y) <= 1)
    if shape == 'square':
        return within
    if shape == 'triangle':
        return within & (2 * np.abs(x) <= y + 1)
    return within & ((np.abs(x) <= ARM) | (np.abs(y) <= ARM))


def coverage(shape: str, centre: tuple[float, float], extent: float, resolution: int) -> np.ndarray:
    """How much of each pixel the shape covers: float32 [R, R]; `centre` is (x, y) of its bounding square."""
    cover_RR = np.zeros((resolution, resolution), np.float32)
    windows, points = [], []
    for middle in centre:
        low = max(int(np.floor((middle - extent / 2) * resolution)), 0)
        high = min(int(np.ceil((middle + extent / 2) * resolution)), resolution)
        if high <= low:
            return cover_RR
        samples = low + (np.arange((high - low) * SUPERSAMPLING) + 0.5) / SUPERSAMPLING
        windows.append((low, high))
        points.append((samples / resolution - middle) * 2 / extent)
    (left, right), (top, bottom) = windows
    inside = _inside(shape, points[0][None, :], points[1][:, None])
    blocks = inside.reshape(bottom - top, SUPERSAMPLING, right - left, SUPERSAMPLING)
    cover_RR[top:bottom, left:right] = blocks.mean((1, 3), dtype=np.float32)
    return cover_RR


def _paint(picture_RRC: np.ndarray, thing: Object, rng: np.random.Generator | None) -> np.ndarray:
    shift_x, shift_y, stretch = (0.0, 0.0, 0.0) if rng is None else 2 * rng.random(3) - 1
    x, y = PLACES[thing.place]
    centre = (x + JITTER * shift_x, y + JITTER * shift_y)
    extent = SIZES[thing.size] * (1 + STRETCH * stretch)
    cover_RR1 = coverage(thing.shape, centre, extent, len(picture_RRC))[..., None]
    return picture_RRC + cover_RR1 * (np.float32(COLOURS[thing.colour]) - picture_RRC)


def render(scene: Scene, resolution: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """The scene as uint8 [R, R, 3]; `rng` moves and stretches each shape a little, None leaves all exact."""
    picture_RRC = np.empty((resolution, resolution, 3), np.float32)
    picture_RRC[:] = BACKGROUNDS[scene.background]
    for thing in scene.objects:
        picture_RRC = _paint(picture_RRC, thing, rng)
    return np.round(picture_RRC).astype(np.uint8)
