"""Published weights become a run and a run published weights, tensor for tensor; neither needs torch."""

import functools
import hashlib
import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import published
import pytest
from PIL import Image

from jaxgen import config as configs
from jaxgen import generate, pretrained, recipe
from jaxgen.diffusion.sampler import DiffusionSampler
from jaxgen.jobs import convert, sample, train
from jaxgen.program import Program, assemble, origin
from jaxgen.weights import files, pixart, safetensors
from jaxgen.weights.names import entries

FOREIGN = ('torch', 'tensorflow', 'diffusers', 'transformers', 'safetensors')
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def light(monkeypatch, tmp_path):
    """One device, and programs compiled without optimisation."""
    for module in (convert, generate, sample, train):
        monkeypatch.setattr(module, 'assemble', functools.partial(assemble, devices=jax.devices()[:1]))
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', False)


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp('published') / 'weights'
    published.publish(folder)
    return folder


def tensors(folder):
    """Every tensor of a folder by file and name."""
    return {
        (file.relative_to(folder), name): np.asarray(array)
        for file in sorted(pathlib.Path(folder).rglob('*.safetensors'))
        for name, array in safetensors.read(str(file)).items()
    }


def assert_same_tensors(one, other):
    one, other = tensors(one), tensors(other)
    assert one.keys() == other.keys() and len(one) > 100
    for name, array in one.items():
        assert array.dtype == other[name].dtype
        np.testing.assert_array_equal(array, other[name])


def configured(weights, *overrides):
    return recipe.build(pretrained.configured({}, str(weights), overrides))


def half_precision(folder, copy):
    """The same folder in the halves that published folders often are in."""
    shutil.copytree(folder, copy)
    for file in pathlib.Path(copy).rglob('*.safetensors'):
        dtype = jax.numpy.bfloat16 if 'text' in str(file) else np.float16
        arrays = {name: np.array(array).astype(dtype) for name, array in safetensors.read(str(file)).items()}
        entries = [(name, a.shape, a.dtype, lambda a=a: a) for name, a in arrays.items()]
        safetensors.write(str(file), entries, {'format': 'pt'})
    return copy


@pytest.mark.parametrize('half', [False, True])
def test_there_and_back_is_identical(weights, half, tmp_path):
    weights = half_precision(weights, tmp_path / 'half') if half else weights
    built = configured(weights)
    record = convert.run(built, tmp_path / 'run', weights=str(weights))
    assert record['files'] == json.loads((tmp_path / 'run' / 'convert.json').read_text())['files']
    name, digest = next(iter(record['files'].items()))
    assert hashlib.sha256((tmp_path / 'run' / name).read_bytes()).hexdigest() == digest
    convert.run(built, tmp_path / 'run', export=str(tmp_path / 'back'))
    assert_same_tensors(weights, tmp_path / 'back')
    for file in (
        'model_index.json',
        'transformer/config.json',
        'vae/config.json',
        'text_encoder/config.json',
    ):
        ours, theirs = (json.loads((folder / file).read_text()) for folder in (tmp_path / 'back', weights))
        assert ours == theirs


def test_a_converted_run_draws_the_same(weights, tmp_path):
    prompts = ['a red circle', 'two blue squares']
    direct = generate.open_weights(str(weights))(prompts, seed=3)
    convert.run(configured(weights), tmp_path / 'run', weights=str(weights))
    shutil.move(tmp_path / 'run', tmp_path / 'moved')
    again = generate.open_run(str(tmp_path / 'moved'))(prompts, seed=3)
    assert direct.std() > 1
    np.testing.assert_array_equal(direct, again)
    kept = [file.parent.name for file in (tmp_path / 'home').rglob('*.safetensors')]
    assert len(kept) == 6 and len(set(kept)) == 2  # for the folder and for the run, of both and of no prompt


