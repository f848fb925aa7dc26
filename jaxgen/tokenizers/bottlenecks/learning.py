"""How a codebook learns without gradients: running averages, restarts, k-means, and what of it is in use.

Running averages of the vectors that chose a code (van den Oord et al., 1711.00937, appendix A.1); a code that
nothing has chosen for long begins anew where a vector is (Dhariwal et al., "Jukebox", 2005.00341); the first
codebook is k-means of vectors of an encoder that has had some steps to itself (Lancucki et al., 2005.08520).
The numbers are a state beside the parameters, and `settled` puts into the codebook what they say.
"""

# V vocabulary, C channels, N vectors

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import keys as random
from jaxgen.tokenizers.bottlenecks import Quantized
from jaxgen.tokenizers.bottlenecks.codebook import Distance, gathered, k_means

NEVER = 2**30


@dataclasses.dataclass(frozen=True)
class Learning:
    """Counts are in steps, 0 (where it may be) is never.

    update: what the codebook follows, 'gradient' or 'averages' with their `decay`. restart: a code unused for
    so long begins anew. start: latents pass as they are until then. k_means: what the codebook then begins
    with. window: a code chosen within so many steps is in use.
    """

    update: str = 'gradient'
    decay: float = 0.99
    restart: int = 0
    start: int = 0
    k_means: bool = False
    window: int = 100

    @property
    def begins(self) -> int:
        """The first step whose latents are quantized; k-means needs one before."""
        return max(self.start, int(self.k_means))

    @property
    def writes(self) -> bool:
        """Whether the codebook is ever written to, besides by gradients."""
        return self.update == 'averages' or self.restart > 0 or self.k_means

    def init(self, codes: int, channels: int) -> dict[str, Array]:
        """The state before the first step."""
        state = {'step': jnp.int32(0), 'idle': jnp.full(codes, NEVER), 'waited': jnp.zeros(codes, jnp.int32)}
        if self.writes:
            state |= {'table': jnp.zeros((codes, channels)), 'written': jnp.zeros(codes, bool)}
        if self.update == 'averages':
            state |= {'counts': jnp.ones(codes), 'sums': jnp.zeros((codes, channels))}
        return state

    def quantizes(self, state: dict[str, Array]) -> Array:
        """Whether latents are quantized yet."""
        return state['step'] >= self.begins

    def in_use(self, state: dict[str, Array]) -> Array:
        """The share of codes that were chosen lately."""
        return (state['idle'] < self.window).mean()

    def step(
        self,
        state: dict[str, Array],
        table_VC: Array,
        found: Quantized,
        samples_NC: Array,
        distance: Distance,
        key: Array,
    ) -> dict[str, Array]:
        """The state after a batch; `samples` are what k-means is made of."""
        codes, quantizes = len(table_VC), self.quantizes(state)
        vectors, samples = jax.lax.stop_gradient((found.vectors, samples_NC))
        table_VC = jax.lax.stop_gradient(table_VC)
        counts, sums = gathered(vectors, found.chosen, codes)
        hit = (counts > 0) & quantizes
        new = dict(
            state, step=state['step'] + 1, idle=jnp.where(hit, 0, jnp.minimum(state['idle'] + 1, NEVER))
        )
        new['waited'] = jnp.where(hit | ~quantizes, 0, state['waited'] + 1)
        if not self.writes:
            return new
        table, written = table_VC, jnp.zeros(codes, bool)
        if self.update == 'averages':
            first = state['step'] <= self.begins
            before = jnp.where(first, 1.0, state['counts']), jnp.where(first, table_VC, state['sums'])
            new['counts'], new['sums'] = (
                jnp.where(quantizes, self.decay * old + (1 - self.decay) * now, old)
                for old, now in zip(before, (counts, sums))
            )
            table, written = _mean(new, table_VC), jnp.broadcast_to(quantizes, codes)
        if self.restart:
            dead = new['waited'] >= self.restart
            new['waited'] = jnp.where(dead, 0, new['waited'])
            rows = jax.random.randint(random.fold(key, 'restart'), (codes,), 0, len(vectors))
            table, written = jnp.where(dead[:, None], vectors[rows], table), written | dead
            if self.update == 'averages':
                new['counts'] = jnp.where(dead, 1.0, new['counts'])
                new['sums'] = jnp.where(dead[:, None], table, new['sums'])
        if self.k_means:
            due = state['step'] == self.begins - 1
            centres = functools.partial(k_means, samples, codes, distance, random.fold(key, 'k_means'))
            table = jax.lax.cond(due, centres, lambda: table)
            written = written | due
        return dict(new, table=table, written=written)

    def settled(self, table_VC: Array, state: dict[str, Array]) -> Array:
        """The codebook, with the rows that the state has written."""
        return jnp.where(state['written'][:, None], state['table'], table_VC)


def _mean(state: dict[str, Any], table_VC: Array) -> Array:
    """The mean of the vectors that chose each code; where next to none did, the code stays."""
    counts = state['counts'][:, None]
    return jnp.where(counts > 1e-6, state['sums'] / jnp.maximum(counts, 1e-6), table_VC)
