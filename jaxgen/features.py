"""Text features before the generator: computed once for a prompt, and kept on disk by what they are made of.

A frozen text encoder can be many times its generator (T5-XXL: 4.7 B parameters, PixArt: 0.6 B), and is needed
for new prompts alone. So it is loaded for these, its features are written down, and it is let go.
"""

import hashlib
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from tqdm import tqdm

from jaxgen.program import Program
from jaxgen.recipe import Recipe
from jaxgen.training import compiler, sharding
from jaxgen.weights import safetensors

Example = Mapping[str, Any]
log = logging.getLogger('jaxgen')

NAME, NULL = 'text', 'null'
BATCH = 8
BLANK = {'size': (1, 1)}  # captions are read alike for all sizes


class Features:
    """Features of captions by a program's frozen text encoder.

    `weights` tells its parameters from any others: by that, features are kept in `folder`; '' keeps none. The
    encoder itself stays loaded where `keep` says that there is room for it.
    """

    def __init__(
        self,
        program: Program,
        load: Callable[[Sequence[str]], Mapping[str, Any]],
        weights: str,
        folder: str = '~/.cache/jaxgen/features',
        keep: bool = False,
    ):
        self._program, self._load, self._keep = program, load, keep
        network = program.recipe.networks[NAME]
        maker = hashlib.sha256(f'{weights} {network.module} {network.dtype}'.encode()).hexdigest()[:16]
        self._folder = epath.Path(folder).expanduser() / maker if weights else None
        self._known: dict[str, np.ndarray] = {}
        self._params: Any = None
        self._batch = 1
        encode = program.recipe.conditioner.features
        self._encode = jax.jit(encode, compiler_options=compiler.options(program.mesh))

    def __call__(
        self, examples: Sequence[Example], negatives: Sequence[Example] | None = None
    ) -> tuple[list[Example], list[Example] | None]:
        """Both, each with its caption's features and, where needed, those of the empty one.

        What is not known of them is read in one go. In a run of several processes all of them must ask.
        """
        conditioner = self._program.recipe.conditioner
        nothing = [conditioner.nothing] if conditioner.nothing else []
        given = [*examples, *(negatives or ()), *nothing]
        names = [conditioner.cache_key(example['caption']) for example in given]
        if missing := self._missing(dict(zip(names, given))):
            self._compute(missing)
        null = {NULL: self._known[names[-1]]} if nothing else {}
        read = [{**example, NAME: self._known[name], **null} for example, name in zip(given, names)]
        count = len(examples)
        return read[:count], None if negatives is None else read[count : count + len(negatives)]

    def _missing(self, examples: Mapping[str, Example]) -> dict[str, Example]:
        """Those whose features some process does not find: its disk may not be that of the others."""
        found = np.asarray([self._find(name) for name in examples], bool)
        if jax.process_count() > 1:
            found = multihost_utils.process_allgather(found).all(axis=0)
        return {name: example for (name, example), there in zip(examples.items(), found) if not there}

    def _path(self, name: str) -> epath.Path:
        return self._folder / f'{name}.safetensors'

    def _find(self, name: str) -> bool:
        if name not in self._known and self._folder is not None and self._path(name).exists():
            try:
                self._known[name] = np.array(safetensors.read(os.fspath(self._path(name)))[NAME])
            except (KeyError, ValueError) as error:
                log.warning('%s; its features are computed again.', error)
        return name in self._known

    def _compute(self, examples: Mapping[str, Example]) -> None:
        program, names = self._program, list(examples)
        if self._params is None:
            self._params = self._load((NAME,))
        shards = math.prod(program.mesh.shape[axis] for axis in sharding.BATCH_AXES)
        # Of few sizes, and no smaller than before: a later prompt compiles nothing.
        asked = 2 ** math.ceil(math.log2(max(1, min(BATCH, len(names)) / shards)))
        self._batch = batch = max(self._batch, shards * asked)
        mine = sharding.local_rows(program.mesh, batch)
        for start in tqdm(range(0, len(names), batch), desc='read prompts', unit='batch'):
            part = names[start : start + batch]
            rows = [BLANK | examples[part[min(i, len(part) - 1)]] for i in mine]
            arrays = program.recipe.conditioner.arrays(rows)
            with jax.set_mesh(program.mesh):
                text, mask = self._encode(self._params, sharding.to_global(arrays, program.mesh))
            if jax.process_count() > 1:
                text, mask = multihost_utils.process_allgather((text, mask), tiled=True)
            for name, features, real in zip(part, np.asarray(text), np.asarray(mask)):
                self._known[name] = features[real]
                self._write(name)
        if not self._keep:
            self._params = None

    def _write(self, name: str) -> None:
        if self._folder is None:
            return
        features = self._known[name]
        entry = (NAME, features.shape, features.dtype, lambda: features)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            safetensors.write(os.fspath(self._path(name)), [entry], {})
        except OSError as error:
            log.warning('Features of prompts are not kept: %s.', error)
            self._folder = None


def ahead(recipe: Recipe) -> bool:
    """Whether a recipe's captions can be read before its generator is there: by a frozen encoder."""
    return hasattr(recipe.conditioner, 'features') and NAME not in recipe.trained


def fits_together(program: Program) -> bool:
    """Whether the text encoder may stay beside the generator: both take at most half of the memory."""
    trees = (program.abstract.params, program.abstract_frozen)
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(trees))
    limit = (program.mesh.devices.flat[0].memory_stats() or {}).get('bytes_limit')
    if limit is None:
        limit = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / program.mesh.size
    return size / program.mesh.size <= limit / 2
