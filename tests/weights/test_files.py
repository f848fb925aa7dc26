"""Paths of published weights: which file, which dictionary of it, and what is said when it is not there."""

import hashlib
import json
import os
import sys
import types

import numpy as np
import pytest
from checkpoints import Call, write_zip
from memory import anonymous

from jaxgen.weights import files, hub, safetensors
from jaxgen.weights.files import open_arrays
from jaxgen.weights.safetensors import Entry

ONE, TWO = {'a': np.ones(2, np.float32)}, {'a': np.full(2, 2, np.float32)}


def save(path, arrays):
    """A file of the kind that its name says."""
    if str(path).endswith('.safetensors'):
        entries = [Entry(name, a.shape, a.dtype, lambda a=a: a) for name, a in arrays.items()]
        safetensors.write(path, entries, safetensors.FORMAT)
    else:
        write_zip(path, arrays)


def shard(folder, kind='safetensors', variant=''):
    """Two shards of {'a': 1, 'b': 2} and their index."""
    stem, index = f'model{variant}', folder / f'model.{kind}.index{variant}.json'
    names = [f'{stem}-0000{i}-of-00002.{kind}' for i in (1, 2)]
    save(folder / names[0], {'a': np.ones(2, np.float32)})
    save(folder / names[1], {'b': np.full(2, 2, np.float32)})
    index.write_text(json.dumps({'metadata': {'total_size': 16}, 'weight_map': dict(zip('ab', names))}))
    return index


def refused(path, said):
    with pytest.raises(ValueError, match=said):
        open_arrays(str(path))


@pytest.mark.parametrize(
    'present, wanted',
    [
        (('model.safetensors',), 'model.safetensors'),
        (('pytorch_model.bin', 'model.safetensors', 'training_args.bin'), 'model.safetensors'),
        (('model.fp16.safetensors', 'model.safetensors'), 'model.safetensors'),
        (('model.fp16.safetensors', 'pytorch_model.bin'), 'pytorch_model.bin'),
        (('model.fp16.safetensors', 'config.json', 'flax_model.msgpack'), 'model.fp16.safetensors'),
        (('open_clip_model.safetensors', 'model.safetensors'), 'model.safetensors'),
        (('DiT-XL-2-256x256.pt', 'README.md'), 'DiT-XL-2-256x256.pt'),
        (('model.ckpt', 'optimizer.bin', 'scheduler.bin', 'rng_state_0.pth'), 'model.ckpt'),
        (
            ('model.safetensors.index.json', 'model-00001-of-00002.safetensors'),
            'model.safetensors.index.json',
        ),
        (('model.safetensors.index.fp16.json', 'a.bin'), 'a.bin'),
        (('model.fp16.safetensors.index.json',), 'model.fp16.safetensors.index.json'),
        (('config.json', 'tokenizer.model', 'training_args.bin'), None),
    ],
)
def test_the_weights_of_a_folder(present, wanted):
    assert hub.choose(present) == wanted


def test_a_folder_is_opened(tmp_path):
    refused(tmp_path, 'no weights in')
    (tmp_path / 'transformer').mkdir()
    refused(tmp_path, 'it has the folders transformer')
    save(tmp_path / 'b.pth', ONE)
    assert open_arrays(str(tmp_path))['a'][0] == 1
    save(tmp_path / 'c.pth', TWO)
    refused(tmp_path, 'several weights, b.pth, c.pth; name one')
    assert open_arrays(f'{tmp_path}/c.pth')['a'][0] == 2
    (tmp_path / 'b.pth').unlink()
    os.rename(tmp_path / 'c.pth', tmp_path / 'model-00001-of-00002.bin')
    refused(tmp_path, 'index of them is missing')


