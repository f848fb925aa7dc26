"""`--mode=cache`: what the frozen networks make of the data, computed once and kept for training.

`--workdir` becomes a cache (see data/cached.py) that `--config.data.cache=DIR` trains on: the tokenizer's
Gaussians or latents, of mirror images too where train.flip is set, and the features of a frozen text encoder.
Shards are whole or not there, so that the same command goes on where it was stopped; the processes share them
out, and need a disk that all of them see.
"""

import itertools
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import Array
from jax.experimental import multihost_utils
from tqdm import tqdm

from jaxgen import artifact, sources
from jaxgen import keys as random
from jaxgen.data import cached
from jaxgen.data.shards import Shard, Writer, shards, summary
from jaxgen.program import Program, assemble, check_sources, origin
from jaxgen.recipe import Recipe, blank_example
from jaxgen.training import sharding
from jaxgen.training.telemetry import write_json
from jaxgen.weights import safetensors

log = logging.getLogger('jaxgen')
SHARD, MOST = 2**28, 8192  # bytes and examples of a shard, and so the most that a stopped call encodes anew


def check(recipe: Recipe, workdir: str) -> Program:
    """Refuse what `run` could not do, before anything is compiled or written."""
    if recipe.cache.cache:
        raise ValueError('data.cache is what training reads; leave it out where --mode=cache makes one.')
    if '://' in str(workdir):
        raise ValueError(f'a cache is written to a local or mounted disk; {workdir} is neither.')
    program = assemble(recipe)
    if tuple(recipe.tokenizer.prepared) != ('image',) and not recipe.encoders:
        raise ValueError(
            'the tokenizer trains in this recipe, and what it makes changes: leave --mode=cache out.'
        )
    if 'image' not in recipe.objective.reads:
        raise ValueError(
            f"objective '{recipe.config['objective']['name']}' reads {', '.join(recipe.objective.reads)} "
            'and no pictures, so there is nothing to encode.'
        )
    check_sources(program, recipe.encoders)
    for split in _splits(recipe):
        if getattr(recipe.source(split), 'random_crop', False):
            raise ValueError("a cache has one cut of a picture, always the same: set data.crop='centre'.")
    return program


def run(recipe: Recipe, workdir: str) -> dict[str, Any]:
    """Encode what is not there yet; returns the manifest."""
    program, folder = check(recipe, workdir), epath.Path(workdir)
    manifest = _begun(program, folder)
    unseen = [name for name, about in manifest['weights'].items() if not about['init_from']]
    if unseen:
        log.warning(
            'The networks %s are random, drawn from the seed: good for trying out alone. Else give '
            '--weights=FOLDER, or --config.networks.%s.init_from=PATH.',
            ', '.join(unseen),
            unseen[0],
        )
    layouts = {split: _layout(recipe, split) for split in _splits(recipe)}
    every = {split: _shards(recipe, folder, split, layout) for split, layout in layouts.items()}
    todo = {split: [shard for shard in found if shard.note is None] for split, found in every.items()}
    _wait('listed')  # before any is there that another process would not count
    if any(todo.values()):
        _check_room(folder, layouts, todo)
        params = program.frozen(recipe.encoders)['networks']
        if layouts['train'].text:
            _write_null(program, params, folder)
        for split, layout in layouts.items():
            _encode(program, params, recipe.source(split), layout, todo[split], split)
        _wait('encoded')
    manifest['splits'] = {
        split: _told(recipe, split, layout) | summary(every[split]) for split, layout in layouts.items()
    }
    if jax.process_index() == 0:
        write_json(folder / cached.MANIFEST, manifest)
        (folder / cached.DRAFT).unlink(missing_ok=True)
        for split, about in manifest['splits'].items():
            log.info('%s: %d examples in %d shards.', split, about['examples'], len(about['shards']))
    return manifest


def check_weights(program: Program) -> None:
    """Refuse a recipe on a cache that other networks made than those that will draw its pictures."""
    manifest = cached.read_manifest(epath.Path(program.recipe.cache.cache).expanduser())
    for name, made in manifest['weights'].items():
        ours = program.recipe.networks[name].init_from
        if ours == made['init_from'] and ours:
            continue  # also where it is not at hand: no step needs it
        if _weights(program, name)['origin'] != made['origin']:
            theirs, ours = made['init_from'] or made['origin'], ours or _weights(program, name)['origin']
            raise ValueError(
                f"{program.recipe.cache.cache} was made with the network '{name}' from {theirs}, and this "
                f'recipe has it from {ours}; set networks.{name}.init_from, or make a cache with this one.'
            )


def _splits(recipe: Recipe) -> tuple[str, ...]:
    return ('train', 'held_out') if 'held_out' in recipe.config else ('train',)


