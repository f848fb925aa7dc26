"""Resizing equals torch's interpolate, live and by a few stored numbers."""

import jax.numpy as jnp
import numpy as np
import pytest
from golden.seeded import normal, relative_error

from jaxgen.layers.resize import resize

SIZES = [(4, 6), (7, 5), (13, 3), (16, 20), (9, 9)]


@pytest.mark.parity
@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('method', ['bilinear', 'bicubic'])
@pytest.mark.parametrize('antialias', [False, True])
def test_equals_torch(size, method, antialias):
    torch = pytest.importorskip('torch')
    x = normal('resize', (2, 9, 9, 3))
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(x.transpose(0, 3, 1, 2)),
        size,
        mode=method,
        align_corners=False,
        antialias=antialias,
    )
    ours = resize(jnp.asarray(x), size, method, antialias=antialias)
    assert relative_error(ours, theirs.numpy().transpose(0, 2, 3, 1)) < 2e-6


@pytest.mark.parity
@pytest.mark.parametrize('size', [*SIZES, (1, 2)])
def test_area_equals_torch(size):
    torch = pytest.importorskip('torch')
    x = normal('resize', (2, 9, 9, 3))
    theirs = torch.nn.functional.interpolate(torch.from_numpy(x.transpose(0, 3, 1, 2)), size, mode='area')
    assert relative_error(resize(x, size, 'area'), theirs.numpy().transpose(0, 2, 3, 1)) < 2e-6


@pytest.mark.parity
@pytest.mark.parametrize('size', SIZES)
def test_an_offset_equals_torch_given_the_scale(size):
    torch = pytest.importorskip('torch')
    x = normal('resize', (2, 9, 9, 3))
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(x.transpose(0, 3, 1, 2)),
        scale_factor=tuple((out + 0.1) / 9 for out in size),
        mode='bicubic',
    )
    ours = resize(jnp.asarray(x), size, offset=0.1)
    assert relative_error(ours, theirs.numpy().transpose(0, 2, 3, 1)) < 2e-6


@pytest.mark.parametrize(
    ('method', 'antialias', 'expected'),
    # torch 2.13, interpolate of the row 0, 1, 4, 9, 16, 25 to four pixels.
    [
        ('bilinear', False, [0.25, 3.25, 10.75, 22.75]),
        ('bicubic', False, [0.121094, 2.828125, 10.796875, 23.207031]),
        ('bilinear', True, [0.375, 3.555556, 10.777778, 21.625]),
        ('bicubic', True, [0.158574, 2.977029, 10.886677, 22.27832]),
        ('area', False, [0.5, 2.5, 12.5, 20.5]),
    ],
)
def test_golden(method, antialias, expected):
    row = (np.arange(6.0) ** 2).astype(np.float32)[None, :, None]
    ours = resize(jnp.asarray(row), (1, 4), method, antialias=antialias)
    np.testing.assert_allclose(ours[0, :, 0], expected, rtol=1e-5, atol=1e-5)


def test_same_size_is_the_identity_and_unknown_methods_are_refused():
    x = jnp.asarray(normal('resize', (5, 4, 2)))
    for method in ('bilinear', 'bicubic'):
        for antialias in (False, True):
            np.testing.assert_allclose(resize(x, (5, 4), method, antialias=antialias), x, atol=1e-6)
    np.testing.assert_array_equal(resize(x, (5, 4), 'area'), x)
    with pytest.raises(ValueError, match='nearest'):
        resize(x, (2, 2), 'nearest')
    with pytest.raises(ValueError, match='neither antialias nor offset'):
        resize(x, (2, 2), 'area', antialias=True)
