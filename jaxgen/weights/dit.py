"""DiT's published names: the authors' checkpoints (facebookresearch/DiT, 2212.09748) and diffusers' layout.

The fixed position table is computed, never loaded. diffusers keeps a copy of the time and label embedders in
every block.
"""

from jaxgen.weights.names import SAME, NameMap, Row, linear, patch_kernel

_BLOCK = 'blocks/stack/{i}'


def authors(patch: int) -> NameMap:
    """The authors' names for a network with patches of `patch`."""
    rows = (
        Row('x_embedder.proj.weight', ('patch/projection/kernel',), patch_kernel(patch)),
        Row('x_embedder.proj.bias', ('patch/projection/bias',), SAME),
        *linear('t_embedder.mlp.0', 'time/up'),
        *linear('t_embedder.mlp.2', 'time/down'),
        Row('y_embedder.embedding_table.weight', ('label/table',), SAME),
        *linear('blocks.{i}.adaLN_modulation.1', f'{_BLOCK}/modulation'),
        *linear('blocks.{i}.attn.qkv', *(f'{_BLOCK}/attention/{name}' for name in ('query', 'key', 'value'))),
        *linear('blocks.{i}.attn.proj', f'{_BLOCK}/attention/out'),
        *linear('blocks.{i}.mlp.fc1', f'{_BLOCK}/mlp/up'),
        *linear('blocks.{i}.mlp.fc2', f'{_BLOCK}/mlp/down'),
        *linear('final_layer.adaLN_modulation.1', 'final/modulation'),
        *linear('final_layer.linear', 'final/out'),
    )
    return NameMap(rows, ignored=('pos_embed',))


def diffusers(patch: int) -> NameMap:
    """Names of diffusers' DiTTransformer2DModel."""
    block = 'transformer_blocks.{i}'
    rows = (
        Row('pos_embed.proj.weight', ('patch/projection/kernel',), patch_kernel(patch)),
        Row('pos_embed.proj.bias', ('patch/projection/bias',), SAME),
        *linear(f'{block}.norm1.emb.timestep_embedder.linear_1', 'time/up'),
        *linear(f'{block}.norm1.emb.timestep_embedder.linear_2', 'time/down'),
        Row(f'{block}.norm1.emb.class_embedder.embedding_table.weight', ('label/table',), SAME),
        *linear(f'{block}.norm1.linear', f'{_BLOCK}/modulation'),
        *linear(f'{block}.attn1.to_q', f'{_BLOCK}/attention/query'),
        *linear(f'{block}.attn1.to_k', f'{_BLOCK}/attention/key'),
        *linear(f'{block}.attn1.to_v', f'{_BLOCK}/attention/value'),
        *linear(f'{block}.attn1.to_out.0', f'{_BLOCK}/attention/out'),
        *linear(f'{block}.ff.net.0.proj', f'{_BLOCK}/mlp/up'),
        *linear(f'{block}.ff.net.2', f'{_BLOCK}/mlp/down'),
        *linear('proj_out_1', 'final/modulation'),
        *linear('proj_out_2', 'final/out'),
    )
    return NameMap(rows, ignored=('pos_embed.pos_embed',))
