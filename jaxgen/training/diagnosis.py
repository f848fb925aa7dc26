"""Names what is the first in a training step that is not finite.

Parameters and batch are looked at first; then the loss is evaluated once more with a flag beside every
operation (its operands finite, its result not) and the first flag up, in the order of execution and through
the layers of scans, is named by the modules around it; then the gradients.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend import core

from jaxgen.training.sharding import path_string

# Programs within the program that are evaluated in their place.
_CALLS = ('jit', 'pjit', 'closed_call', 'remat', 'remat2', 'checkpoint', 'custom_jvp_call', 'custom_vjp_call')
_STACK = '/stack/'
_LAYERS = re.compile(r'layers_(\d+)')
_MODULE = re.compile(r'[A-Z]\w*')


def why(loss: Callable, trained: Mapping, rest: tuple, networks: Mapping[str, str]) -> str:
    """A phrase that names the first number that is not finite in `loss(trained, *rest)` or its gradient.

    `rest` is (parameters, objective's state, frozen, batch); `networks` gives the names of modules' classes.
    Where all is finite, it names the longest gradient.
    """
    parameters, inner, frozen, batch = rest
    given = {**parameters, **frozen.get('networks', {}), 'objective': inner, 'batch': batch}
    if found := _broken(given):
        return f'{min(found).name} is not finite'
    if found := _operation(loss, trained, *rest):
        return f'the first result that is not finite is in {_readable(found, networks)}'
    gradients = jax.jit(jax.grad(loss))(trained, *rest)
    if found := _broken(gradients):  # they are made from the last layer to the first
        return f'the gradient of {max(found).name} is not finite'
    longest = max(_places(gradients, lambda a: jnp.sqrt(jnp.sum(a**2))), key=lambda place: place.value)
    return f'all is finite; the longest gradient is that of {longest.name}, {longest.value:.3g}'


class _Place(NamedTuple):
    """A value of a leaf, or of one layer of it; outside of stacks the layer is -1."""

    layer: int
    name: str
    value: float


def _broken(tree: Any) -> list[_Place]:
    return [place for place in _places(tree, lambda a: ~jnp.isfinite(a).all()) if place.value]


def _places(tree: Any, function: Callable[[Array], Array]) -> list[_Place]:
    """A value of every leaf of real numbers, of a stack's leaves one for each layer."""

    @jax.jit
    def compute(tree: Any) -> dict[str, Array]:
        leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
        named = {path_string(path): leaf for path, leaf in leaves}
        return {
            name: jax.vmap(function)(leaf) if _STACK in name else function(leaf)
            for name, leaf in named.items()
            if jnp.issubdtype(leaf.dtype, jnp.floating)
        }

    values, places = jax.device_get(compute(tree)), []
    lengths = {_segment(name)[:2]: len(value) for name, value in values.items() if _STACK in name}
    for name, value in values.items():
        if _STACK not in name:
            places.append(_Place(-1, name, float(value)))
            continue
        before, segment, after = _segment(name)
        start = sum(lengths[before, earlier] for earlier in range(segment))
        places += [
            _Place(start + i, f'{before}/{start + i}/{after}', float(one)) for i, one in enumerate(value)
        ]
    return places


def _segment(name: str) -> tuple[str, int, str]:
    """'model/blocks/stack/0/mlp/kernel' as ('model/blocks', 0, 'mlp/kernel')."""
    before, _, rest = name.partition(_STACK)
    number, _, after = rest.partition('/')
    return before, int(number), after


@dataclasses.dataclass(frozen=True)
class _Flag:
    """An operation; its flag stands at the same place in the list of flags."""

    name: str


@dataclasses.dataclass(frozen=True)
class _Loop:
    """A scan and what is flagged in its body."""

    name: str
    order: range
    body: list


def _operation(function: Callable, *arguments: Any) -> str | None:
    """The name of the first operation that makes something not finite of finite operands."""
    closed = jax.make_jaxpr(function)(*arguments)
    plan: list = []

    @jax.jit
    def flags(*leaves: Array) -> list:
        plan.clear()
        return _walk(closed.jaxpr, closed.consts, leaves, '', plan)[1]

    return _first(plan, jax.device_get(flags(*jax.tree.leaves(arguments))), ()) if closed.jaxpr.eqns else None


def _walk(jaxpr: core.Jaxpr, consts: Any, arguments: Any, scope: str, plan: list) -> tuple[list, list]:
    """Results and flags of a program; `plan` is filled with what each flag means."""
    known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments)))
    flags: list = []

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, core.Literal) else known[variable]

    for equation in jaxpr.eqns:
        values = [read(variable) for variable in equation.invars]
        name = '/'.join(filter(None, (scope, str(equation.source_info.name_stack))))
        kind, inner = equation.primitive.name, list(core.jaxprs_in_params(equation.params))
        if kind in _CALLS and len(inner) == 1:
            results, more = _walk(inner[0], _consts(equation), values, name, plan)
            flags += more
        elif kind == 'scan':
            results, more = _scan(equation, values, name, plan)
            flags.append(more)
        else:
            parameters = equation.primitive.get_bind_params(equation.params)
            results = equation.primitive.bind(*values, **parameters)
            results = results if equation.primitive.multiple_results else [results]
            plan.append(_Flag(f'{name} ({kind})'))
            flags.append(_finite(values) & ~_finite(results))
        known.update(zip(equation.outvars, results))
    return [read(variable) for variable in jaxpr.outvars], flags


