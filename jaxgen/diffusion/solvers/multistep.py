"""What multistep solvers share: exponential integrators with a history of predictions.

DPM-Solver++ (arXiv:2211.01095) and UniPC (arXiv:2302.04867) solve the linear part of the flow exactly and
interpolate the prediction m in l = log(alpha / sigma). With h = l' - l, z = -h and r_k = (l_k - l) / h,
x' = (sigma' / sigma) x - alpha' (expm1(z) m_0 + sum_k c_k (m_k - m_0) / r_k)
with the data for m. The reverse SDE has z = -2h and fresh noise; with the noise for m, alpha and sigma change
roles.
"""

import math
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import keys as random
from jaxgen.diffusion.path import Path
from jaxgen.diffusion.prediction import Estimate
from jaxgen.diffusion.solvers import Evaluate, Solver, State, onto_data

PREDICTS = ('data', 'noise')
LEAST_ALPHA = 1e-6  # where a path begins at alpha = 0, the log-SNR of the history is that of this alpha
LEAST_SIGMA = 1e-30
LARGEST_SERIES = 1.0  # up to this |z|, phi's recurrence would cancel more digits than its series leaves out

Pair = Callable[[Array], Array]  # z to c_1, where m_0 and one other prediction are all there is


@flax.struct.dataclass
class History:
    """The last predictions and the l at which they were made, newest first, and how many there are."""

    values: Array
    positions: Array
    count: Array


def empty(x: Array, size: int) -> History:
    """A history of nothing; its positions differ so that weights which nobody uses are finite too."""
    return History(jnp.zeros((size, *x.shape), x.dtype), 1000 + jnp.arange(size, dtype=x.dtype), jnp.int32(0))


def remember(history: History, value: Array, position: Array) -> History:
    """The history with one more prediction, the oldest dropped."""
    size = len(history.positions)
    values = jnp.concatenate([value[None], history.values])[:size]
    positions = jnp.append(position, history.positions)[:size]
    return History(values, positions, jnp.minimum(history.count + 1, size))


@flax.struct.dataclass
class Stride:
    """A step seen by the integrator: x' = carry x + gain m_0 - scale sum_k c_k(z) (m_k - m_0) / r_k."""

    carry: Array
    gain: Array
    scale: Array
    fresh: Array
    position: Array
    width: Array
    z: Array

    def walk(self, x: Array, newest: Array, values: Array, ratios: Array, weights: Array) -> Array:
        """x', given the other predictions, [K, ...], where they stand, and the c_k."""
        bend = jnp.tensordot(weights / ratios, values - newest, 1, precision='highest')
        return self.carry * x + self.gain * newest - self.scale * bend

    def ratios(self, history: History) -> Array:
        """The r_k of a history."""
        return (history.positions - self.position) / self.width


def stride(path: Path, t: Array, t_next: Array, predict: str, stochastic: bool = False) -> Stride:
    """The step from t to t_next. The first order is exact where alpha or sigma is 0 too."""
    own, other = _scales(path, t, predict)
    own_next, other_next = _scales(path, t_next, predict)
    position = _position(path, t, predict)
    width = _position(path, t_next, predict) - position
    carry, fresh, z = other_next / other, jnp.zeros_like(own), -width
    if stochastic:
        shrink = own * other_next / (own_next * other)  # exp(-h)
        carry, fresh, z = carry * shrink, other_next * jnp.sqrt(jnp.maximum(1 - shrink**2, 0)), 2 * z
    return Stride(carry, own_next - own * carry, own_next, fresh, position, width, z)


def _scales(path: Path, t: Array, predict: str) -> tuple[Array, Array]:
    alpha, sigma = path.alpha(t), path.sigma(t)
    return (alpha, sigma) if predict == 'data' else (sigma, alpha)


def _position(path: Path, t: Array, predict: str) -> Array:
    l = jnp.log(jnp.maximum(path.alpha(t), LEAST_ALPHA)) - jnp.log(jnp.maximum(path.sigma(t), LEAST_SIGMA))
    return l if predict == 'data' else -l


