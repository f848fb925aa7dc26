"""Attention with the tokens of an example split over devices: DeepSpeed Ulysses, Jacobs et al., 2309.14509.

All else in a network looks at one token at a time. Before attention, all-to-alls turn a share of the tokens
with all heads into all tokens with a share of the heads, and one turns the result back. Of n devices each
sends four times its share of a sequence, where handing keys and values round a ring (Liu et al., 2310.01889)
sends 2 n. Keys fewer than the queries (a text, a compressed grid) are gathered instead: the queries stay.
"""

# B batch, L query tokens, M key tokens, H heads, K width of a head

from collections.abc import Callable

import jax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxgen.layers.segment import BATCH_AXES, fitting

Attend = Callable[[jax.Array, jax.Array, jax.Array, jax.Array | None], jax.Array]


def is_split() -> bool:
    """Whether the mesh at hand splits tokens."""
    mesh = jax.sharding.get_abstract_mesh()
    return any(
        name == 'sequence' and size > 1 and kind == AxisType.Auto
        for name, size, kind in zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types)
    )


def on_shards(
    attend: Attend, q_BLHK: jax.Array, k_BMHK: jax.Array, v_BMHK: jax.Array, allowed: jax.Array | None = None
) -> jax.Array:
    """`attend(q, k, v, allowed)` on each device's own part; without a mesh on all.

    `allowed` is [B or 1, 1, L or 1, M], True where a query may look. Each device calls `attend` on whole
    sequences of queries, or on a share of the queries with all keys.
    """
    batch = fitting(BATCH_AXES, q_BLHK.shape[0])
    heads = fitting(('tensor',), q_BLHK.shape[2])
    tokens = fitting(('sequence',), q_BLHK.shape[1])
    if not batch and not heads and not tokens:
        return attend(q_BLHK, k_BMHK, v_BMHK, allowed)
    exchanged = tokens and _exchanges(q_BLHK, k_BMHK, heads)
    q_spec = P(batch or None, tokens or None, heads or None)
    kv_spec = q_spec if exchanged else P(batch or None, None, heads or None)
    operands, specs = [q_BLHK, k_BMHK, v_BMHK], [q_spec, kv_spec, kv_spec]
    if allowed is not None:
        rows = tokens if allowed.shape[2] > 1 and not exchanged else ()
        operands.append(allowed)
        specs.append(P(batch if allowed.shape[0] > 1 else None, None, rows or None))

    def local(q: jax.Array, k: jax.Array, v: jax.Array, seen: jax.Array | None = None) -> jax.Array:
        if not exchanged:
            return attend(q, k, v, seen)
        q, k, v = (jax.lax.all_to_all(a, tokens, split_axis=2, concat_axis=1, tiled=True) for a in (q, k, v))
        return jax.lax.all_to_all(attend(q, k, v, seen), tokens, split_axis=1, concat_axis=2, tiled=True)

    mesh = jax.sharding.get_abstract_mesh()
    free = {name for name, kind in zip(mesh.axis_names, mesh.axis_types) if kind == AxisType.Auto}
    # Not checked, because a kernel does not say what of its result differs between devices.
    return jax.shard_map(local, in_specs=tuple(specs), out_specs=q_spec, axis_names=free, check_vma=False)(
        *operands
    )


def _exchanges(q_BLHK: jax.Array, k_BMHK: jax.Array, heads: tuple[str, ...]) -> bool:
    """Whether tokens are exchanged for heads: keys are as many as queries, and heads divide."""
    both = fitting((*heads, 'sequence'), q_BLHK.shape[2])
    return k_BMHK.shape[1] == q_BLHK.shape[1] and 'sequence' in both
