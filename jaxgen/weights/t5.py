"""T5's published names: those of transformers, for encoders alone and for whole models (1910.10683).

The decoder of a whole model is left out. The token table is published as `shared`, as the encoder's own, or
as both, which are the same.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import linen as nn

from jaxgen.weights.names import MATRIX, SAME, NameMap, Row

CLASSES = ('T5EncoderModel', 'T5ForConditionalGeneration', 'T5Model', 'T5WithLMHeadModel', 't5')

_KEYS = {  # published key -> (ours, what it is when absent)
    'vocab_size': ('vocabulary', 32128),
    'd_model': ('width', 512),
    'd_ff': ('ff', 2048),
    'num_layers': ('depth', 6),
    'num_heads': ('heads', 8),
    'd_kv': ('head_width', 64),
    'relative_attention_num_buckets': ('buckets', 32),
    'relative_attention_max_distance': ('distance', 128),
    'layer_norm_epsilon': ('epsilon', 1e-6),
}
_FEED_FORWARD = {'gated-gelu': True, 'relu': False}


def from_config(published: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of encoders.t5.build that a published config asks for."""
    kind, feed_forward = published.get('model_type', 't5'), published.get('feed_forward_proj', 'relu')
    if kind != 't5':
        raise ValueError(f'model_type is {kind!r}; this is the encoder of t5 (version 1.1 or 1.0) only.')
    if feed_forward not in _FEED_FORWARD:
        raise ValueError(f'feed_forward_proj is {feed_forward!r}; choose from {sorted(_FEED_FORWARD)}.')
    if published.get('is_decoder', False):
        raise ValueError('is_decoder is true; only the encoder of T5 is here.')
    sizes = {ours: published.get(theirs, absent) for theirs, (ours, absent) in _KEYS.items()}
    return sizes | {'gated': _FEED_FORWARD[feed_forward]}


def to_config(network: nn.Module) -> dict[str, Any]:
    """The config.json that transformers reads the encoder with."""
    return {
        'architectures': [CLASSES[0]],
        'model_type': 't5',
        'is_encoder_decoder': False,
        'use_cache': False,
        'feed_forward_proj': 'gated-gelu' if network.gated else 'relu',
        'pad_token_id': 0,
        'eos_token_id': 1,
        'tie_word_embeddings': False,
    } | {theirs: getattr(network, ours) for theirs, (ours, _) in _KEYS.items()}


def inputs(network: nn.Module) -> tuple[np.ndarray, ...]:
    """The least that the encoder reads."""
    return np.zeros((1, 1), np.int32), np.ones((1, 1), bool)


def layouts(network: nn.Module) -> dict[str, NameMap]:
    """transformers' names."""
    block, ours = 'encoder.block.{i}.layer', 'blocks/stack/{i}'
    matrices = {f'0.SelfAttention.{name[0]}': name for name in ('query', 'key', 'value', 'out')}
    mlp = {'wi_0': 'gate', 'wi_1': 'up', 'wo': 'down'} if network.gated else {'wi': 'up', 'wo': 'down'}
    matrices |= {f'1.DenseReluDense.{theirs}': name for theirs, name in mlp.items()}
    rows = (
        Row('shared.weight', ('token',), SAME),
        Row('encoder.embed_tokens.weight', ('token',), SAME),
        Row('encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight', ('positions',), SAME),
        *(
            Row(f'{block}.{theirs}.weight', (f'{ours}/{name}/kernel',), MATRIX)
            for theirs, name in matrices.items()
        ),
        Row(f'{block}.0.layer_norm.weight', (f'{ours}/norm1/scale',), SAME),
        Row(f'{block}.1.layer_norm.weight', (f'{ours}/norm2/scale',), SAME),
        Row('encoder.final_layer_norm.weight', ('norm/scale',), SAME),
    )
    return {'transformers': NameMap(rows, ignored=('decoder.*', 'lm_head.weight'))}
