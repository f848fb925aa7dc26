"""Caption cleaning gives what diffusers' gives, by a stored list and live."""

import json
import pathlib

import pytest
from golden import make_cleaning

from jaxgen.conditioning.cleaning import clean_caption


def test_stored_captions():
    pairs = json.loads(pathlib.Path(make_cleaning.__file__).with_name('cleaning.json').read_text())
    assert len(pairs) > 300
    assert not [pair for pair in pairs if clean_caption(pair[0]) != pair[1]]


@pytest.mark.parity
@pytest.mark.filterwarnings('ignore:The input')  # beautifulsoup's opinion on addresses
def test_random_captions_equal_diffusers():
    for package in ('diffusers', 'bs4'):
        pytest.importorskip(package)
    clean = make_cleaning.reference()
    texts = [*make_cleaning.ALT_TEXTS, *make_cleaning.captions(1, 1000)]
    assert not [text for text in texts if clean_caption(text) != clean(text)]


def test_broken_markup_is_read_as_text():
    assert clean_caption('a cat <![on[ a mat').startswith('a cat')
