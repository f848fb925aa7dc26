"""Published networks: found, read, checked and written by their families.

A family is the module here that is called as the network's own: `weights/pixart.py` for `models/pixart.py`.
It has `CLASSES`, the names that a published config.json may call the network; `from_config` and `to_config`,
which turn such a file into the arguments of the network's `build` and back; `layouts`, the name maps, the
first being the one that is written; `inputs`, the least that the network's `init` takes.
"""

import contextlib
import dataclasses
import importlib
import importlib.util
import json
import pathlib
import pkgutil
import shutil
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.experimental import multihost_utils

from jaxgen import weights
from jaxgen.weights import files, names, safetensors, schedulers
from jaxgen.weights.names import Match, NameMap
from jaxgen.weights.trees import Leaf, leaves

Tree = Any

ROOMS = ('models', 'tokenizers', 'encoders')
SHARD = 5 * 10**9  # bytes of a file at most, where there is more


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """A published pipeline: the families of its networks, and the tokens it reads of a caption, if any."""

    networks: Mapping[str, str]
    length: int | None = None


_PIXART = {'transformer': 'pixart', 'vae': 'kl_vae', 'text_encoder': 't5'}
PIPELINES = {
    'PixArtAlphaPipeline': Pipeline(_PIXART, 120),
    'PixArtSigmaPipeline': Pipeline(_PIXART, 300),
    'DiTPipeline': Pipeline({'transformer': 'dit', 'vae': 'kl_vae'}),
}
# The section of a config that each of them decides, and the name that it has among our networks.
PLACES = {
    'transformer': ('model', 'model'),
    'vae': ('tokenizer', 'tokenizer'),
    'text_encoder': ('conditioner', 'text'),
}


def family_of(network: nn.Module) -> ModuleType:
    """The family of a network that was built here."""
    package, _, name = type(network).__module__.rpartition('.')
    if package.removeprefix('jaxgen.') in ROOMS and name in _modules():
        return importlib.import_module(f'jaxgen.weights.{name}')
    raise ValueError(f'{type(network).__name__} has no published layout: there is no weights/{name}.py.')


def family_for(config: Mapping[str, Any]) -> tuple[ModuleType, dict[str, Any]]:
    """The family of a published config.json and the arguments of its network's build.

    The class is the config's `_class_name`, its `architectures` or its `model_type`; of families that share
    one, it is that which takes the config.
    """
    called = (config.get('_class_name'), *(config.get('architectures') or ()), config.get('model_type'))
    modules = [importlib.import_module(f'jaxgen.weights.{name}') for name in _modules()]
    families = {module: module.CLASSES for module in modules if hasattr(module, 'CLASSES')}
    refusals = []
    for name in filter(None, called):
        for family in (family for family, classes in families.items() if name in classes):
            try:
                return family, family.from_config(config)
            except ValueError as error:
                refusals.append(f'{_name(family)}: {error}')
    if refusals:
        raise ValueError('; '.join(dict.fromkeys(refusals)))
    known = ', '.join(sorted(name for classes in families.values() for name in classes))
    raise ValueError(f'no network here is called {called[0] or called[1:]!r}; known are {known}.')


def load(network: nn.Module, path: str, like: Tree, as_stored: bool = False) -> Tree:
    """Parameters of a network, in the layout, dtypes and shardings of `like`.

    path: what weights.files opens, or several with commas between where a network's arrays lie apart.
    `as_stored` keeps the published dtypes. What the published layout lacks and `like` does not give is zero.
    """
    _, table, found = _matched(network, path)
    like = _completed(table, found, like, as_stored)
    with _about(path):
        names.check(table, found, like)
    return names.fill(found, like)


def check(network: nn.Module, path: str, like: Tree) -> None:
    """Refuse published arrays that `load` would refuse, by their names and shapes."""
    _, table, found = _matched(network, path)
    with _about(path):
        names.check(table, found, _completed(table, found, like))


