"""Scenes of coloured shapes and the small grammar that says them: scene -> caption -> scene.

Every caption says the background and, for every object, its size, colour, shape and place.
Combinations of (colour, shape, place) are held out of training by a Latin rule, so that every
colour, shape, place and every pair of them is trained on, and the test asks for unseen triples.
"""

import dataclasses
import itertools
import re

import numpy as np

COLOURS = {
    'red': (225, 35, 40),
    'orange': (245, 130, 20),
    'yellow': (250, 230, 70),
    'green': (45, 175, 65),
    'cyan': (70, 215, 230),
    'blue': (50, 90, 235),
    'purple': (165, 55, 190),
    'white': (245, 245, 245),
}
BACKGROUNDS = {'black': (16, 16, 18), 'grey': (84, 84, 88), 'navy': (16, 24, 92), 'brown': (74, 44, 24)}
SHAPES = ('circle', 'square', 'triangle', 'cross')
SIZES = {'small': 0.19, 'large': 0.29}  # extent of the bounding square, as a part of the picture's side
PLACES = {  # middle of the place, (x, y) as parts of the picture's side
    'top left': (0.16, 0.16),
    'top': (0.5, 0.16),
    'top right': (0.84, 0.16),
    'left': (0.16, 0.5),
    'centre': (0.5, 0.5),
    'right': (0.84, 0.5),
    'bottom left': (0.16, 0.84),
    'bottom': (0.5, 0.84),
    'bottom right': (0.84, 0.84),
}
LABEL_NAMES = tuple(f'{colour} {shape}' for shape in SHAPES for colour in COLOURS)


@dataclasses.dataclass(frozen=True)
class Object:
    """One shape of a scene, by the words a caption says."""

    size: str
    colour: str
    shape: str
    place: str


@dataclasses.dataclass(frozen=True)
class Scene:
    """A background and the objects on it, in the order a caption says them; no two at one place."""

    background: str
    objects: tuple[Object, ...]


def held_out(colour: str, shape: str, place: str) -> bool:
    """Whether training never shows this combination: a quarter of them, one shape per (colour, place)."""
    return (list(COLOURS).index(colour) + SHAPES.index(shape) + list(PLACES).index(place)) % 4 == 0


COMBINATIONS = {
    split: tuple(c for c in itertools.product(COLOURS, SHAPES, PLACES) if held_out(*c) == (split == 'test'))
    for split in ('train', 'test')
}


def draw_scene(rng: np.random.Generator, split: str, count: int) -> Scene:
    """A random scene of `count` objects; in 'test' every object is held out, in 'train' none is."""
    if not 1 <= count <= len(PLACES):
        raise ValueError(f'a scene of {count} objects; there is room for 1 to {len(PLACES)}')
    objects: list[Object] = []
    while len(objects) < count:
        taken = {thing.place for thing in objects}
        free = [combination for combination in COMBINATIONS[split] if combination[2] not in taken]
        colour, shape, place = free[rng.integers(len(free))]
        objects.append(Object(list(SIZES)[rng.integers(len(SIZES))], colour, shape, place))
    return Scene(list(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))], tuple(objects))


def label(scene: Scene) -> int:
    """The class of a scene: the colour and shape of its first object, as an index of LABEL_NAMES."""
    first = scene.objects[0]
    return LABEL_NAMES.index(f'{first.colour} {first.shape}')


_FRAMES = (
    '{objects} on a {background} background',
    'on a {background} background, {objects}',
    'a {background} picture with {objects}',
    '{background} background: {objects}',
)
_PHRASES = (
    'a {size} {colour} {shape} at the {place}',
    'a {size} {colour} {shape} ({place})',
    'at the {place} a {size} {colour} {shape}',
    'one {colour} {shape}, {size}, at the {place}',
)
WORDINGS = len(_FRAMES) * len(_PHRASES)


def caption(scene: Scene, wording: int = 0) -> str:
    """The scene in words; `wording` is one of WORDINGS ways to say it."""
    frame, phrase = _FRAMES[wording // len(_PHRASES)], _PHRASES[wording % len(_PHRASES)]
    said = [phrase.format(**vars(thing)) for thing in scene.objects]
    listed = said[0] if len(said) == 1 else ', '.join(said[:-1]) + ' and ' + said[-1]
    return frame.format(objects=listed, background=scene.background)


def _pattern(template: str) -> re.Pattern[str]:
    template = template.replace('(', r'\(').replace(')', r'\)')
    words = {'size': SIZES, 'colour': COLOURS, 'shape': SHAPES, 'place': PLACES, 'background': BACKGROUNDS}
    # The longest name first, or 'top' would be read out of 'top left'.
    groups = {
        name: f'(?P<{name}>{"|".join(sorted(choices, key=len, reverse=True))})'
        for name, choices in words.items()
    }
    return re.compile(template.format(objects='(?P<objects>.+)', **groups))


_FRAME_PATTERNS = tuple(_pattern(frame) for frame in _FRAMES)
_PHRASE_PATTERNS = tuple(_pattern(phrase) for phrase in _PHRASES)


def parse(text: str) -> Scene:
    """The scene a caption says: the inverse of `caption`, for every wording."""
    for wording in range(WORDINGS):
        frame = _FRAME_PATTERNS[wording // len(_PHRASES)].fullmatch(text)
        if frame is None:
            continue
        found = _PHRASE_PATTERNS[wording % len(_PHRASES)].finditer(frame['objects'])
        scene = Scene(frame['background'], tuple(Object(**match.groupdict()) for match in found))
        if scene.objects and caption(scene, wording) == text:
            return scene
    raise ValueError(
        f"the caption {text!r} is not of the shapes' grammar; write one as {caption(_EXAMPLE)!r}"
    )


_EXAMPLE = Scene('black', (Object('large', 'red', 'circle', 'top left'),))
