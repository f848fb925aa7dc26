"""One token after another, in reading order and coarse to fine: the order of language models.

One loop over tokens in one compiled program; keys and values of those before lie in a cache of fixed size.
Known tokens are forced: those that a mask keeps, and the first ones where only a share of the walk is asked
for. Guidance may end after some tokens, as in LlamaGen (arXiv:2406.06525).
"""

# B batch, N tokens of all scales, L of some

import dataclasses
import types
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import keys as random
from jaxgen.autoregressive import alphabet
from jaxgen.autoregressive.alphabet import Alphabet
from jaxgen.autoregressive.orders import Knobs, kept, twice
from jaxgen.conditioning.request import Request
from jaxgen.config import Whole


@dataclasses.dataclass(frozen=True)
class Raster:
    """The walk over tokens; without `cache` each one recomputes those before it.

    A network is called with all tokens for what it says of each by those before it; or with a cache, first
    with none and then with one and the number of those before it, for what it says of the next.
    """

    cache: bool
    knobs: Mapping[str, float]
    whole = ('guided',)
    others = ()

    def fits(self, network: Any, tokenizer: Any) -> None:
        """Refuse a network that is not causal, and a tokenizer that is not its own kind."""
        alphabet.goes(network, 'causal', "sampler.order 'raster'")
        alphabet.between(tokenizer, network)

    def at(self, scales: tuple[tuple[int, int], ...]) -> 'Raster':
        """The same, which scales are nothing to."""
        return self

    def check(self, knobs: Mapping[str, float]) -> None:
        """Any number of tokens may be guided."""

    def held(self, network: Any, tokenizer: Any, batch: int) -> Any:
        """The tokens, and the cache of what the network made of them, twice the batch for guidance."""
        tokens = jax.eval_shape(lambda: alphabet.between(tokenizer, network).empty(batch))
        cache = jax.eval_shape(lambda: network.module.cache(2 * batch)) if self.cache else None
        return {'tokens': tokens, 'cache': cache}

    def decode(
        self, network: Any, tokenizer: Any, params: Mapping[str, Any], request: Request, knobs: Knobs
    ) -> tuple[Array, tuple[Array, ...], tuple[Array, ...]]:
        """Latents, the tokens, and what the network said of them with the condition, and then without."""
        letters, model = alphabet.between(tokenizer, network), params['model']
        empty, cond = letters.empty(len(request.keys)), twice(request.cond, request.null)
        draw = _drawing(letters, params, request, knobs, empty)

        def by_cache(carry: Any, t: Array) -> tuple:
            token, memory = carry
            out, _, memory = network(model, twice(token, token), t - 1, cond, memory=memory)
            token = draw(out, t)
            return (token, memory), (token[:, 0], out[:, 0])

        def by_all(tokens: Array, t: Array) -> tuple:
            out = network(model, twice(tokens, tokens), None, cond)[0]
            out = jax.lax.dynamic_slice_in_dim(out, t, 1, axis=1)
            token = draw(out, t)
            return jax.lax.dynamic_update_slice_in_dim(tokens, token, t, axis=1), (token[:, 0], out[:, 0])

        places = jnp.arange(empty.shape[1])
        if self.cache:
            none = empty[:, :0]
            out, _, memory = network(
                model, twice(none, none), 0, cond, memory=network.module.cache(2 * len(empty))
            )
            first = draw(out, places[0])
            _, following = jax.lax.scan(by_cache, (first, memory), places[1:])
            begun = first[None, :, 0], out[None, :, 0]
            tokens, told = (jnp.concatenate(pair) for pair in zip(begun, following))
        else:
            _, (tokens, told) = jax.lax.scan(by_all, empty, places)
        tokens, told = jnp.swapaxes(tokens, 0, 1), jnp.swapaxes(told, 0, 1)
        return letters.latents(params, tokens), (tokens,), (told,)


def _drawing(letters: Alphabet, params: Mapping, request: Request, knobs: Knobs, empty: Array) -> Any:
    """`draw(out, t)`: token t, [B, 1] or [B, 1, C], by what the network says of it; or as it is known."""
    keys = random.fold(request.keys, 'token')
    if request.init is not None:
        known = letters.tokens(params, request.init)
        first = (1 - jnp.asarray(request.start, jnp.float32)) * empty.shape[1] - 1e-4
        keep = jnp.concatenate(kept(letters.scales, request.mask), axis=1)
        keep = keep | (jnp.arange(empty.shape[1]) < first)
        keep = keep.reshape(*keep.shape, *[1] * (empty.ndim - 2))

    def draw(out: Array, t: Array) -> Array:
        guided = (knobs['guided'] == 0) | (t < knobs['guided'])
        guidance = jnp.where(guided, knobs['guidance'], 1.0)
        token = letters.drawn(out, random.split_each(keys, t), {**knobs, 'guidance': guidance})[0]
        if request.init is None:
            return token
        keep_B1, known_B1 = (jax.lax.dynamic_slice_in_dim(each, t, 1, axis=1) for each in (keep, known))
        return jnp.where(keep_B1, known_B1, token)

    return draw


def build(cache: bool = True, guided: Whole = 0) -> Raster:
    """Tokens in their order; its number is the default of a knob.

    guided: the tokens from the first on that guidance is for, 0 being all; a published `cfg_interval` of
    LlamaGen's is two less.
    """
    return Raster(cache, types.MappingProxyType({'guided': guided}))
