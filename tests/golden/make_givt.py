"""Writes givt.npz: the authors' GIVT on seeded weights, and holds the cases and how their code is run.

Their code wants distrax and TensorFlow, of which it here gets no more than it asks: mixtures as distrax
defines them, in jax's own densities. Needs in JAXGEN_BIG_VISION a checkout of google-research/big_vision.
From the repository's root: PYTHONPATH=.:tests python tests/golden/make_givt.py
"""

import importlib
import os
import pathlib
import sys
import types
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from golden import seeded
from golden.var_cases import DROP, LABELS

from jaxgen.autoregressive import vectors
from jaxgen.models import givt
from jaxgen.weights import givt as names
from jaxgen.weights.names import to_jaxgen, to_published

SETTINGS = {'latent': (3, 4, 4), 'classes': 5, 'mixtures': 3}
SETTINGS |= {'depth': 2, 'hidden': 16, 'heads': 2, 'ff': 24}
CASES = {'causal': SETTINGS, 'masked': SETTINGS | {'order': 'masked'}}
LARGEST = 800  # elements of a gradient worth storing


def tokens() -> np.ndarray:
    """What goes in, and whose density is asked for."""
    rows, columns, channels = SETTINGS['latent']
    return seeded.normal('tokens', (len(LABELS), rows * columns, channels))


def hidden() -> np.ndarray:
    """Which tokens are hidden from the masked network."""
    return seeded.normal('hidden', tokens().shape[:2]) > 0.2


def parameters(network: givt.GIVT) -> dict:
    """The network's parameter tree with seeded values, none of them zero."""
    abstract = jax.eval_shape(network.init, jax.random.key(0), *names.inputs(network))['params']
    table = names.authors(network)
    empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract)
    shapes = {name: array.shape for name, array in to_published(table, empty).items()}
    # Matrices here end with their outputs, so that the rule for weights is not of these shapes.
    weights = {name: 0.3 * seeded.normal(name, shape) for name, shape in shapes.items()}
    return to_jaxgen(table, weights, abstract)


def run(network: givt.GIVT, params: dict) -> dict[str, np.ndarray]:
    """What is said of each token, the mixture, how likely tokens are, and that's gradients by their names."""
    condition = {'label': LABELS, 'drop': DROP}
    order = None if network.causal else hidden()

    def objective(params: Any, x: jax.Array) -> tuple:
        out = network.apply({'params': params}, x, order, condition)[0]
        return -vectors.log_density(vectors.mixture(out, network.channels), tokens()).sum(), out

    grad = jax.jit(jax.value_and_grad(objective, (0, 1), has_aux=True))
    (_, out), (by_params, by_x) = grad(params, tokens())
    found = vectors.mixture(out, network.channels)
    return {
        **to_published(names.authors(network), by_params),
        'by_x': np.asarray(by_x),
        'out': np.asarray(out),
        'means': np.asarray(found.means),
        'deviations': np.asarray(found.deviations),
        'log_density': np.asarray(vectors.log_density(found, tokens())),
    }


def density() -> types.ModuleType:
    """What stands for distrax."""
    distrax = types.ModuleType('distrax')

    class Mixture:
        def __init__(self, mixture_distribution: Any, components_distribution: Any) -> None:
            self.shares, self.parts = mixture_distribution, components_distribution

        def log_prob(self, x: jax.Array) -> jax.Array:
            each = jax.scipy.stats.norm.pdf(x[..., None, :], self.parts.loc, self.parts.scale_diag).prod(-1)
            return jnp.log((jax.nn.softmax(self.shares.logits) * each).sum(-1))

    distrax.Distribution, distrax.MixtureSameFamily = object, Mixture
    distrax.Categorical = distrax.MultivariateNormalDiag = types.SimpleNamespace
    return distrax


def authors(root: str, network: givt.GIVT) -> Any:
    """The authors' network of the same sizes."""
    stubs = {'distrax': density(), 'big_vision.utils': types.ModuleType('big_vision.utils')}
    sys.path.insert(0, root)
    sys.modules.update(stubs)
    try:
        importlib.import_module('big_vision').utils = stubs['big_vision.utils']
        module = importlib.import_module('big_vision.models.proj.givt.givt')
    finally:
        sys.path.pop(0)
        for loaded in [key for key in sys.modules if key.partition('.')[0] in ('big_vision', 'distrax')]:
            del sys.modules[loaded]
    return module.Model(
        num_heads=network.heads,
        num_decoder_layers=network.depth,
        mlp_dim=network.hidden,
        emb_dim=network.width,
        num_labels=network.classes,
        seq_len=network.tokens,
        out_dim=network.channels,
        num_mixtures=network.mixtures,
        per_channel_mixtures=False,
        fix_square_plus=True,
        style='ar' if network.causal else 'masked',
        mask_style='concat',
        drop_labels_probability=0.1,
        scan=True,
    )


def run_authors(model: Any, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same of the authors' network."""
    order = None if model.style == 'ar' else hidden()

    def objective(weights: Any, x: jax.Array) -> tuple:
        params = flax.traverse_util.unflatten_dict(weights, sep='/')
        given = {'input_mask': order, 'drop_labels': DROP, 'method': 'decode'}
        out = model.apply({'params': params}, x, LABELS, **given)
        found = model.apply({'params': params}, out, method='get_pdf')
        logs = found.log_prob(tokens())
        return -logs.sum(), (out, found.parts.loc, found.parts.scale_diag, logs)

    grad = jax.jit(jax.value_and_grad(objective, (0, 1), has_aux=True))
    (_, said), (by_weights, by_x) = grad(weights, tokens())
    named = dict(zip(('out', 'means', 'deviations', 'log_density'), said))
    return {name: np.asarray(array) for name, array in {**by_weights, **named, 'by_x': by_x}.items()}


def main() -> None:
    stored = {}
    for case, settings in CASES.items():
        network = givt.build(**settings)
        weights = to_published(names.authors(network), parameters(network))
        results = run_authors(authors(os.environ['JAXGEN_BIG_VISION'], network), weights)
        kept = ('out', 'means', 'deviations', 'log_density', 'by_x')
        stored |= {f'{case}/{n}': a for n, a in results.items() if a.size <= LARGEST or n in kept}
    np.savez_compressed(pathlib.Path(__file__).with_name('givt.npz'), **stored)


if __name__ == '__main__':
    main()
