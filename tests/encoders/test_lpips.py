"""LPIPS by its published names, against its definition written out in torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden.seeded import normal, relative_error, weights

from jaxgen.encoders.lpips import STAGES, Lpips, build
from jaxgen.weights import lpips as family
from jaxgen.weights.names import to_jaxgen, to_published

NARROW = Lpips(tuple((4 * (stage + 1),) * len(widths) for stage, widths in enumerate(STAGES)))


def published(network, layout='torchvision'):
    like = jax.eval_shape(network.init, jax.random.key(0), *family.inputs(network))['params']
    hollow = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), like)
    names = to_published(family.layouts(network)[layout], hollow)
    arrays = weights({name: array.shape for name, array in names.items()})
    signed = {name: np.abs(array) if name.startswith('lin') else array for name, array in arrays.items()}
    return {name: array.astype(np.float32) for name, array in signed.items()}


def reference(arrays, stages, x, y):
    """The authors' forward pass, on torch's layers."""
    torch = pytest.importorskip('torch')
    arrays = {name: torch.tensor(array) for name, array in arrays.items()}
    shift, scale = (torch.tensor(a).view(1, 3, 1, 1) for a in ([-0.03, -0.088, -0.188], [0.458, 0.448, 0.45]))

    def features(h):
        h, position, found = (h - shift) / scale, 0, []
        for stage, widths in enumerate(stages):
            if stage:
                h, position = torch.nn.functional.max_pool2d(h, 2), position + 1
            for _ in widths:
                weight, bias = arrays[f'features.{position}.weight'], arrays[f'features.{position}.bias']
                h, position = torch.relu(torch.nn.functional.conv2d(h, weight, bias, padding=1)), position + 2
            found.append(h / (h.pow(2).sum(1, keepdim=True).sqrt() + 1e-10))
        return found

    total = 0.0
    for stage, (one, other) in enumerate(zip(features(x), features(y))):
        linear = arrays[f'lin{stage}.model.1.weight']
        total = total + torch.nn.functional.conv2d((one - other) ** 2, linear).mean((2, 3))[:, 0]
    return total


@pytest.mark.parity
def test_equals_the_definition():
    torch = pytest.importorskip('torch')
    arrays = published(NARROW)
    params = to_jaxgen(family.layouts(NARROW)['torchvision'], arrays)
    x, y = (np.tanh(normal(name, (2, 40, 32, 3))) for name in 'xy')
    ours, slope = jax.jit(jax.value_and_grad(lambda x: NARROW.apply({'params': params}, x, y).sum()))(x)
    x_t, y_t = (torch.tensor(a.transpose(0, 3, 1, 2)) for a in (x, y))
    theirs = reference(arrays, NARROW.stages, x_t.requires_grad_(), y_t).sum()
    theirs.backward()
    assert relative_error(ours, theirs.item()) < 1e-5
    assert relative_error(slope, x_t.grad.numpy().transpose(0, 2, 3, 1)) < 1e-4


def test_published_names():
    network = build()
    like = jax.eval_shape(network.init, jax.random.key(0), *family.inputs(network))['params']
    shapes = {
        name: array.shape
        for name, array in to_published(
            family.layouts(network)['torchvision'],
            jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), like),
        ).items()
    }
    # torchvision's vgg16().features, and lpips' vgg.pth.
    indices = sorted(int(name.split('.')[1]) for name in shapes if name.endswith('bias'))
    assert indices == [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    assert shapes['features.28.weight'] == (512, 512, 3, 3) and shapes['features.5.weight'] == (128, 64, 3, 3)
    assert shapes['lin4.model.1.weight'] == (1, 512, 1, 1)
    table = family.layouts(NARROW)['lpips']
    arrays, besides = published(NARROW, 'lpips'), {'scaling_layer.shift': np.zeros((1, 3, 1, 1))}
    assert 'net.slice3.14.weight' in arrays
    again = to_published(table, to_jaxgen(table, arrays | besides))
    assert set(again) == set(arrays)


def test_nothing_and_its_gradient():
    params = to_jaxgen(family.layouts(NARROW)['torchvision'], published(NARROW))
    x = jnp.full((1, 32, 32, 3), -0.9)
    value, slope = jax.jit(jax.value_and_grad(lambda x, y: NARROW.apply({'params': params}, x, y).sum()))(
        x, x
    )
    assert value == 0 and np.isfinite(slope).all()
