"""The authors' own networks, run in torch from checkouts outside this repository.

JAXGEN_DIT, JAXGEN_SIT, JAXGEN_PIXART_SIGMA and JAXGEN_LIGHTNINGDIT name checkouts of facebookresearch/DiT,
willisma/SiT, PixArt-alpha/PixArt-sigma and hustvl/LightningDiT (which needs the package einops). What these
import and a CPU lacks (xformers, timm, fairscale, registries) is stood in for here by a few plain lines.
"""

import importlib
import os
import sys
import types
from typing import Any
from unittest import mock

import jax
import numpy as np
from golden import cases

from jaxgen.weights.names import NameMap, to_jaxgen


def checkout(variable: str) -> str | None:
    """The folder that an environment variable names, if it is set."""
    return os.environ.get(variable) or None


def dit_model(weights: dict[str, np.ndarray], settings: dict) -> Any:
    """The authors' DiT, or the SiT that discards its variance, with the given weights."""
    sit = settings.get('discard_variance', False)
    module = _models('JAXGEN_SIT' if sit else 'JAXGEN_DIT', 'models')
    network = module.SiT if sit else module.DiT
    return _loaded(network(input_size=cases.DIT_GRID[0], **_sizes(settings)), weights)


def lightning_dit_model(weights: dict[str, np.ndarray], settings: dict) -> Any:
    """The authors' LightningDiT, with what their configs switch on, and the given weights."""
    import torch

    _module('fairscale.nn.model_parallel.initialize')
    layers = dict.fromkeys(('ColumnParallelLinear', 'ParallelEmbedding', 'RowParallelLinear'))
    _module('fairscale.nn.model_parallel.layers', **layers)
    for name in ('fairscale', 'fairscale.nn', 'fairscale.nn.model_parallel'):
        _module(name, __path__=[])
    with mock.patch.object(torch, 'compile', lambda function: function):
        module = _models('JAXGEN_LIGHTNINGDIT', 'models.lightningdit')
    model = module.LightningDiT(
        input_size=cases.LIGHTNING_DIT_GRID[0],
        patch_size=settings['patch'],
        in_channels=settings['channels'],
        use_qknorm=settings.get('qk_norm', False),
        use_swiglu=True,
        use_rope=True,
        use_rmsnorm=True,
        **_sizes(settings),
    )
    return _loaded(model, weights)


def pixart_model(weights: dict[str, np.ndarray], settings: dict) -> Any:
    """The authors' PixArtMS with the given weights."""
    root = checkout('JAXGEN_PIXART_SIGMA')
    _stand_in_timm()
    _stand_in_pixart(root)
    module = importlib.import_module('diffusion.model.nets.PixArtMS')
    compressed = {
        'sampling': 'conv',
        'scale_factor': settings.get('compress_ratio', 1),
        'kv_compress_layer': list(settings.get('compress_layers', ())),
    }
    model = module.PixArtMS(
        input_size=2 * settings['base_size'],
        hidden_size=settings['hidden'],
        depth=settings['depth'],
        num_heads=settings['heads'],
        caption_channels=settings['caption_width'],
        pe_interpolation=settings['interpolation'],
        model_max_length=settings['caption_length'],
        micro_condition=settings.get('micro_conditioning', False),
        qk_norm=settings.get('qk_norm', False),
        kv_compress_config=compressed,
    )
    return _loaded(model, weights)


def assert_loads(model: Any, table: NameMap, params: dict) -> None:
    """All that the authors' checkpoint holds is read, or known to be nothing learned."""
    published = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    jax.tree.map(np.testing.assert_array_equal, to_jaxgen(table, published, params), params)


def run_labels(model: Any, x: np.ndarray, settings: dict) -> dict[str, np.ndarray]:
    """Output and gradients of a network conditioned on classes."""
    import torch

    x = _image(x)
    out = model(x, torch.from_numpy(cases.TIMES), torch.from_numpy(cases.labels(settings)))
    return _results(model, x, out, {})


def run_pixart(model: Any, settings: dict, drop: tuple[bool, ...]) -> dict[str, np.ndarray]:
    """Output and gradients of the shared case, dropped captions being replaced by the null embedding."""
    import torch

    x, null = _image(cases.image(cases.PIXART_GRID)), model.y_embedder.y_embedding
    condition = cases.pixart_condition(drop, settings)
    text = torch.where(torch.tensor(drop)[:, None, None], null, torch.from_numpy(condition['text']))
    sizes = {'img_hw': torch.from_numpy(cases.SIZES), 'aspect_ratio': torch.from_numpy(cases.ASPECTS)}
    mask = torch.from_numpy(condition['text_mask'])[:, None, None].long()
    out = model(x, torch.from_numpy(cases.TIMES), text[:, None], mask=mask, data_info=sizes)
    extra = {'y_embedder.y_embedding': null}
    return _results(model, x, out, extra)


