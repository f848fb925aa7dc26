"""Training a tokenizer to give its pictures back (VQGAN, Esser et al., 2012.09841).

Absolute and squared errors of pixels; LPIPS where its published weights are given; a patch discriminator with
the hinge loss, weighed so that its gradient at the decoder's last layer is as long as that of the rest. The
discriminator may be held by R1 (Mescheder et al., 1801.04406) or by LeCam's anchors (Tseng et al.,
2104.03310). What the bottleneck costs is added; what its codebook learns without gradients lies in the
objective's state. On held-out pictures the Fréchet distance of reconstructions is told too, in what a network
'features' makes of them.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxgen.config import NonNegative, Whole
from jaxgen.layers.resize import resize
from jaxgen.objectives import Objective, Phase
from jaxgen.objectives.fidelity import frechet, moments, psnr, ssim

log = logging.getLogger('jaxgen')
ANCHOR = 0.99  # decay of LeCam's running means
STRONGEST = 1e4  # of the adaptive weight
COUNTED = 2**20  # codes that are told apart


def build(
    networks: Mapping[str, Any],
    tokenizer: Any,
    absolute: NonNegative = 1.0,
    square: NonNegative = 0.0,
    perceptual: NonNegative = 1.0,
    adversarial: NonNegative = 0.0,
    adaptive: bool = True,
    start: Whole = 0,
    r1: NonNegative = 0.0,
    lecam: NonNegative = 0.0,
) -> Objective:
    """Train the tokenizer and, where `adversarial` is above 0, a network 'discriminator' against it.

    absolute, square, perceptual: how much each error counts; the last needs a network 'lpips' with weights.
    adversarial: how much the discriminator counts from step `start` on, times the adaptive weight. A network
    'features', pictures to (anything, features [B, D]), is for the Fréchet distance.
    """
    if not hasattr(tokenizer, 'forward'):
        raise ValueError("objective 'reconstruction' trains a tokenizer, and this one has nothing to train.")
    if adversarial and 'discriminator' not in networks:
        raise ValueError(
            'objective.adversarial is above 0; give networks.discriminator.module, for example with '
            "name='patch_discriminator'."
        )
    judge = Judge(networks, absolute, square, _perceptual(networks, perceptual))
    critic = Critic(networks.get('discriminator'), r1, lecam)

    def autoencoder(
        params: Mapping, state: Any, frozen: Mapping, batch: Mapping, keys: Array, step: Array
    ) -> tuple:
        known, images = {**frozen['networks'], **params}, _pixels(batch)
        pictures, found, after = tokenizer.forward(known, images, state['tokenizer'], keys)
        errors, metrics = judge(known, pictures, images)
        loss = errors + found.loss
        if adversarial:
            doubts = critic.doubts(known, pictures[-1])
            share = adversarial * (step >= start)
            if adaptive:
                share = share * _balance(judge, critic, tokenizer, known, found.maps, images)
            loss = loss + share * doubts
            metrics |= {'doubts': doubts, 'adversarial_weight': jnp.broadcast_to(share, doubts.shape)}
        metrics |= found.metrics
        return loss.sum(), jnp.float32(loss.size), {**state, 'tokenizer': after}, _means(metrics)

    def held_out(
        params: Mapping, state: Any, frozen: Mapping, batch: Mapping, keys: Array, step: Array
    ) -> tuple:
        known, images = {**frozen['networks'], **params}, _pixels(batch)
        pictures, found, _ = tokenizer.forward(known, images, state['tokenizer'], keys)
        errors, metrics = judge(known, pictures, images)
        loss = errors + found.loss
        metrics = _means(metrics | found.metrics)
        if found.codes and tokenizer.vocabulary <= COUNTED:
            metrics['chosen'] = _counts(found.codes, tokenizer.vocabulary), jnp.float32(1)
        if 'features' in networks:
            metrics |= _moments(networks['features'], known['features'], images, pictures[-1])
        return loss.sum(), jnp.float32(loss.size), state, metrics

    def discriminator(
        params: Mapping, state: Any, frozen: Mapping, batch: Mapping, keys: Array, step: Array
    ) -> tuple:
        known, images = {**frozen['networks'], **params}, _pixels(batch)
        pictures, _, _ = tokenizer.forward(known, images, state['tokenizer'], keys)
        loss, anchors, metrics = critic.loss(known, images, pictures[-1], state['anchors'])
        return loss.sum(), jnp.float32(loss.size), {**state, 'anchors': anchors}, _means(metrics)

    def settle(params: Mapping, state: Mapping) -> Mapping:
        return tokenizer.settled(params, state['tokenizer'])

    def init(key: Array) -> dict[str, Any]:
        return {'tokenizer': tokenizer.state(), 'anchors': jnp.zeros(2)}

    phases = [
        Phase('autoencoder', tokenizer.trains, autoencoder, settle=settle if tokenizer.settles else None)
    ]
    if adversarial:
        phases.append(Phase('discriminator', ('discriminator',), discriminator, lambda step: step >= start))
    return Objective(tuple(phases), init, held_out, told=_told)


class Judge:
    """What is wrong with reconstructions: `(known, pictures, images) -> (errors [B], metrics)`.

    Of several pictures the last is whole; the others are smaller, as the image would be at their size.
    """

    def __init__(
        self, networks: Mapping[str, Any], absolute: float, square: float, perceptual: float
    ) -> None:
        self._networks, self._weights = networks, (absolute, square, perceptual)

    def __call__(
        self, known: Mapping, pictures: tuple[Array, ...], images: Array
    ) -> tuple[Array, dict[str, Array]]:
        absolute, square, perceptual = self._weights
        errors = 0.0
        for picture in pictures:
            misses = picture - resize(images, picture.shape[1:3], 'area')
            by_size = absolute * jnp.abs(misses) + square * misses**2
            errors = errors + by_size.mean((1, 2, 3)) / len(pictures)
        shown, original = (jnp.clip(x / 2 + 0.5, 0, 1) for x in (pictures[-1], images))
        metrics = {'psnr': psnr(shown, original), 'ssim': ssim(shown, original)}
        if perceptual:
            metrics['lpips'] = self._networks['lpips'](known['lpips'], pictures[-1], images)
            errors = errors + perceptual * metrics['lpips']
        return errors, lax.stop_gradient(metrics)


class Critic:
    """The discriminator's two sides."""

    def __init__(self, network: Any, r1: float, lecam: float) -> None:
        self._network, self._r1, self._lecam = network, r1, lecam

    def scores(self, known: Mapping, images: Array) -> Array:
        """How real each picture's patches are, [B, patches]."""
        return self._network(known['discriminator'], images).reshape(len(images), -1)

    def doubts(self, known: Mapping, pictures: Array) -> Array:
        """What the tokenizer lowers, [B]."""
        return -self.scores(known, pictures).mean(-1)

    def loss(
        self, known: Mapping, images: Array, pictures: Array, anchors: Array
    ) -> tuple[Array, Array, dict[str, Array]]:
        """The hinge loss [B] with what holds it, the running means of real and made, and numbers to tell."""
        real, made = self.scores(known, images), self.scores(known, lax.stop_gradient(pictures))
        loss = 0.5 * (jax.nn.relu(1 - real) + jax.nn.relu(1 + made)).mean(-1)
        metrics = {'real': real.mean(-1), 'made': made.mean(-1)}
        if self._r1:
            slopes = jax.grad(lambda x: self.scores(known, x).mean(-1).sum())(images)
            metrics['slope'] = jnp.sum(slopes**2, axis=(1, 2, 3))
            loss = loss + self._r1 / 2 * metrics['slope']
        if self._lecam:
            of_real, of_made = anchors
            held = jax.nn.relu(real - of_made) ** 2 + jax.nn.relu(of_real - made) ** 2
            loss = loss + self._lecam * held.mean(-1)
        now = lax.stop_gradient(jnp.stack([real.mean(), made.mean()]))
        return loss, ANCHOR * anchors + (1 - ANCHOR) * now, metrics