@pytest.mark.parametrize('kind', ['safetensors', 'bin'])
@pytest.mark.parametrize('variant', ['', '.fp16'])
def test_an_index_and_its_shards(tmp_path, kind, variant):
    index = shard(tmp_path, kind, variant)
    for path in (tmp_path, index):
        arrays = open_arrays(str(path))
        assert list(arrays) == ['a', 'b'] and arrays['b'][0] == 2
    assert files.chosen(str(tmp_path)).endswith(f'{index.name} (2 files)')
    refused(f'{index}#ema', '#ema is not needed')
    content = json.loads(index.read_text())
    places = content['weight_map']
    wrong = {
        'lacks what .* says it holds: c': {**places, 'c': places['a']},
        'half-downloaded: 1 of 3 files are missing, model-3.bin': {**places, 'c': 'model-3.bin'},
        'not a file beside it': {**places, 'c': f'../{places["a"]}'},
        'no weight_map': {},
    }
    for said, weight_map in wrong.items():
        index.write_text(json.dumps({**content, 'weight_map': weight_map}))
        refused(tmp_path, said)
    index.write_text('{')
    refused(tmp_path, 'is no JSON')
    index.write_text(json.dumps(content))
    save(tmp_path / places['b'], {'b': np.ones(2), 'x': np.ones(2)})
    refused(tmp_path, 'does not list: x')
    (tmp_path / places['b']).unlink()
    refused(tmp_path, 'half-downloaded: 1 of 2')


DICTIONARIES = {
    'flat': (ONE, '', 1),
    'numbers among them': ({**ONE, 'step': 3, 'none': None}, '', 1),
    'averaged before current': (
        {'model': TWO, 'ema': ONE, 'opt': {'state': {}}},
        "'ema' of model, ema, opt",
        1,
    ),
    'no averages kept': ({'state_dict': ONE, 'state_dict_ema': None, 'epoch': 3}, "'state_dict' of", 1),
    'averages of another form': ({'model': ONE, 'ema': {'decay': 0.999, 'shadow': [TWO]}}, "'model' of", 1),
    'nested': ({'ema': {'module': {'state_dict': ONE}}}, "'ema#module#state_dict' of ema", 1),
    'a counter beside it': ({'step': np.array(7), 'model': ONE}, "'model' of", 1),
    'settings beside it': (
        {'model': ONE, 'args': Call('argparse.Namespace', (), {'a': 1}, True)},
        "'model'",
        1,
    ),
}


@pytest.mark.parametrize('kind', DICTIONARIES)
def test_the_dictionary_of_weights(tmp_path, kind):
    tree, said, first = DICTIONARIES[kind]
    write_zip(tmp_path / 'a.pt', tree)
    arrays = open_arrays(str(tmp_path / 'a.pt'))
    assert list(arrays) == ['a'] and arrays['a'][0] == first
    assert said in files.chosen(str(tmp_path / 'a.pt'))


def test_a_dictionary_by_name(tmp_path):
    path = tmp_path / 'a#b.pt'
    write_zip(path, {'model': TWO, 'ema': ONE, 'other': {'weird': {'a': np.zeros(2)}}, 'list': [1]})
    assert open_arrays(f'{path}#model')['a'][0] == 2
    assert open_arrays(str(path))['a'][0] == 1
    refused(f'{path}#emma', "no dictionary 'emma'; it has model, ema, other")
    refused(f'{path}#list', "no dictionary 'list'")
    refused(f'{path}#other', "'weird' is a dict")
    write_zip(path, [1])
    refused(path, 'it is a list')
    write_zip(path, {'model': {'a': np.ones(2), 'x': 'text'}})
    refused(path, "'model' is a dict")
    refused(f'{path}#model', "'x' is a str")
    save(tmp_path / 'a.safetensors', ONE)
    refused(f'{tmp_path}/a.safetensors#ema', 'no #ema')


def test_prefixes_of_wrappers(tmp_path):
    for prefix in ('module.', '_orig_mod.', 'module._orig_mod.'):
        write_zip(tmp_path / 'a.pt', {f'{prefix}x.weight': np.ones(2), f'{prefix}module.y': np.ones(3)})
        assert list(open_arrays(str(tmp_path / 'a.pt'))) == ['x.weight', 'module.y']
        assert f"without the '{prefix}'" in files.chosen(str(tmp_path / 'a.pt'))
    write_zip(tmp_path / 'a.pt', {'module.x': np.ones(2), 'y': np.ones(2)})
    assert list(open_arrays(str(tmp_path / 'a.pt'))) == ['module.x', 'y']


