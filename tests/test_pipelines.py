"""Published folders draw as diffusers draws from them: same prompt, noise and solver, same pixels."""

import functools

import jax
import numpy as np
import pytest

from jaxgen import generate
from jaxgen.conditioning import aspects
from jaxgen.diffusion.sampler import DiffusionSampler
from jaxgen.program import assemble

pytestmark = pytest.mark.parity
SIDE, FACTOR = 256, 8
PROMPT, NEGATIVE = 'A small Cactus, wearing a straw hat (oil painting)', 'blurry'


def randomised(torch, network, seed, last=None):
    """The network with all of its parameters drawn, so that none is zero or one; `last` is made weak."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            scale = 0.3 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator) + (parameter.ndim < 2))
        for parameter in last.parameters() if last else ():
            parameter.mul_(0.2)
    return network.eval()


@pytest.fixture(scope='module')
def parts():
    torch, diffusers = pytest.importorskip('torch'), pytest.importorskip('diffusers')
    transformers = pytest.importorskip('transformers')
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=('DownEncoderBlock2D',) * 4,
        up_block_types=('UpDecoderBlock2D',) * 4,
        latent_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=SIDE,
    )
    text = transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=400,
            d_model=24,
            d_kv=8,
            d_ff=32,
            num_layers=2,
            num_heads=3,
            feed_forward_proj='gated-gelu',
        )
    )
    return (
        torch,
        diffusers,
        {
            'vae': randomised(torch, vae, 1, vae.decoder.conv_out),
            'text_encoder': randomised(torch, text, 2),
            'tokenizer': transformers.ByT5Tokenizer(),
        },
    )


def pixart(torch, diffusers, side):
    network = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        cross_attention_dim=24,
        sample_size=side // FACTOR,
        interpolation_scale=max(side // 512, 1),
        caption_channels=24,
        use_additional_conditions=side == 1024,
    )
    return randomised(torch, network, 3, network.proj_out)


def dpm_solver(diffusers):
    return diffusers.DPMSolverMultistepScheduler(
        num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule='linear'
    )


def ours(monkeypatch, folder, noise, prompts, overrides=(), **options):
    """Our pictures from the folder, from noise [B, C, H, W]."""
    noise = np.float32(noise.transpose(0, 2, 3, 1))
    monkeypatch.setattr(DiffusionSampler, 'noise', lambda self, keys: noise)
    monkeypatch.setattr(generate, 'assemble', functools.partial(assemble, devices=jax.devices()[:1]))
    return generate.open_weights(str(folder), overrides)(prompts, **options)


def assert_same_pictures(ours, theirs):
    theirs = np.clip(np.round(theirs * 255), 0, 255).astype(np.uint8)
    assert ours.shape == theirs.shape and theirs.std() > 10
    furthest = np.abs(ours.astype(int) - theirs.astype(int)).max()
    assert furthest <= 2


CASES = {
    'alpha': ('Alpha', SIDE, (SIDE, SIDE)),
    'sigma': ('Sigma', SIDE, (SIDE, SIDE)),
    'sigma_bucket': ('Sigma', SIDE, (200, 304)),
    'alpha_micro': ('Alpha', 1024, (700, 1100)),  # the pipeline gives sizes to networks of 1024 pixels alone
}


@pytest.mark.parametrize('case', CASES)
def test_pixart_draws_as_diffusers(parts, case, tmp_path, monkeypatch):
    torch, diffusers, rest = parts
    kind, side, size = CASES[case]
    monkeypatch.setenv('HOME', str(tmp_path))  # where features are kept
    network = pixart(torch, diffusers, side)
    pipeline = getattr(diffusers, f'PixArt{kind}Pipeline')(
        transformer=network, scheduler=dpm_solver(diffusers), **rest
    )
    pipeline.save_pretrained(tmp_path / 'weights')
    bucket = aspects.nearest(side, *size)
    noise = np.random.RandomState(0).standard_normal((1, 4, bucket[0] // FACTOR, bucket[1] // FACTOR))
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        PROMPT,
        negative_prompt=NEGATIVE,
        num_inference_steps=5,
        guidance_scale=3.5,
        latents=torch.from_numpy(np.float32(noise)),
        height=size[0],
        width=size[1],
        clean_caption=False,
        output_type='np',
    ).images
    options = {'negative': NEGATIVE, 'knobs': {'steps': 5, 'guidance': 3.5}, 'size': size}
    drawn = ours(monkeypatch, tmp_path / 'weights', noise, [PROMPT], ['conditioner.clean=false'], **options)
    assert_same_pictures(drawn, theirs)


def test_dit_draws_as_diffusers(parts, tmp_path, monkeypatch):
    torch, diffusers, rest = parts
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=SIDE // FACTOR,
        patch_size=2,
        num_embeds_ada_norm=1000,
    )
    network = randomised(torch, network, 4, network.proj_out_2)
    for block in network.transformer_blocks[1:]:  # as published: the same in every block
        block.norm1.emb.load_state_dict(network.transformer_blocks[0].norm1.emb.state_dict())
    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule='linear', clip_sample=False
    )
    pipeline = diffusers.DiTPipeline(transformer=network, vae=rest['vae'], scheduler=scheduler)
    pipeline.save_pretrained(tmp_path / 'weights')
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn((2, 4, SIDE // FACTOR, SIDE // FACTOR), generator=torch.Generator().manual_seed(7))
    theirs = pipeline(
        [207, 360],
        num_inference_steps=5,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(7),
        output_type='np',
    ).images
    knobs = {'steps': 5, 'guidance': 4.0}
    drawn = ours(monkeypatch, tmp_path / 'weights', noise.numpy(), ['207', '360'], knobs=knobs)
    assert_same_pictures(drawn, theirs)