def _balance(
    judge: Judge, critic: Critic, tokenizer: Any, known: Mapping, maps: tuple[Array, ...], images: Array
) -> Array:
    """The length of the errors' gradient over that of the doubts', at the decoder's last layer."""
    known, maps = lax.stop_gradient((dict(known), maps))

    def pictures(kernel: Array) -> tuple[Array, ...]:
        own = {**known, 'tokenizer': _put(known['tokenizer'], tokenizer.last, kernel)}
        return tuple(tokenizer.pixels(own, z) for z in maps)

    made, back = jax.vjp(pictures, _get(known['tokenizer'], tokenizer.last))

    def length(cost: Callable[[tuple[Array, ...]], Array]) -> Array:
        (slope,) = back(jax.grad(cost)(made))
        return jnp.sqrt(jnp.sum(slope**2))

    of_errors = length(lambda made: judge(known, made, images)[0].sum())
    of_doubts = length(lambda made: critic.doubts(known, made[-1]).sum())
    return lax.stop_gradient(jnp.clip(of_errors / (of_doubts + 1e-4), 0, STRONGEST))


def _get(tree: Mapping, path: tuple[str, ...]) -> Array:
    for name in path:
        tree = tree[name]
    return tree


def _put(tree: Mapping, path: tuple[str, ...], value: Array) -> Any:
    return {**tree, path[0]: _put(tree[path[0]], path[1:], value)} if path else value


def _perceptual(networks: Mapping[str, Any], weight: float) -> float:
    """The weight of LPIPS, which is none where it has no weights of its own."""
    if weight and not getattr(networks.get('lpips'), 'init_from', ''):
        log.info(
            'No LPIPS in the loss: networks.lpips.init_from names no published weights. '
            'objective.perceptual=0 says so too.'
        )
        return 0.0
    return weight


def _moments(network: Any, params: Any, images: Array, pictures: Array) -> dict[str, tuple[Array, Array]]:
    """Moments of the features of images and of their reconstructions, by '<which>_<moment>'."""
    found = {}
    for which, shown in (('original', images), ('made', jnp.clip(pictures, -1, 1))):
        of = moments(network(params, shown)[1])
        found |= {f'{which}_{name}': pair for name, pair in of.items()}
    return found


def _counts(codes: tuple[Array, ...], vocabulary: int) -> Array:
    """How often each code was chosen."""
    every = jnp.concatenate([chosen.reshape(-1) for chosen in codes])
    return jnp.zeros(vocabulary).at[every].add(1)


def _told(means: Mapping[str, Any]) -> dict[str, Any]:
    """Means of metrics, with the Fréchet distance for the moments and what share of codes counts show."""
    told = {name: value for name, value in means.items() if not np.ndim(value)}
    if 'held_out/chosen' in means:
        told['held_out/usage'] = float((means['held_out/chosen'] > 0).mean())
    if 'held_out/made_mean' in means:
        told['held_out/frechet'] = frechet(
            *(
                {name: means[f'held_out/{which}_{name}'] for name in ('mean', 'products')}
                for which in ('original', 'made')
            )
        )
    return told


def _pixels(batch: Mapping[str, Array]) -> Array:
    return batch['image'].astype(jnp.float32) / 127.5 - 1


def _means(metrics: Mapping[str, Array]) -> dict[str, tuple[Array, Array]]:
    return {name: (values.sum(), jnp.float32(values.size)) for name, values in metrics.items()}
