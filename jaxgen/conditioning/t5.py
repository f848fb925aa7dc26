"""Captions read by a frozen T5, as PixArt has it (Chen et al., 2310.00426): cleaned, 120 or 300 tokens.

Token ids and their mask come from the host, features [B, length, width] from the device, or both were
computed beforehand: an example may carry its caption's features. The network owns its null embedding; where
published weights have none (diffusers' layout), the empty caption stands for it.
"""

# B batch, M tokens, W width

import dataclasses
import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from jaxgen.conditioning.cleaning import clean_caption
from jaxgen.conditioning.vocabulary import Vocabulary, open_vocabulary
from jaxgen.config import Count, Depth, Dtype, Positive, Size
from jaxgen.encoders import t5

log = logging.getLogger('jaxgen')


@dataclasses.dataclass(frozen=True)
class T5Captions:
    """The conditioner of networks that read T5's features; `sizes` adds PixArt's micro-conditioning.

    `empty_null`: a condition that is left out is that of the empty caption, under its own mask.
    """

    vocabulary: Vocabulary
    text: t5.T5Encoder
    length: int
    clean: bool
    sizes: bool
    empty_null: bool
    trains: tuple[str, ...] = ()
    reads: str = 'caption'

    @property
    def holds(self) -> dict[str, nn.Module]:
        """The networks that are part of it, by the names of their parameters."""
        return {'text': self.text}

    @property
    def nothing(self) -> dict[str, str] | None:
        """The example that stands for no condition, where the network has no embedding of its own for it."""
        return {'caption': ''} if self.empty_null else None

    @property
    def provides(self) -> dict[str, Any]:
        """What a network's build may ask for by name."""
        return {
            'caption_width': self.text.width,
            'caption_length': self.length,
            'micro_conditioning': self.sizes,
        }

    @property
    def blank(self) -> dict[str, np.ndarray]:
        """Features as examples carry them, and those of the empty caption, by shape and type."""
        names = {'text': 1, 'null': len(self.ids(''))}
        return {name: np.zeros((tokens, self.text.width), self.text.dtype) for name, tokens in names.items()}

    def init(self, key: Array, arrays: Mapping[str, Array]) -> dict[str, Any]:
        """Fresh parameters of the text network."""
        ids = jnp.zeros((1, self.length), jnp.int32)
        return {'text': self.text.init(key, ids, ids == 0)['params']}

    def ids(self, caption: str) -> list[int]:
        """The ids of a caption, cut to `length` with its end kept."""
        ids = self._all_ids(caption)
        return ids if len(ids) <= self.length else ids[: self.length - 1] + ids[-1:]

    def cache_key(self, caption: str) -> str:
        """The same for captions with the same features."""
        return hashlib.sha256(f'{self.length} {self.ids(caption)}'.encode()).hexdigest()

    def arrays(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
        """Padded ids or features and their mask; captions that are too long are cut."""
        if any('text' in example for example in examples):
            arrays = self._padded_features(examples, 'text', self.length)
        else:
            arrays = self._padded_ids(examples)
        if self.empty_null and any('null' in example for example in examples):
            # Short, as it is the same for every example: `embed` makes it as long as the others.
            longest = max(len(example.get('null', ())) for example in examples)
            null = self._padded_features(examples, 'null', longest)
            arrays |= {'null_text': null['text'], 'null_mask': null['text_mask']}
        if self.sizes:
            size = np.asarray([e['size'] if 'size' in e else e['image'].shape[:2] for e in examples])
            arrays['size'] = size.astype(np.float32)
            arrays['aspect'] = (size[:, :1] / size[:, 1:]).astype(np.float32)
        return arrays

    def features(self, params: Mapping[str, Any], arrays: Mapping[str, Array]) -> tuple[Array, Array]:
        """The frozen part alone: features [B, M, W] and their mask."""
        mask = arrays['text_mask']
        return self.text.apply({'params': params['text']}, arrays['text_ids'], mask), mask

    def embed(self, params: Mapping[str, Any], arrays: Mapping[str, Array], drop: Array, keys: Array) -> dict:
        """The condition: text features, their mask, and which of them are left out."""
        if 'text' in arrays:
            text, mask = arrays['text'].astype(self.text.dtype), arrays['text_mask']
        else:
            text, mask = self.features(params, arrays)
        if self.empty_null:
            null, null_mask = self._null(params, arrays)
            text = jnp.where(drop[:, None, None], null, text)
            mask = jnp.where(drop[:, None], null_mask, mask)
            drop = jnp.zeros_like(drop)
        cond = {'text': text, 'text_mask': mask, 'drop': drop}
        return cond | {name: arrays[name] for name in ('size', 'aspect') if self.sizes}

    def describe(self, example: Mapping[str, Any]) -> str:
        """A caption for pictures and records."""
        return example['caption']

    def example(self, prompt: str) -> dict[str, Any]:
        """The example that a prompt from the command line stands for; one that is too long is cut later."""
        tokens = len(self._all_ids(prompt))
        if tokens > self.length:
            log.warning(
                "The prompt '%.40s...' has %d tokens; the first %d are read.", prompt, tokens, self.length
            )
        return {'caption': prompt}

    def _all_ids(self, caption: str) -> list[int]:
        return self.vocabulary.ids(clean_caption(caption) if self.clean else caption.lower().strip())

    def _padded_ids(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
        ids = np.zeros((len(examples), self.length), np.int32)
        mask = np.zeros(ids.shape, bool)
        for row, real, example in zip(ids, mask, examples):
            known = self.ids(example['caption'])
            row[: len(known)], real[: len(known)] = known, True
        return {'text_ids': ids, 'text_mask': mask}

    def _padded_features(
        self, examples: Sequence[Mapping[str, Any]], name: str, length: int
    ) -> dict[str, np.ndarray]:
        """The features [tokens, W] that examples carry under `name`, padded with zeros, and their mask."""
        given = [example[name] for example in examples if name in example]
        if len(given) < len(examples):
            raise ValueError(
                f"{len(given)} of {len(examples)} examples carry '{name}' features; give all, or none."
            )
        width = self.text.width
        features = np.zeros((len(given), length, width), given[0].dtype)
        mask = np.zeros(features.shape[:2], bool)
        for row, real, one in zip(features, mask, given):
            if one.ndim != 2 or one.shape[1] != width or len(one) > self.length:
                raise ValueError(
                    f"'{name}' features of shape {one.shape}; this conditioner takes [tokens, {width}] with "
                    f'at most {self.length} tokens: compute them with the same text encoder and length.'
                )
            row[: len(one)], real[: len(one)] = one, True
        return {'text': features, 'text_mask': mask}

    def _null(self, params: Mapping[str, Any], arrays: Mapping[str, Array]) -> tuple[Any, Any]:
        """Features and mask of the empty caption, for each or one for all."""
        if 'null_text' in arrays:
            rest = self.length - arrays['null_mask'].shape[1]
            null = jnp.pad(arrays['null_text'].astype(self.text.dtype), ((0, 0), (0, rest), (0, 0)))
            return null, jnp.pad(arrays['null_mask'], ((0, 0), (0, rest)))
        if 'text' in params:
            return self.features(params, self._padded_ids([{'caption': ''}]))
        # Not known here, nor needed where no caption is left out; where one is, NaN is seen.
        return jnp.asarray(jnp.nan, self.text.dtype), False


def build(
    tokens: str = '',
    length: Size = 120,
    clean: bool = True,
    sizes: bool = False,
    empty_null: bool = False,
    size: str = 'xxl',
    vocabulary: Count = 32128,
    width: Size | None = None,
    ff: Size | None = None,
    depth: Depth | None = None,
    heads: Size | None = None,
    head_width: Size = 64,
    buckets: Count = 32,
    distance: Count = 128,
    gated: bool = True,
    epsilon: Positive = 1e-6,
    dtype: Dtype = 'float32',
) -> T5Captions:
    """Captions as `length` tokens, read by a frozen T5.

    `tokens` is the folder of a published tokenizer; '' is bytes. From `size` on the arguments are the
    encoder's, see encoders.t5.build.
    """
    known = open_vocabulary(tokens)
    if known.size > vocabulary:
        raise ValueError(
            f'conditioner.vocabulary is {vocabulary}, and the tokenizer has {known.size} ids; give at least '
            'as many.'
        )
    text = t5.build(
        size, vocabulary, width, ff, depth, heads, head_width, buckets, distance, gated, epsilon, dtype
    )
    return T5Captions(known, text, length, clean, sizes, empty_null)