def report(network: nn.Module, path: str, like: Tree) -> str:
    """What `load` takes from where, what it leaves out and what it does not find, in words."""
    name, table, found = _matched(network, path)
    arrays = {source.name: source.published for source in found.sources.values()}
    dtypes = ', '.join(sorted({array.dtype.name for array in arrays.values()}))
    size = sum(array.nbytes for array in arrays.values())
    own = [path for leaf in leaves(like) if names.lacks(table, found, leaf) for path in leaf.paths]
    copies = sorted({copy.name for _, copy in found.copies} - arrays.keys())
    chosen = ' and '.join(map(files.chosen, files.several(path)))
    lines = [f"{chosen}: {len(arrays)} tensors in the layout '{name}', {size:,} bytes of {dtypes}"]
    further = {
        'the same once more': copies,
        'left out': sorted(found.ignored),
        'not there, and left at zero': own,
    }
    lines += [f'{said}: {len(each)} ({_shortened(each)})' for said, each in further.items() if each]
    return '\n  '.join(lines)


def open_network(path: str, dtype: str | None = None) -> tuple[nn.Module, Tree]:
    """The network that a folder's config.json describes, and its parameters, on this process's first device.

    It computes, and its parameters are kept, in `dtype`; without one it computes in float32 with parameters
    as they were published.
    """
    folder = files.resolve(path)
    with _about(path):
        family, arguments = family_for(_read_json(pathlib.Path(folder) / 'config.json'))
        part = _build(family)(**arguments, **({'dtype': dtype} if dtype else {}))
    network = part if isinstance(part, nn.Module) else next(iter(part.holds.values()))
    abstract = jax.eval_shape(network.init, jax.random.key(0), *family.inputs(network))['params']
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype, sharding=device), abstract
    )
    return network, load(network, folder, like, as_stored=dtype is None)


def save_network(folder: str, network: nn.Module, params: Tree, dtype: str | None = None) -> None:
    """Write the folder that `from_pretrained` reads: config.json and safetensors, in any float dtype.

    In a run of several processes all of them call it, and the first one writes.
    """
    family = family_of(network)
    config, table = family.to_config(network), next(iter(family.layouts(network).values()))
    stem = 'diffusion_pytorch_model' if '_class_name' in config else 'model'
    arrays = names.entries(table, params, dtype)
    with writing(folder) as unfinished:
        if jax.process_index() != 0:
            safetensors.made_in_order(arrays, SHARD)
            return
        (unfinished / 'config.json').write_text(json.dumps(config, indent=2, sort_keys=True) + '\n')
        safetensors.write_sharded(unfinished, stem, arrays, SHARD)


@contextlib.contextmanager
def writing(folder: str) -> Iterator[pathlib.Path]:
    """A new folder, under another name beside it until all went well, and removed if not.

    Of several processes the first one makes it, and the others wait until it is there.
    """
    target = pathlib.Path(folder)
    unfinished = target.with_name(f'{target.name}.part')
    if jax.process_index() != 0:
        yield unfinished
    else:
        if target.exists():
            raise ValueError(f'{folder} is there already; give a folder that is not.')
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        try:
            yield unfinished
            unfinished.rename(target)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f'jaxgen/{folder}')


