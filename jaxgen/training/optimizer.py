"""Optimizers by their optax name, with the learning-rate schedules and weight-decay masks around them.

Weight decay is decoupled (Loshchilov & Hutter 2019, arXiv:1711.05101): a step subtracts learning rate x
decay x parameter, and leaves biases, norms and embeddings out; an optimizer that brings its own decay keeps
it. Muon (Jordan et al. 2024) makes the momentum of hidden matrices orthogonal by Newton-Schulz iterations; a
stack's layer axis is a batch of matrices to it, a convolution's kernel one matrix of its taps and channels by
its outputs; what is not named a matrix, by default everything outside of the stack, is trained by its Adam.
"""

import difflib
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from jaxgen.config import Count, Dtype, NonNegative, Whole, fits
from jaxgen.training.sharding import path_string

SCHEDULES = ('constant', 'cosine', 'linear', 'rsqrt')
_LEARNED = r'(^|/)(token|position|level|start|registers|special|warmth|final_offset)$'  # vectors, no matrices
NO_DECAY = (r'bias$', r'scale$', r'norm', r'embedding$', r'table$', r'null', _LEARNED)
MATRICES = (r'(^|/)stack/\d+/.*kernel',)

# Their update wants the loss or its function, which a train step does not hand out, or a private seed, or
# their learning rate cannot follow a schedule.
_UNFIT = (
    *('dpsgd', 'lbfgs', 'momo', 'momo_adam', 'noisy_sgd', 'schedule_free', 'sophia'),
    *('optimistic_adam', 'rprop', 'sm3'),
)

Schedule = Callable[[int | jax.Array], jax.Array]


def build(
    name: str = 'adamw',
    learning_rate: NonNegative = 1e-4,
    schedule: str = 'constant',
    warmup: Whole = 0,
    steps: Count | None = None,
    final: NonNegative = 0.0,
    clip: NonNegative = 1.0,
    weight_decay: NonNegative = 0.0,
    options: Mapping[str, Any] | None = None,
    no_decay: tuple[str, ...] = NO_DECAY,
    matrices: tuple[str, ...] = MATRICES,
) -> tuple[optax.GradientTransformation, Schedule]:
    """An optimizer and its learning rate as a function of the step.

    `clip` bounds the gradients' global norm (0: off); `final` is the last learning rate as a fraction of the
    highest; `options` go to the optax function; `no_decay` and `matrices` (Muon's) are regexes searched in
    paths.
    """
    function = _find(name)
    rate = make_schedule(schedule, learning_rate, warmup, steps, final)
    parameters = inspect.signature(function).parameters
    arguments = dict(options or {})
    _check_options(name, arguments, parameters)

    def decays(params: Any) -> Any:
        return _mask(params, lambda path, leaf: not _found(no_decay, path))

    # Where decay enters the optimizer's own arithmetic (trust ratios, learned rates) it has to be its own;
    # Muon's forgets the mask for what its Adam takes.
    native = 'weight_decay' in parameters and name != 'muon'
    if native:
        arguments['weight_decay'] = weight_decay
        arguments.update({key: decays for key in ('mask', 'weight_decay_mask') if key in parameters})
    if name == 'muon':
        arguments['muon_weight_dimension_numbers'] = _muon_dimensions(matrices)

    chain = [optax.clip_by_global_norm(clip)] if clip else []
    chain.append(function(learning_rate=rate, **arguments))
    if weight_decay and not native:
        chain.append(optax.add_decayed_weights(lambda step: -weight_decay * rate(step), decays))
    return optax.chain(*chain), rate