def _weights(program: Program, name: str) -> dict[str, str]:
    """Where a network's parameters come from, and what tells them from others."""
    network = program.recipe.networks[name]
    seed = f'seed {program.recipe.train.seed}'
    return {
        'init_from': network.init_from,
        'origin': origin(program, name) if network.init_from else seed,
        'dtype': network.dtype or 'float32',
    }


def _begun(program: Program, folder: epath.Path) -> dict[str, Any]:
    """What the manifest says before anything is encoded; a folder with another cache is refused."""
    recipe = program.recipe
    data, held_out = recipe.config['data'], recipe.config.get('held_out', {})
    about = {
        'format': cached.FORMAT,
        'sections': cached.about({'data': sources.own(data), 'held_out': held_out}),
        'encoding': sources.encoding(recipe.tokenizer, recipe.conditioner, recipe.cache),
        'weights': {name: _weights(program, name) for name in recipe.encoders},
        'examples': {split: len(recipe.source(split)) for split in _splits(recipe)},
        'mirrored': _variants(recipe, 'train') == 2,
    }
    known = next(
        (folder / name for name in (cached.MANIFEST, cached.DRAFT) if (folder / name).exists()), None
    )
    if known is not None:
        theirs = {name: cached.read_json(known).get(name) for name in about}
        if differs := artifact.difference(theirs, about, 'the cache'):
            raise ValueError(f'{folder} holds a cache of something else: {differs}; give another --workdir.')
    _wait('compared')
    if jax.process_index() == 0 and known is None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / cached.DRAFT, about)
    _wait('begun')
    return about


def _variants(recipe: Recipe, split: str) -> int:
    """How many pictures are encoded of each: where bytes are kept, training turns them itself."""
    return 1 + (split == 'train' and recipe.train.flip and 'image' not in recipe.tokenizer.prepared)


def _layout(recipe: Recipe, split: str) -> cached.Layout:
    arrays = tuple(
        (name, str(sources.kept_in(like.dtype, recipe.cache, recipe.tokenizer)), tuple(like.shape))
        for name, like in recipe.tokenizer.prepared.items()
    )
    text = recipe.conditioner.blank['text'] if 'text' in recipe.encoders else None
    return cached.Layout(
        arrays, _variants(recipe, split), None if text is None else (str(text.dtype), text.shape[1])
    )


