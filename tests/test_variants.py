"""Every variant of every config is a program: its parts fit, at their full size, and nothing is drawn."""

import runpy

import jax
import pytest
from configurations import FOLDER, NAMES, configuration

from jaxgen import recipe
from jaxgen.program import assemble

VARIANTS = [
    (name, variant)
    for name in NAMES
    for variant in runpy.run_path(str(FOLDER / f'{name}.py'))['VARIANTS']
    if variant != 'tiny'
]


@pytest.mark.parametrize(('name', 'variant'), VARIANTS)
def test_it_is_built(name, variant):
    config = configuration(name, variant)
    if config.data.name == 'shapes':
        config.data.update(examples=64, test_examples=64)
    else:
        classes = {'classes': 1000} if config.conditioner.name == 'labels' else {'captions': True}
        side = config.data.get('resolution', 32)
        config.data = {'name': 'synthetic', 'resolution': side, 'examples': 64, **classes}
        if 'metric' in config:  # it judges shapes
            del config.metric
    config.mesh = {'fsdp': 1}
    program = assemble(recipe.build(config), jax.devices()[:1])
    assert program.abstract.params