def sections(path: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The sections of a config that a published pipeline's folder decides, and each network's own folder."""
    folder = pathlib.Path(files.resolve(path))
    with _about(path):
        index = _read_json(folder / 'model_index.json')
        pipeline = _pipeline(index)
        config, sources = {}, {}
        for component, wanted in pipeline.networks.items():
            place = _component(folder, index, component)
            with _about(component):
                family, arguments = family_for(_read_json(place / 'config.json'))
                if _name(family) != wanted:
                    raise ValueError(f'this is a {_name(family)}, and {index["_class_name"]} has a {wanted}.')
            section, network = PLACES[component]
            config[section] = {'name': wanted, **arguments}
            sources[network] = str(place)
        if pipeline.length is None:
            config['conditioner'] = {'name': 'labels', 'classes': config['model']['classes']}
        else:
            config['conditioner'] |= {
                'tokens': str(_component(folder, index, 'tokenizer')),
                'length': pipeline.length,
                'sizes': config['model']['micro_conditioning'],
                'empty_null': True,  # published so, pipelines read the empty caption in its place
            }
        place = _component(folder, index, 'scheduler')
        scheduler = _read_json(place / 'scheduler_config.json')
        with _about('scheduler'):
            return config | schedulers.sections_of(index['scheduler'][1], scheduler), sources


def side_by_side(path: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The same for networks that lie side by side without an index, as authors hand them out.

    A file is the model alone. A folder may hold the model's file, and folders of a text encoder (with its
    tokenizer) and an autoencoder, each with its config.json.
    """
    folder = pathlib.Path(files.resolve(path))
    config, sources = {}, {'model': str(folder)}
    components = {
        family: component for one in PIPELINES.values() for component, family in one.networks.items()
    }
    for place in sorted(file.parent for file in folder.glob('**/config.json')):
        try:
            family, arguments = family_for(_read_json(place / 'config.json'))
        except ValueError:
            continue  # of something else
        if _name(family) not in components:
            continue
        section, network = PLACES[components[_name(family)]]
        if section in config:
            raise ValueError(f'{path} holds {sources[network]} and {place}; leave one of them.')
        config[section] = {'name': _name(family), **arguments}
        sources[network] = str(place)
        if section == 'conditioner':
            config[section]['tokens'] = str(place)
    return config, sources


def _pipeline(index: Mapping[str, Any]) -> Pipeline:
    name = index.get('_class_name')
    if not isinstance(name, str) or name not in PIPELINES:
        raise ValueError(f'the pipeline {name!r} is not known here; known are {", ".join(PIPELINES)}.')
    known = (*PLACES, 'tokenizer', 'scheduler')
    for key, value in index.items():
        if isinstance(value, list) and any(value) and key not in known:
            raise ValueError(f'the pipeline has a component {key!r}; known are {", ".join(known)}.')
    return PIPELINES[name]


def _component(folder: pathlib.Path, index: Mapping[str, Any], name: str) -> pathlib.Path:
    named = index.get(name)
    if not isinstance(named, list) or len(named) != 2 or not all(isinstance(part, str) for part in named):
        raise ValueError(f'model_index.json names no {name}; this pipeline needs one.')
    if not (folder / name).is_dir():
        raise ValueError(f'the folder {name} is missing; was all of it downloaded?')
    return folder / name


def _matched(network: nn.Module, path: str) -> tuple[str, NameMap, Match]:
    """The layout that knows most of the published names, its table, and what it makes of them."""
    published = _opened(path)
    layouts = family_of(network).layouts(network)
    matches = [(name, table, names.match(table, published)) for name, table in layouts.items()]
    return max(matches, key=lambda each: len(each[2].used))


def _opened(path: str) -> dict[str, np.ndarray]:
    """The arrays of a path, or of several with commas between, each with names of its own."""
    arrays: dict[str, np.ndarray] = {}
    for each in files.several(path):
        further = files.open_arrays(each)
        if twice := sorted(arrays.keys() & further.keys()):
            raise ValueError(f'{each} holds {twice[0]!r}, and so does a path before it in {path}.')
        arrays |= further
    return arrays


def _completed(table: NameMap, found: Match, like: Tree, as_stored: bool = False) -> Tree:
    """`like` with zeros for what the layout lacks, and with the published dtypes if asked."""

    def complete(leaf: Leaf) -> Any:
        value = leaf.value
        if names.lacks(table, found, leaf):
            return _zeros(value) if isinstance(value, jax.ShapeDtypeStruct) else value
        dtypes = [found.sources[path].published.dtype for path in leaf.paths if path in found.sources]
        if not (as_stored and dtypes):
            return value
        return jax.ShapeDtypeStruct(
            value.shape, np.result_type(*dtypes), sharding=getattr(value, 'sharding', None)
        )

    return jax.tree.structure(like).unflatten(map(complete, leaves(like)))


def _zeros(like: jax.ShapeDtypeStruct) -> Any:
    if like.sharding is None:
        return np.zeros(like.shape, like.dtype)
    return jnp.zeros(like.shape, like.dtype, device=like.sharding)


def _modules() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(weights.__path__)]


def _name(family: ModuleType) -> str:
    return family.__name__.rpartition('.')[2]


def _room(family: ModuleType) -> str:
    return next(room for room in ROOMS if importlib.util.find_spec(f'jaxgen.{room}.{_name(family)}'))


def _build(family: ModuleType) -> Callable[..., Any]:
    return importlib.import_module(f'jaxgen.{_room(family)}.{_name(family)}').build


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f'{path} is missing; was all of it downloaded?')
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{path} is no JSON: {error}') from None
    if not isinstance(content, dict):
        raise ValueError(f'{path} holds a {type(content).__name__}, where a table is wanted.')
    return content


@contextlib.contextmanager
def _about(place: str) -> Iterator[None]:
    """Errors say first what they are about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f'{place}: {error}') from error


def _shortened(said: list[str], shown: int = 8) -> str:
    return ', '.join(said[:shown]) + (', ...' if len(said) > shown else '')
