"""Captions: words or bytes on the host, a small text network trained with the generator on the device.

The same contract a frozen T5 fulfils: token ids and a mask from the host, features [B, length, width]
and the drop mask for the network, which owns its null embedding (PixArt-alpha, arXiv:2310.00426).
"""

import dataclasses
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from flax import linen as nn
from jax import Array

from jaxgen.config import Depth, Dtype, Range, Size
from jaxgen.encoders.text import TextTransformer

WORD = re.compile(r'[a-z]+|[0-9]|[^\sa-z0-9]')


@dataclasses.dataclass(frozen=True)
class Captions:
    """The conditioner of text-conditional networks; `sizes` adds PixArt's micro-conditioning."""

    tokens: str
    vocabulary: int
    length: int
    width: int
    text: nn.Module
    sizes: bool
    trains: tuple[str, ...] = ('text',)
    nothing: None = None
    reads: str = 'caption'

    @property
    def holds(self) -> dict[str, nn.Module]:
        """The networks that are part of it, by the names of their parameters."""
        return {'text': self.text}

    @property
    def provides(self) -> dict[str, Any]:
        """What a network's build may ask for by name."""
        return {'caption_width': self.width, 'caption_length': self.length, 'micro_conditioning': self.sizes}

    def init(self, key: Array, arrays: Mapping[str, Array]) -> dict[str, Any]:
        """Fresh parameters of the text network."""
        return {'text': self.text.init(key, arrays['text_ids'], arrays['text_mask'])['params']}

    def ids(self, caption: str) -> list[int]:
        """Token ids from 1 (0 is padding): UTF-8 bytes, or words by a stable hash into the vocabulary."""
        if self.tokens == 'bytes':
            return [1 + byte for byte in caption.encode()]
        return [
            1 + zlib.crc32(word.encode()) % (self.vocabulary - 1) for word in WORD.findall(caption.lower())
        ]

    def arrays(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
        """Padded ids and their mask; captions that are too long are cut."""
        ids = np.zeros((len(examples), self.length), np.int32)
        for row, example in zip(ids, examples):
            known = self.ids(example['caption'])[: self.length]
            row[: len(known)] = known
        arrays = {'text_ids': ids, 'text_mask': ids > 0}
        if self.sizes:
            size = np.asarray([example.get('size') or example['image'].shape[:2] for example in examples])
            arrays['size'] = size.astype(np.float32)
            arrays['aspect'] = (size[:, :1] / size[:, 1:]).astype(np.float32)
        return arrays

    def embed(self, params: Mapping[str, Any], arrays: Mapping[str, Array], drop: Array, keys: Array) -> dict:
        """The condition: text features, their mask, and which of them are left out."""
        features = self.text.apply({'params': params['text']}, arrays['text_ids'], arrays['text_mask'])
        cond = {'text': features, 'text_mask': arrays['text_mask'], 'drop': drop}
        return cond | {name: arrays[name] for name in ('size', 'aspect') if self.sizes}

    def describe(self, example: Mapping[str, Any]) -> str:
        """A caption for pictures and records."""
        return example['caption']

    def example(self, prompt: str) -> dict[str, Any]:
        """The example that a prompt from the command line stands for."""
        tokens = len(self.ids(prompt))
        if tokens > self.length:
            raise ValueError(
                f"the prompt '{prompt[:40]}...' has {tokens} {self.tokens}, and this recipe reads "
                f'{self.length}; shorten it, or train with a longer conditioner.length.'
            )
        return {'caption': prompt}


def build(
    tokens: str = 'words',
    vocabulary: Annotated[int, Range(2, 2**24)] = 4096,
    length: Size = 48,
    width: Size = 256,
    depth: Depth = 2,
    heads: Size = 4,
    sizes: bool = False,
    dtype: Dtype = 'float32',
) -> Captions:
    """Captions as 'words' (hashed into `vocabulary`) or 'bytes', read by `depth` transformer layers."""
    if tokens not in ('words', 'bytes'):
        raise ValueError(f"conditioner.tokens is '{tokens}'; it can be 'words' or 'bytes'.")
    if width % (2 * heads):
        raise ValueError(f'conditioner.width {width} does not divide into {heads} heads of an even width.')
    vocabulary = 257 if tokens == 'bytes' else vocabulary
    text = TextTransformer(vocabulary, width, depth, heads, dtype)
    return Captions(tokens, vocabulary, length, width, text, sizes)
