"""The small networks that golden files and live parity tests share, run on seeded weights."""

import jax
import jax.numpy as jnp
import numpy as np
from golden import seeded

from jaxgen.models import dit, pixart
from jaxgen.weights import dit as dit_names
from jaxgen.weights import pixart as pixart_names
from jaxgen.weights.names import to_jaxgen, to_published

DIT = {'hidden': 24, 'depth': 3, 'heads': 3, 'classes': 5, 'patch': 2}
DIT_GRID = (8, 8)
PIXART = {
    'hidden': 24,
    'depth': 3,
    'heads': 3,
    'caption_width': 10,
    'caption_length': 6,
    'base_size': 4,
    'interpolation': 2.0,
}
COMPRESSED = PIXART | {'compress_ratio': 2, 'compress_layers': (1, 2), 'qk_norm': True}
PIXART_CASES = {'micro': PIXART | {'micro_conditioning': True}, 'compressed': COMPRESSED}
PIXART_GRID = (8, 12)

TIMES = np.array([7.0, 431.0, 999.0], np.float32)
LABELS = np.array([0, 3, 5])  # the last is no class
TEXT_LENGTHS = np.array([6, 2, 4])
SIZES = np.array([[512.0, 384.0], [1024.0, 1024.0], [700.0, 900.0]], np.float32)
ASPECTS = np.array([[1.3], [1.0], [0.8]], np.float32)


def image(grid: tuple[int, int], channels: int = 4) -> np.ndarray:
    """Seeded latents in NHWC."""
    return seeded.normal('image', (3, *grid, channels))


def cotangent(grid: tuple[int, int], channels: int = 8) -> np.ndarray:
    """What the output is multiplied by before it is summed, for gradients."""
    return seeded.normal('cotangent', (3, *grid, channels))


def dit_condition() -> dict[str, np.ndarray]:
    """Labels, the last one dropped."""
    return {'label': np.array([0, 3, 1]), 'drop': np.array([False, False, True])}


def text() -> np.ndarray:
    """Seeded caption embeddings."""
    return seeded.normal('text', (3, PIXART['caption_length'], PIXART['caption_width']))


def text_mask() -> np.ndarray:
    """Captions of unlike lengths."""
    return np.arange(PIXART['caption_length'])[None] < TEXT_LENGTHS[:, None]


def pixart_condition(drop: tuple[bool, ...] = (False, False, False)) -> dict[str, np.ndarray]:
    """Text, mask, drop and sizes."""
    condition = {'text': text(), 'text_mask': text_mask(), 'drop': np.array(drop)}
    return condition | {'size': SIZES, 'aspect': ASPECTS}


def build(family: str, settings: dict):
    """(network, name map of the authors' layout)."""
    patch = settings.get('patch', 2)
    if family == 'dit':
        return dit.build(**settings), dit_names.authors(patch)
    return pixart.build(**settings), pixart_names.authors(patch)


def parameters(network, table, x: np.ndarray, condition: dict) -> dict:
    """The network's parameter tree with seeded values, none of them zero."""
    abstract = jax.eval_shape(network.init, jax.random.key(0), x, TIMES, condition)['params']
    empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract)
    shapes = {name: array.shape for name, array in to_published(table, empty).items()}
    return to_jaxgen(table, seeded.weights(shapes), abstract)


def run(network, params: dict, x: np.ndarray, condition: dict, weight: np.ndarray):
    """(output, gradient for x, gradients for parameters) of sum(output x weight)."""

    def objective(params, x):
        out, _, _ = network.apply({'params': params}, x, TIMES, condition)
        return jnp.sum(out * weight), out

    (_, out), (by_params, by_x) = jax.jit(jax.value_and_grad(objective, (0, 1), has_aux=True))(params, x)
    return np.asarray(out), np.asarray(by_x), jax.tree.map(np.asarray, by_params)
