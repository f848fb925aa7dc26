"""Classifier-free guidance (arXiv:2207.12598), a function from denoiser to denoiser.

With an interval of times in which it acts (arXiv:2404.07724) and a rescale of the guided output's
spread (arXiv:2305.08891). The guided denoiser's condition is the pair (condition, null). Where guidance
does not act and no memory has to walk on, the null half is not computed at all.
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.diffusion.denoiser import At, Condition, Denoiser, Memory
from jaxgen.diffusion.prediction import Estimate


def guided(
    denoiser: Denoiser,
    scale: Array,
    low: Array = 0.0,
    high: Array = 1.0,
    rescale: Array = 0.0,
    channels: int | None = None,
) -> Denoiser:
    """Guide by `scale` where low <= t <= high; `channels`: only the first so many, as DiT samples."""

    def init(x: Array, cond: tuple[Condition, Condition]) -> Memory:
        return denoiser.init(*_twice((x, x), cond))

    def denoise(
        x: Array, t: Array, cond: tuple[Condition, Condition], memory: Memory, at: At
    ) -> tuple[Estimate, Memory]:
        active = (t[0] >= low) & (t[0] <= high) & (jnp.asarray(scale) != 1)

        def with_null() -> tuple[Estimate, Memory]:
            xs, ts, conds = _twice((x, x), (t, t), cond)
            estimate, walked = denoiser.denoise(xs, ts, conds, memory, at)
            positive, negative = (_half(estimate, half) for half in (0, 1))
            return combine(positive, negative, jnp.where(active, scale, 1), rescale, channels), walked

        def alone() -> tuple[Estimate, Memory]:
            return denoiser.denoise(x, t, cond[0], memory, at)

        if jax.tree.leaves(memory):
            return with_null()
        return jax.lax.cond(active, with_null, alone)

    return Denoiser(init, denoise)


def combine(
    positive: Estimate, negative: Estimate, scale: Array, rescale: Array = 0.0, channels: int | None = None
) -> Estimate:
    """negative + scale (positive - negative), in the network's own prediction."""
    output = negative.output + scale * (positive.output - negative.output)
    if channels is not None:
        output = jnp.concatenate([output[..., :channels], positive.output[..., channels:]], axis=-1)
    axes = tuple(range(1, output.ndim))
    spread = jnp.std(positive.output, axes, keepdims=True) / (jnp.std(output, axes, keepdims=True) + 1e-8)
    return positive.replace(output=output * (1 + rescale * (spread - 1)))


def _twice(*pairs: tuple) -> tuple:
    return tuple(jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *pair) for pair in pairs)


def _half(tree: Estimate, half: int) -> Estimate:
    return jax.tree.map(lambda a: jnp.split(a, 2)[half], tree)
