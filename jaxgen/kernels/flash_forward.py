"""The forward of flash attention: a block of queries against all keys of their head.

Few keys are one block, and several heads one program, so that the work of one fills the waits of another.
Many keys are walked block by block, the scores of the next prepared while those of this one are used.
"""

# B batch, H heads, K width of a head, R that and spare rows, L queries, M keys; P and N those of a block

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LOG2_E = 1.4426950408889634
SPARE = 8  # rows beside the features, of which the first carries the mask
# What is summed over: columns of a and rows of b, the columns of both, the rows of both.
PLAIN, COLUMNS, ROWS = (((1,), (0,)), ((), ())), (((1,), (1,)), ((), ())), (((0,), (0,)), ((), ()))


def flash_forward(
    q_BHKL: jax.Array,
    k_BHKM: jax.Array,
    v_BHKM: jax.Array,
    bias_B1M: jax.Array | None,
    query_block: int,
    key_block: int,
    interpret: bool,
) -> tuple[jax.Array, jax.Array]:
    """(attention [B, H, K, L], log of the sums of the softmax [B, H, 1, L])."""
    batch, heads, width, length = q_BHKL.shape
    keys, masked = k_BHKM.shape[3], bias_B1M is not None
    few = keys == key_block
    group = heads_together(heads, query_block * keys) if few else 1
    columns, rows, whole = specs(group, query_block, keys)
    kernel = _few_keys if few else functools.partial(_many_keys, key_block=key_block)
    dtype = q_BHKL.dtype
    scratch = [
        pltpu.VMEM((keys, width + SPARE * masked), dtype),
        pltpu.VMEM((2, key_block, query_block), jnp.float32),
    ]
    return pl.pallas_call(
        functools.partial(kernel, masked=masked),
        grid=(batch, heads // group, length // query_block),
        in_specs=[columns(width), rows(width), rows(width), *[whole] * masked],
        out_specs=[columns(width), columns(1)],
        out_shape=[
            jax.ShapeDtypeStruct(q_BHKL.shape, dtype),
            jax.ShapeDtypeStruct((batch, heads, 1, length), jnp.float32),
        ],
        scratch_shapes=[] if few else scratch,
        compiler_params=compiler_params(group * keys, width, group * key_block * query_block),
        name=kernel_name('forward', q_BHKL, keys, masked),
        interpret=interpreted(interpret),
    )(q_BHKL, k_BHKM, v_BHKM, *[bias_B1M] * masked)


def heads_together(heads: int, scores: int) -> int:
    """The heads of a program where all keys are one block: those of about half a million scores."""
    return max(n for n in range(1, heads + 1) if heads % n == 0 and (n == 1 or n * scores <= 2**19))


def kernel_name(way: str, q_BHKL: jax.Array, keys: int, masked: bool) -> str:
    """Tells the shapes, for jaxgen.estimate.bundles to count by."""
    batch, heads, width, length = q_BHKL.shape
    return f'flash_{way}_b{batch}_h{heads}_q{length}_k{keys}_w{width}' + '_masked' * masked


def specs(group: int, query_block: int, keys: int):
    """What a program sees of arrays with so many rows: a block of queries, all keys, and the mask."""

    def columns(rows: int) -> pl.BlockSpec:
        return pl.BlockSpec((1, group, rows, query_block), lambda b, h, i: (b, h, 0, i))

    def whole(rows: int) -> pl.BlockSpec:
        return pl.BlockSpec((1, group, rows, keys), lambda b, h, i: (b, h, 0, 0))

    return columns, whole, pl.BlockSpec((1, 1, keys), lambda b, h, i: (b, 0, 0))


def compiler_params(keys: int, width: int, scores: int) -> pltpu.CompilerParams:
    """The last axis of the grid runs in order; VMEM for all keys of a head and some blocks of scores."""
    lanes = -(-width // 128) * 128
    wanted = keys * (24 * width + 4 * lanes) + 32 * scores + 2**23
    return pltpu.CompilerParams(
        dimension_semantics=('parallel', 'parallel', 'arbitrary'), vmem_limit_bytes=wanted
    )


def interpreted(interpret: bool) -> bool | pltpu.InterpretParams:
    """TPU's memories are simulated too."""
    return pltpu.InterpretParams() if interpret else False


def product(a: jax.Array, b: jax.Array, dimensions=PLAIN) -> jax.Array:
    """A product summed in float32; inputs in float32 are not rounded."""
    precision = 'highest' if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def with_rows(x_KN: jax.Array, first: jax.Array) -> jax.Array:
    """Spare rows below the features: `first` and zeros."""
    zeros = jnp.zeros((SPARE - 1, x_KN.shape[1]), jnp.float32)
    return jnp.concatenate([x_KN.astype(jnp.float32), first, zeros]).astype(x_KN.dtype)


def turn(x_ref, into_ref, key_block: int, bias_ref=None) -> None:
    """Write the features of all keys, and the mask, key by key."""
    for start in range(0, x_ref.shape[3], key_block):
        at = slice(start, start + key_block)
        x_RN = x_ref[0, 0, :, at]
        if bias_ref is not None:
            x_RN = with_rows(x_RN, bias_ref[0, :, at])
        into_ref[at, :] = x_RN.astype(jnp.float32).T.astype(into_ref.dtype)


def with_ones(q_KP: jax.Array, masked: bool) -> jax.Array:
    """Queries with a row of ones where the keys have the mask."""
    return with_rows(q_KP, jnp.ones((1, q_KP.shape[1]), jnp.float32)) if masked else q_KP


def parts(query_block: int) -> list[slice]:
    """A block of queries is worked on in parts, small enough for the registers."""
    size = 256 if query_block % 256 == 0 else query_block
    return [slice(start, start + size) for start in range(0, query_block, size)]


def over_blocks(count: int, use, step, carry):
    """Run `use` on every block, `step` preparing the next meanwhile; the slots 0 and 1 alternate."""

    def two(i, carry):
        return step(2 * i + 1, 1, step(2 * i, 0, carry))

    if count > 2:
        carry = jax.lax.fori_loop(0, count // 2 - 1, two, carry)
    if count > 1:
        carry = step(count - 2, 0, carry)
    return use(count - 1, (count - 1) % 2, carry)


def _few_keys(q_ref, k_ref, v_ref, *refs, masked: bool) -> None:
    y_ref, log_sum_ref = refs[masked:]
    scale = q_ref.shape[2] ** -0.5
    for head in range(q_ref.shape[1]):
        q_RP, k_RM, v_KM = with_ones(q_ref[0, head], masked), k_ref[0, head], v_ref[0, head]
        if masked:
            k_RM = with_rows(k_RM, refs[0][0])
        scores_MP = product(k_RM, q_RP, ROWS)
        top = scores_MP.max(0, keepdims=True)
        weights_MP = jnp.exp2((scores_MP - top) * (scale * LOG2_E))
        total = weights_MP.sum(0, keepdims=True)
        y_KP = product(v_KM, weights_MP.astype(v_KM.dtype))
        y_ref[0, head] = (y_KP / total).astype(y_ref.dtype)
        log_sum_ref[0, head] = top * scale + jnp.log(total)


def _many_keys(q_ref, k_ref, v_ref, *refs, key_block: int, masked: bool) -> None:
    bias_ref = refs[0] if masked else None
    y_ref, log_sum_ref, k_MR_ref, scores_ref = refs[masked:]

    @pl.when(pl.program_id(2) == 0)
    def _():
        turn(k_ref, k_MR_ref, key_block, bias_ref)

    q_RP, width = with_ones(q_ref[0, 0], masked), q_ref.shape[2]
    scale = width**-0.5
    columns = parts(q_RP.shape[1])

    def prepare(block, slot):
        k_NR = k_MR_ref[pl.ds(pl.multiple_of(block * key_block, key_block), key_block), :]
        tops = []
        for at in columns:
            scores_NP = product(k_NR, q_RP[:, at])
            scores_ref[slot, :, at] = scores_NP
            tops.append(scores_NP.max(0, keepdims=True))
        return tops

    def use(block, slot, carry):
        v_KN = v_ref[0, 0, :, pl.ds(pl.multiple_of(block * key_block, 128), key_block)]
        used = []
        for at, (top, total, y_KP) in zip(columns, carry):
            weights_NP = jnp.exp2(scores_ref[slot, :, at] * (scale * LOG2_E) - top * (scale * LOG2_E))
            total = total + weights_NP.sum(0, keepdims=True)
            used.append((top, total, y_KP + product(v_KN, weights_NP.astype(v_KN.dtype))))
        return used

    def step(block, slot, carry):
        tops = prepare(block + 1, 1 - slot)
        moved = []
        for new, (old, total, y_KP) in zip(tops, use(block, slot, carry)):
            top = jnp.maximum(old, new)
            shrink = jnp.exp2((old - top) * (scale * LOG2_E))
            moved.append((top, total * shrink, y_KP * shrink))
        return moved

    size = columns[0].stop
    empty = jnp.zeros((1, size), jnp.float32), jnp.zeros((width, size), jnp.float32)
    carry = [(top, *empty) for top in prepare(0, 0)]
    carry = over_blocks(k_MR_ref.shape[0] // key_block, use, step, carry)
    for at, (top, total, y_KP) in zip(columns, carry):
        y_ref[0, 0, :, at] = (y_KP / total).astype(y_ref.dtype)
        log_sum_ref[0, 0, :, at] = top * scale + jnp.log(total)
