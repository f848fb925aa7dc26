"""Scale after scale, all tokens of one together: VAR's order (arXiv:2404.02905).

Guidance grows with the scales. Every scale has its own shapes, so the loop is unrolled; keys and values of
the scales before lie in a cache of fixed size. Known tokens are forced: those that a mask keeps, and whole
scales where only a share of the schedule is to be walked. A smaller network may draw the later scales, told
at once what the larger one drafted (CoDe, arXiv:2411.17787).
"""

# B batch, L tokens of a scale, V codes, C channels of a code, H height, W width

import dataclasses
import functools
import types
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import keys as random
from jaxgen.autoregressive import alphabet, choose
from jaxgen.autoregressive.orders import Knobs, kept, twice
from jaxgen.conditioning.request import Request
from jaxgen.config import NonNegative, Positive, Whole

# Of the published smoother drawing: the temperature of the mixture, its fall over the scales, its least.
WARMTH, FALL, LEAST = 0.27, 0.95, 0.005


@dataclasses.dataclass(frozen=True)
class NextScale:
    """The walk over scales; without `cache` each one recomputes those before it.

    After the first `drafted` scales the network `refiner`, (name, network), goes on where there is one.
    """

    cache: bool
    knobs: Mapping[str, float]
    refiner: tuple[str, Any] | None = None
    drafted: int = 0
    whole = ('smooth',)

    @property
    def others(self) -> tuple[str, ...]:
        """The refiner's name, where there is one."""
        return () if self.refiner is None else self.refiner[:1]

    def fits(self, network: Any, tokenizer: Any) -> None:
        """Refuse a tokenizer without codes, and networks that do not go by scales."""
        if 'codes' not in getattr(tokenizer, 'provides', {}):
            raise ValueError(
                "sampler.order 'next_scale' is of codes; it wants tokenizer.name='vqgan' with a bottleneck "
                'that has some.'
            )
        alphabet.goes(network, 'scalewise', "sampler.order 'next_scale'")
        if self.refiner is not None:
            alphabet.goes(self.refiner[1], 'scalewise', 'sampler.order.refiner')
            small, given = self.refiner[1].module, (tokenizer.scales, tokenizer.vocabulary)
            if (small.scales, small.codes) != given:
                raise ValueError(
                    f"sampler.order.refiner '{self.refiner[0]}' is of the scales {small.scales} and "
                    f'{small.codes} codes, the tokenizer of {given[0]} and {given[1]}; leave both out of its '
                    'module.'
                )

    def at(self, scales: tuple[tuple[int, int], ...]) -> 'NextScale':
        """The same by other scales, which the refiner must take as well."""
        if self.refiner is None:
            return self
        self._leaves(scales)
        name, network = self.refiner
        if not hasattr(network.module, 'at'):
            raise ValueError(
                f"sampler.order.refiner '{name}' goes by scales of its own alone, and others are asked for; "
                f"take one that goes by any, such as networks.{name}.module.name='flexvar'."
            )
        network = dataclasses.replace(network, module=network.module.at(scales))
        return dataclasses.replace(self, refiner=(name, network))

    def check(self, knobs: Mapping[str, float]) -> None:
        """Refuse knobs that make no sense."""
        if not (knobs['ramp'] >= 0 and knobs['cooling'] > 0 and knobs['smooth'] in (0, 1)):
            raise ValueError(
                f'ramp is {knobs["ramp"]}, cooling {knobs["cooling"]} and smooth {knobs["smooth"]}; they '
                'must be 0 or more, above 0, and 0 or 1.'
            )

    def held(self, network: Any, tokenizer: Any, batch: int) -> Any:
        """The cache of keys and values, twice the batch for guidance, and what the scales make up."""
        latents = jax.eval_shape(lambda: tokenizer.start(batch))
        networks = [network, *([self.refiner[1]] if self.refiner else [])] if self.cache else []
        caches = [jax.eval_shape(functools.partial(_memory, each, batch)) for each in networks]
        return {'latents': latents, 'caches': caches}

    def decode(
        self, network: Any, tokenizer: Any, params: Mapping[str, Any], request: Request, knobs: Knobs
    ) -> tuple[Array, tuple[Array, ...], tuple[Array, ...]]:
        """What all scales make up, and by scale the codes chosen and the logits they were chosen by."""
        batch, scales = len(request.keys), tokenizer.scales
        self._leaves(scales)
        cond, forced = twice(request.cond, request.null), _forced(tokenizer, params, request)
        keys, latents = random.fold(request.keys, 'scale'), tokenizer.start(batch)
        memory = _memory(network, batch) if self.cache else None
        name, told, codes, logits = 'model', [jnp.zeros((2 * batch, 0, latents.shape[-1]))], [], []
        for k, (rows, columns) in enumerate(scales):
            share = k / max(1, len(scales) - 1)
            begins = self.refiner is not None and k == self.drafted
            if begins:
                name, network = self.refiner
                memory = _memory(network, batch) if self.cache else None
            if self.cache and not begins:
                out, _, memory = network(params[name], told[-1], k, cond, memory=memory)
            else:
                every = jnp.concatenate(told, axis=1)
                out, _, memory = network(params[name], every, None, cond, memory=memory)
            scale = 1 + (knobs['guidance'] - 1) * jnp.float32(share) ** knobs['ramp']
            logits.append(choose.guided(out[:, -rows * columns :], scale))
            chosen, vectors = _chosen(tokenizer, params, logits[-1], random.split_each(keys, k), share, knobs)
            if forced is not None:
                keep_BL, known_BL = (each[k] for each in forced)
                chosen = jnp.where(keep_BL, known_BL, chosen)
                vectors = jnp.where(keep_BL[..., None], tokenizer.vectors(params, known_BL), vectors)
            codes.append(chosen)
            latents, following = tokenizer.feedback(params, k, vectors, latents)
            told.append(following if following is None else twice(following, following))
        return latents, tuple(codes), tuple(logits)

    def _leaves(self, scales: tuple[tuple[int, int], ...]) -> None:
        """Refuse a draft that leaves a refiner nothing of these scales."""
        if self.refiner is not None and self.drafted >= len(scales):
            raise ValueError(
                f'sampler.order.drafted is {self.drafted} of {len(scales)} scales: none is left to refine.'
            )