def _shards(recipe: Recipe, folder: epath.Path, split: str, layout: cached.Layout) -> list[Shard]:
    longest = layout.bytes_of(recipe.conditioner.length if layout.text else 0)
    return shards(folder, split, len(recipe.source(split)), max(1, min(MOST, SHARD // longest)))


def _told(recipe: Recipe, split: str, layout: cached.Layout) -> dict[str, Any]:
    said = recipe.source(split).description
    names = said.label_names and list(said.label_names)
    description = {'resolution': said.resolution, 'classes': said.classes, 'captions': said.captions}
    description |= {'label_names': names, 'latent': list(recipe.tokenizer.latent)}
    return {'description': description, 'layout': layout.record()}


def _check_room(
    folder: epath.Path, layouts: Mapping[str, cached.Layout], todo: Mapping[str, Sequence[Shard]]
) -> None:
    """Refuse a disk that cannot hold what is to be written, without the features of captions."""
    wanted = sum(layouts[split].bytes_of(0) * len(shard.rows) for split in todo for shard in todo[split])
    free = shutil.disk_usage(os.fspath(folder)).free
    if wanted > free:
        raise OSError(
            f'{folder} has room for {free / 1e9:.1f} GB, and the cache needs {wanted / 1e9:.1f} GB.'
        )


def _encode(
    program: Program,
    params: Mapping[str, Any],
    source: Any,
    layout: cached.Layout,
    todo: Sequence[Shard],
    split: str,
) -> None:
    """Write shards; all processes encode together, each the examples of its own shards."""
    recipe, mesh, batch = program.recipe, program.mesh, program.recipe.train.sample_batch
    held = sharding.local_rows(mesh, batch)
    count = len(held)
    firsts = [sharding.local_rows(mesh, batch, process)[0] for process in range(jax.process_count())]
    shares = [todo[first :: batch // count] for first in range(batch // count)]
    rows = [[row for shard in share for row in shard.rows] for share in shares]
    mine = sorted(set(firsts)).index(held[0])
    writes = firsts.index(held[0]) == jax.process_index()  # the first of those that hold the same rows
    examples, encode = _read(source, rows[mine], recipe.train.threads), _encoder(program, layout)
    writer, waiting = Writer(shares[mine]) if writes else None, []
    with tqdm(
        total=len(rows[mine]), desc=f'cache {split}', unit='image', disable=jax.process_index() > 0
    ) as bar:
        for _ in range(0, max(map(len, rows)), count):
            part = list(itertools.islice(examples, count))
            with jax.set_mesh(mesh):
                made = encode(params, sharding.to_global(_arrays(recipe, layout, part, count), mesh))
            waiting.append((part, made))
            if len(waiting) > 1:  # the device is at the next batch meanwhile
                bar.update(_keep(recipe, layout, *waiting.pop(0), writer))
        for part, made in waiting:
            bar.update(_keep(recipe, layout, part, made, writer))


def _read(source: Any, rows: Sequence[int], threads: int) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """These rows with their examples, in their order and read ahead."""
    if not rows:
        return iter(())
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=16 * threads)
    return iter(grain.MapDataset.source(rows).map(lambda row: (row, source[row])).to_iter_dataset(options))


def _arrays(
    recipe: Recipe, layout: cached.Layout, part: Sequence[tuple[int, Mapping[str, Any]]], count: int
) -> dict[str, np.ndarray]:
    """What is encoded of rows' examples, filled up to `count`."""
    blank = 0, blank_example(recipe.config['data']['resolution'])
    rows, examples = zip(*part, *[blank] * (count - len(part)))
    text = recipe.conditioner.arrays(examples) if layout.text else {}
    return {'image': np.stack([one['image'] for one in examples]), 'row': np.asarray(rows, np.int32), **text}


def _encoder(program: Program, layout: cached.Layout) -> Callable[[Mapping, Mapping], dict[str, Array]]:
    """`encode(params, batch)`: a record's arrays, and the sums of latents that training draws from them."""
    recipe = program.recipe

    def encode(params: Mapping[str, Any], batch: Mapping[str, Array]) -> dict[str, Array]:
        images = (batch['image'], batch['image'][:, :, ::-1])[: layout.variants]
        prepared = [recipe.tokenizer.prepare(params, {'image': image}) for image in images]
        made = {
            name: jnp.stack([one[name].astype(kind) for one in prepared], axis=1)
            for name, kind, _ in layout.arrays
        }
        keys = random.split_examples(jax.random.key(0), batch['row'])  # the same after a stop
        first = {name: array[:, 0] for name, array in made.items()}
        latents = recipe.tokenizer.encode(params, first, keys)
        latents = latents.reshape(len(latents), -1, latents.shape[-1])
        made |= {'sums': latents.sum(1), 'squares': (latents**2).sum(1)}
        if layout.text:
            made['text'], made['text_mask'] = recipe.conditioner.features(params, batch)
        return made

    return jax.jit(encode, out_shardings=sharding.batch_sharding(program.mesh))


def _keep(
    recipe: Recipe,
    layout: cached.Layout,
    part: Sequence[tuple[int, Mapping[str, Any]]],
    made: Mapping[str, Array],
    writer: Writer | None,
) -> int:
    """Write the records of rows' examples; returns their number."""
    rows = {name: _local(array) for name, array in made.items()}
    values = math.prod(recipe.tokenizer.latent[:-1])
    for i, (_, example) in enumerate(part if writer else ()):
        sums, squares = (rows[name][i].astype(np.float64) for name in ('sums', 'squares'))
        if not np.isfinite(squares).all():
            raise FloatingPointError(
                'what the tokenizer makes of a picture is not finite; keep it with '
                "--config.data.cache_dtype=bfloat16, or encode with tokenizer.dtype='float32'."
            )
        arrays = {name: rows[name][i] for name, _, _ in layout.arrays}
        if layout.text:
            arrays['text'] = rows['text'][i][rows['text_mask'][i]]
        example = {'size': example['image'].shape[:2], **example}
        writer.write(layout.pack(example, arrays), sums, squares, values)
    return len(part)


def _local(array: Array) -> np.ndarray:
    """This process's rows of an array that is split by rows."""
    pieces = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(pieces[start]) for start in sorted(pieces)])


def _write_null(program: Program, params: Mapping[str, Any], folder: epath.Path) -> None:
    """The features of the empty caption."""
    recipe, rows = program.recipe, sharding.local_rows(program.mesh, program.recipe.train.sample_batch)
    blank = blank_example(recipe.config['data']['resolution'])
    features = jax.jit(recipe.conditioner.features, out_shardings=sharding.batch_sharding(program.mesh))
    with jax.set_mesh(program.mesh):
        arrays = recipe.conditioner.arrays([blank] * len(rows))
        text, mask = map(_local, features(params, sharding.to_global(arrays, program.mesh)))
    if jax.process_index() == 0:
        null = text[0][mask[0]]
        entry = ('null', null.shape, null.dtype, lambda: null)
        safetensors.write(os.fspath(folder / cached.NULL), [entry], {})


def _wait(point: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f'jaxgen/cache/{point}')
