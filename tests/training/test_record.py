"""What a config in a run's records is compared by."""

import copy
import re

import pytest
from configurations import configuration

from jaxgen import recipe
from jaxgen.training.record import compare_tokenizers


@pytest.mark.parametrize(
    'name, changes, said',
    [
        ('flexvar_shapes', {'scales': (2, 8), 'update': 'gradient', 'decay': 0.5}, None),
        ('flexvar_shapes', {'codes': 64}, r'bottleneck.codes \(was 64, is 32\)'),
        ('var_shapes', {'restart': 7}, None),
        ('var_shapes', {'scales': (2, 8)}, 'bottleneck.scales'),
    ],
)
def test_a_tokenizer_told_otherwise_than_its_run_was_is_warned_of(name, changes, said, caplog):
    """But for how its codes were learned, and for scales where each is a picture of its own."""
    built = recipe.build(configuration(name))
    before = copy.deepcopy(built.config['tokenizer'])
    before['bottleneck'].update(changes)
    compare_tokenizers(built, {'tokenizer': before}, 'runs/other')
    assert bool(caplog.text) == bool(said) and re.search(said or '', caplog.text)
