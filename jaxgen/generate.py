"""Examples to pictures: conditioner, request, sampler, tokenizer, in one compiled call.

The jobs that draw pictures, and a notebook, come through here; nothing in it knows a family.
"""

import functools
import math
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

from jaxgen import executables, pretrained
from jaxgen import keys as random
from jaxgen.conditioning import aspects
from jaxgen.conditioning.request import Request
from jaxgen.features import NAME as TEXT
from jaxgen.features import NULL, Features, ahead, fits_together
from jaxgen.program import Program, assemble, check_params, check_published, load_params, origin
from jaxgen.quantize import precision as precisions
from jaxgen.recipe import Recipe, blank_example, build
from jaxgen.training import compiler, sharding
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


def make_generator(
    recipe: Recipe,
    mesh: Mesh,
    batch: int,
    finish: Callable[..., Any] | None = None,
    size: tuple[int, int] | None = None,
    cut: tuple[int, int] | None = None,
    programs: str = '',
) -> Callable[..., Any]:
    """`generate(params, examples, seeds, knobs, negatives, progress, canvas) -> images` of uint8, any number.

    seeds: one an image, so that an image is the same in any batch. negatives: examples to steer away
    from, in place of no condition. canvas: a picture to start from or to paint in. At most `batch` are drawn
    at once; a partial batch is filled up to a power of two, so few shapes are compiled. Another
    `finish(params, request, latents)` than the tokenizer's decoder gives its arrays instead of images. size:
    height and width, where not the recipe's square; `cut`: what the pictures are then scaled and cut to.
    programs: a folder that may have the compiled call, see `keep_programs`.
    """
    draw = draw_step(recipe, mesh, size, cut, finish)
    if programs and finish is None:
        draw = executables.kept(draw, programs, recipe.config, mesh, size=size, cut=cut)
    size = size or _square(recipe)
    shards = math.prod(mesh.shape[axis] for axis in sharding.BATCH_AXES)
    sharding.local_rows(mesh, batch)  # refuses a batch that does not divide

    def generate(
        params: Mapping,
        examples: Sequence[Example],
        seeds: Sequence[int],
        knobs: Mapping,
        negatives: Sequence[Example] | None = None,
        progress: Callable[[int], None] = lambda count: None,
        canvas: Canvas | None = None,
    ) -> Any:
        if negatives is None and recipe.conditioner.nothing is not None:
            negatives = [recipe.conditioner.nothing] * len(examples)
        examples, negatives = (
            None if given is None else [{'size': size, **example} for example in given]
            for given in (examples, negatives)
        )
        at_once = min(batch, shards * 2 ** math.ceil(math.log2(max(1, len(examples) / shards))))
        mine, images = sharding.local_rows(mesh, at_once), []
        for start in range(0, len(examples), at_once):
            rows = [min(start + i, len(examples) - 1) for i in mine]
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
            progress(min(at_once, len(examples) - start))
        return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(examples)], *images)

    return generate


