"""Token ids equal those of sentencepiece and of transformers, on a vocabulary trained here."""

import io
import json
import random

import pytest
from golden import make_cleaning

from jaxgen.conditioning.vocabulary import open_vocabulary

SIZE = 230
SPECIAL = {'pad_token': '<pad>', 'eos_token': '</s>', 'unk_token': '<unk>'}
EXTRA = [f'<extra_id_{i}>' for i in range(100)]
FLAGS = {'lstrip': False, 'rstrip': False, 'normalized': False, 'single_word': False}
PUBLISHED = SPECIAL | {
    'tokenizer_class': 'T5Tokenizer',
    'extra_ids': 100,
    'additional_special_tokens': EXTRA,
}
DECODER = {
    **{i: {'content': token, **FLAGS, 'special': True} for i, token in enumerate(SPECIAL.values())},
    **{
        SIZE + 99 - i: {'content': token, **FLAGS, 'lstrip': True, 'rstrip': True, 'special': True}
        for i, token in enumerate(EXTRA)
    },
    SIZE + 100: {'content': '<new>', **FLAGS, 'normalized': True, 'special': False},
}
# What a folder may hold beside its spiece.model.
FOLDERS = {
    'alone': {},
    'no_extra_ids': {'tokenizer_config.json': SPECIAL | {'tokenizer_class': 'T5Tokenizer', 'extra_ids': 0}},
    'as_pixart_publishes': {
        'tokenizer_config.json': PUBLISHED,
        'special_tokens_map.json': {
            'additional_special_tokens': EXTRA,
            **{name: {'content': content, **FLAGS} for name, content in SPECIAL.items()},
        },
        'added_tokens.json': {token: SIZE + 99 - i for i, token in enumerate(EXTRA)} | {'<new>': SIZE + 100},
    },
    'with_decoder': {'tokenizer_config.json': PUBLISHED | {'added_tokens_decoder': DECODER}},
}


@pytest.fixture(scope='module')
def model():
    """A tiny model of sentencepiece's, trained as T5's was."""
    sentencepiece = pytest.importorskip('sentencepiece')
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text for text in make_cleaning.captions(2, 400) if '\0' not in text]),
        model_writer=written,
        vocab_size=SIZE,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        character_coverage=0.99,
        num_threads=1,
        minloglevel=2,
    )
    return written.getvalue()


def texts():
    """Texts of all kinds, some with special tokens."""
    special = ('</s>', ' <pad> ', '<unk>', '<extra_id_0>', 'a <extra_id_99> b', '<extra_id_100>', 'x<new>y')
    odd = ('', '  ', '\u3000', '\r\n', 'word ' * 400, 'x' * 3000, '\0\x07\x1f', 'ﬀ①Ⅷ', 'e\u0301', '\ud800')
    draw = random.Random(0)
    mixed = [
        ''.join(draw.choice((text, *special, *odd[:4])) for text in make_cleaning.captions(i, 4))
        for i in range(50)
    ]
    return [*special, *odd, *mixed, *make_cleaning.ALT_TEXTS, *make_cleaning.captions(3, 250)]


def written(folder, model, files):
    """A folder of a tokenizer."""
    folder.mkdir()
    (folder / 'spiece.model').write_bytes(model)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return str(folder)


def encodable(text):
    """What both sides are asked for: transformers takes no half characters."""
    return text.encode('utf-8', 'replace').decode()


def test_ids_equal_sentencepiece(model, tmp_path):
    import sentencepiece

    reference = sentencepiece.SentencePieceProcessor(model_proto=model)
    vocabulary = open_vocabulary(written(tmp_path / 'folder', model, FOLDERS['no_extra_ids']))
    plain = [text for text in map(encodable, texts()) if not any(token in text for token in SPECIAL.values())]
    assert len(plain) > 300 and vocabulary.size == SIZE
    assert not [text for text in plain if vocabulary.ids(text) != [*reference.encode(text), 1]]


@pytest.mark.parity
@pytest.mark.parametrize('files', list(FOLDERS))
def test_ids_equal_transformers(files, model, tmp_path):
    transformers = pytest.importorskip('transformers')
    folder = written(tmp_path / 'folder', model, FOLDERS[files])
    kind = transformers.T5Tokenizer if files == 'alone' else transformers.AutoTokenizer
    reference = kind.from_pretrained(folder)
    assert isinstance(reference, transformers.T5Tokenizer)
    reference.save_pretrained(tmp_path / 'json')
    open_vocabulary(folder).save(str(tmp_path / 'copy'))
    for place in (folder, tmp_path / 'json', tmp_path / 'copy'):
        vocabulary = open_vocabulary(str(place))
        assert vocabulary.size == len(reference)
        asked = list(map(encodable, texts()))
        assert not [text for text in asked if vocabulary.ids(text) != reference(text).input_ids]


@pytest.mark.parity
@pytest.mark.filterwarnings('ignore:This sequence already has')
def test_bytes_equal_byt5(tmp_path):
    transformers = pytest.importorskip('transformers')
    vocabulary = open_vocabulary()
    vocabulary.save(str(tmp_path / 'folder'))
    for reference in (
        transformers.ByT5Tokenizer(),
        transformers.AutoTokenizer.from_pretrained(tmp_path / 'folder'),
    ):
        assert isinstance(reference, transformers.ByT5Tokenizer) and len(reference) == vocabulary.size
        asked = list(map(encodable, texts()))
        assert not [text for text in asked if vocabulary.ids(text) != reference(text).input_ids]


def test_bytes(tmp_path):
    vocabulary = open_vocabulary()
    assert vocabulary.ids('aé') == [97 + 3, 0xC3 + 3, 0xA9 + 3, 1] and vocabulary.ids('') == [1]
    assert vocabulary.ids('a </s> b<extra_id_124>') == [100, 1, 101, 259 + 124, 1]
    assert vocabulary.ids('a</s>') == [100, 1] and vocabulary.size == 384
    vocabulary.save(str(tmp_path))
    assert open_vocabulary(str(tmp_path)).ids('é') == vocabulary.ids('é')


def test_what_is_broken_or_missing_is_one_error(model, tmp_path):
    def refused(match):
        with pytest.raises(ValueError, match=match):
            open_vocabulary(str(tmp_path))

    refused('neither spiece.model nor tokenizer.json')
    with pytest.raises(ValueError, match='nowhere is no folder'):
        open_vocabulary('nowhere')
    draw = random.Random(0)
    for _ in range(60):
        (tmp_path / 'spiece.model').write_bytes(model[: draw.randrange(len(model))])
        refused('is no folder of a T5 tokenizer')
    (tmp_path / 'spiece.model').write_bytes(model)
    (tmp_path / 'added_tokens.json').write_text('{"<new>": 7}')
    refused('<new>. has id 7 by its files')
    (tmp_path / 'added_tokens.json').write_text('[')
    refused('is no folder of a T5 tokenizer')
    (tmp_path / 'added_tokens.json').unlink()
    (tmp_path / 'tokenizer.json').write_text('{"version": "1.0"}')
    refused('is no folder of a T5 tokenizer')
