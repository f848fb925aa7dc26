"""What has to be the same in all processes of a run, and a sentence about what is not."""

import collections
import functools
import hashlib
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ('jax', 'jaxlib', 'libtpu', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
TOLD, LONG = 4, 80


@functools.cache
def code() -> str:
    """A hash of jaxgen's sources as they lie on the disk."""
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    for file in sorted(root.rglob('*.py')):
        digest.update(f'{file.relative_to(root).as_posix()}\0'.encode() + file.read_bytes() + b'\0')
    return digest.hexdigest()[:12]


def versions() -> dict[str, str]:
    """Of Python and of what the programs are compiled by."""
    return {'python': platform.python_version()} | {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return 'none'


def flat(values: Mapping[str, Any], prefix: str = '') -> dict[str, str]:
    """A table of tables as 'section.key' and what stands there."""
    found: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f'{prefix}{name}.')
        else:
            found[f'{prefix}{name}'] = str(value)
    return found


def differences(facts: Mapping[int, Mapping[str, str]], hosts: Mapping[int, str]) -> str:
    """What is not the same in all processes, each with its values; '' if all is."""
    told = []
    for name in dict.fromkeys(name for values in facts.values() for name in values):
        values = {process: facts[process].get(name, 'not given') for process in sorted(facts)}
        common = collections.Counter(values.values()).most_common(1)[0][0]  # of as many: the first process's
        odd = [process for process, value in values.items() if value != common]
        if odd:
            said = [f'{_short(values[process])} on {name_of(process, hosts)}' for process in odd[:TOLD]]
            said += [f'{len(odd) - TOLD} more'] if len(odd) > TOLD else []
            told.append(f'{name} is {" and ".join(said)}, {_short(common)} on {_rest(values, odd, hosts)}')
    more = f' (and {len(told) - TOLD} more)' if len(told) > TOLD else ''
    return '; '.join(told[:TOLD]) + more


def name_of(process: int, hosts: Mapping[int, str]) -> str:
    """A process as people find it."""
    return f'process {process} ({hosts[process]})' if process in hosts else f'process {process}'


def _rest(values: Mapping[int, str], odd: list[int], hosts: Mapping[int, str]) -> str:
    rest = [process for process in values if process not in odd]
    return name_of(rest[0], hosts) if len(rest) == 1 else 'the others'


def _short(value: str) -> str:
    return value if len(value) <= LONG else f'{value[: LONG - 20]}...{value[-16:]}'
