"""diffusers' generators on the same random weights as ours, in torch."""

from typing import Any

import jax
import numpy as np
import pytest
from golden import cases
from golden.seeded import disagreements, relative_error

from jaxgen.weights.names import NameMap, to_jaxgen, to_published


def build(config: dict, table: NameMap, params: dict) -> Any:
    """The network that diffusers makes of a published config, with our parameters."""
    torch, diffusers = pytest.importorskip('torch'), pytest.importorskip('diffusers')
    network = getattr(diffusers, config['_class_name']).from_config(config).eval()
    weights = {name: torch.tensor(np.asarray(a)) for name, a in to_published(table, params).items()}
    left = network.load_state_dict(weights, strict=False)
    assert not left.unexpected_keys and set(left.missing_keys) <= set(table.ignored), left
    published = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    jax.tree.map(np.testing.assert_array_equal, to_jaxgen(table, published, params), params)
    return network


def assert_equals(
    network: Any, table: NameMap, ours: tuple, x: np.ndarray, inputs: dict, tolerance: float
) -> None:
    """Its output and every gradient against ours, (output, by_x, by_params) of cases.run."""
    import torch

    out, by_x, by_params = ours
    x = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).requires_grad_()
    theirs = network(x, **inputs).sample
    weight = cases.cotangent(tuple(theirs.shape[2:]), theirs.shape[1]).transpose(0, 3, 1, 2)
    (theirs * torch.from_numpy(weight.copy())).sum().backward()
    errors = {
        'output': relative_error(out, theirs.detach().numpy().transpose(0, 2, 3, 1)),
        'by_x': relative_error(by_x, x.grad.numpy().transpose(0, 2, 3, 1)),
    }
    assert max(errors.values()) <= tolerance
    gradients: dict[str, np.ndarray] = {}
    for name, parameter in network.named_parameters():
        # DiT's embedders, ours being one, are copied into every block: their gradients add up.
        name = 'transformer_blocks.0' + name[20:] if '.norm1.emb.' in name else name
        grad = np.zeros(parameter.shape) if parameter.grad is None else parameter.grad.numpy()
        gradients[name] = gradients.get(name, 0) + grad
    assert not disagreements(to_published(table, by_params), gradients, tolerance)