def make_schedule(
    schedule: str, learning_rate: float, warmup: int = 0, steps: int | None = None, final: float = 0.0
) -> Schedule:
    """Learning rate at a step: a linear warm-up, then the named course down to `final` x `learning_rate`.

    'rsqrt' falls as sqrt(warmup / step) (Vaswani et al. 2017, arXiv:1706.03762) and has no end.
    """
    if schedule not in SCHEDULES:
        nearest = _nearest(schedule, SCHEDULES)
        raise ValueError(f'schedule {schedule!r} does not exist; the nearest of {SCHEDULES} is {nearest!r}')
    if schedule in ('cosine', 'linear') and (steps is None or steps <= warmup):
        raise ValueError(
            f'schedule {schedule!r} with warmup={warmup} needs steps > {warmup}, got steps={steps}'
        )
    if schedule == 'rsqrt' and warmup < 1:
        raise ValueError(
            f"schedule 'rsqrt' falls as sqrt(warmup / step): set warmup to at least 1, not {warmup}"
        )

    def rate(step: int | jax.Array) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        factor = jnp.ones_like(step)
        if schedule in ('cosine', 'linear'):
            progress = jnp.clip((step - warmup) / (steps - warmup), 0.0, 1.0)
            course = (1.0 + jnp.cos(jnp.pi * progress)) / 2 if schedule == 'cosine' else 1.0 - progress
            factor = final + (1.0 - final) * course
        elif schedule == 'rsqrt':
            factor = jnp.sqrt(warmup / jnp.maximum(step + 1, warmup))
        if warmup:
            # Counted from one, so that the first step already moves.
            factor = factor * jnp.minimum(1.0, (step + 1) / warmup)
        return learning_rate * factor

    return rate


def names() -> tuple[str, ...]:
    """Every optimizer that `build` takes."""
    return tuple(sorted(_optimizers()))


def _optimizers() -> dict[str, Callable[..., optax.GradientTransformation]]:
    found = {}
    for module in (optax.contrib, optax):
        for name, function in inspect.getmembers(module, inspect.isfunction):
            takes_rate = 'learning_rate' in inspect.signature(function).parameters
            if takes_rate and not name.startswith(('scale_by', '_')) and name not in _UNFIT:
                found[name] = function
    return found


def _find(name: str) -> Callable[..., optax.GradientTransformation]:
    found = _optimizers()
    if name not in found:
        nearest = _nearest(name, found)
        raise ValueError(
            f"optimizer {name!r} is not one of optax's; the nearest is {nearest!r}, of {sorted(found)}"
        )
    return found[name]


def _check_options(name: str, options: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    ours = {
        'learning_rate': 'learning_rate',
        'weight_decay': 'weight_decay',
        'weight_decay_rate': 'weight_decay',
        'adam_weight_decay': 'weight_decay',
        'mask': 'no_decay',
        'weight_decay_mask': 'no_decay',
        'muon_weight_dimension_numbers': 'matrices',
    }
    for key, value in options.items():
        if key in ours:
            raise ValueError(
                f"optimizer option {key!r} is set by the optimizer's own key {ours[key]!r}; move it there"
            )
        if key not in parameters:
            valid = [parameter for parameter in parameters if parameter not in ours]
            raise ValueError(
                f"optax's {name} has no option {key!r}; the nearest is {_nearest(key, valid)!r}, "
                f'of {sorted(valid)}'
            )
        default = parameters[key].default
        plain = isinstance(default, bool | str | tuple)
        hint = type(default) if plain else Dtype if 'dtype' in key else float | bool
        if not fits(value, hint):
            raise ValueError(f"optax's {name} has {key}={default!r}, and cannot have it {value!r}")


def _muon_dimensions(matrices: tuple[str, ...]) -> Callable[[Any], Any]:
    """Dimension numbers for the kernels that are matrices, None for those that Adam takes."""

    def numbers(path: str, leaf: Any) -> optax.contrib.MuonDimensionNumbers | None:
        axes = leaf.ndim - (1 if re.search(r'(^|/)stack/\d+/', path) else 0)
        if axes not in (2, 4) or not _found(matrices, path):
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(-axes, -1)), -1)

    def dimensions(params: Any) -> Any:
        tree = _mask(params, numbers)
        if not any(leaf is not None for leaf in jax.tree.leaves(tree, is_leaf=_is_dimensions)):
            raise ValueError(
                f'muon found no matrix whose path matches {matrices}; name the hidden kernels in '
                'optimizer.matrices'
            )
        return tree

    return dimensions


def _is_dimensions(node: Any) -> bool:
    return node is None or isinstance(node, optax.contrib.MuonDimensionNumbers)


def _mask(params: Any, function: Callable[[str, Any], Any]) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, leaf: function(path_string(path), leaf), params)


def _found(patterns: tuple[str, ...], path: str) -> bool:
    return any(re.search(pattern, path) for pattern in patterns)


def _nearest(name: str, valid: Any) -> str:
    return difflib.get_close_matches(name, list(valid), n=1, cutoff=0.0)[0]
