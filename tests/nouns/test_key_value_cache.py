"""A key-value cache in a Stack: it enters each layer through `per_layer` and leaves it through `capture`, so
that a call's `memory` is what its next call goes on from.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.layers.attention import attention
from jaxgen.layers.linear import Linear
from jaxgen.layers.mlp import Mlp
from jaxgen.layers.segment import Segment, expose
from jaxgen.layers.stack import Stack

WIDTH, HEADS, DEPTH, LENGTH, TOKENS = 16, 2, 3, 6, 5


class Block(nn.Module):
    @nn.compact
    def __call__(self, x_BLD, start, *, per_layer=None, train=False):
        q, k, v = (Linear((HEADS, WIDTH // HEADS), name=name)(x_BLD) for name in ('query', 'key', 'value'))
        if per_layer is not None:
            k, v = (
                jax.lax.dynamic_update_slice_in_dim(per_layer[name], new, start, 1)
                for name, new in (('key', k), ('value', v))
            )
        expose(self, 'key', k)
        expose(self, 'value', v)
        seen_LM = jnp.arange(k.shape[1]) <= start + jnp.arange(q.shape[1])[:, None]
        x_BLD = x_BLD + Linear(WIDTH, merge=2, name='out')(attention(q, k, v, seen_LM[None]))
        return x_BLD + Mlp(2 * WIDTH, WIDTH)(x_BLD)


class Decoder(nn.Module):
    """Tokens [B, L] to the next tokens' logits; positions count from the cache's length."""

    @nn.compact
    def __call__(self, x, t, cond, *, memory=None, per_layer=None, capture=(), train=False):
        start, kept = (0, None) if memory is None else (memory['length'], memory['kept'])
        table = self.param('table', nn.initializers.normal(1.0), (LENGTH, WIDTH))
        h = nn.Embed(TOKENS, WIDTH)(x) + jax.lax.dynamic_slice_in_dim(table, start, x.shape[1])
        stack = Stack((Segment(Block(parent=None), DEPTH),), name='blocks')
        h, seen, _ = stack(h, start, per_layer=kept, capture=('*.key', '*.value', *capture))
        kept = {'key': seen.pop('*.key'), 'value': seen.pop('*.value')}
        return Linear(TOKENS, name='logits')(h), seen, {'kept': kept, 'length': start + x.shape[1]}


def test_the_cache_changes_no_logit():
    tokens = jax.random.randint(jax.random.key(0), (2, LENGTH), 0, TOKENS)
    variables = jax.jit(Decoder().init)(jax.random.key(1), tokens, None, None)

    @jax.jit
    def call(x, memory):
        return Decoder().apply(variables, x, None, None, memory=memory, capture=('1.out',))

    whole, features, memory = call(tokens, None)
    assert features['1.out'].shape == (2, LENGTH, WIDTH)
    memory = jax.tree.map(jnp.zeros_like, memory)
    for start, stop in ((0, 3), (3, 4), (4, 5), (5, 6)):  # a prompt at once, then token by token
        part, _, memory = call(tokens[:, start:stop], memory)
        np.testing.assert_allclose(part, whole[:, start:stop], atol=1e-5)
