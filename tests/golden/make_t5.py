"""T5's golden file: outputs, gradients and buckets of transformers on seeded weights, and the case itself.

Needs torch and transformers. From the repository's root: PYTHONPATH=.:tests python tests/golden/make_t5.py
"""

import pathlib

import jax
import numpy as np
from golden.seeded import normal, weights

from jaxgen.encoders import t5
from jaxgen.weights import t5 as family
from jaxgen.weights.names import to_jaxgen, to_published

SIZES = dict(vocabulary=30, width=12, ff=20, depth=2, heads=2, head_width=8, buckets=8, distance=20)
CASES = {'gated': SIZES, 'relu': SIZES | {'gated': False}}
IDS = np.random.RandomState(0).randint(3, SIZES['vocabulary'], (3, 24)).astype(np.int32)
MASK = np.arange(IDS.shape[1])[None] < np.array([24, 11, 1])[:, None]
STEPS = 1024  # of distance to either side


def cotangent(width: int) -> np.ndarray:
    """What the features are multiplied with, so that padding gives no gradient."""
    return normal('cotangent', (*IDS.shape, width)) * MASK[:, :, None]


def parameters(network: t5.T5Encoder) -> tuple[dict[str, np.ndarray], dict]:
    """Seeded weights under their published names, and as our tree."""
    like = jax.eval_shape(network.init, jax.random.key(0), IDS, MASK)['params']
    table = family.layouts(network)['transformers']
    hollow = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), like)
    drawn = weights({name: array.shape for name, array in to_published(table, hollow).items()})
    published = {name: array.astype(np.float32) for name, array in drawn.items()}
    return published, to_jaxgen(table, published, like)


def reference(network: t5.T5Encoder, published: dict[str, np.ndarray]):
    """transformers' encoder with the same weights, which it shares the memory of."""
    import torch
    from transformers import T5Config, T5EncoderModel

    with torch.device('meta'):
        model = T5EncoderModel(T5Config(**family.to_config(network))).eval()
    state = {name: torch.from_numpy(array) for name, array in published.items()}
    state['encoder.embed_tokens.weight'] = state['shared.weight']
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    return model


def run_reference(model) -> dict[str, np.ndarray]:
    """Features, and the gradients of all weights by their published names."""
    import torch

    ids, mask = torch.from_numpy(IDS).long(), torch.from_numpy(MASK).long()
    out = model(ids, attention_mask=mask).last_hidden_state
    (out * torch.from_numpy(cotangent(out.shape[-1]))).sum().backward()
    gradients = {name: one.grad.numpy() for name, one in model.named_parameters()}
    return {'out': out.detach().numpy()} | gradients


def reference_buckets(buckets: int, distance: int) -> np.ndarray:
    """The buckets of the offsets from -STEPS to STEPS."""
    import torch
    from transformers.models.t5.modeling_t5 import T5Attention

    offsets = torch.arange(-STEPS, STEPS + 1)
    return T5Attention._relative_position_bucket(offsets, True, buckets, distance).numpy()


def main() -> None:
    stored = {'buckets': reference_buckets(32, 128).astype(np.int8)}
    for case, settings in CASES.items():
        network = t5.build(**settings)
        results = run_reference(reference(network, parameters(network)[0]))
        stored |= {f'{case}/{name}': array for name, array in results.items()}
    np.savez_compressed(pathlib.Path(__file__).with_name('t5.npz'), **stored)


if __name__ == '__main__':
    main()
