"""The averages of parameters that diffusion models are sampled from.

Ho et al. 2020 (arXiv:2006.11239) and DiT (Peebles & Xie 2022, arXiv:2212.09748) average with decay 0.9999;
with a warm-up the decay starts low and grows as (1 + step) / (10 + step), so that the average of a short run
is not its random initial values. EDM2 (Karras et al. 2023, arXiv:2312.02696) averages by power functions
t^gamma of the training time, whose width stays a share of the run; from a few such averages, stored now and
then, the average of any other width follows after training.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.config import Part, Whole

WIDEST = 12**-0.5  # of the power functions, gamma = 0: the plain mean of the whole run


@dataclasses.dataclass(frozen=True)
class Ema:
    """How parameters are averaged: by one decay, or where there are `widths` by power functions."""

    decay: float = 0.9999
    warmup: bool = True
    widths: tuple[float, ...] = ()
    snapshot_every: int = 0

    @property
    def further(self) -> dict[str, float]:
        """The widths tracked beside the first, the one that sampling uses, by the names of their trees."""
        return {_label(width): width for width in self.widths[1:]}

    def snapshot_at(self, step: int, steps: int) -> bool:
        """Whether the averages of a saved step are kept for good."""
        return bool(self.widths) and (step == steps or step % max(1, self.snapshot_every) == 0)

    def check_chosen(self, width: float | None) -> None:
        """Refuse a width that cannot be made of what is tracked; None is what sampling uses."""
        if width is None:
            return
        if not self.widths:
            raise ValueError(
                "a width can be chosen where the run tracks EDM2's profiles; it keeps one decay. "
                "Train with config.ema.profile='power'."
            )
        check_width(width)

    def rate(self, updates: int | jax.Array, width: float | None = None) -> jax.Array:
        """How much of the new parameters goes into an average that has seen so many updates already."""
        updates = jnp.asarray(updates, jnp.float32)
        if not self.widths:
            grown = (1.0 + updates) / (10.0 + updates)
            return 1.0 - (jnp.minimum(self.decay, grown) if self.warmup else jnp.float32(self.decay))
        exponent = width_to_exponent(self.widths[0] if width is None else width)
        # 1 - (1 - 1/t)^(gamma + 1): both ends of it are lost in float32 where t is large.
        return -jnp.expm1((exponent + 1) * jnp.log1p(-1 / (updates + 1)))


def build(
    profile: Literal['decay', 'power'] = 'decay',
    decay: Part = 0.9999,
    warmup: bool = True,
    widths: tuple[float, ...] = (0.05, 0.1),
    snapshot_every: Whole = 0,
) -> Ema:
    """The average of `ema` in a config.

    profile: 'decay', or 'power' for EDM2's, which keeps one average for each of `widths` (relative standard
    deviations; sampling uses the first), and stores them at every checkpoint that falls on a multiple of
    `snapshot_every` steps (0: at each) for `--ema=width`.
    """
    if profile == 'decay':
        return Ema(decay, warmup)
    if not widths or len(set(widths)) < len(widths):
        raise ValueError(f'ema.widths is {widths}; give one or more different widths.')
    for width in widths:
        check_width(width, 'ema.widths has')
    return Ema(widths=tuple(map(float, widths)), snapshot_every=snapshot_every)


def init(params: Any) -> Any:
    """The average before the first step: float32 copies with buffers of their own, safe to donate."""
    return jax.tree.map(lambda leaf: jnp.array(leaf, _average_dtype(leaf), copy=True), params)


def update(average: Any, params: Any, rate: float | jax.Array) -> Any:
    """A step of `rate` towards the parameters; leaves that are not real numbers are taken from them."""

    def moved(old: jax.Array, new: jax.Array) -> jax.Array:
        if not jnp.issubdtype(new.dtype, jnp.floating):
            return new
        return old + rate * (new.astype(jnp.float32) - old)

    return jax.tree.map(moved, average, params)


def width_to_exponent(width: float) -> float:
    """The gamma of the power function with that relative standard deviation (their Algorithm 2)."""
    inverse = float(width) ** -2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def coefficients(times: Sequence[float], widths: Sequence[float], at: float, width: float) -> np.ndarray:
    """How much of each stored average, its time and width given, makes that of `width` at time `at`.

    The least squares fit of the wanted profile by the stored ones (their Algorithm 3), summing to one.
    """
    times, exponents = np.asarray(times, np.float64), np.array([width_to_exponent(w) for w in widths])
    overlaps = _overlap(times[:, None], exponents[:, None], times[None], exponents[None])
    wanted = _overlap(times, exponents, np.float64(at), width_to_exponent(width))
    # Neighbouring snapshots are nearly the same profile; lstsq keeps what rounding leaves of the rest.
    found = np.linalg.lstsq(overlaps, wanted, rcond=1e-13)[0]
    return found / found.sum()


def reconstruct(snapshots: Any, weights: Sequence[float]) -> Any:
    """The weighted sum of an iterable of trees, one in memory at a time."""
    total = None
    for tree, weight in zip(snapshots, weights, strict=True):
        part = jax.tree.map(lambda leaf, weight=float(weight): _scaled(leaf, weight), tree)
        total = part if total is None else jax.tree.map(_added, total, part)
    return total


def check_width(width: float, where: str = 'the width of an average is') -> None:
    """Refuse a width that no power function has."""
    if not 0 < width <= WIDEST:
        raise ValueError(
            f'{where} {width!r}; a width is relative to the run, above 0 and at most {WIDEST:.3f}, '
            'where all of the run counts the same.'
        )


def _overlap(time: Any, exponent: Any, other_time: Any, other_exponent: Any) -> Any:
    """The inner product of two profiles, each (gamma + 1) / T (t / T)^gamma up to its time T."""
    early, late = np.minimum(time, other_time), np.maximum(time, other_time)
    of_late = np.where(time < other_time, other_exponent, exponent)
    product = (exponent + 1) * (other_exponent + 1) / (exponent + other_exponent + 1)
    return product * (early / late) ** of_late / late


def _label(width: float) -> str:
    return f'width_{width:g}'


def _scaled(leaf: jax.Array, weight: float) -> jax.Array:
    return leaf * weight if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def _added(total: jax.Array, part: jax.Array) -> jax.Array:
    return total + part if jnp.issubdtype(part.dtype, jnp.floating) else part


def _average_dtype(leaf: Any) -> Any:
    return jnp.float32 if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype
