"""UniPC (arXiv:2302.04867): the predictor UniP of order p and the corrector UniC make order p + 1.

One evaluation a step. Variants 'bh1' and 'bh2' are the paper's B1(h) = h and B2(h) = exp(h) - 1; from three
nodes on they are the same.
"""

import jax.numpy as jnp
from jax import Array

from jaxgen.diffusion.solvers import Solver, State, multistep
from jaxgen.diffusion.solvers.corrector import corrected

VARIANTS = {'bh1': multistep.first_pair, 'bh2': multistep.second_pair}


def build(
    order: int = 2,
    variant: str = 'bh2',
    predict: str = 'data',
    corrector: bool = True,
    lower_order_final: bool = True,
) -> Solver:
    """The solver; without its corrector it is UniP. lower_order_final: no order above the steps left."""
    if order not in (1, 2, 3):
        raise ValueError(f'sampler.solver.order is {order}; it can be 1, 2 or 3.')
    if variant not in VARIANTS:
        raise ValueError(f"sampler.solver.variant is '{variant}'; it can be 'bh1' or 'bh2'.")

    def most(state: State) -> Array:
        left = state.steps - state.step
        return jnp.minimum(order, left) if lower_order_final else jnp.asarray(order)

    pair = VARIANTS[variant]
    solver = multistep.predictor(order, pair, predict, False, most)
    return corrected(solver, order, pair, predict, lower_order_final) if corrector else solver
