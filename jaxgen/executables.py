"""Compiled programs on disk: `--mode=plan --export` writes them, sampling runs them and traces nothing.

A program is filed under the hash of all that it was compiled from and for: jaxgen's code, the config, the
call's shapes and placement, the libraries' versions, XLA's settings, the devices and, of a CPU, its
instructions. What differs in any of it has another name and is never loaded. A file is machine code, so it is
signed with a key that lies with the user's own files: what it did not sign is neither run nor unpickled.
"""

import contextlib
import hashlib
import hmac
import json
import logging
import os
import pathlib
import platform
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from etils import epath
from jax.experimental import serialize_executable
from jax.sharding import Mesh, NamedSharding

from jaxgen import artifact
from jaxgen.processes import facts
from jaxgen.uncached import uncached

log = logging.getLogger('jaxgen')
FOLDER, SUFFIX = 'executables', '.program'
KEY = '~/.cache/jaxgen/executables.key'
SIGNATURE = hashlib.sha256().digest_size
# What a program that draws is made of; the rest of a config is of training.
SECTIONS = ('tokenizer', 'conditioner', 'path', 'prediction', 'model', 'networks', 'sampler', 'mesh')
SETTINGS = ('enable_x64', 'default_matmul_precision', 'default_prng_impl', 'threefry_partitionable')
SETTINGS += ('numpy_dtype_promotion', 'debug_nans', 'debug_infs')
VARIABLES = ('XLA_FLAGS', 'LIBTPU_INIT_ARGS')
ONE_ARRAY = jax.tree.structure(0)
CODE = facts.code()  # as it is imported: sources may be edited while a program compiles


def check(config: Mapping[str, Any]) -> None:
    """Refuse to keep programs that one process does not hold whole, or whose code is not jaxgen's."""
    if jax.process_count() > 1:
        raise ValueError(
            f'--export keeps programs of one process, and there are {jax.process_count()}; leave it out.'
        )
    if strange := _strange(config):
        raise ValueError(
            f"--export keeps programs by jaxgen's own code, and '{strange[0]}' is not of it: it could change "
            'unseen; leave --export out.'
        )


def save(
    folder: str, draw: Any, arguments: tuple, config: Mapping[str, Any], mesh: Mesh, **chosen: Any
) -> epath.Path:
    """Compile a jitted call that gives one array, for arguments of these shapes, and keep it.

    `chosen` is what the call was made from besides the config.
    """
    with uncached(), jax.set_mesh(mesh):
        compiled = draw.lower(*arguments).compile()
    program, _, gives = serialize_executable.serialize(compiled)
    if gives != ONE_ARRAY:
        raise ValueError(f'a kept program gives one array, and this one gives {gives}.')
    made_for = _made_for(config, mesh, chosen) | {'call': _shapes(arguments)}
    signed = json.dumps(made_for).encode() + b'\n' + program
    file = _file(epath.Path(folder).expanduser(), made_for)
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.parent / f'{file.name}.{os.getpid()}.tmp'
    draft.write_bytes(_signature(signed) + signed)
    draft.replace(file)
    return file


def kept(
    draw: Callable[..., Any], folder: str, config: Mapping[str, Any], mesh: Mesh, **chosen: Any
) -> Callable[..., Any]:
    """`draw`, but a call of which `folder` has the program runs that; arguments as for `save`."""
    where = epath.Path(folder).expanduser()
    if jax.process_count() > 1 or _strange(config) or not where.is_dir():
        return draw
    made_for, found = _made_for(config, mesh, chosen), {}

    def call(*arguments: Any) -> Any:
        shapes = _shapes(arguments)
        if shapes not in found:
            found[shapes] = draw
            if program := _load(where, made_for | {'call': shapes}, arguments, list(mesh.devices.flat)):
                try:
                    drawn = jax.block_until_ready(program(*arguments))
                except (jax.errors.JaxRuntimeError, TypeError, ValueError) as error:
                    log.warning('The kept program does not run (%s); one is compiled.', _line(error))
                else:
                    found[shapes] = program
                    return drawn
        return found[shapes](*arguments)

    return call


