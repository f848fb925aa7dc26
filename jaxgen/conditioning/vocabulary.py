"""Token ids of T5 without its tokenizer's package: from a published folder's own files, or from bytes.

T5's pieces are a unigram model (Kudo, 1804.10959; Raffel et al., 1910.10683), published as sentencepiece's
`spiece.model` or as `tokenizer.json`. Without a folder ids are UTF-8 bytes as ByT5 has them (Xue et al.,
2105.13626). In all of them 0 is padding, 1 ends a text, and special tokens are found in the text itself.
"""

import dataclasses
import json
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from etils import epath
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import Unigram

FILES = (
    'spiece.model',
    'tokenizer.json',
    'tokenizer_config.json',
    'special_tokens_map.json',
    'added_tokens.json',
)
SPECIAL = {'pad_token': '<pad>', 'eos_token': '</s>', 'unk_token': '<unk>'}
EXTRA_IDS = 100  # '<extra_id_0>' has the last id
BYTES_EXTRA_IDS = 125  # '<extra_id_0>' has the first id after the bytes
BYTES_CONFIG = {**SPECIAL, 'tokenizer_class': 'ByT5Tokenizer', 'extra_ids': BYTES_EXTRA_IDS}
BYTES_SPECIAL = re.compile(r'\s*(<pad>|</s>|<unk>)\s*|<extra_id_(1[01]\d|12[0-4]|[1-9]\d|\d)>')
UNKNOWN = 2  # a kind of piece


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """What turns a text into ids. `files` are those it is published as, by name; `size` is beyond any id."""

    read: Callable[[str], list[int]]
    eos: int
    size: int
    files: Mapping[str, bytes]

    def ids(self, text: str) -> list[int]:
        """The ids of a text and of its end."""
        # A prompt from a terminal may hold what is no character.
        return [*self.read(text.encode('utf-8', 'replace').decode()), self.eos]

    def save(self, folder: str) -> None:
        """Write the files, which transformers reads too."""
        epath.Path(folder).mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (epath.Path(folder) / name).write_bytes(content)


def open_vocabulary(folder: str = '') -> Vocabulary:
    """The vocabulary of a folder with a published tokenizer's files; of bytes without a folder."""
    if not folder:
        return _bytes()
    path = epath.Path(folder).expanduser()
    files = {name: (path / name).read_bytes() for name in FILES if (path / name).exists()}
    try:
        settings = {name: json.loads(files[name]) for name in files if name.endswith('.json')}
        config = settings.get('tokenizer_config.json', {})
        if config.get('tokenizer_class') == 'ByT5Tokenizer':
            return _bytes()
        if 'tokenizer.json' in files:
            tokenizer = Tokenizer.from_str(files['tokenizer.json'].decode())
            tokenizer.no_truncation()
            tokenizer.no_padding()
        elif 'spiece.model' in files:
            tokenizer = _unigram(files['spiece.model'], config.get('extra_ids', EXTRA_IDS))
        else:
            raise ValueError(f'it has neither {FILES[0]} nor {FILES[1]}')
        names = _add_special(tokenizer, settings)
        eos = tokenizer.token_to_id(names['eos_token'])
        if eos is None:
            raise ValueError(f'its end of text, {names["eos_token"]!r}, has no id')
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # tokenizers panics in its own way at some broken files
        raise ValueError(f'{folder} is no folder of a T5 tokenizer: {error}.') from error
    size = max(tokenizer.get_vocab().values()) + 1
    return Vocabulary(lambda text: tokenizer.encode(text, add_special_tokens=False).ids, eos, size, files)


