"""Raster autoregression over discrete tokens: a network that is no denoiser, and a sampler that is no loop of
steps, but a walk over tokens with the network's recurrent state as its memory.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgen import keys as random
from jaxgen.conditioning.request import Request
from jaxgen.jobs import sample, train
from jaxgen.objectives import Objective, Phase
from nouns import tiny

WIDTH, LEVELS = 32, 4


@dataclasses.dataclass(frozen=True)
class Grey:
    resolution: int
    trains, holds = (), {}
    latent = property(lambda self: (self.resolution**2,))

    def init(self, key):
        return {}

    def encode(self, params, batch, keys):
        return (batch['image'].mean(-1) * LEVELS / 256).astype(jnp.int32).reshape(-1, *self.latent)

    def decode(self, params, codes):
        grey = ((codes + 0.5) * 256 / LEVELS).astype(jnp.uint8)
        return jnp.repeat(grey.reshape(-1, self.resolution, self.resolution, 1), 3, axis=-1)


class Raster(nn.Module):
    """x: the tokens before those to predict, LEVELS before the first; t is not used."""

    classes: int

    @nn.compact
    def __call__(self, x, t, cond, *, memory=None, per_layer=None, capture=(), train=False):
        h = nn.Embed(LEVELS + 1, WIDTH)(x.astype(jnp.int32))
        h = h + nn.Embed(self.classes, WIDTH)(cond['label'])[:, None]
        memory, h = nn.RNN(nn.GRUCell(WIDTH), return_carry=True)(h, initial_carry=memory)
        return nn.Dense(LEVELS)(h), {}, memory


@dataclasses.dataclass(frozen=True)
class Sampler:
    networks: dict
    latent: tuple
    draws = ('model',)

    def knobs(self, temperature=1.0):
        return {'temperature': jnp.float32(temperature)}

    def sample(self, params, request, knobs):
        def draw(carry, i):
            token, memory = carry
            logits, _, memory = network(params['model'], token, None, request.cond, memory=memory)
            keys = random.split_each(random.fold(request.keys, 'token'), i)
            token = jax.vmap(jax.random.categorical)(keys, logits[:, 0] / knobs['temperature'])[:, None]
            return (token, memory), token[:, 0]

        batch, network = len(request.keys), self.networks['model']
        first = jnp.full((batch, 1), LEVELS), jnp.zeros((batch, WIDTH))
        return jax.lax.scan(draw, first, jnp.arange(*self.latent))[1].T


def shifted(codes):
    return jnp.pad(codes[:, :-1], ((0, 0), (1, 0)), constant_values=LEVELS)


def build_objective(networks: dict, tokenizer: Any, conditioner: Any):
    def loss(params, state, frozen, batch, keys, step):
        codes = tokenizer.encode(params, batch, keys)
        cond = conditioner.embed(params, batch, jnp.zeros(len(codes), bool), keys)
        logits, _, _ = networks['model'](params['model'], shifted(codes), None, cond, train=True)
        errors = optax.softmax_cross_entropy_with_integer_labels(logits, codes)
        return errors.sum(), jnp.float32(errors.size), state, {}

    return Objective((Phase('raster', ('model',), loss),))


def raster(steps):
    parts = {'tokenizer': 'Grey', 'model': 'Raster', 'objective': 'build_objective', 'sampler': 'Sampler'}
    sections = {section: {'name': f'{__name__}:{part}'} for section, part in parts.items()}
    return tiny.build(**sections, data={'resolution': 4}, train={'steps': steps, 'log_every': 8})


def test_trains_resumes_and_samples(tmp_path):
    whole, half = train.run(raster(16), tmp_path / 'whole'), train.run(raster(8), tmp_path / 'halves')
    assert whole['metrics']['raster/loss'] < half['metrics']['raster/loss'] - 0.05
    resumed = train.run(raster(16), tmp_path / 'halves')
    assert resumed['fingerprints'] == whole['fingerprints'] != half['fingerprints']
    drawn = sample.run(raster(16), tmp_path / 'whole', prompt=('0', '3'), count=2, knobs='temperature=0.5')
    assert drawn['knobs'] == {'temperature': 0.5}
    assert all((tmp_path / 'whole' / file).exists() for file in drawn['files'])


def test_a_cold_draw_is_the_most_likely_token_of_the_whole_sequence():
    made = raster(1)
    params, cond = tiny.randomised(made), {'label': jnp.arange(8) % 4, 'drop': jnp.zeros(8, bool)}
    request = Request(cond, cond, jax.random.split(jax.random.key(1), 8))
    codes = jax.jit(made.sampler.sample)(params, request, made.sampler.knobs(1e-5))
    whole = made.networks['model'](params['model'], shifted(codes), None, cond)[0]
    np.testing.assert_array_equal(codes, whole.argmax(-1))