def test_what_is_not_there(tmp_path, monkeypatch):
    (tmp_path / 'PixArt-XL').mkdir()
    refused(tmp_path / 'PixArt-LX', 'there is no .*PixArt-LX; .* has PixArt-XL')
    refused(tmp_path / 'PixArt-LX' / 'transformer', 'has PixArt-XL')
    refused(tmp_path / 'something', 'there is no .*something; .* has PixArt-XL')
    refused('gs://bucket/model', 'copy them to a local disk')
    (tmp_path / 'a.safetensors').write_bytes(files.POINTER + b'/spec/v1\noid sha256:0\nsize 9\n')
    refused(tmp_path / 'a.safetensors', 'pointer of Git LFS')
    (tmp_path / 'a.h5').write_bytes(b'x')
    refused(tmp_path / 'a.h5', 'not of a kind')
    monkeypatch.setenv('HOME', str(tmp_path))
    save(tmp_path / 'b.pt', ONE)
    assert files.resolve('~/b.pt#ema') == f'{tmp_path}/b.pt#ema'
    assert files.resolve(files.resolve('~/b.pt#ema')) == f'{tmp_path}/b.pt#ema'


def test_fingerprints(tmp_path):
    first, second = tmp_path / 'first', tmp_path / 'second'
    for folder in (first, second):
        folder.mkdir()
        shard(folder)
    same = files.fingerprint(str(first))
    assert files.fingerprint(str(second)) == same
    index = 'model.safetensors.index.json'
    assert files.fingerprint(f'{first}/{index}') == files.fingerprint(f'{second}/{index}')
    (second / 'notes.txt').write_text('not weights')
    assert files.fingerprint(str(second)) == same
    save(second / 'model-00002-of-00002.safetensors', {'b': np.full(2, 3, np.float32)})
    changed = files.fingerprint(str(second))
    assert changed != same != files.fingerprint(f'{second}/{index}')
    save(second / 'model-00002-of-00002.safetensors', {'b': np.zeros(9 * 2**20, np.float32)})
    changed = files.fingerprint(str(second))
    with open(
        second / 'model-00002-of-00002.safetensors', 'r+b'
    ) as stream:  # as large, the same at both ends
        stream.seek(3 * 2**22)
        stream.write(np.ones(2 * 2**20, np.float32).tobytes())
    assert files.fingerprint(str(second)) != changed
    write_zip(tmp_path / 'a.pt', {'model': ONE, 'ema': TWO})
    assert len({files.fingerprint(f'{tmp_path}/a.pt{part}') for part in ('', '#ema', '#model')}) == 3
    with pytest.raises(ValueError, match='no weights'):
        (tmp_path / 'empty').mkdir()
        files.fingerprint(f'{tmp_path}/empty')


def test_several_paths_as_one(tmp_path):
    (tmp_path / 'a,b').mkdir()
    assert files.several(f'{tmp_path}/a,b') == [f'{tmp_path}/a,b']
    assert files.several('a.pt,b.pt#ema') == ['a.pt', 'b.pt#ema']


def test_manifest(tmp_path):
    (tmp_path / 'inner').mkdir()
    (tmp_path / 'inner' / 'a').write_bytes(b'one')
    (tmp_path / 'b').write_bytes(b'')
    one, nothing = (hashlib.sha256(content).hexdigest() for content in (b'one', b''))
    assert files.manifest(str(tmp_path)) == {'b': nothing, 'inner/a': one}


def test_opening_takes_no_memory(tmp_path):
    entries = [
        Entry(str(i), (2**20,), np.dtype(np.float32), lambda: np.ones(2**20, np.float32)) for i in range(24)
    ]
    safetensors.write_sharded(tmp_path, 'model', entries, limit=30 * 2**20)
    before = anonymous()
    arrays = open_arrays(str(tmp_path))
    assert sum(array.nbytes for array in arrays.values()) == 24 * 2**22
    assert anonymous() - before < 5 * 2**20


NEEDED = (
    *('model_index.json', 'DiT.pth', 'tokenizer/spiece.model', 'vae/a.ckpt'),
    *('transformer/config.json', 'transformer/diffusion_pytorch_model.safetensors'),
    *(f'text_encoder/model-0000{i}-of-00002.safetensors' for i in (1, 2)),
    'text_encoder/model.safetensors.index.json',
)
LISTED = (
    *('README.md', 'transformer/diffusion_pytorch_model.fp16.safetensors'),
    *('transformer/diffusion_pytorch_model.bin', 'text_encoder/pytorch_model-00001-of-00002.bin'),
    *NEEDED,
)


