"""Telling the labels of pictures: cross-entropy, for small networks whose features are used elsewhere."""

# B batch, H height, W width, C channels

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxgen import keys as random
from jaxgen.config import Whole
from jaxgen.objectives import Loss, Objective, Phase


def build(networks: Mapping[str, Any], conditioner: Any, pad: Whole = 0) -> Objective:
    """Train 'model', pictures in [-1, 1] to (logits, features), on the conditioner's labels.

    pad: pictures are moved about by up to so many pixels, their edges drawn out.
    """
    if getattr(conditioner, 'reads', '') != 'label':
        raise ValueError("objective 'classification' is of labels; it wants conditioner.name='labels'.")

    def telling(pad: int) -> Loss:
        def loss(
            params: Mapping, state: Any, frozen: Mapping, batch: Mapping, keys: Array, step: Array
        ) -> tuple:
            images = _moved(batch['image'], pad, random.fold(keys, 'place'))
            logits, _ = networks['model'](params['model'], images.astype(jnp.float32) / 127.5 - 1)
            errors = optax.softmax_cross_entropy_with_integer_labels(logits, batch['label'])
            right = (logits.argmax(-1) == batch['label']).sum()
            count = jnp.float32(errors.size)
            return errors.sum(), count, state, {'accuracy': (right.astype(jnp.float32), count)}

        return loss

    return Objective((Phase('classification', ('model',), telling(pad)),), held_out=telling(0))


def _moved(images_BHWC: Array, pad: int, keys_B: Array) -> Array:
    """Each picture moved by chance."""
    if not pad:
        return images_BHWC

    def move(image_HWC: Array, key: Array) -> Array:
        whole = jnp.pad(image_HWC, ((pad, pad), (pad, pad), (0, 0)), mode='edge')
        row, column = jax.random.randint(key, (2,), 0, 2 * pad + 1)
        return jax.lax.dynamic_slice(whole, (row, column, 0), image_HWC.shape)

    return jax.vmap(move)(images_BHWC, keys_B)
