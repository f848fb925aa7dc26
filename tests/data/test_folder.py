"""Folders as users have them: every kind of file, broken ones too, and errors that say what to do."""

import itertools
import json

import numpy as np
import pytest
from PIL import Image

from jaxgen.data import folder, pipeline
from jaxgen.data.source import Description


def picture(path, colour=(10, 200, 30), size=(40, 30), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', size, colour).save(path, **options)


def truncated(path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path, quality=95)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture
def build(tmp_path):
    def build(path=tmp_path / 'pictures', **options):
        common = {'resolution': 16, 'holdout': 0.0, 'data_dir': str(tmp_path / 'cache')}
        return folder.build(str(path), **(common | options))

    return build


@pytest.fixture
def hostile(tmp_path):
    root = tmp_path / 'pictures'
    for name in ('cat', 'dog'):
        for index in range(4):
            picture(root / name / f'{index}.png')
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(root / 'cat' / 'turned.JPG', size=(40, 30), exif=exif)
    Image.new('L', (20, 30), 100).save(root / 'cat' / 'grey.png')
    Image.new('RGB', (20, 30)).quantize(4).save(root / 'cat' / 'palette.png')
    Image.fromarray(np.full((20, 30), 40000, np.uint16)).save(root / 'dog' / 'deep.png')
    Image.new('RGBA', (30, 20), (0, 0, 0, 0)).save(root / 'dog' / 'clear.png')
    picture(root / 'dog' / 'modern.webp')
    (root / 'dog' / 'text.jpg').write_text('no picture at all')
    truncated(root / 'cat' / 'cut.jpg')
    (root / 'cat' / 'notes.txt').write_text('not looked at')
    (root / '.hidden').mkdir()
    (root / '.hidden' / 'x.png').write_text('not looked at')
    return root


def test_every_kind_of_file_is_read_and_broken_ones_are_named_and_replaced(hostile, build):
    source = build(unreadable_limit=0.2)
    assert source.description == Description(16, 2, False, ('cat', 'dog'))
    assert len(source) == 15 and source.unreadable == ['dog/text.jpg']
    names = [entry.name for entry in source.entries]
    examples = [source[index] for index in range(len(source))]
    for example, entry in zip(examples, source.entries, strict=True):
        assert example['image'].shape == (16, 16, 3) and example['image'].dtype == np.uint8
        assert example['label'] == ('dog' in entry.name)
    assert source.unreadable == ['dog/text.jpg', 'cat/cut.jpg']
    cut = names.index('cat/cut.jpg')
    np.testing.assert_array_equal(examples[cut]['image'], examples[cut + 1]['image'])
    assert (examples[names.index('dog/clear.png')]['image'] == 255).all()
    assert (examples[names.index('dog/deep.png')]['image'] == 156).all()
    assert (examples[names.index('cat/grey.png')]['image'] == 100).all()
    assert 'cat/turned.JPG' in names


def test_too_many_broken_files_are_an_error_at_build_or_when_met(hostile, build):
    with pytest.raises(ValueError, match='dog/text.jpg.*unreadable_limit'):
        build(unreadable_limit=0.0)
    source = build(unreadable_limit=1 / 16)
    cut = [entry.name for entry in source.entries].index('cat/cut.jpg')
    with pytest.raises(ValueError, match='2 files.*cat/cut.jpg'):
        source[cut]


def test_batches_of_a_hostile_folder_resume_exactly(hostile, build):
    options = {'seed': 0, 'batch': 4, 'flip': True}
    labels = {'arrays': lambda examples: {'label': np.array([example['label'] for example in examples])}}
    runs = [
        list(itertools.islice(pipeline.batches(source, start_step=start, **labels, **options), 9 - start))
        for source, start in ((build(unreadable_limit=0.2, crop='random'), start) for start in (0, 5))
    ]
    for one, other in zip(runs[0][5:], runs[1], strict=True):
        np.testing.assert_array_equal(one['image'], other['image'])
        np.testing.assert_array_equal(one['label'], other['label'])


def test_the_check_is_done_once_for_a_state_of_the_folder(hostile, build, monkeypatch):
    build(unreadable_limit=0.2)
    monkeypatch.setattr(folder, '_has_good_header', lambda path: pytest.fail(f'{path} was looked at again'))
    assert build(unreadable_limit=0.2).unreadable == ['dog/text.jpg']
    picture(hostile / 'dog' / 'text.jpg')
    monkeypatch.undo()
    assert build(unreadable_limit=0.2).unreadable == []


@pytest.mark.parametrize('key', ['text', 'caption'])
def test_captions_beside_the_pictures(tmp_path, build, key):
    root = tmp_path / 'pictures'
    rows = [{'file_name': f'a/{index}.png', key: f'picture {index}, größer'} for index in range(3)]
    for row in rows:
        picture(root / row['file_name'])
    picture(root / 'a' / 'unsaid.png')
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (root / 'metadata.jsonl').write_text('\n'.join(lines) + '\n\n', encoding='utf-8')
    source = build()
    assert source.description == Description(16, None, True)
    assert [source[index]['caption'] for index in range(3)] == [row[key] for row in rows]
    assert 'label' not in source[0]
    assert build(captions=False).description.classes == 1
    (root / 'metadata.jsonl').write_text(json.dumps(rows[0]) + '\n{"file_name": "a/1.png"}\n')
    with pytest.raises(ValueError, match='line 2 of .*metadata.jsonl'):
        build()
    (root / 'metadata.jsonl').write_text('{"file_name": "a/9.png", "text": "lost"}\n')
    with pytest.raises(ValueError, match='a/9.png'):
        build(unreadable_limit=0.0)


def test_a_part_is_held_out_by_name_and_stays_when_files_are_added(tmp_path, build):
    for index in range(60):
        picture(tmp_path / 'pictures' / 'one' / f'{index}.png', size=(16, 16))

    def names(split):
        return {entry.name for entry in build(split=split, holdout=0.25).entries}

    train, test = names('train'), names('test')
    assert not train & test and len(train | test) == 60 and 5 <= len(test) <= 25
    picture(tmp_path / 'pictures' / 'two' / 'new.png')
    assert names('test') - test <= {'two/new.png'} and test <= names('test')


def test_split_folders_are_the_splits(tmp_path, build):
    root = tmp_path / 'pictures'
    picture(root / 'train' / 'x' / 'a.png')
    with pytest.raises(ValueError, match="holds no 'test'"):
        build(split='test')
    picture(root / 'val' / 'x' / 'b.png')
    assert [entry.name for entry in build(split='train', holdout=0.5).entries] == ['x/a.png']
    assert [entry.name for entry in build(split='test', holdout=0.5).entries] == ['x/b.png']


def test_pictures_without_classes_have_no_labels(tmp_path, build):
    picture(tmp_path / 'pictures' / 'a.png')
    assert build().description == Description(16)
    assert set(build()[0]) == {'image'}


def test_a_random_crop_is_one_of_training_only(tmp_path, build):
    ramp = np.broadcast_to(np.arange(96, dtype=np.uint8), (16, 96))
    (tmp_path / 'pictures').mkdir()
    Image.fromarray(ramp).save(tmp_path / 'pictures' / 'a.png')
    source = build(crop='random')
    starts = {int(source.augmented(0, np.random.default_rng(seed))['image'][0, 0, 0]) for seed in range(50)}
    assert len(starts) > 20 and min(starts) < 10 and max(starts) > 70
    assert source[0]['image'][0, 0, 0] == 40
    assert build(crop='centre').augmented(0, np.random.default_rng(1))['image'][0, 0, 0] == 40


def test_folders_that_cannot_be_are_refused_with_what_to_do(tmp_path, build):
    with pytest.raises(ValueError, match='there is no folder'):
        build(tmp_path / 'nowhere')
    (tmp_path / 'pictures').mkdir()
    with pytest.raises(ValueError, match="has no picture for 'train'"):
        build()
    picture(tmp_path / 'pictures' / 'x' / 'a.png')
    with pytest.raises(ValueError, match='no metadata.jsonl'):
        build(captions=True)
    with pytest.raises(ValueError, match="has no picture for 'test'"):
        build(split='test')
    for options in ({'split': 'dev'}, {'crop': 'left'}, {'holdout': 1.0}, {'resolution': 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            build(**options)


def test_a_class_has_one_number_in_all_splits(tmp_path, build):
    for name in ('train/cat/0.png', 'train/dog/0.png', 'train/fox/0.png', 'test/cat/1.png', 'test/fox/1.png'):
        picture(tmp_path / 'pictures' / name)
    train, test = build(split='train'), build(split='test')
    assert train.description == test.description and train.description.classes == 3
    assert [test[index]['label'] for index in range(2)] == [0, 2]


def test_of_a_few_pictures_one_is_held_out(tmp_path, build):
    for index in range(6):
        picture(tmp_path / 'pictures' / 'cat' / f'{index}.png')
    names = [
        {entry.name for entry in build(split=split, holdout=0.01).entries} for split in ('train', 'test')
    ]
    assert len(names[0]) == 5 and len(names[1]) == 1 and not names[0] & names[1]