def _bytes() -> Vocabulary:
    ids = {'<pad>': 0, '</s>': 1, '<unk>': 2}
    after = 256 + len(ids)

    def read(text: str) -> list[int]:
        found: list[int] = []
        end = 0
        for special in BYTES_SPECIAL.finditer(text):
            found += [len(ids) + byte for byte in text[end : special.start()].encode()]
            found.append(ids[special[1]] if special[1] else after + int(special[2]))
            end = special.end()
        found += [len(ids) + byte for byte in text[end:].encode()]
        return found[:-1] if found[-1:] == [ids['</s>']] else found  # it is there already

    files = {'tokenizer_config.json': json.dumps(BYTES_CONFIG, indent=2).encode()}
    return Vocabulary(read, ids['</s>'], after + BYTES_EXTRA_IDS, files)


def _unigram(model: bytes, extra_ids: int) -> Tokenizer:
    """The tokenizer of a sentencepiece model, with the extra ids at its end."""
    fields = list(_fields(model))
    pieces = [dict(_fields(value)) for number, value in fields if number == 1]
    trainer, normalizer = (
        dict(_fields(next((value for number, value in fields if number == wanted), b''))) for wanted in (2, 3)
    )
    if not pieces or trainer.get(3, 1) != 1:
        raise ValueError('spiece.model holds no unigram model')
    kinds = [piece.get(3, 1) for piece in pieces]
    names = [piece.get(1, b'').decode() for piece in pieces]
    scores = [struct.unpack('<f', piece.get(2, bytes(4)))[0] for piece in pieces]
    extra = [f'<extra_id_{i}>' for i in reversed(range(extra_ids))]
    vocabulary = [*zip(names, scores), *((name, 0.0) for name in extra)]
    tokenizer = Tokenizer(Unigram(vocabulary, unk_id=kinds.index(UNKNOWN), byte_fallback=False))
    if charsmap := normalizer.get(2):
        tokenizer.normalizer = normalizers.Precompiled(charsmap)
    mark = pre_tokenizers.Metaspace(replacement='\u2581', prepend_scheme='always', split=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), mark])
    tokenizer.add_special_tokens(extra)
    return tokenizer


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of every field of a protocol buffer; floats and messages are left as bytes."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
            if byte < 128:
                return value

    try:
        while at < len(message):
            number, wire = divmod(varint(), 8)
            if wire == 0:
                yield number, varint()
                continue
            length = {1: 8, 5: 4}[wire] if wire != 2 else varint()
            at += length
            if at > len(message):
                raise IndexError
            yield number, message[at - length : at]
    except (IndexError, KeyError):
        raise ValueError('spiece.model is damaged, or no sentencepiece model') from None


def _add_special(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> dict[str, str]:
    """Add the special tokens that the folder names, under the ids it says; returns their names."""
    config = settings.get('tokenizer_config.json', {})
    given = config.get('added_tokens_decoder')
    named = {**SPECIAL, **config}
    if given is None:
        named |= settings.get('special_tokens_map.json', {})
    more = named.get('extra_special_tokens') or named.get('additional_special_tokens') or []
    special = {_content(token): token for token in [*(named[name] for name in SPECIAL), *more]}
    wanted: dict[str, int] = {}
    if given is not None:
        special |= {token['content']: token for token in given.values()}
        wanted = {token['content']: int(number) for number, token in given.items()}
    else:
        wanted = settings.get('added_tokens.json', {})
        special = {**{name: name for name in wanted}, **special}
    for content in sorted(special, key=lambda content: wanted.get(content, -1)):
        tokenizer.add_tokens([_added(special[content])])
    for content, number in wanted.items():
        if tokenizer.token_to_id(content) != number:
            raise ValueError(
                f'{content!r} has id {number} by its files, but {tokenizer.token_to_id(content)} in the model'
            )
    return {name: _content(named[name]) for name in SPECIAL}


def _content(token: str | Mapping[str, Any]) -> str:
    return token if isinstance(token, str) else token['content']


def _added(token: str | Mapping[str, Any]) -> AddedToken:
    if isinstance(token, str):
        return AddedToken(token, normalized=False, special=True)
    flags = {name: token[name] for name in ('single_word', 'lstrip', 'rstrip', 'normalized') if name in token}
    return AddedToken(token['content'], special=token.get('special', True), **flags)