def _memory(network: Any, batch: int) -> Any:
    """A cache for images with their condition and without."""
    return network.module.cache(2 * batch)


def _chosen(
    tokenizer: Any, params: Mapping[str, Any], logits_BLV: Array, keys_B: Array, share: float, knobs: Knobs
) -> tuple[Array, Array]:
    """The codes of a scale and their vectors, or with `smooth` mixtures of vectors as logits weigh them."""
    logits_BLV = logits_BLV / (knobs['temperature'] * (1 + (knobs['cooling'] - 1) * share))
    logits_BLV = choose.likeliest(logits_BLV, knobs['top_k'], knobs['top_p'])
    chosen = choose.drawn(logits_BLV, keys_B)

    def mixed() -> Array:
        noise = choose.gumbel(random.fold(keys_B, 'smooth'), logits_BLV.shape[1:])
        warmth = max(WARMTH * (1 - FALL * share), LEAST)
        weights = jax.nn.softmax((logits_BLV * (1 + share) + noise) / warmth, axis=-1)
        every = tokenizer.vectors(params, jnp.arange(logits_BLV.shape[-1], dtype=jnp.int32)[None])[0]
        return jnp.einsum('blv,vc->blc', weights, every, precision='highest')

    return chosen, jax.lax.cond(knobs['smooth'] > 0, mixed, lambda: tokenizer.vectors(params, chosen))


def _forced(
    tokenizer: Any, params: Mapping[str, Any], request: Request
) -> tuple[list[Array], tuple[Array, ...]] | None:
    """By scale which tokens are not to be drawn, and the codes of what is there."""
    if request.init is None:
        return None
    first = jnp.ceil((1 - jnp.asarray(request.start, jnp.float32)) * len(tokenizer.scales) - 1e-4)
    keep = [each | (k < first) for k, each in enumerate(kept(tokenizer.scales, request.mask))]
    return keep, tokenizer.quantize(params, request.init)


def build(
    networks: Mapping[str, Any],
    cache: bool = True,
    ramp: NonNegative = 1.0,
    cooling: Positive = 1.0,
    smooth: bool = False,
    refiner: str = '',
    drafted: Whole = 0,
) -> NextScale:
    """Scales in their order; its numbers are defaults of knobs.

    ramp: the power of the share of scales by which guidance grows, 0 being the same at all. cooling: what the
    temperature is multiplied by at the last scale, and in between by even steps. smooth: what goes on is not
    the vector of the code that was drawn but a mixture, for smoother pictures. refiner: the network of that
    name draws all but the first `drafted` scales, by the same knobs, where CoDe's authors set some by scale.
    """
    knobs = types.MappingProxyType({'ramp': ramp, 'cooling': cooling, 'smooth': int(smooth)})
    if not refiner:
        return NextScale(cache, knobs)
    if refiner not in networks:
        raise ValueError(
            f"sampler.order.refiner is '{refiner}', and the networks are {', '.join(networks)}; give "
            f'networks.{refiner}.module.'
        )
    return NextScale(cache, knobs, (refiner, networks[refiner]), drafted)