def _models(variable: str, name: str) -> Any:
    """A module of a checkout, whose folder or file `models` others have too."""
    _stand_in_timm()
    sys.path.insert(0, checkout(variable))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)
        for loaded in [key for key in sys.modules if key.partition('.')[0] == 'models']:
            del sys.modules[loaded]


def _sizes(settings: dict) -> dict[str, int]:
    return {
        'hidden_size': settings['hidden'],
        'depth': settings['depth'],
        'num_heads': settings['heads'],
        'num_classes': settings['classes'],
    }


def _image(x: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).requires_grad_()


def _loaded(model: Any, weights: dict[str, np.ndarray]) -> Any:
    import torch

    left = model.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in weights.items()}, strict=False)
    computed = {'pos_embed', 'feat_rope.freqs_cos', 'feat_rope.freqs_sin'}
    assert not left.unexpected_keys and set(left.missing_keys) <= computed, left
    return model.eval()


def _results(model: Any, x: Any, out: Any, extra: dict) -> dict[str, np.ndarray]:
    import torch

    weight = cases.cotangent(tuple(out.shape[2:]), out.shape[1])
    (out * torch.from_numpy(weight.transpose(0, 3, 1, 2).copy())).sum().backward()
    results = {
        'out': out.detach().numpy().transpose(0, 2, 3, 1),
        'by_x': x.grad.numpy().transpose(0, 2, 3, 1),
    }
    parameters = dict(model.named_parameters()) | extra
    return results | {name: p.grad.numpy() for name, p in parameters.items() if p.grad is not None}


def _module(name: str, **members: Any) -> None:
    module = types.ModuleType(name)
    vars(module).update(members)
    sys.modules[name] = module


def _stand_in_timm() -> None:
    from torch import nn

    class PatchEmbed(nn.Module):
        def __init__(self, size, patch, channels, width, bias=True):
            super().__init__()
            self.patch_size, self.num_patches = (patch, patch), (size // patch) ** 2
            self.proj = nn.Conv2d(channels, width, patch, patch, bias=bias)

        def forward(self, x):
            return self.proj(x).flatten(2).transpose(1, 2)

    class Mlp(nn.Module):
        def __init__(self, in_features, hidden_features, out_features=None, act_layer=nn.GELU, drop=0):
            super().__init__()
            self.fc1 = nn.Linear(in_features, hidden_features)
            self.act = act_layer if isinstance(act_layer, nn.Module) else act_layer()
            self.fc2 = nn.Linear(hidden_features, out_features or in_features)

        def forward(self, x):
            return self.fc2(self.act(self.fc1(x)))

    class Attention(nn.Module):
        def __init__(self, width, num_heads, qkv_bias):
            super().__init__()
            self.num_heads = num_heads
            self.qkv, self.proj = nn.Linear(width, 3 * width, bias=qkv_bias), nn.Linear(width, width)
            self.attn_drop, self.proj_drop = nn.Dropout(0.0), nn.Dropout(0.0)

        def forward(self, x):
            q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
            y = nn.functional.scaled_dot_product_attention(q, k, v)
            return self.proj(y.transpose(1, 2).flatten(2))

    _module('timm')
    _module('timm.models')
    _module('timm.models.layers', DropPath=nn.Identity)
    _module('timm.models.vision_transformer', PatchEmbed=PatchEmbed, Mlp=Mlp, Attention=Attention)


def _stand_in_pixart(root: str) -> None:
    from torch.nn.functional import scaled_dot_product_attention

    class BlockDiagonalMask:
        def __init__(self, queries, keys):
            self.queries, self.keys = queries, keys

        @classmethod
        def from_seqlens(cls, queries, keys):
            return cls(queries, keys)

    def attend(q, k, v):
        return scaled_dot_product_attention(*(a.transpose(1, 2) for a in (q, k, v))).transpose(1, 2)

    def memory_efficient_attention(q, k, v, p=0.0, attn_bias=None):
        import torch

        if attn_bias is None:
            return attend(q, k, v)
        parts = zip(q.split(attn_bias.queries, 1), k.split(attn_bias.keys, 1), v.split(attn_bias.keys, 1))
        return torch.cat([attend(*part) for part in parts], 1)

    class Registry:
        def register_module(self):
            return lambda kind: kind

    fmha = types.SimpleNamespace(BlockDiagonalMask=BlockDiagonalMask)
    ops = types.SimpleNamespace(memory_efficient_attention=memory_efficient_attention, fmha=fmha)
    _module('xformers', ops=ops)
    sys.modules['xformers.ops'] = ops
    # The packages' own __init__ files import the whole training stack; these are only their folders.
    for name in ('diffusion', 'diffusion.model', 'diffusion.model.nets', 'diffusion.utils'):
        _module(name, __path__=[os.path.join(root, *name.split('.'))])
    _module('diffusion.model.builder', MODELS=Registry())
    _module('diffusion.utils.logger', get_root_logger=None)
    _module(
        'diffusion.model.utils',
        auto_grad_checkpoint=lambda block, *inputs, **options: block(*inputs, **options),
        to_2tuple=lambda value: (value, value),
    )
