"""What the tests of objectives share: recipes' parts that do nothing, and draws that are given."""

import types

import jax.numpy as jnp

from jaxgen.objectives import diffusion, times

FROZEN = {'networks': {}}
LATENTS = types.SimpleNamespace(reads=('latents',), encode=lambda params, batch, keys: batch['latents'])
FOLDED = types.SimpleNamespace(trains=(), embed=lambda params, batch, drop, keys: {'drop': drop})


def objective(network, walk, predict, **settings):
    """The loss of a network that is a plain function, on latents that need no tokenizer."""
    networks = {'model': network}
    return diffusion.build(networks, walk, predict, FOLDED, LATENTS, **settings).phases[0].loss


def loss_of_example(monkeypatch, walk, predict, seen, **settings):
    """`loss(output, latents, noise, time) -> (total, metrics)` of one example, with what it draws given."""
    draws = {'drop': jnp.ones(1)}
    random = types.SimpleNamespace(
        fold=lambda keys, purpose: purpose, draw=lambda sampler, purpose, shape=(): draws[purpose]
    )
    for module in (diffusion, times):
        monkeypatch.setattr(module, 'random', random)

    def network(params, x, t, cond, train):
        seen.update(x=x, t=t)
        return params, {}, None

    loss = objective(network, walk, predict, **settings)

    def run(output, latents, noise, time):
        draws.update(noise=noise[None], time=time[None])
        batch = {'latents': latents[None]}
        total, weight, _, metrics = loss({'model': output[None]}, {}, FROZEN, batch, None, 0)
        assert weight == 1
        return total, {name: pair[0] for name, pair in metrics.items()}

    return run