def predicted(estimate: Estimate, predict: str) -> Array:
    """m: the estimate's data or noise."""
    return estimate.data if predict == 'data' else estimate.noise


def phi(order: int, z: Array) -> Array:
    """phi_k(z) = (phi_{k-1}(z) - 1 / (k-1)!) / z with phi_0 = exp; near 0 the series of z^n / (n + k)!."""
    small = jnp.abs(z) < LARGEST_SERIES
    near, far = jnp.where(small, z, 0), jnp.where(small, 1, z)
    series = jnp.zeros_like(z)
    for n in reversed(range(18)):
        series = series * near + 1 / math.factorial(n + order)
    value = jnp.expm1(far) / far
    for k in range(2, order + 1):
        value = (value - 1 / math.factorial(k - 1)) / far
    return jnp.where(small, series, value)


def exact_pair(z: Array) -> Array:
    """c_1 of one node such that a straight line is integrated exactly: DPM-Solver's 'heun'."""
    return z * phi(2, z)


def first_pair(z: Array) -> Array:
    """UniPC's B1(h) = h in c_1 of one node, which is then half of it."""
    return z / 2


def second_pair(z: Array) -> Array:
    """UniPC's B2(h) = exp(h) - 1 in the same place: DPM-Solver's 'midpoint'."""
    return jnp.expm1(z) / 2


def weights(ratios: Array, z: Array, pair: Pair, count: Array) -> Array:
    """The c_k of the first `count` nodes, 0 for the others.

    One node takes the method's own c_1; more solve sum_k c_k r_k^i = (i + 1)! z phi_{i+2}(z), i < count,
    in which UniPC's B(h) cancels, by the polynomials that are 1 at one node and 0 at the others.
    """
    most = len(ratios)
    if not most:
        return ratios
    moments = [math.factorial(i + 1) * z * phi(i + 2, z) for i in range(most)]
    rows = [[], [pair(z)]]
    for n in range(2, most + 1):
        bases = [_basis(ratios[:n], k) for k in range(n)]
        rows.append([sum(c * moment for c, moment in zip(basis, moments)) for basis in bases])
    return jnp.stack([jnp.stack(row + [jnp.zeros_like(z)] * (most - len(row))) for row in rows])[count]


def _basis(nodes: Array, k: int) -> list[Array]:
    """The polynomial that is 1 at node k and 0 at the others: its coefficients, the constant first."""
    zero = jnp.zeros_like(nodes[k])
    polynomial = [zero + 1]
    for j in set(range(len(nodes))) - {k}:
        terms = zip([zero, *polynomial], [*polynomial, zero])
        polynomial = [(raised - nodes[j] * kept) / (nodes[k] - nodes[j]) for raised, kept in terms]
    return polynomial


def predictor(
    order: int, pair: Pair, predict: str, stochastic: bool, most: Callable[[State], Array]
) -> Solver:
    """The explicit multistep solver; `most(state)` limits the order, as near the end.

    Onto the data, where l is infinite, polynomials in it have no meaning: the order is 1, and x' the data.
    """
    if predict not in PREDICTS:
        raise ValueError(f"sampler.solver.predict is '{predict}'; it can be 'data' or 'noise'.")

    def step(state: State, evaluate: Evaluate, t: Array, t_next: Array, keys: Array) -> State:
        estimate, memory = evaluate(state.x, t, state.memory, 0)
        value, history = predicted(estimate, predict), state.history
        path = estimate.path
        stretch = stride(path, t, t_next, predict, stochastic)
        count = jnp.minimum(history.count, most(state) - 1)
        count = jnp.where(onto_data(t_next), 0, count)
        ratios = stretch.ratios(history)
        x = stretch.walk(state.x, value, history.values, ratios, weights(ratios, stretch.z, pair, count))
        if stochastic:
            x = x + stretch.fresh * random.draw(jax.random.normal, keys, x.shape[1:]).astype(x.dtype)
        return state.replace(x=x, memory=memory, history=remember(history, value, stretch.position))

    return Solver(lambda x: empty(x, order - 1), step, needs_data=predict == 'noise', stochastic=stochastic)
