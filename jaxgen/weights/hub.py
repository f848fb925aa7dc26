"""Hugging Face's hub: which files of a repository are a network's weights, and their download.

Repositories hold the same weights several times: in safetensors and in pickles, in float32 and in variants.
One of each is enough, on disk as on the hub.
"""

import collections
import pathlib
import re
from collections.abc import Iterable
from typing import NamedTuple

SCHEME = 'hf://'
ADDRESS = re.compile(r'hf://(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/@]+))?(?:/(?P<inside>.+))?')
SMALL = ('.json', '.txt', '.model')  # configs, indices, vocabularies

_VARIANT = r'(?:\.(?P<variant>fp16|bf16|fp32|fp8|non_ema))?'
_KIND = r'\.(?P<kind>safetensors|bin|pth|pt|ckpt)'
_FILE = re.compile(rf'(?P<stem>.+?){_VARIANT}(?P<shard>-\d{{5}}-of-\d{{5}})?{_KIND}')
_INDEX = re.compile(rf'(?P<stem>.+?){_VARIANT}{_KIND}\.index(?:\.(?P<late>\w+))?\.json')
# The names that from_pretrained looks for, which are those that the config.json beside them describes.
_USUAL = ('diffusion_pytorch_model', 'model', 'pytorch_model')
_NO_WEIGHTS = re.compile('optimizer|scheduler|scaler|training_args|rng_state|random_states')


class _File(NamedTuple):
    name: str
    stem: str
    variant: str
    kind: str
    shard: bool


def fetched(address: str) -> str:
    """The local path of 'hf://owner/name', '...@revision', or a file or folder inside, '.../transformer'."""
    found = ADDRESS.fullmatch(address)
    if found is None or '..' in address.split('/'):
        raise ValueError(f'{address!r} is no address on the hub; give hf://owner/name, or what is in it.')
    try:
        import huggingface_hub
    except ImportError:
        raise ValueError(f'to fetch {address}, `pip install "jaxgen[hub]"`; or give a folder.') from None
    name, revision, inside = found['name'], found['revision'], (found['inside'] or '').rstrip('/')
    # The hub's own, httpx' and the system's exceptions are many; all of them mean that it could not be had.
    try:
        listed = huggingface_hub.list_repo_files(name, revision=revision)
    except Exception as error:
        try:
            local = huggingface_hub.snapshot_download(name, revision=revision, local_files_only=True)
        except Exception:
            raise ValueError(f'{address} cannot be fetched ({_line(error)}); give a local folder.') from None
        return str(pathlib.Path(local, inside))
    names = wanted(listed, inside)
    if not names:
        raise ValueError(f'{name} on the hub has no weights in {inside or "it"}.')
    try:
        local = huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=names)
    except Exception as error:
        raise ValueError(f'{address} was not fetched to its end ({_line(error)}); try again.') from None
    return str(pathlib.Path(local, inside))


def wanted(names: Iterable[str], inside: str = '') -> list[str]:
    """Of a repository's files those that are needed of it, or of a file or folder `inside`."""
    by_folder = collections.defaultdict(list)
    for name in names:
        by_folder[str(pathlib.PurePosixPath(name).parent)].append(name)
    taken = []
    for folder, files in by_folder.items():
        if inside in files:
            weights = [inside]
        elif not inside or pathlib.PurePosixPath(folder).is_relative_to(inside):
            weights = _with_shards(files)
        else:
            continue
        taken += [name for name in files if name in weights or name.endswith(SMALL)]
    return sorted(taken)


def choose(names: Iterable[str]) -> str | None:
    """Of a folder's files the one that holds a network's weights, or lists the files that do.

    Safetensors come before pickles, and variants (fp16) only where there is nothing else.
    """
    files = [file for file in map(_parsed, sorted(names)) if file is not None]
    whole = [file for file in files if not file.shard]
    whole = [file for file in whole if not file.variant] or whole
    whole = [file for file in whole if file.kind == 'safetensors'] or whole
    if len(whole) > 1:
        usual = [file for file in whole if file.stem.rpartition('/')[2] in _USUAL]
        whole = usual if len(usual) == 1 else whole
    if len(whole) > 1:
        several = ', '.join(file.name for file in whole)
        raise ValueError(f'there are several weights, {several}; name one of them.')
    if not whole and files:
        raise ValueError(f'{files[0].name} is one of several files, and the index of them is missing.')
    return whole[0].name if whole else None


def _with_shards(names: list[str]) -> list[str]:
    name = choose(names)
    if name is None:
        return []
    index = _parsed(name)
    shards = [file for file in map(_parsed, names) if file is not None and file.shard]
    return [name, *(file.name for file in shards if file[1:4] == index[1:4])]


def _parsed(name: str) -> _File | None:
    if found := _INDEX.fullmatch(name):
        return _File(name, found['stem'], found['variant'] or found['late'] or '', found['kind'], False)
    found = _FILE.fullmatch(name)
    if found is None or _NO_WEIGHTS.match(name.rpartition('/')[2]):
        return None
    return _File(name, found['stem'], found['variant'] or '', found['kind'], bool(found['shard']))


def _line(error: Exception) -> str:
    return f'{type(error).__name__}: {error}'.splitlines()[0][:200]