def _load(
    folder: epath.Path, made_for: Mapping[str, Any], arguments: tuple, devices: Sequence[Any]
) -> Callable[..., Any] | None:
    """The folder's program of a call; where there is none, a line says what the nearest is of."""
    file = _file(folder, made_for)
    if not file.exists():
        if others := sorted(folder.glob(f'*{SUFFIX}')):
            log.info('No program in %s fits (%s); one is compiled.', folder, _nearest(others, made_for))
        return None
    try:
        content = file.read_bytes()
        if not hmac.compare_digest(content[:SIGNATURE], _signature(content[SIGNATURE:])):
            raise ValueError('it is damaged, or another user made it')
        program = content[content.index(b'\n', SIGNATURE) + 1 :]
        takes = jax.tree.structure((arguments, {}))
        loaded = serialize_executable.deserialize_and_load(
            program, takes, ONE_ARRAY, execution_devices=devices
        )
    except Exception as error:  # of any kind: without the file all goes on
        log.warning('The program %s cannot be used (%s); one is compiled.', file, _line(error))
        return None
    log.info('Drawing by the program %s.', file)
    return loaded


def _made_for(config: Mapping[str, Any], mesh: Mesh, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """All that a program is compiled from and for, but the shapes of the call."""
    device = mesh.devices.flat[0]
    sections = {name: config[name] for name in SECTIONS if name in config}
    settings = {name: str(getattr(jax.config, f'jax_{name}')) for name in SETTINGS}
    made_for = {
        'code': CODE,
        'versions': facts.versions(),
        'config': {**sections, 'data': {'resolution': config['data']['resolution']}},
        'chosen': chosen,
        'mesh': mesh.shape,
        'devices': [device.id for device in mesh.devices.flat],
        'kind': [device.platform, device.device_kind, device.client.platform_version],
        'instructions': _instructions() if device.platform == 'cpu' else '',
        'settings': settings | {name: os.environ.get(name, '') for name in VARIABLES},
    }
    return json.loads(json.dumps(made_for))


def _strange(config: Mapping[str, Any]) -> list[str]:
    """The parts of a config, of those that draw, that are another's code."""

    def names(value: Any) -> Iterator[str]:
        if isinstance(value, Mapping):
            yield from [value['name']] if isinstance(value.get('name'), str) else []
            for inner in value.values():
                yield from names(inner)

    return [name for section in SECTIONS for name in names(config.get(section)) if '.' in name]


def _shapes(arguments: tuple) -> str:
    """A digest of a call's tree, and of its leaves' shapes, dtypes and places in the mesh."""
    leaves, tree = jax.tree.flatten(arguments)
    lines = [str(tree)]
    for leaf in leaves:
        place = getattr(leaf, 'sharding', None)
        spec = tuple(place.spec) if isinstance(place, NamedSharding) else ()
        lines.append(f'{leaf.dtype}{leaf.shape}{spec}')
    return hashlib.sha256('\n'.join(lines).encode()).hexdigest()[:16]


def _instructions() -> str:
    """A digest of what the processor can do, as Linux tells it; elsewhere its name."""
    try:
        lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return f'{platform.machine()} {platform.processor()}'
    told = {line for line in lines if line.startswith(('flags', 'Features', 'model name', 'CPU part'))}
    return hashlib.sha256('\n'.join(sorted(told)).encode()).hexdigest()[:16]


def _file(folder: epath.Path, made_for: Mapping[str, Any]) -> epath.Path:
    return folder / f'{artifact.digest(made_for)[:32]}{SUFFIX}'


def _nearest(files: Sequence[epath.Path], made_for: Mapping[str, Any]) -> str:
    """How that file of a folder differs which differs in the least."""
    told = []
    for file in files:
        with contextlib.suppress(ValueError, AttributeError), file.open('rb') as stream:  # foreign files, too
            stream.seek(SIGNATURE)
            theirs = json.loads(stream.readline())
            differing = [name for name in made_for if theirs.get(name) != made_for[name]]
            how = artifact.difference(theirs, made_for, 'it') if differing != ['call'] else 'other shapes'
            told.append((len(differing), how))
    return _line(min(told, default=(0, 'they are damaged'))[1]).removeprefix('it.')


def _signature(content: bytes) -> bytes:
    """By the user's own key, which the first program that is kept makes."""
    key = pathlib.Path(KEY).expanduser()
    with contextlib.suppress(FileExistsError):
        key.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), 'wb') as file:
            file.write(secrets.token_bytes(32))
    return hmac.digest(key.read_bytes(), content, 'sha256')


def _line(error: BaseException | str) -> str:
    return ' '.join(str(error).split())[:200]
