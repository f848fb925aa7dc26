"""DPM-Solver++ (arXiv:2211.01095): multistep of order 1 or 2 for the flow, or for the reverse SDE.

Order 1 is DDIM; order 2 is the paper's 2M. `predict='noise'` is DPM-Solver's own form (arXiv:2206.00927).
"""

import jax.numpy as jnp
from jax import Array

from jaxgen.diffusion.solvers import Solver, State, multistep
from jaxgen.diffusion.solvers.corrector import corrected

FORMS = {'midpoint': multistep.second_pair, 'heun': multistep.exact_pair}
FEW = 15  # steps below which the last one falls back to order 1


def build(
    order: int = 2,
    form: str = 'midpoint',
    stochastic: bool = False,
    predict: str = 'data',
    corrector: bool = False,
    lower_order_final: bool = True,
) -> Solver:
    """The solver; stochastic: SDE-DPM-Solver++; corrector: UniC after each step, for one order more."""
    if order not in (1, 2):
        raise ValueError(f"sampler.solver.order is {order}; it can be 1 or 2 (name='unipc' has 3).")
    if form not in FORMS:
        raise ValueError(f"sampler.solver.form is '{form}'; it can be 'midpoint' or 'heun'.")
    if stochastic and (corrector or predict == 'noise'):
        raise ValueError(
            'sampler.solver.stochastic adds fresh noise, which the corrector would remove and the noise form '
            "does not have: set corrector=False and predict='data'."
        )

    def most(state: State) -> Array:
        falls_back = lower_order_final & (state.steps < FEW) & (state.steps - state.step <= 1)
        return jnp.where(falls_back, 1, order)

    solver = multistep.predictor(order, FORMS[form], predict, stochastic, most)
    return corrected(solver, order, FORMS[form], predict, lower_order_final) if corrector else solver
