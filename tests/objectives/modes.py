"""A mixture of five narrow modes on a circle, and a network small enough to learn it in seconds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from given import FROZEN
from golden.seeded import normal

from jaxgen import keys as random

ANGLES = 2 * np.pi * np.arange(5) / 5
MODES = 2.5 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], -1)
SPREAD, WIDTH, BATCH = 0.2, 64, 256


def network(params, x, t, cond, train=False):
    """x [B, 2] and t [B] through a few dense layers."""
    t = t[:, None]
    hidden = jnp.concatenate([x, t, jnp.sin(4 * t)], -1)
    for kernel, bias in params[:-1]:
        hidden = jax.nn.silu(hidden @ kernel + bias)
    return hidden @ params[-1][0] + params[-1][1], {}, None


def fresh():
    """Parameters not yet trained."""
    sizes = (4, WIDTH, WIDTH, WIDTH, 2)
    return [
        (jnp.asarray(normal(f'layer {i}', (a, b)) / np.sqrt(a)), jnp.zeros(b))
        for i, (a, b) in enumerate(zip(sizes, sizes[1:]))
    ]


def data(key):
    """A batch of the mixture."""
    where, spread = jax.random.split(key)
    chosen = jnp.asarray(MODES)[jax.random.randint(where, (BATCH,), 0, len(MODES))]
    return {'latents': chosen + SPREAD * jax.random.normal(spread, chosen.shape)}


def trained(loss, batch_of, steps, params=None):
    """The parameters after so many steps on batches `batch_of(key)`."""
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))

    def step(carry, index):
        params, state = carry
        key = jax.random.fold_in(jax.random.key(7), index)
        keys = random.split_examples(key, jnp.arange(BATCH))

        def value(params):
            batch = batch_of(random.fold(key, 'batch'))
            return loss({'model': params}, {}, FROZEN, batch, keys, 0)[0] / BATCH

        updates, state = optimizer.update(jax.grad(value)(params), state)
        return (optax.apply_updates(params, updates), state), None

    params = fresh() if params is None else params
    train = jax.jit(lambda start: jax.lax.scan(step, start, jnp.arange(steps))[0][0])
    return train((params, optimizer.init(params)))


def miss(x):
    """Mean squared distance to the nearest mode: twice the square of SPREAD for the data."""
    return (jnp.linalg.norm(x[:, None] - MODES, axis=-1).min(1) ** 2).mean()


def shares(x):
    """The part of the points that is nearest to each mode."""
    nearest = np.linalg.norm(np.asarray(x)[:, None] - MODES, axis=-1).argmin(1)
    return np.bincount(nearest, minlength=len(MODES)) / len(x)
