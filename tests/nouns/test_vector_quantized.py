"""A vector-quantized autoencoder (arXiv:1711.00937): no generator, no sampler, and a codebook that follows
running counts and sums of what it is given, in the objective's `state` and without gradients.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.jobs import train
from jaxgen.objectives import Objective, Phase
from jaxgen.program import assemble
from jaxgen.training.checkpoint import Checkpoints
from nouns import tiny

CODES, WIDTH, DECAY = 16, 8, 0.9


class Autoencoder(nn.Module):
    """Images to vectors and, given vectors in their place, back."""

    def setup(self):
        self.down, self.up = nn.Conv(WIDTH, (2, 2), (2, 2)), nn.ConvTranspose(3, (2, 2), (2, 2))

    def __call__(self, x):
        return self.decode(self.encode(x))

    def encode(self, x):
        return self.down(x)

    def decode(self, z):
        return self.up(z)


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    resolution: int
    trains, holds = ('autoencoder',), {'autoencoder': Autoencoder()}
    latent = property(lambda self: (self.resolution // 2, self.resolution // 2, WIDTH))

    def init(self, key):
        blank = jnp.zeros((1, self.resolution, self.resolution, 3))
        return {'autoencoder': Autoencoder().init(key, blank)['params']}

    def forward(self, params, images, book):
        """The reconstruction, the vectors, and one-hot which code each of them is."""
        variables = {'params': params['autoencoder']}
        z = Autoencoder().apply(variables, images, method='encode')
        chosen = jax.nn.one_hot(((z[..., None, :] - book) ** 2).sum(-1).argmin(-1), CODES)
        straight_through = z + jax.lax.stop_gradient(chosen @ book - z)
        return Autoencoder().apply(variables, straight_through, method='decode'), z, chosen


def build_objective(tokenizer: Any):
    def loss(params, state, frozen, batch, keys, step):
        x, book = batch['image'] / 127.5 - 1, state['sums'] / state['counts'][:, None]
        y, z, chosen = tokenizer.forward(params, x, book)
        errors = ((y - x) ** 2).mean((1, 2, 3))
        commitment = ((z - jax.lax.stop_gradient(chosen @ book)) ** 2).mean((1, 2, 3))
        seen = {'counts': chosen.sum((0, 1, 2)), 'sums': jnp.einsum('bhwk,bhwd->kd', chosen, z)}
        state = jax.tree.map(lambda old, new: DECAY * old + (1 - DECAY) * new, state, seen)
        weight = jnp.float32(errors.size)
        return (errors + 0.25 * commitment).sum(), weight, state, {'error': (errors.sum(), weight)}

    def init(key):
        return {'counts': jnp.ones(CODES), 'sums': jax.random.normal(key, (CODES, WIDTH))}

    return Objective((Phase('reconstruct', tokenizer.trains, loss),), init)


def autoencoder(steps):
    return tiny.build(
        tokenizer={'name': f'{__name__}:Tokenizer'},
        objective={'name': f'{__name__}:build_objective'},
        train={'steps': steps, 'log_every': 8},
    )


def test_trains_and_resumes_with_its_codebook(tmp_path):
    whole = train.run(autoencoder(16), tmp_path / 'whole')
    half = train.run(autoencoder(8), tmp_path / 'halves')
    assert whole['metrics']['reconstruct/error'] < 0.9 * half['metrics']['reconstruct/error']
    train.run(autoencoder(16), tmp_path / 'halves')
    program = assemble(autoencoder(16))
    with Checkpoints(tmp_path / 'whole' / 'checkpoints', read_only=True) as one:
        with Checkpoints(tmp_path / 'halves' / 'checkpoints', read_only=True) as other:
            assert one.record()['fingerprint'] == other.record()['fingerprint']  # of everything, state too
            trained = one.restore(None, program.abstract.trees())
    assert set(trained['params']) == {'autoencoder'}
    for old, new in zip(jax.tree.leaves(program.fresh().state), jax.tree.leaves(trained['state'])):
        assert jnp.abs(old - new).max() > 0.1
