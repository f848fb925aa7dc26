"""What a recipe refuses, with what it says; parts of one's own; the published sizes at full scale."""

import jax
import pytest
from configurations import configuration
from PIL import Image

from jaxgen import recipe
from jaxgen.program import assemble
from jaxgen.training.cost import parameters


def changed(name='quickstart', **changes):
    """A tiny config with values by dotted name; None takes a key out."""
    config = configuration(name).to_dict()
    for path, value in changes.items():
        *sections, key = path.split('.')
        section = config
        for step in sections:
            section = section.setdefault(step, {})
        if value is None:
            del section[key]
        else:
            section[key] = value
    return config


REFUSALS = {
    'unknown section': ({'tokeniser': {}}, "the config has no key 'tokeniser'; the nearest is 'tokenizer'"),
    'missing section': ({'objective': None}, "the config has no section 'objective'"),
    'missing resolution': ({'data.resolution': None}, 'data.resolution is missing'),
    'unknown key': ({'train.stepz': 1}, "section train has no key 'stepz'; the nearest is 'steps'"),
    'unknown key of a part': ({'model.hiden': 8}, "model has no key 'hiden'; the nearest is 'hidden'"),
    'unknown key of a part of a part': ({'sampler.solver.eta': 1}, "section sampler.solver has no key 'eta'"),
    'unknown key of a network': ({'networks.text': {'frozen': 1}}, "networks.text has no key 'frozen'"),
    'text for a number': ({'train.steps': 'many'}, "train.steps is 'many', a str; it must be int"),
    'fraction for a count': ({'model.depth': 2.5}, 'model.depth is 2.5, a float; it must be int | None'),
    'number for a switch': ({'train.flip': 1}, 'train.flip is 1, an int; it must be bool'),
    'missing key': ({'train.steps': None}, 'train.steps is missing'),
    'missing name': ({'model.name': None}, 'model.name is None; it must be the name of a module'),
    'unknown part': ({'model.name': 'pixert'}, r'no module jaxgen.models.pixert. There are: dit, .*pixart'),
    'unknown part of a part': ({'sampler.solver.name': 'hein'}, r'diffusion.solvers.hein. .*euler, heun'),
    'unknown sampler': ({'sampler.name': 'diffuse'}, 'no module jaxgen.diffuse'),
    'unknown function': ({'model.name': 'jaxgen.models.dit:bild'}, "jaxgen.models.dit has no 'bild'"),
    'unknown network': ({'networks': {'modle': {}}}, "networks has 'modle', which no part"),
    "times that are not the path's": ({'objective.times': 'discrete'}, "set path.name='vp'"),
    "steps that are not the path's": ({'prediction.time': 'steps'}, "set path.name='vp'"),
    'variance of a flow': ({'prediction.learned_variance': True}, 'set learned_variance=False'),
    'unknown path': ({'path.name': 'liner'}, "'linear', 'gvp', 'vp', 'vp_continuous' or 've'"),
    'channels of another model': ({'model.channels': 7}, 'model.channels is 7, and the other parts say 3'),
    'held-out pictures of another size': ({'held_out.resolution': 64}, 'differs from data.resolution, 32'),
    'missing part of the objective': ({'path': None}, "no section 'path', which objective needs"),
    'rule without axes': (
        {'networks': {'model': {'rules': ('kernel',)}}},
        "sharding rule 'kernel' is no pair",
    ),
    'rule that is no regex': ({'networks': {'model': {'rules': (('(', ()),)}}}, 'is no regex'),
    'unfitting fold': ({'tokenizer.fold': 5}, 'tokenizer.fold is 5; it must divide the resolution 32'),
}


@pytest.mark.parametrize('case', REFUSALS)
def test_refused_with_what_to_do(case):
    changes, message = REFUSALS[case]
    with pytest.raises(ValueError, match=message):
        recipe.build(changed(**changes))


def test_classes_come_from_the_data(tmp_path, monkeypatch):
    assert recipe.build(changed('dit_folder')).conditioner.classes == 3
    monkeypatch.setenv('JAXGEN_DATA_DIR', str(tmp_path / 'cache'))
    for index in range(4):
        (tmp_path / 'flat').mkdir(exist_ok=True)
        Image.new('RGB', (16, 16)).save(tmp_path / 'flat' / f'{index}.png')
    data = {'name': 'folder', 'path': str(tmp_path / 'flat'), 'resolution': 16}
    with pytest.raises(ValueError, match="data 'folder' has no classes; use a conditioner of captions"):
        recipe.build(changed('dit_folder', data=data))


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'train.batch': 12}, r'train.batch is 12; it must be a multiple of 8: 8 shards of the mesh'),
        ({'train.accumulate': 2}, r'it must be a multiple of 16: 8 shards of the mesh x accumulate'),
        ({'train.sample_batch': 4}, r'train.sample_batch is 4; it must be a multiple of 8'),
        ({'mesh': {'data': 2, 'model': 4}}, r"mesh axis 'model' does not exist"),
        ({'optimizer.name': 'adamww'}, r"nearest is 'adamw'"),
        ({'optimizer.options': {'consistent_rms': 'x'}}, 'consistent_rms=None, and cannot have it'),
        ({'optimizer.beta': 1}, r"section optimizer has no key 'beta'"),
    ],
)
def test_refused_on_the_mesh(changes, message):
    with pytest.raises(ValueError, match=message):
        assemble(recipe.build(changed(**changes)))


OWN = '''
from flax import linen as nn


class Constant(nn.Module):
    """The network's only number."""

    @nn.compact
    def __call__(self, x, t, cond, memory=None, per_layer=None, capture=(), train=False):
        return x + self.param('number', nn.initializers.constant(self.value), (1,)), {}, memory

    value: float = 0.0


def make(channels: int, value: float = 1.0) -> Constant:
    assert channels == 3
    return Constant(value)
'''


@pytest.mark.parametrize('name', ['own_package.networks:make', 'own_package.networks:other'])
def test_a_part_of_ones_own(name, tmp_path, monkeypatch):
    (tmp_path / 'own_package').mkdir()
    (tmp_path / 'own_package' / 'networks.py').write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    config = changed(model={'name': name, 'value': 2.0})
    if name.endswith('other'):
        with pytest.raises(ValueError, match="own_package.networks has no 'other'"):
            recipe.build(config)
    else:
        params = jax.jit(recipe.build(config).init)(jax.random.key(0))
        assert params['model']['number'] == 2


def full_size(name, **data):
    config = configuration(name, '')
    config.data = {'name': 'synthetic', 'resolution': 256, **data}
    return assemble(recipe.build(config), jax.devices()[:1]).abstract.params['model']


def test_dit_has_its_published_size():
    # The authors count their constant table of 256 positions too.
    count = parameters(full_size('dit_imagenet', classes=1000, captions=False))
    assert count == 675_129_632 - 256 * 1152


def test_pixart_has_its_published_size():
    # The authors hold the null caption of 120 x 4096 in a buffer; here it is a parameter.
    count = parameters(full_size('pixart_alpha', captions=True))
    assert count == 610_856_096 + 120 * 4096