def draw_step(
    recipe: Recipe,
    mesh: Mesh,
    size: tuple[int, int] | None = None,
    cut: tuple[int, int] | None = None,
    finish: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """The jitted call that draws a batch; size, cut and finish as for `make_generator`."""
    finish = finish or functools.partial(_pictures, recipe.tokenizer, None if cut == size else cut)
    sampler = recipe.sampler if size is None else recipe.sampler.at(recipe.tokenizer.latent_of(*size))

    @functools.partial(jax.jit, compiler_options=compiler.options(mesh))
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
        return finish(params, request, sampler.sample(params, request, knobs))

    return draw


def labelled(recipe: Recipe, examples: Sequence[Example]) -> dict[str, list]:
    """What a grid of pictures shows with each: a caption, and what it is an answer to, if that is seen."""
    conditioner = recipe.conditioner
    captions = [conditioner.describe(example) for example in examples]
    beside = [conditioner.shown(example) for example in examples] if hasattr(conditioner, 'shown') else []
    return {'captions': captions, 'beside': beside}


def kept(recipe: Recipe, params: Mapping[str, Any], precision: str) -> dict[str, Any]:
    """Networks, the parameters of those that draw as they are kept meanwhile; those given are used up."""
    if precision == precisions.EXACT:
        return dict(params)
    if not recipe.sampler.draws:
        raise ValueError(f'--precision={precision} is what a model is kept in, and this recipe has none.')
    keep = jax.jit(functools.partial(precisions.keep, precision=precision), donate_argnums=0)
    return {**params, **{name: keep(params[name]) for name in recipe.sampler.draws}}


def abstract_call(
    program: Program, batch: int, size: tuple[int, int] | None = None, precision: str = precisions.EXACT
) -> tuple[Any, ...]:
    """The shapes of what `draw_step` is called with for pictures of prompts, which are read ahead."""
    recipe, ahead_of_it = program.recipe, ahead(program.recipe)
    names = [name for name in recipe.networks if not (ahead_of_it and name == TEXT)]
    params = {name: program.layout(name) for name in names}
    if precision != precisions.EXACT:
        keep = functools.partial(precisions.keep, precision=precision)
        made = {name: jax.eval_shape(keep, params[name]) for name in recipe.sampler.draws}
        where = sharding.place(made, recipe.rules, program.mesh)
        params |= jax.tree.map(_placed, made, where)
    size = size or _square(recipe)
    example = {**blank_example(size[0]), 'size': size}
    if ahead_of_it:
        layout, arrays = {TEXT: program.layout(TEXT)}, recipe.conditioner.arrays([example])
        text, _ = jax.eval_shape(recipe.conditioner.features, layout, arrays)
        example |= {name: np.zeros((1, text.shape[-1]), text.dtype) for name in (TEXT, NULL)}
    arrays = recipe.conditioner.arrays([example])
    given = arrays, arrays, np.zeros(1, bool), np.zeros(1, np.uint32)
    rows = sharding.batch_sharding(program.mesh)
    given = jax.tree.map(lambda a: jax.ShapeDtypeStruct((batch, *a.shape[1:]), a.dtype, sharding=rows), given)
    return params, *given, jax.eval_shape(recipe.sampler.knobs), None


def check_export(recipe: Recipe) -> None:
    """Refuse a recipe of which `keep_programs` could keep nothing."""
    if recipe.sampler is None:
        raise ValueError("--export keeps programs that draw, and the config has no section 'sampler'.")
    executables.check(recipe.config)


def keep_programs(
    program: Program,
    folder: str,
    precision: str = precisions.EXACT,
    size: tuple[int, int] | None = None,
    cut: tuple[int, int] | None = None,
) -> list[epath.Path]:
    """Keep the compiled calls that draw one prompt, and as many as `sample_batch`; the files' paths."""
    recipe, mesh = program.recipe, program.mesh
    draw = draw_step(recipe, mesh, size, cut)
    least = math.prod(mesh.shape[axis] for axis in sharding.BATCH_AXES)
    files = []
    for batch in sorted({least, recipe.train.sample_batch}):
        call = abstract_call(program, batch, size, precision)
        files.append(executables.save(folder, draw, call, recipe.config, mesh, size=size, cut=cut))
    return files


def _placed(leaf: Any, where: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)


def _square(recipe: Recipe) -> tuple[int, int]:
    return (recipe.config['data']['resolution'],) * 2


def _pictures(
    tokenizer: Any, cut: tuple[int, int] | None, params: Mapping, request: Request, latents: Any
) -> Any:
    if cut is None:
        return tokenizer.decode(params, latents)
    pixels = aspects.fit(tokenizer.pixels(params, latents), *cut)
    return jnp.clip(jnp.round((pixels + 1) * 127.5), 0, 255).astype(jnp.uint8)


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
    workdir: str,
    checkpoint: int | None = None,
    batch: int | None = None,
    precision: str = precisions.EXACT,
) -> Callable[..., Any]:
    """A trained run, by its workdir alone; returns `draw`, see `drawing`.

    The config is the one it was trained with. `precision`: what its model is kept in, see quantize.precision.
    """
    program = assemble(build(config_of(workdir, checkpoint)))
    check_params(program, workdir, checkpoint)
    weights = origin(program, TEXT, workdir, checkpoint) if ahead(program.recipe) else ''
    programs = str(epath.Path(workdir) / executables.FOLDER)
    load = functools.partial(load_params, program, workdir, checkpoint)
    return drawing(program, lambda names: load(names)[1], batch, weights, programs, precision)