def test_where_an_encoder_comes_from_is_told_apart(weights, tmp_path):
    other = tmp_path / 'other'
    shutil.copytree(weights / 'text_encoder', other)
    inside = f'networks.text.init_from={other}'
    ours, theirs = assemble(configured(weights)), assemble(configured(weights, inside))
    assert origin(ours, 'text') == origin(theirs, 'text')
    with open(other / 'model.safetensors', 'r+b') as file:
        file.seek(-4, 2)
        file.write(np.float32(7).tobytes())
    assert origin(ours, 'text') != origin(theirs, 'text')
    convert.run(ours.recipe, tmp_path / 'run', weights=str(weights))
    run = origin(ours, 'text', tmp_path / 'run')
    assert run not in ('', origin(ours, 'text'))
    assert origin(theirs, 'text', tmp_path / 'run') == run  # a run that holds it is not asked for another
    later = assemble(configured(weights, f'networks.text.init_from={tmp_path / "run"}'))
    assert origin(later, 'text') == run
    both = configured(weights, f'networks.text.init_from={other},{other}')
    assert origin(assemble(both), 'text').split() == [origin(theirs, 'text')] * 2


def test_weights_on_the_hub(weights, monkeypatch, tmp_path):
    monkeypatch.setattr(
        files.hub, 'fetched', lambda address: address.replace('hf://owner/name', str(weights))
    )
    built = configured('hf://owner/name', 'networks.text.init_from=hf://owner/name/text_encoder')
    assert built.networks['model'].init_from == str(weights / 'transformer')
    program = convert.check(built, tmp_path / 'run', weights='hf://owner/name')
    assert origin(program, 'text') == origin(assemble(configured(weights)), 'text')


def trained(weights, workdir):
    """The recipe of two steps of fine-tuning, taken."""
    data = "data={'name': 'synthetic', 'resolution': 16, 'captions': True, 'examples': 8}"
    built = configured(weights, data, 'train.steps=2', 'train.batch=2', 'train.sample_batch=2')
    train.run(built, workdir)
    return built


def test_what_is_trained_from_weights_is_published(weights, tmp_path):
    """Fine-tuned, sampled, exported: the same pictures from the run and from its export."""
    built = trained(weights, tmp_path / 'run')
    drawn = sample.run(built, tmp_path / 'run', prompt=['a cat'], weights=str(weights), trained=True)
    assert drawn['checkpoint'] == 2
    convert.run(built, tmp_path / 'run', export=str(tmp_path / 'export'))
    from_run = generate.open_run(str(tmp_path / 'run'))(['a cat'], seed=1)
    from_export = generate.open_weights(str(tmp_path / 'export'))(['a cat'], seed=1)
    np.testing.assert_array_equal(from_run, from_export)
    before, after = tensors(weights), tensors(tmp_path / 'export')
    changed = {str(file) for (file, name), array in after.items() if not (array == before[file, name]).all()}
    assert changed == {'transformer/diffusion_pytorch_model.safetensors'}


def test_authors_files_side_by_side(weights, tmp_path):
    """The model in its authors' names, with folders of T5 and the autoencoder beside it."""
    built, params = published.random_recipe()
    folder = tmp_path / 'side'
    shutil.copytree(weights / 'text_encoder', folder / 't5-v1_1')
    shutil.copy(weights / 'tokenizer' / 'tokenizer_config.json', folder / 't5-v1_1')
    shutil.copytree(weights / 'vae', folder / 'sd-vae')
    authors = pixart.layouts(built.networks['model'].module)['authors']
    safetensors.write(str(folder / 'PixArt.safetensors'), entries(authors, params['model']), {})
    config = pretrained.configured(configs.load(published.CONFIG), str(folder))
    record = sample.run(recipe.build(config), tmp_path / 'run', prompt=['a cat'], weights=str(folder))
    program = assemble(built, jax.devices()[:1])
    draw = generate.drawing(program, lambda names: {name: params[name] for name in names})
    with Image.open(tmp_path / 'run' / record['files'][0]) as picture:
        np.testing.assert_allclose(np.asarray(picture), draw(['a cat'])[0], atol=1)
    shutil.rmtree(folder / 'sd-vae')
    config = pretrained.configured(configs.load(published.CONFIG), str(folder))
    with pytest.raises(ValueError, match="the network 'tokenizer', which would be random"):
        sample.check(recipe.build(config), tmp_path / 'run', weights=str(folder))


