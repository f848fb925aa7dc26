"""PixArt's published names: the authors' checkpoints (alpha, Sigma: 2310.00426, 2403.04692) and diffusers'.

diffusers keeps no null caption embedding: its pipelines encode the empty caption instead, so `null_text`
has to be given when such weights are loaded.
"""

from jaxgen.weights.names import DEPTHWISE, SAME, NameMap, Row, linear, norm, patch_kernel

_BLOCK = 'blocks/stack/{i}'


def authors(patch: int) -> NameMap:
    """The authors' names for a network with patches of `patch`."""
    attention, cross = f'{_BLOCK}/attention', f'{_BLOCK}/cross_attention'
    rows = (
        Row('x_embedder.proj.weight', ('patch/projection/kernel',), patch_kernel(patch)),
        Row('x_embedder.proj.bias', ('patch/projection/bias',), SAME),
        *linear('t_embedder.mlp.0', 'time/up'),
        *linear('t_embedder.mlp.2', 'time/down'),
        *linear('csize_embedder.mlp.0', 'size/mlp/up', optional=True),
        *linear('csize_embedder.mlp.2', 'size/mlp/down', optional=True),
        *linear('ar_embedder.mlp.0', 'aspect/mlp/up', optional=True),
        *linear('ar_embedder.mlp.2', 'aspect/mlp/down', optional=True),
        *linear('t_block.1', 'modulation'),
        *linear('y_embedder.y_proj.fc1', 'caption/up'),
        *linear('y_embedder.y_proj.fc2', 'caption/down'),
        Row('y_embedder.y_embedding', ('null_text',), SAME),
        Row('blocks.{i}.scale_shift_table', (f'{_BLOCK}/table',), SAME),
        *linear('blocks.{i}.attn.qkv', *(f'{attention}/{name}' for name in ('query', 'key', 'value'))),
        *linear('blocks.{i}.attn.proj', f'{attention}/out'),
        *norm('blocks.{i}.attn.q_norm', f'{attention}/query_norm', optional=True),
        *norm('blocks.{i}.attn.k_norm', f'{attention}/key_norm', optional=True),
        Row('blocks.{i}.attn.sr.weight', (f'{attention}/compress/kernel',), DEPTHWISE, optional=True),
        Row('blocks.{i}.attn.sr.bias', (f'{attention}/compress/bias',), SAME, optional=True),
        *norm('blocks.{i}.attn.norm', f'{attention}/compress/norm', optional=True),
        *linear('blocks.{i}.cross_attn.q_linear', f'{cross}/query'),
        *linear('blocks.{i}.cross_attn.kv_linear', f'{cross}/key', f'{cross}/value'),
        *linear('blocks.{i}.cross_attn.proj', f'{cross}/out'),
        *linear('blocks.{i}.mlp.fc1', f'{_BLOCK}/mlp/up'),
        *linear('blocks.{i}.mlp.fc2', f'{_BLOCK}/mlp/down'),
        Row('final_layer.scale_shift_table', ('final/table',), SAME),
        *linear('final_layer.linear', 'final/out'),
    )
    return NameMap(rows, ignored=('pos_embed',))


def diffusers(patch: int) -> NameMap:
    """Names of diffusers' PixArtTransformer2DModel."""
    block, attention, cross = 'transformer_blocks.{i}', f'{_BLOCK}/attention', f'{_BLOCK}/cross_attention'
    projections = {'to_q': 'query', 'to_k': 'key', 'to_v': 'value', 'to_out.0': 'out'}
    embed = 'adaln_single.emb'
    rows = (
        Row('pos_embed.proj.weight', ('patch/projection/kernel',), patch_kernel(patch)),
        Row('pos_embed.proj.bias', ('patch/projection/bias',), SAME),
        *linear(f'{embed}.timestep_embedder.linear_1', 'time/up'),
        *linear(f'{embed}.timestep_embedder.linear_2', 'time/down'),
        *linear(f'{embed}.resolution_embedder.linear_1', 'size/mlp/up', optional=True),
        *linear(f'{embed}.resolution_embedder.linear_2', 'size/mlp/down', optional=True),
        *linear(f'{embed}.aspect_ratio_embedder.linear_1', 'aspect/mlp/up', optional=True),
        *linear(f'{embed}.aspect_ratio_embedder.linear_2', 'aspect/mlp/down', optional=True),
        *linear('adaln_single.linear', 'modulation'),
        *linear('caption_projection.linear_1', 'caption/up'),
        *linear('caption_projection.linear_2', 'caption/down'),
        Row(f'{block}.scale_shift_table', (f'{_BLOCK}/table',), SAME),
        *(
            row
            for name, ours in projections.items()
            for row in linear(f'{block}.attn1.{name}', f'{attention}/{ours}')
        ),
        *(
            row
            for name, ours in projections.items()
            for row in linear(f'{block}.attn2.{name}', f'{cross}/{ours}')
        ),
        *linear(f'{block}.ff.net.0.proj', f'{_BLOCK}/mlp/up'),
        *linear(f'{block}.ff.net.2', f'{_BLOCK}/mlp/down'),
        Row('scale_shift_table', ('final/table',), SAME),
        *linear('proj_out', 'final/out'),
    )
    return NameMap(rows, ignored=('pos_embed.pos_embed',), ours_only=('null_text',))
