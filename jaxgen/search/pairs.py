"""Noise and the latents it becomes: the coupling that a trained flow makes (arXiv:2209.03003).

Pair i has the condition of a random training example and the noise of a seed of its own, so that the pairs
are the same in whatever batches they are drawn. The solver is one of the flow's ODE; give it many steps.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from tqdm import tqdm

from jaxgen.config import Count, Seed
from jaxgen.data.pairs import KIND
from jaxgen.generate import make_generator
from jaxgen.program import Program
from jaxgen.recipe import Recipe

PART = 1024  # pairs a file, and the most that a stopped search draws anew


@dataclasses.dataclass(frozen=True)
class Pairs:
    """How many pairs, from which seed on, and the room for a caption."""

    count: int
    seed: int
    caption_bytes: int
    kind: str = KIND

    def found_for(self, recipe: Recipe) -> dict[str, Any]:
        """What whoever trains on the pairs must share."""
        data = dataclasses.asdict(recipe.source('train').description)
        return {'latent': recipe.tokenizer.latent} | {
            name: data[name] for name in ('resolution', 'classes', 'captions', 'label_names')
        }

    def parts(
        self, program: Program, params: Mapping[str, Any], knobs: Mapping[str, Any], first: int
    ) -> Iterator[dict[str, np.ndarray]]:
        """'noise', 'latents' and what the data has of 'label' and 'caption', from pair `first` on."""
        recipe = program.recipe
        source = recipe.source('train')

        def ends(params: Mapping[str, Any], request: Any, latents: Any) -> dict[str, Any]:
            return {'noise': recipe.sampler.noise(request.keys), 'latents': latents}

        draw = make_generator(recipe, program.mesh, recipe.train.sample_batch, ends)
        with tqdm(total=self.count, initial=first, desc='search', unit='pair') as bar:
            for start in range(first, self.count, PART):
                rows = range(start, min(start + PART, self.count))
                chosen = [np.random.default_rng((self.seed, row)).integers(len(source)) for row in rows]
                examples = [source[int(index)] for index in chosen]
                seeds = [self.seed + row for row in rows]
                drawn = draw(params, examples, seeds, knobs, progress=bar.update)
                yield {**drawn, **self._conditions(examples)}

    def _conditions(self, examples: list[Mapping[str, Any]]) -> dict[str, np.ndarray]:
        arrays = {}
        if 'label' in examples[0]:
            arrays['label'] = np.asarray([example['label'] for example in examples], np.int32)
        if 'caption' in examples[0]:
            captions = [example['caption'].encode() for example in examples]
            longest = max(map(len, captions))
            if longest > self.caption_bytes:
                raise ValueError(
                    f'search.caption_bytes is {self.caption_bytes}, and a caption has {longest}; raise it.'
                )
            arrays['caption'] = np.asarray(captions, f'S{self.caption_bytes}')
        return arrays


def build(sampler: Any, count: Count = 20_000, seed: Seed = 0, caption_bytes: Count = 512) -> Pairs:
    """`count` pairs of the recipe's sampler, in as many steps and with the guidance of its knobs."""
    if not hasattr(sampler, 'noise'):
        raise ValueError("search 'pairs' needs a sampler that walks from noise: sampler.name='diffusion'.")
    if sampler.solver.stochastic:
        raise ValueError(
            "search 'pairs' needs latents that follow from their noise, and sampler.solver adds fresh noise: "
            "set a solver of the flow's ODE, as sampler.solver.name='heun'."
        )
    if seed + count > 2**32:
        raise ValueError(f'search.seed is {seed} and search.count {count}; their sum may be up to 2**32.')
    return Pairs(count, seed, caption_bytes)
