"""The small networks that golden files and live parity tests share, run on seeded weights."""

import jax
import jax.numpy as jnp
import numpy as np
from golden import seeded

from jaxgen.models import dit, lightning_dit, pixart
from jaxgen.weights import dit as dit_names
from jaxgen.weights import lightning_dit as lightning_dit_names
from jaxgen.weights import pixart as pixart_names
from jaxgen.weights.names import to_jaxgen, to_published

FAMILIES = {
    'dit': (dit, dit_names),
    'lightning_dit': (lightning_dit, lightning_dit_names),
    'pixart': (pixart, pixart_names),
}
TINY = {'hidden': 24, 'depth': 3, 'heads': 3}
FULL = {'hidden': 1152, 'depth': 2, 'heads': 16}  # of the published XL, but for the depth

DIT = TINY | {'classes': 5, 'patch': 2}
DIT_FULL = FULL | {'classes': 1000, 'patch': 2}
SIT = {'learned_variance': False, 'discard_variance': True}
DIT_GRID = (8, 8)
LIGHTNING_DIT = TINY | {'classes': 5, 'patch': 1, 'channels': 6}
LIGHTNING_DIT_CASES = {'plain': LIGHTNING_DIT, 'qk_norm': LIGHTNING_DIT | {'qk_norm': True}}
LIGHTNING_DIT_FULL = FULL | {'classes': 1000, 'patch': 1, 'channels': 32}
LIGHTNING_DIT_GRID = (4, 4)
PIXART = TINY | {
    'caption_width': 10,
    'caption_length': 6,
    'base_size': 4,
    'interpolation': 2.0,
}
COMPRESSED = PIXART | {'compress_ratio': 2, 'compress_layers': (1, 2), 'qk_norm': True}
PIXART_CASES = {'micro': PIXART | {'micro_conditioning': True}, 'compressed': COMPRESSED}
ALPHA_FULL = FULL | {
    'caption_width': 4096,
    'caption_length': 120,
    'base_size': 4,
    'interpolation': 2.0,
    'micro_conditioning': True,
}
SIGMA_FULL = ALPHA_FULL | {
    'caption_length': 300,
    'micro_conditioning': False,
    'compress_ratio': 2,
    'compress_layers': (1,),
}
PIXART_GRID = (8, 12)

TIMES = np.array([7.0, 431.0, 999.0], np.float32)
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


def labels(settings: dict) -> np.ndarray:
    """The same as the authors have them: what is dropped is one class more."""
    return np.array([0, 3, settings['classes']])


def pixart_condition(
    drop: tuple[bool, ...] = (False, False, False), settings: dict = PIXART
) -> dict[str, np.ndarray]:
    """Seeded text of unlike lengths, mask, drop and sizes."""
    length = settings['caption_length']
    return {
        'text': seeded.normal('text', (3, length, settings['caption_width'])),
        'text_mask': np.arange(length)[None] < TEXT_LENGTHS[:, None],
        'drop': np.array(drop),
        'size': SIZES,
        'aspect': ASPECTS,
    }


def build(family: str, settings: dict):
    """(network, name map of the authors' layout)."""
    models, names = FAMILIES[family]
    network = models.build(**settings)
    return network, names.layouts(network)['authors']


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