def _scan(equation: core.JaxprEqn, values: list, name: str, plan: list) -> tuple[list, list]:
    parameters, body = equation.params, []
    fixed, carried = parameters['num_consts'], parameters['num_carry']
    constants, carry, rows = values[:fixed], values[fixed : fixed + carried], values[fixed + carried :]
    closed, length = parameters['jaxpr'], parameters['length']

    def step(carry: list, row: list) -> tuple[list, tuple]:
        body.clear()
        results, flags = _walk(closed.jaxpr, closed.consts, (*constants, *carry, *row), '', body)
        return results[:carried], (results[carried:], flags)

    carry, (rows, flags) = jax.lax.scan(step, carry, rows, length, reverse=parameters['reverse'])
    plan.append(_Loop(name, range(length)[:: -1 if parameters['reverse'] else 1], body))
    return [*carry, *rows], flags


def _consts(equation: core.JaxprEqn) -> Any:
    closed = [value for value in equation.params.values() if isinstance(value, core.ClosedJaxpr)]
    return closed[0].consts if closed else ()


def _finite(values: list) -> Array:
    floats = [value for value in values if jnp.issubdtype(jax.typeof(value).dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(value).all() for value in floats]).all() if floats else jnp.array(True)


def _first(plan: list, flags: list, index: tuple[int, ...]) -> str | None:
    for item, flag in zip(plan, flags, strict=True):
        if isinstance(item, _Flag):
            if flag[index]:
                return item.name
            continue
        for i in item.order:
            if found := _first(item.body, flag, (*index, i)):
                return f'{_numbered(item.name, i)}/{found}'
    return None


def _numbered(name: str, i: int) -> str:
    """The scope of a scan with the number of its iteration, counted on from a stack's 'layers_4'."""
    counted, changed = _LAYERS.subn(lambda match: f'layers_{int(match[1]) + i}', name)
    return counted if changed else f'{name}/{i}'


def _readable(name: str, networks: Mapping[str, str]) -> str:
    """'PixArt/blocks/layers_3/PixArtBlock/attention (exp)' as 'model/blocks/3/attention (exp)'."""
    modules, _, kind = name.rpartition(' ')
    parts = _LAYERS.sub(r'\1', modules).split('/')
    if len(parts) > 1 and parts[0] in networks:
        parts[0] = networks[parts[0]]
    kept = [part for i, part in enumerate(parts) if not i or not _MODULE.fullmatch(part)]
    return f'{"/".join(kept) or "the loss"} {kind}'
