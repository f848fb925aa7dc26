"""The classifier that ships reads held-out shapes, and its features tell worse pictures from better ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jaxgen.data import shapes
from jaxgen.encoders import shapes_classifier
from jaxgen.objectives.fidelity import frechet, moments

COUNT = 256


@pytest.fixture(scope='module')
def held_out(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')
    source = shapes.build(
        resolution=32,
        split='test',
        test_examples=COUNT,
        objects=(1, 1),
        data_dir=str(folder),
    )
    examples = [source[index] for index in range(COUNT)]
    return np.stack([example['image'] for example in examples]), np.array([e['label'] for e in examples])


@pytest.fixture(scope='module')
def read():
    network = shapes_classifier.build()
    params = network.init(jax.random.key(0), *network.blank())
    return jax.jit(lambda images: network.apply(params, images.astype(jnp.float32) / 127.5 - 1))


def test_it_reads_labels_that_it_was_not_trained_on_at_these_places(held_out, read):
    images, labels = held_out
    assert (read(images)[0].argmax(-1) == labels).mean() > 0.9


def test_worse_pictures_are_farther(held_out, read):
    def distance(one, other):
        sides = ({name: total / n for name, (total, n) in moments(read(x)[1]).items()} for x in (one, other))
        return frechet(*sides)

    images = held_out[0]
    half, rest = images[: COUNT // 2], images[COUNT // 2 :]
    blurred = [ndimage.gaussian_filter(half, (0, blur, blur, 0)) for blur in (0.7, 1.4)]
    distances = [distance(half, other) for other in (half, *blurred, rest[:, ::-1])]
    assert distances[0] < 1e-6 and distances[0] < distances[1] < distances[2]


def test_another_number_of_labels_has_to_be_trained():
    with pytest.raises(ValueError, match='trained=False'):
        shapes_classifier.build(10)
    assert shapes_classifier.build(10, trained=False).labels == 10
