"""How much each time's error counts: one named function of the noise level, for any path and prediction.

Papers weigh the error of the data (min-SNR, arXiv:2303.09556; EDM, arXiv:2206.00364; SNR and truncated SNR,
arXiv:2202.00512), of the noise (P2, arXiv:2204.00227; the likelihood and the sigmoid of arXiv:2303.00848,
also in SiD2, arXiv:2410.19324) or of the velocity (SiT, arXiv:2401.08740). What an error of the network's
own output is in any of these is read off an `Estimate`, as all are linear in it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.diffusion.path import Path
from jaxgen.diffusion.prediction import TINY, Estimate, Prediction, slopes

WEIGHTINGS = (
    'none',
    'snr',
    'truncated_snr',
    'min_snr',
    'edm',
    'p2',
    'velocity',
    'likelihood',
    'sigmoid',
)
MIN_SNR_GAMMA, P2_GAMMA = 5.0, 1.0
UNBOUNDED = 1e7


def build(
    name: str, path: Path, prediction: Prediction, gamma: float | None, bias: float, floor: float
) -> Callable[[Array], Array]:
    """`weight(t)` of the mean squared error of a network's output, relative to `prediction.size`.

    'none': the output's own error. 'snr': that of the noise; 'velocity': that of the velocity. gamma: what
    'min_snr' caps at, the exponent of 'p2'; bias: that of 'sigmoid'; floor: below this t, its weight.
    """
    if name not in WEIGHTINGS:
        raise ValueError(f"objective.weighting is '{name}'; it can be one of {', '.join(WEIGHTINGS)}.")

    def weight(t: Array) -> Array:
        if name == 'none':
            return jnp.ones_like(t)
        t = jnp.maximum(t, floor)
        unit = Estimate(jnp.zeros_like(t), t, prediction.size(path, t), None, path, prediction)
        if name == 'velocity':
            return unit.velocity**2
        if name == 'edm':
            return unit.data**2 * (prediction.sigma_data**-2 + _snr(unit))
        return unit.noise**2 * _of_noise(name, unit, gamma, bias)

    return weight


def _of_noise(name: str, unit: Estimate, gamma: float | None, bias: float) -> Array:
    """The weight of the error of the noise; that of the data is SNR times it."""
    snr = _snr(unit)
    if name == 'truncated_snr':
        return jnp.maximum(1, 1 / snr)
    if name == 'min_snr':
        return jnp.minimum(1, (gamma or MIN_SNR_GAMMA) / snr)
    if name == 'p2':
        return (1 + snr) ** -(gamma or P2_GAMMA)
    if name == 'likelihood':
        return _decay(unit) / 2
    if name == 'sigmoid':
        return _decay(unit) / 2 * jax.nn.sigmoid(bias - jnp.log(snr))
    return jnp.ones_like(snr)


def _snr(unit: Estimate) -> Array:
    return (jnp.maximum(unit.alpha, TINY) / jnp.maximum(unit.sigma, TINY)) ** 2


def _decay(unit: Estimate) -> Array:
    """How fast log-SNR falls: the density, in t, of a uniform draw in log-SNR."""
    d_alpha, d_sigma = slopes(unit.path, unit.t, unit.x)
    return 2 * (d_sigma / jnp.maximum(unit.sigma, TINY) - d_alpha / jnp.maximum(unit.alpha, TINY))


def check_bounded(name: str, weight: Callable[[Array], Array], ends: tuple[float, ...], output: str) -> None:
    """Refuse a weighting that has no bound at an end that is drawn."""
    for end, remedy in zip(ends, ('low=0.001 or objective.floor=0.05', 'high=0.999')):
        if name != 'none' and not float(weight(jnp.float32(end))) < UNBOUNDED:
            raise ValueError(
                f"objective.weighting '{name}' has no bound at t={end:g} for a network that predicts "
                f'the {output}: set objective.{remedy}.'
            )