def config_of(workdir: str, checkpoint: int | None = None) -> dict[str, Any]:
    """The config that a run was trained with, or converted to; its own tokenizer's files move with it."""
    folder = epath.Path(workdir).expanduser()
    with Checkpoints(folder / 'checkpoints', read_only=True) as checkpoints:
        config = checkpoints.last_record(checkpoint)[1]['metadata']['config']
    if config['conditioner'].get('tokens') and (folder / 'tokenizer').is_dir():
        config['conditioner']['tokens'] = str(folder / 'tokenizer')
    return config


def open_weights(
    source: str,
    overrides: Sequence[str] = (),
    batch: int | None = None,
    precision: str = precisions.EXACT,
) -> Callable[..., np.ndarray]:
    """Published weights, a folder or hf://owner/name, by themselves; returns `draw`, see `drawing`.

    overrides: keys of the config to change, as 'model.dtype=bfloat16'. `precision`: as for `open_run`.
    """
    program = assemble(build(pretrained.configured({}, source, overrides)))
    check_published(program)
    weights = origin(program, TEXT) if ahead(program.recipe) else ''
    return drawing(program, program.loaded, batch, weights, precision=precision)


def drawing(
    program: Program,
    load: Callable[[Sequence[str]], Mapping[str, Any]],
    batch: int | None = None,
    weights: str = '',
    programs: str = '',
    precision: str = precisions.EXACT,
) -> Callable[..., np.ndarray]:
    """`draw(prompts, seed=0, negative='', knobs={}, canvas=None, size=None) -> images` of uint8.

    Image i has seed `seed + i`, as in `--mode=sample`; a sequence of seeds gives each its own. size: height
    and width; the nearest of the published buckets is drawn and fitted, or with `exact` the size itself.
    `weights`: what features are kept by, see Features. `programs`: as for `make_generator`.
    """
    precisions.check(precision)
    recipe, params, together = program.recipe, {}, fits_together(program)

    def alone(names: Sequence[str]) -> Mapping[str, Any]:
        if not together:
            params.clear()  # they are loaded again
        return load(names)

    read = Features(program, alone, weights, keep=together) if ahead(recipe) else None
    make = functools.cache(
        lambda drawn, size: make_generator(
            recipe,
            program.mesh,
            batch or recipe.train.sample_batch,
            size=drawn,
            cut=size,
            programs=programs,
        )
    )

    def draw(
        prompts: Sequence[str],
        seed: int | Sequence[int] = 0,
        negative: str = '',
        knobs: Mapping[str, float] = types.MappingProxyType({}),
        canvas: Canvas | None = None,
        size: tuple[int, int] | None = None,
        exact: bool = False,
    ) -> np.ndarray:
        examples = [recipe.conditioner.example(prompt) for prompt in prompts]
        against = recipe.conditioner.example(negative) if negative else recipe.conditioner.nothing
        negatives = [against] * len(examples) if against else None
        seeds = range(seed, seed + len(examples)) if isinstance(seed, int) else seed
        settings, drawn = recipe.sampler.knobs(**knobs), drawn_size(recipe, size, exact)
        if read is not None:
            examples, negatives = read(examples, negatives)
        if not params:
            names = [name for name in recipe.networks if not (read and name == TEXT)]
            params.update(kept(recipe, load(names), precision))
        return make(drawn, size)(params, examples, seeds, settings, negatives, canvas=canvas)

    return draw


def drawn_size(recipe: Recipe, size: tuple[int, int] | None, exact: bool) -> tuple[int, int] | None:
    """What is drawn for a size asked for (height, width): the nearest bucket, or with `exact` itself."""
    if size is None:
        return None
    drawn = size if exact else aspects.nearest(recipe.config['data']['resolution'], *size)
    try:
        latent = recipe.tokenizer.latent_of(*drawn)
        recipe.sampler.at(latent)
        if exact:
            jax.eval_shape(lambda: recipe.init(jax.random.key(0), latent))
    except ValueError as error:
        how = 'exactly' if exact else f'by the bucket of {drawn[0]} x {drawn[1]}'
        raise ValueError(f'{size[0]} x {size[1]} pixels cannot be drawn {how}: {error}') from None
    return drawn