@pytest.mark.parity
def test_an_export_is_what_diffusers_reads_and_draws(tmp_path, monkeypatch):
    torch, diffusers = pytest.importorskip('torch'), pytest.importorskip('diffusers')
    # Its pipeline tells sizes only to networks of 1024 pixels.
    published.publish(tmp_path / 'weights', overrides=['conditioner.sizes=false'])
    built = trained(tmp_path / 'weights', tmp_path / 'run')
    convert.run(built, tmp_path / 'run', export=str(tmp_path / 'export'))
    pipeline = diffusers.PixArtAlphaPipeline.from_pretrained(tmp_path / 'export')
    assert type(pipeline.tokenizer).__name__ == 'ByT5Tokenizer'
    for part in ('transformer', 'vae', 'text_encoder'):
        theirs = {name: array.numpy() for name, array in getattr(pipeline, part).state_dict().items()}
        for (_, name), array in tensors(tmp_path / 'export' / part).items():
            np.testing.assert_array_equal(array, theirs[name])
    noise = np.float32(np.random.RandomState(1).standard_normal((1, *built.tokenizer.latent)))
    monkeypatch.setattr(DiffusionSampler, 'noise', lambda self, keys: noise)
    drawn = generate.open_run(str(tmp_path / 'run'))(['a cat'], knobs={'steps': 3, 'guidance': 2.0})
    theirs = pipeline(
        'a cat',
        num_inference_steps=3,
        guidance_scale=2.0,
        latents=torch.from_numpy(noise.transpose(0, 3, 1, 2).copy()),
        height=16,
        width=16,
        use_resolution_binning=False,
        clean_caption=False,
        output_type='np',
    ).images
    assert drawn.std() > 1
    np.testing.assert_allclose(drawn, np.round(theirs * 255), atol=2)


def test_nothing_foreign_is_imported(weights, tmp_path):
    blocked = (
        f'import sys\nfor name in {FOREIGN!r}: sys.modules[name] = None\nimport jaxgen.main as m; m.entry()'
    )
    for options in (
        ['--mode=sample', '--prompt=a cat', f'--workdir={tmp_path / "drawn"}'],
        ['--mode=convert', f'--export={tmp_path / "export"}'],
    ):
        command = [sys.executable, '-c', blocked, *options, f'--weights={weights}']
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / 'drawn' / 'samples' / '00000.png').exists()
    assert_same_tensors(weights, tmp_path / 'export')


def test_features_are_computed_once(weights, tmp_path, monkeypatch):
    built = configured(weights)
    record = sample.run(built, tmp_path / 'run', prompt=['a cat'], weights=str(weights))
    kept = sorted((tmp_path / 'home').rglob('*.safetensors'))
    assert len(kept) == 2  # the prompt's, and those of no prompt
    loaded, real = [], Program.loaded
    monkeypatch.setattr(
        Program, 'loaded', lambda self, names: loaded.append(list(names)) or real(self, names)
    )
    again = sample.run(built, tmp_path / 'run', prompt=['a cat'], weights=str(weights))
    assert loaded == [['tokenizer', 'model']]
    first, second = ((tmp_path / 'run' / one['files'][0]).read_bytes() for one in (record, again))
    assert first == second
    kept[0].write_bytes(b'broken')
    sample.run(built, tmp_path / 'run', prompt=['a cat'], weights=str(weights))
    assert loaded[1] == ['text'] and len(safetensors.read(str(kept[0]))) == 1


def remove(file):
    return lambda folder: (folder / file).unlink()


def rewrite(file, old, new):
    def change(folder):
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new))

    return change


def cut(file):
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:-100])


