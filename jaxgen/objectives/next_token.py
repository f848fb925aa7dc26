"""Next-token prediction: how likely each token is, told those before it (LlamaGen, 2406.06525).

The negative logarithm of the tokens' likelihood, every one counting the same; what their likelihood is says
their alphabet.
"""

# B batch, N tokens of all scales

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import keys as random
from jaxgen.autoregressive import alphabet
from jaxgen.autoregressive.alphabet import Alphabet
from jaxgen.config import Part
from jaxgen.objectives import Loss, Objective, Phase


def build(
    networks: Mapping[str, Any],
    conditioner: Any,
    tokenizer: Any,
    smoothing: Part = 0.0,
    drop: Part = 0.1,
) -> Objective:
    """Train 'model' (and the conditioner's own networks) to predict the tokenizer's tokens.

    smoothing: the share of the target that all codes have alike; drop: how often the condition is left out,
    for guidance.
    """
    alphabet.goes(networks['model'], 'causal', "objective 'next_token'")
    letters = alphabet.between(tokenizer, networks['model'])
    loss = predicting(networks['model'], conditioner, tokenizer, letters, smoothing, drop, train=True)
    held_out = predicting(networks['model'], conditioner, tokenizer, letters, 0.0, 0.0, train=False)
    phase = Phase('next_token', ('model', *conditioner.trains), loss)
    return Objective((phase,), held_out=held_out, reads=tokenizer.reads, uses=tuple(tokenizer.holds))


def predicting(
    network: Any,
    conditioner: Any,
    tokenizer: Any,
    letters: Alphabet,
    smoothing: float,
    drop: float,
    train: bool,
) -> Loss:
    """The loss of a network's tokens; of several scales each one's is told besides."""

    def loss(params: Mapping, state: Any, frozen: Mapping, batch: Mapping, keys: Array, step: Array) -> tuple:
        known = {**frozen['networks'], **params}
        tokens = letters.tokens(known, tokenizer.encode(known, batch, random.fold(keys, 'encode')))
        dropped = random.draw(jax.random.uniform, random.fold(keys, 'drop')) < drop
        cond = conditioner.embed(known, batch, dropped, random.fold(keys, 'embed'))
        per_layer = network.module.drops(random.fold(keys, 'layers')) if train else None
        out, _, _ = network(known['model'], tokens, None, cond, per_layer=per_layer, train=train)
        errors_BN = letters.loss(out, tokens, smoothing)
        metrics = alphabet.errors_by_scale(errors_BN, jnp.ones_like(errors_BN), letters.scales)
        return errors_BN.mean(1).sum(), jnp.float32(len(errors_BN)), state, metrics

    return loss
