"""From a config to the parts of a run, checked against each other.

Each section of a config is the arguments of one function, `build`, of the module that its `name` names:
`model.name = 'pixart'` is `jaxgen.models.pixart.build(**rest)`; a name with a dot is a module of one's own,
'package.module' or 'package.module:function'. What one part must know of another (the latents' channels, the
number of classes) is handed over by the parameter's name. This file alone resolves names.
"""

import dataclasses
import functools
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from jaxgen import keys as random
from jaxgen import sources
from jaxgen.config import Dtype, check, fits, known_keys, plain
from jaxgen.objectives import Objective
from jaxgen.training import ema, guard
from jaxgen.training.settings import Train

ROOMS = {
    'data': 'data',
    'tokenizer': 'tokenizers',
    'conditioner': 'conditioning',
    'model': 'models',
    'objective': 'objectives',
    'metric': 'metrics',
    'search': 'search',
}


@dataclasses.dataclass(frozen=True)
class Network:
    """A network of a run, the conditioner's and the tokenizer's too.

    `init_from` is another run's workdir or published weights. `trainable` may name what of it is trained, by
    regexes searched in parameters' paths. `dtype` is what the parameters of one that is not trained are kept
    in.
    """

    module: nn.Module
    init_from: str = ''
    trainable: bool | tuple[str, ...] = True
    ema: bool = True
    rules: tuple = ()
    dtype: Dtype | None = None

    def __post_init__(self) -> None:
        for rule in self.rules:
            if not fits(rule, tuple[str, tuple[str | tuple[str, ...] | None, ...]]):
                raise ValueError(f'the sharding rule {rule!r} is no pair (regex, (axis, ...)).')
            try:
                re.compile(rule[0])
            except re.error as error:
                raise ValueError(f'the sharding rule {rule[0]!r} is no regex: {error}.') from None

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> tuple:
        try:
            inspect.signature(self.module.__call__).bind(*args, **kwargs)
        except TypeError as error:
            raise ValueError(f'another part does not fit {type(self.module).__name__}: {error}.') from None
        return self.module.apply({'params': params}, *args, **kwargs)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The parts of a run. `source(split)` opens its data, 'train' or 'held_out'."""

    config: Mapping[str, Any]
    train: Train
    ema: ema.Ema
    guard: guard.Guard
    networks: Mapping[str, Network]
    tokenizer: Any
    conditioner: Any
    objective: Objective
    sampler: Any
    metric: Any
    source: Callable[[str], Any]
    search: Any = None
    cache: sources.Cache = sources.Cache()

    def init(self, key: Array, latent: tuple[int, ...] | None = None) -> dict[str, Any]:
        """Fresh parameters of every network; latents of a shape (the tokenizer's) must fit them."""
        resolution = self.config['data']['resolution']
        arrays = jax.tree.map(jnp.asarray, self.conditioner.arrays([blank_example(resolution)]))
        params = {
            **self.conditioner.init(random.fold(key, 'conditioner'), arrays),
            **self.tokenizer.init(random.fold(key, 'tokenizer')),
        }
        cond = self.conditioner.embed(params, arrays, jnp.zeros(1, bool), key[None])
        inputs = jnp.zeros((1, *(latent or self.tokenizer.latent))), jnp.zeros(1), cond
        for name, network in self.networks.items():
            if name not in params:  # a network that reads something else says what, by `blank`
                blank = getattr(network.module, 'blank', lambda *inputs: inputs)
                params[name] = network.module.init(random.fold(key, name), *blank(*inputs))['params']
        return params

    @functools.cached_property
    def shapes(self) -> dict[str, Any]:
        """Shapes and dtypes of the parameters of every network."""
        return jax.eval_shape(lambda: self.init(jax.random.key(0)))

    @property
    def trained(self) -> tuple[str, ...]:
        """The networks that some phase trains, each once."""
        named = dict.fromkeys(name for phase in self.objective.phases for name in phase.trains)
        return tuple(name for name in named if self.networks[name].trainable)

    @property
    def averaged(self) -> tuple[str, ...]:
        """The trained networks that keep an average."""
        return tuple(name for name in self.trained if self.networks[name].ema)

    @property
    def encoders(self) -> tuple[str, ...]:
        """The frozen networks before the model: what they make of the data is always the same."""
        text = self.conditioner.holds if hasattr(self.conditioner, 'features') else ()
        return tuple(name for name in (*self.tokenizer.holds, *text) if name not in self.trained)

    @property
    def spared(self) -> tuple[str, ...]:
        """The networks whose work lies in the data's cache: no step runs them."""
        return tuple(name for name in self.encoders if self.cache.cache and name not in self.objective.uses)

    def blank(self) -> dict[str, Any]:
        """An example of the shapes that the data have."""
        example = blank_example(self.config['data']['resolution'])
        if self.cache.cache:
            example |= sources.blank(self.tokenizer, self.conditioner, self.cache)
        return example

    @property
    def rules(self) -> tuple:
        """All sharding rules, each bound to its network's parameters."""
        return tuple(
            (f'(^|/){re.escape(name)}/.*(?:{pattern})', spec)
            for name, network in self.networks.items()
            for pattern, spec in network.rules
        )


def blank_example(resolution: int) -> dict[str, Any]:
    """An example of the right shapes, for initialising networks and planning."""
    image = np.zeros((resolution, resolution, 3), np.uint8)
    return {'image': image, 'label': 0, 'caption': '', 'size': (resolution, resolution)}


def build(config: Mapping[str, Any]) -> Recipe:
    """The recipe of a config; whatever does not fit is a ValueError that says what to change."""
    config = plain(config)
    known_keys(config, SECTIONS, 'the config')
    for section, settings in config.items():
        if not isinstance(settings, Mapping):
            raise ValueError(f'{section} is {settings!r}; it must be a section of keys and values.')
    for section in ('data', 'tokenizer', 'conditioner', 'objective', 'optimizer', 'train'):
        if section not in config:
            raise ValueError(f"the config has no section '{section}'.")
    if 'resolution' not in config['data']:
        raise ValueError('data.resolution is missing: the side of the images in pixels.')
    settings = {key: config['data'][key] for key in sources.KEYS if key in config['data']}
    cache = call(sources.Cache, settings, {}, 'data')
    source = _sources(config, cache)
    known = {
        'resolution': config['data']['resolution'],
        'data_name': config['data'].get('name'),
        'source': source,
    }
    tokenizer = part('tokenizer', config, known)
    if cache.cache:
        tokenizer = dataclasses.replace(tokenizer, reads=tuple(tokenizer.prepared))
    known['tokenizer'] = tokenizer
    known.update(latent=tokenizer.latent, channels=tokenizer.latent[-1])
    known.update(getattr(tokenizer, 'provides', {}))
    if 'classes' in _signature('conditioner', config) and not config['conditioner'].get('classes'):
        said = source('train').description
        known |= {'classes': said.classes, 'label_names': said.label_names}
        config['conditioner'].pop('classes', None)
        if not known['classes']:
            raise ValueError(
                f"data '{config['data']['name']}' has no classes; use a conditioner of "
                'captions, or data with class labels.'
            )
    known['conditioner'] = conditioner = part('conditioner', config, known)
    known.update(conditioner.provides)
    for section in ('path', 'prediction'):
        if section in config:
            module = importlib.import_module(f'jaxgen.diffusion.{section}')
            known[section] = call(module.build, config[section], known, section)
    known['learned_variance'] = getattr(known.get('prediction'), 'learned_variance', False)
    known['networks'] = networks = _Networks(_networks(config, known))
    objective = part('objective', config, known)
    for phase in objective.phases:
        for name in phase.trains:
            if name not in networks:
                raise ValueError(
                    f"objective '{config['objective']['name']}' trains the network '{name}', which "
                    f'the config does not have; it has {", ".join(networks) or "none"}.'
                )
            if networks[name].dtype and networks[name].trainable:
                raise ValueError(
                    f"networks.{name}.dtype is '{networks[name].dtype}', and objective "
                    f"'{config['objective']['name']}' trains it; what is trained is "
                    'kept in float32: leave it out.'
                )
    source = sources.fitting(source, conditioner, objective, tokenizer, cache)
    known['sampler'] = sampler = (
        part('sampler', config, known, config['sampler'].get('name')) if 'sampler' in config else None
    )
    metric = part('metric', config, known) if 'metric' in config else None
    train = call(Train, config['train'], {}, 'train')
    averages = call(ema.build, config.get('ema', {}), {}, 'ema')
    watch = call(guard.build, config.get('guard', {}), {}, 'guard')
    if train.held_out_every and 'held_out' not in config:
        raise ValueError(
            "train.held_out_every needs a section 'held_out': what to change in data, as split='test'."
        )
    search = part('search', config, known) if 'search' in config else None
    made = Recipe(
        config,
        train,
        averages,
        watch,
        networks,
        tokenizer,
        conditioner,
        objective,
        sampler,
        metric,
        source,
        search,
        cache,
    )
    try:
        _ = made.shapes  # kept: programs need them too
    except KeyError as error:
        raise ValueError(
            f"a network reads {error} of its condition, which conditioner '{config['conditioner']['name']}' "
            'does not give; use a conditioner that fits the model.'
        ) from error
    return made


# By what a part of each kind is known.
MARKS = dict(data='description', tokenizer='latent', conditioner='embed', model='apply', objective='phases')
MARKS |= dict(sampler='sample', metric='examples', search='parts')
SECTIONS = (
    *ROOMS,
    'sampler',
    'path',
    'prediction',
    'networks',
    'held_out',
    'optimizer',
    'ema',
    'guard',
    'mesh',
    'train',
)


def without_recomputing(recipe: Recipe) -> Recipe:
    """The recipe with a network that computes everything once, as model FLOPs are counted."""
    module = getattr(recipe.networks.get('model'), 'module', None)
    plain = {'remat': 'none', 'attention': 'xla'}
    found = {key: value for key, value in plain.items() if hasattr(module, key)}
    if not found:
        return recipe
    return build({**recipe.config, 'model': {**recipe.config['model'], **found}})


def part(section: str, config: Mapping[str, Any], known: Mapping[str, Any], room: str | None = None) -> Any:
    """Build the part that a section names. A sampler's name is the room whose `sampler` it is."""
    settings = dict(config[section])
    function = _resolve(section, settings.pop('name', None), room)
    known_keys(settings, inspect.signature(function).parameters, f'section {section}')
    for key, value in settings.items():
        if isinstance(value, Mapping) and 'name' in value:  # a part of this part: sampler.solver, ...
            inner = dict(value)
            where = f'{room or ROOMS.get(section, section)}.{key}s'
            nested = _resolve(f'{section}.{key}', inner.pop('name'), where)
            settings[key] = call(nested, inner, known, f'{section}.{key}')
    made = call(function, settings, known, section)
    if not hasattr(made, MARKS[section]):
        raise ValueError(f"{section}.name is '{config[section]['name']}', which makes no {section}.")
    return made


def call(function: Callable, settings: Mapping[str, Any], known: Mapping[str, Any], where: str) -> Any:
    """Call with the settings and with what is known by the parameters' names; refuse anything else."""
    parameters = inspect.signature(function).parameters
    check(function, settings, where)
    arguments = {name: known[name] for name in parameters if name in known} | dict(settings)
    for name, parameter in parameters.items():
        if name not in arguments and parameter.default is inspect.Parameter.empty:
            raise ValueError(
                f"the config has no section '{name}', which {where} needs."
                if name in SECTIONS
                else f'{where}.{name} is missing; set it in the config.'
            )
    return function(**arguments)


def _resolve(section: str, name: Any, room: str | None = None) -> Callable:
    target, _, attribute = name.partition(':') if isinstance(name, str) else ('', '', '')
    if not all(word.isidentifier() for word in target.split('.')):
        raise ValueError(f'{section}.name is {name!r}; it must be the name of a module.')
    if '.' not in target and room is not None and '.' not in room:
        target = f'jaxgen.{target}.sampler'
    elif '.' not in target:
        target = f'jaxgen.{room or ROOMS[section]}.{target}'
    try:
        module = importlib.import_module(target)
    except ModuleNotFoundError as error:
        if not f'{target}.'.startswith(f'{error.name}.'):
            raise ValueError(f"{section}.name is '{name}', and {target} needs {error.name}.") from error
        raise ValueError(
            f"{section}.name is '{name}', but there is no module {target}." + _siblings(target)
        ) from None
    found = getattr(module, attribute or 'build', None)
    if not callable(found):
        raise ValueError(f"{section}.name is '{name}', but {target} has no '{attribute or 'build'}' to call.")
    return found


def _siblings(target: str) -> str:
    try:
        package = importlib.import_module(target.rpartition('.')[0])
    except ModuleNotFoundError:
        return ''
    found = pkgutil.iter_modules(package.__path__, f'{package.__name__}.')
    parts = [each.name for each in found if hasattr(importlib.import_module(each.name), 'build')]
    return f' There are: {", ".join(name.rpartition(".")[2] for name in parts)}.'


def _signature(section: str, config: Mapping[str, Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(_resolve(section, config[section].get('name'))).parameters


def _sources(config: Mapping[str, Any], cache: sources.Cache) -> Callable[[str], Any]:
    build = _resolve('data', config['data'].get('name'))
    for section, settings in (
        ('data', sources.own(config['data'])),
        ('held_out', config.get('held_out', {})),
    ):
        check(build, {k: v for k, v in settings.items() if k != 'name'}, section)
    return sources.opener(config, cache, lambda section: part('data', {'data': section}, {}))


class _Networks(dict[str, Network]):
    """Networks by name; a part that needs one which is not there is refused."""

    def __missing__(self, name: str) -> Network:
        raise ValueError(
            f"a part needs the network '{name}', which the config does not have; it has "
            f'{", ".join(self) or "none"}.'
        )


def _networks(config: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Network]:
    held = {**known['tokenizer'].holds, **known['conditioner'].holds}
    own = {**held, **({'model': None} if 'model' in config else {})}
    settings = {**{name: {} for name in own}, **config.get('networks', {})}
    networks = {}
    for name, section in settings.items():
        known_keys(section, inspect.signature(Network).parameters, f'section networks.{name}')
        section = dict(section)
        given = section.pop('module', config['model'] if name == 'model' else None)
        if given is not None:
            module = _module(name, given, known)
        elif name in held:
            module = held[name]
        else:
            raise ValueError(
                f"networks has '{name}', which no part of this recipe holds (they are: "
                f'{", ".join(own)}); give networks.{name}.module, or mend its name.'
            )
        networks[name] = call(Network, section, {'module': module}, f'networks.{name}')
    return networks


def _module(name: str, section: Any, known: Mapping[str, Any]) -> nn.Module:
    if not isinstance(section, Mapping):
        raise ValueError(f'networks.{name}.module is {section!r}; it must be a section, as model is.')
    for key in ('channels', 'classes', 'learned_variance', 'scales', 'codes') if name == 'model' else ():
        if key in known and section.get(key, known[key]) != known[key]:
            raise ValueError(
                f'model.{key} is {section[key]!r}, and the other parts say {known[key]}; leave it out.'
            )
    return part('model', {'model': section}, known)