TRANSFORMER, VAE = (
    'transformer/diffusion_pytorch_model.safetensors',
    'vae/diffusion_pytorch_model.safetensors',
)
BROKEN = {
    'truncated': (cut(TRANSFORMER), 'diffusion_pytorch_model.safetensors'),
    'no tensors': (remove(VAE), 'vae'),
    'wrong model': (lambda f: shutil.copy(f / VAE, f / TRANSFORMER), 'do not fit'),
    'wrong shape': (rewrite('text_encoder/config.json', '"d_ff": 48', '"d_ff": 40'), '3 misshapen'),
    'other class': (rewrite('vae/config.json', 'AutoencoderKL', 'AutoencoderDC'), 'AutoencoderDC'),
    'other pipeline': (rewrite('model_index.json', 'PixArtAlpha', 'Flux'), 'FluxPipeline'),
    'no config': (remove('text_encoder/config.json'), 'config.json'),
    'broken config': (rewrite('vae/config.json', '{', '['), 'config.json'),
}


@pytest.mark.parametrize('case', BROKEN)
def test_broken_weights_are_one_clear_error(weights, case, tmp_path):
    folder = tmp_path / 'weights'
    shutil.copytree(weights, folder)
    change, said = BROKEN[case]
    change(folder)
    with pytest.raises(ValueError) as error:
        built = configured(folder)
        convert.check(built, tmp_path / 'run', weights=str(folder))
    assert said in str(error.value) and str(folder) in str(error.value)
    assert not (tmp_path / 'run').exists()


def test_an_interrupted_convert_is_begun_again(weights, tmp_path):
    built, left = configured(weights), tmp_path / 'run' / 'checkpoints' / '0.orbax-checkpoint-tmp'
    left.mkdir(parents=True)
    with pytest.raises(ValueError, match='no checkpoint'):
        generate.open_run(str(tmp_path / 'run'))
    convert.run(built, tmp_path / 'run', weights=str(weights))
    assert not left.exists() and generate.config_of(str(tmp_path / 'run'))


def test_an_export_says_what_it_wrote(weights, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(convert.log, 'propagate', True)
    caplog.set_level('INFO', 'jaxgen')
    convert.run(configured(weights), tmp_path / 'none', weights=str(weights), export=str(tmp_path / 'out'))
    assert f'{tmp_path / "out" / TRANSFORMER}: 65 tensors in the layout' in caplog.text


def test_a_full_disk_is_named_and_nothing_is_left(weights, tmp_path, monkeypatch):
    def full(stream, entry):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(safetensors, '_append', full)
    with pytest.raises(OSError, match=r'safetensors was not written: No space left'):
        convert.run(configured(weights), tmp_path, weights=str(weights), export=str(tmp_path / 'out'))
    assert not list(tmp_path.glob('out*'))


def test_what_makes_no_sense_is_refused(weights, tmp_path):
    built = configured(weights)
    (tmp_path / 'there').mkdir()
    (tmp_path / 'file').touch()
    for options, said in (
        ({}, '--export'),
        ({'weights': str(weights), 'export': str(tmp_path / 'there')}, 'is there already'),
        ({'weights': str(weights), 'export': str(tmp_path / 'file' / 'in')}, 'cannot be made in'),
        ({'weights': str(weights), 'checkpoint': 3}, '--checkpoint'),
        ({'export': str(tmp_path / 'new')}, 'no checkpoint'),
    ):
        with pytest.raises(ValueError, match=said):
            convert.check(built, tmp_path / 'none', **options)
    with pytest.raises(ValueError, match='give a --config'):
        pretrained.configured({}, str(weights / 'transformer'))
    with pytest.raises(ValueError, match="holds the model 'pixart'"):
        pretrained.configured({'model': {'name': 'dit'}}, str(weights))
    convert.run(built, tmp_path / 'run', weights=str(weights))
    with pytest.raises(ValueError, match='leave --weights out'):
        sample.check(built, tmp_path / 'run', prompt=['a'], weights=str(weights))
    with pytest.raises(ValueError, match='no training to go on with'):
        train.run(built, tmp_path / 'run')
    with pytest.raises(ValueError, match='give --prompt or --prompts_file'):
        sample.check(built, tmp_path / 'none', weights=str(weights))
    with pytest.raises(ValueError, match='18 x 18 pixels cannot be drawn exactly'):
        sample.check(built, tmp_path / 'none', ['a'], weights=str(weights), size='18', exact=True)
