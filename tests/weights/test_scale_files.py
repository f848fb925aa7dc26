"""The files that VAR's authors hand out, var_d*.pth and vae_ch160v4096z32.pth, drawn from as a user does."""

import jax
import numpy as np
from checkpoints import Tensor, write_zip
from configurations import configuration
from PIL import Image

from jaxgen import pretrained, recipe
from jaxgen.generate import make_generator
from jaxgen.jobs import sample
from jaxgen.program import assemble
from jaxgen.weights import names, published
from jaxgen.weights import var as var_names
from jaxgen.weights import vqgan as vqgan_names


def saved(path, tables, params):
    """The file of a network as torch.save writes it."""
    arrays = names.to_published(tables['authors'], params)
    written = {}
    for name, array in arrays.items():
        array = np.ascontiguousarray(array, np.float32)
        strides = tuple(step // 4 for step in array.strides)
        written[name] = Tensor(array.reshape(-1), 0, array.shape, strides)
    write_zip(path, written)
    return str(path)


def test_they_draw_what_their_parameters_draw(tmp_path):
    config = configuration('var_imagenet').to_dict()
    built = recipe.build(config)
    rng = np.random.RandomState(0)
    params = jax.tree.map(
        lambda leaf: np.float32(leaf + 0.1 * rng.standard_normal(leaf.shape)),
        jax.device_get(jax.jit(built.init)(jax.random.key(0))),
    )
    modules = {name: network.module for name, network in built.networks.items()}
    model = saved(tmp_path / 'var.pth', var_names.layouts(modules['model']), params['model'])
    vae = saved(tmp_path / 'vae.pth', vqgan_names.layouts(modules['tokenizer']), params['tokenizer'])
    published.check(modules['model'], model, params['model'])
    asked = pretrained.configured(config, model, [f'networks.tokenizer.init_from={vae}'])
    record = sample.run(recipe.build(asked), tmp_path / 'run', ['5', '7'], seed=2, weights=model)
    drawn = [np.asarray(Image.open(tmp_path / 'run' / file)).astype(int) for file in record['files']]
    generate = make_generator(built, assemble(built).mesh, built.train.sample_batch)
    examples = [built.conditioner.example(prompt) for prompt in ('5', '7')]
    expected = generate(params, examples, [2, 3], built.sampler.knobs())
    assert np.abs(np.stack(drawn) - expected).max() <= 1 and np.ptp(expected) > 50
