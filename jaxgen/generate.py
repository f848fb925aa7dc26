"""Examples to pictures: conditioner, request, sampler, tokenizer, in one compiled call.

The jobs that draw pictures, and a notebook, come through here; nothing in it knows a family.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxgen import keys as random
from jaxgen.conditioning.request import Request
from jaxgen.recipe import Recipe
from jaxgen.training import sharding

Example = Mapping[str, Any]


def _sized(recipe: Recipe, examples: Sequence[Example] | None) -> list[Example] | None:
    """Examples that say no size are drawn at the recipe's."""
    side = recipe.config['data']['resolution']
    return None if examples is None else [{'size': (side, side), **example} for example in examples]


def make_generator(recipe: Recipe, mesh: Mesh, batch: int) -> Callable[..., np.ndarray]:
    """`generate(params, examples, seeds, knobs, negatives=None) -> images` of uint8, any number of them.

    seeds: one an image, so that an image is the same in any batch. negatives: examples to steer away
    from, in place of no condition. A last partial batch is filled up, so one shape is compiled.
    """
    mine = sharding.local_rows(mesh, batch)

    @jax.jit
    def draw(
        params: Mapping,
        arrays: Mapping,
        opposite: Mapping,
        dropped: jax.Array,
        seeds: jax.Array,
        knobs: Mapping,
    ) -> jax.Array:
        keys = jax.vmap(jax.random.key)(seeds)
        kept = jnp.zeros(dropped.shape, bool)
        embed_keys = random.fold(keys, 'embed')
        request = Request(
            cond=recipe.conditioner.embed(params, arrays, kept, embed_keys),
            null=recipe.conditioner.embed(params, opposite, dropped, embed_keys),
            keys=random.fold(keys, 'sample'),
        )
        return recipe.tokenizer.decode(params, recipe.sampler.sample(params, request, knobs))

    def generate(
        params: Mapping,
        examples: Sequence[Example],
        seeds: Sequence[int],
        knobs: Mapping,
        negatives: Sequence[Example] | None = None,
        progress: Callable[[int], None] = lambda count: None,
    ) -> np.ndarray:
        examples, negatives = _sized(recipe, examples), _sized(recipe, negatives)
        images = []
        for start in range(0, len(examples), batch):
            rows = [min(i, len(examples) - 1) for i in range(start, start + batch)][mine]
            given = recipe.conditioner.arrays([examples[i] for i in rows])
            opposite = given if negatives is None else recipe.conditioner.arrays([negatives[i] for i in rows])
            dropped = np.full(len(rows), negatives is None)
            part = np.asarray([seeds[i] for i in rows], np.uint32)
            with jax.set_mesh(mesh):
                placed = sharding.to_global((given, opposite, dropped, part), mesh)
                drawn = draw(params, *placed, knobs)
                images.append(
                    multihost_utils.process_allgather(drawn, tiled=True)
                    if jax.process_count() > 1
                    else np.asarray(drawn)
                )
            progress(min(batch, len(examples) - start))
        return np.concatenate(images)[: len(examples)]

    return generate
