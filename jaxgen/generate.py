"""Examples to pictures: conditioner, request, sampler, tokenizer, in one compiled call.

The jobs that draw pictures, and a notebook, come through here; nothing in it knows a family.
"""

import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxgen import keys as random
from jaxgen.conditioning.request import Request
from jaxgen.program import assemble, load_params
from jaxgen.recipe import Recipe, build
from jaxgen.training import sharding
from jaxgen.training.checkpoint import Checkpoints

Example = Mapping[str, Any]


@flax.struct.dataclass
class Canvas:
    """What is already there, for all pictures of a call.

    image: uint8 [H, W, 3]; mask: [H, W], True where to paint, None for everywhere; start: the share of the
    noise to begin with.
    """

    image: Any
    mask: Any
    start: Any


def _sized(recipe: Recipe, examples: Sequence[Example] | None) -> list[Example] | None:
    """Examples that say no size are drawn at the recipe's."""
    side = recipe.config['data']['resolution']
    return None if examples is None else [{'size': (side, side), **example} for example in examples]


def make_generator(
    recipe: Recipe, mesh: Mesh, batch: int, finish: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """`generate(params, examples, seeds, knobs, negatives, progress, canvas) -> images` of uint8, any number.

    seeds: one an image, so that an image is the same in any batch. negatives: examples to steer away
    from, in place of no condition. canvas: a picture to start from or to paint in. A last
    partial batch is filled up, so one shape is compiled. Another `finish(params, request, latents)` than the
    tokenizer's decoder gives its arrays instead of images.
    """
    finish = finish or (lambda params, request, latents: recipe.tokenizer.decode(params, latents))
    mine = sharding.local_rows(mesh, batch)

    @jax.jit
    def draw(
        params: Mapping,
        arrays: Mapping,
        opposite: Mapping,
        dropped: jax.Array,
        seeds: jax.Array,
        knobs: Mapping,
        canvas: Canvas | None,
    ) -> Any:
        keys = jax.vmap(jax.random.key)(seeds)
        kept = jnp.zeros(dropped.shape, bool)
        embed_keys = random.fold(keys, 'embed')
        request = Request(
            cond=recipe.conditioner.embed(params, arrays, kept, embed_keys),
            null=recipe.conditioner.embed(params, opposite, dropped, embed_keys),
            keys=random.fold(keys, 'sample'),
            **_prepared(recipe, params, canvas, keys),
        )
        return finish(params, request, recipe.sampler.sample(params, request, knobs))

    def generate(
        params: Mapping,
        examples: Sequence[Example],
        seeds: Sequence[int],
        knobs: Mapping,
        negatives: Sequence[Example] | None = None,
        progress: Callable[[int], None] = lambda count: None,
        canvas: Canvas | None = None,
    ) -> Any:
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
                drawn = draw(params, *placed, knobs, canvas)
                images.append(
                    multihost_utils.process_allgather(drawn, tiled=True)
                    if jax.process_count() > 1
                    else jax.tree.map(np.asarray, drawn)
                )
            progress(min(batch, len(examples) - start))
        return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(examples)], *images)

    return generate


def _prepared(recipe: Recipe, params: Mapping, canvas: Canvas | None, keys: jax.Array) -> dict[str, Any]:
    """The canvas as the fields of a request; a latent is painted where any of its pixels is."""
    if canvas is None:
        return {}
    latents = recipe.tokenizer.encode(params, {'image': canvas.image[None]}, random.fold(keys[:1], 'encode'))
    fields = {'init': jnp.broadcast_to(latents, (len(keys), *latents.shape[1:])), 'start': canvas.start}
    if canvas.mask is None:
        return fields
    rows, columns = latents.shape[1:3]
    blocks = canvas.mask.reshape(rows, canvas.mask.shape[0] // rows, columns, -1)
    return fields | {'mask': blocks.any(axis=(1, 3))[None, :, :, None].astype(jnp.float32)}


def open_run(
    workdir: str, checkpoint: int | None = None, batch: int | None = None
) -> Callable[..., np.ndarray]:
    """A trained run, by its workdir alone: `draw(prompts, seed=0, negative='', knobs={}) -> images` of uint8.

    The config is the one it was trained with. Image i has seed `seed + i`, as in `--mode=sample`.
    """
    with Checkpoints(epath.Path(workdir) / 'checkpoints', read_only=True) as checkpoints:
        recipe = build(checkpoints.last_record(checkpoint)[1]['metadata']['config'])
    program = assemble(recipe)
    _, params = load_params(program, workdir, checkpoint)
    generate = make_generator(recipe, program.mesh, batch or recipe.train.sample_batch)

    def draw(
        prompts: Sequence[str],
        seed: int = 0,
        negative: str = '',
        knobs: Mapping[str, float] = types.MappingProxyType({}),
        canvas: Canvas | None = None,
    ) -> np.ndarray:
        examples = [recipe.conditioner.example(prompt) for prompt in prompts]
        negatives = [recipe.conditioner.example(negative)] * len(examples) if negative else None
        seeds, settings = range(seed, seed + len(examples)), recipe.sampler.knobs(**knobs)
        return generate(params, examples, seeds, settings, negatives, canvas=canvas)

    return draw