def test_what_is_fetched():
    assert hub.wanted(LISTED) == sorted(NEEDED)
    assert hub.wanted(LISTED, 'transformer') == [
        'transformer/config.json',
        'transformer/diffusion_pytorch_model.safetensors',
    ]
    assert hub.wanted(LISTED, 'DiT.pth') == ['DiT.pth', 'model_index.json']
    assert hub.wanted(LISTED, 'scheduler') == []
    with pytest.raises(ValueError, match='several weights'):
        hub.wanted([*LISTED, 'SiT.pth'])
    assert hub.wanted([*LISTED, 'SiT.pth'], 'SiT.pth') == ['SiT.pth', 'model_index.json']


def the_hub(monkeypatch, folder, reachable=True, kept=False):
    """A stand-in for huggingface_hub whose one repository lies in a folder."""
    asked = []

    def list_repo_files(name, revision):
        asked.append((name, revision))
        if not reachable:
            raise ConnectionError('no route\nto host')
        return [str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file()]

    def snapshot_download(name, revision, allow_patterns=None, local_files_only=False):
        if local_files_only and not kept:
            raise FileNotFoundError(name)
        asked.append(allow_patterns)
        return str(folder)

    module = types.SimpleNamespace(list_repo_files=list_repo_files, snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, 'huggingface_hub', module)
    return asked


def test_the_hub(tmp_path, monkeypatch):
    (tmp_path / 'transformer').mkdir()
    save(tmp_path / 'transformer' / 'model.safetensors', ONE)
    write_zip(tmp_path / 'DiT.pth', {'ema': TWO})
    asked = the_hub(monkeypatch, tmp_path)
    assert files.resolve('hf://owner/name') == str(tmp_path)
    assert files.resolve('hf://owner/name@v1.0#ema') == f'{tmp_path}#ema'
    assert asked[2] == ('owner/name', 'v1.0')
    assert open_arrays('hf://owner/name/transformer')['a'][0] == 1
    assert open_arrays('hf://owner/name/DiT.pth#ema')['a'][0] == 2
    assert asked[-1] == ['DiT.pth']
    refused('hf://owner/name/vae', 'has no weights in vae')
    for address in ('hf://owner', 'hf://owner/name/../x', 'hf://'):
        refused(address, 'no address on the hub')


def test_the_hub_is_out_of_reach(tmp_path, monkeypatch):
    save(tmp_path / 'model.safetensors', ONE)
    the_hub(monkeypatch, tmp_path, reachable=False)
    refused('hf://owner/name', r'cannot be fetched \(ConnectionError: no route\)')
    the_hub(monkeypatch, tmp_path, reachable=False, kept=True)
    assert open_arrays('hf://owner/name')['a'][0] == 1
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    refused('hf://owner/name', r'pip install "jaxgen\[hub\]"')


@pytest.mark.parity
@pytest.mark.parametrize('safe', [True, False])
def test_folders_that_diffusers_writes(tmp_path, safe):
    diffusers = pytest.importorskip('diffusers')
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=2, sample_size=4, num_embeds_ada_norm=5
    )
    expected = {name: value.numpy() for name, value in model.state_dict().items()}
    for size in ('20KB', '1GB'):
        folder = tmp_path / size
        model.save_pretrained(folder, safe_serialization=safe, max_shard_size=size)
        arrays = open_arrays(str(folder))
        assert arrays.keys() == expected.keys()
        assert all(np.array_equal(arrays[name], expected[name]) for name in expected)


@pytest.mark.parity
def test_folders_that_transformers_writes(tmp_path):
    transformers = pytest.importorskip('transformers')
    config = transformers.T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2)
    model = transformers.T5EncoderModel(config)
    expected = {name: value.numpy() for name, value in model.state_dict().items()}
    for size in ('6KB', '1GB'):
        folder = tmp_path / size
        model.save_pretrained(folder, max_shard_size=size)
        arrays = open_arrays(str(folder))
        # One of two names of a shared array is written.
        assert {'shared.weight'} <= arrays.keys() <= expected.keys()
        assert all(np.array_equal(arrays[name], expected[name]) for name in arrays)
