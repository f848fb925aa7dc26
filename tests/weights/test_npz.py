"""Archives of numpy.savez, as flax trees are published: what is read of them, and what is refused."""

import jax
import numpy as np
import pytest
from golden import make_givt as cases

from jaxgen.models import givt
from jaxgen.weights import files, npz, published
from jaxgen.weights import givt as names
from jaxgen.weights.names import to_published


@pytest.mark.parametrize('before', ['', 'params/'])
@pytest.mark.parametrize('case', list(cases.CASES))
def test_a_network_is_read(tmp_path, case, before):
    network = givt.build(**cases.CASES[case])
    params = cases.parameters(network)
    arrays = to_published(names.authors(network), params)
    np.savez(tmp_path / 'params.npz', **{before + name: array for name, array in arrays.items()})
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    loaded = published.load(network, str(tmp_path / 'params.npz'), like)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_arrays_are_views_of_any_dtype(tmp_path):
    arrays = {
        'a/b': np.arange(6, dtype=np.float64).reshape(2, 3),
        'order': np.asfortranarray(np.arange(6).reshape(2, 3)),
        'none': np.zeros((0, 3)),
        'one': np.float32(3),
        'half': np.asarray(jax.numpy.arange(4, dtype='bfloat16')),
    }
    np.savez(tmp_path / 'a.npz', **arrays)
    found = files.open_arrays(str(tmp_path / 'a.npz'))
    assert isinstance(found['a/b'], np.memmap)
    jax.tree.map(np.testing.assert_array_equal, found, arrays)
    assert {name: array.dtype for name, array in found.items()} == {n: a.dtype for n, a in arrays.items()}


def test_what_cannot_be_mapped_is_refused(tmp_path):
    path = tmp_path / 'a.npz'
    np.savez_compressed(path, a=np.zeros(3))
    with pytest.raises(ValueError, match='is compressed; write it again with numpy.savez'):
        npz.read(path)
    np.savez(path, a=np.array([{}], object))
    with pytest.raises(ValueError, match='a.npy holds objects'):
        npz.read(path)
    np.savez(path, a=np.zeros(1000))
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(ValueError, match='is no archive of arrays, or not all of one'):
        npz.read(path)
    np.savez(path, a=np.zeros(1000))
    path.write_bytes(path.read_bytes().replace(b"'shape': (1000,)", b"'shape': (1001,)"))
    with pytest.raises(ValueError, match=r'a.npy has not the 8,008 bytes'):
        npz.read(path)
    path.write_bytes(path.read_bytes().replace(b'\x93NUMPY', b'\x93NOMPY'))
    with pytest.raises(ValueError, match='a.npy is no array of numpy'):
        npz.read(path)
