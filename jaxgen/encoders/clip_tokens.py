"""CLIP's tokens: lower-cased byte pairs (Sennrich et al., 1508.07909) from a published folder's own files.

A text is brought to one Unicode form, its white space to single spaces, cut into words, digits and runs of
signs, and those into pieces; a start and an end go around it, and padding after it.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

START, END = '<|startoftext|>', '<|endoftext|>'
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclasses.dataclass(frozen=True)
class ClipTokens:
    """What turns texts into ids of one length; `end` ends a text, `padding` follows it."""

    tokenizer: Tokenizer
    length: int
    end: int
    padding: int

    def ids(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids and the mask of what is no padding, both [B, length]; longer texts are cut before their end."""
        ids = np.full((len(texts), self.length), self.padding, np.int32)
        mask = np.zeros(ids.shape, bool)
        for row, real, text in zip(ids, mask, texts):
            found = self.tokenizer.encode(text).ids
            found = [*found[: self.length - 1], self.end] if len(found) > self.length else found
            row[: len(found)], real[: len(found)] = found, True
        return ids, mask


def open_tokens(folder: str, length: int = 77) -> ClipTokens:
    """The tokens of a folder with vocab.json and merges.txt, or with a tokenizer.json.

    Which token pads is in the folder's settings: the end in OpenAI's, '!' in OpenCLIP's.
    """
    path = epath.Path(folder).expanduser()
    try:
        vocabulary, merges = _pieces(path)
        padding = _padding(path)
        missing = [token for token in (START, END, padding) if token not in vocabulary]
        if missing:
            raise ValueError(f'its vocabulary has no {missing[0]!r}')
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f'{folder} is no folder of a CLIP tokenizer: {error}.') from error
    model = BPE(vocabulary, merges, unk_token=END, end_of_word_suffix='</w>', continuing_subword_prefix='')
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r'\s+'), ' '), normalizers.Lowercase()]
    )
    words = pre_tokenizers.Split(Regex(WORDS), behavior='removed', invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=True, special=True) for token in (START, END)])
    ends = (END, vocabulary[END]), (START, vocabulary[START])
    tokenizer.post_processor = processors.RobertaProcessing(*ends, trim_offsets=False, add_prefix_space=False)
    return ClipTokens(tokenizer, length, vocabulary[END], vocabulary[padding])


def _pieces(path: epath.Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    if (path / 'vocab.json').exists():
        lines = (path / 'merges.txt').read_text().splitlines()
        merges = [line for line in lines if line and not line.startswith('#version')]
        return json.loads((path / 'vocab.json').read_text()), [_pair(line) for line in merges]
    model = json.loads((path / 'tokenizer.json').read_text())['model']
    return model['vocab'], [_pair(merge) for merge in model['merges']]


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    first, second = merge.split() if isinstance(merge, str) else merge
    return first, second


def _padding(path: epath.Path) -> str:
    for name in ('tokenizer_config.json', 'special_tokens_map.json'):
        settings: Mapping[str, Any] = json.loads((path / name).read_text()) if (path / name).exists() else {}
        token = settings.get('pad_token')
        if token is not None:
            return token if isinstance(token, str) else token['content']
    return END
