"""The backward of flash attention: all gradients of a head in one kernel, a block of queries at a time."""

# B batch, H heads, K width of a head, R that and spare rows, L queries, M keys; P and N those of a block

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxgen.kernels.flash_forward import (
    COLUMNS,
    LOG2_E,
    ROWS,
    SPARE,
    compiler_params,
    heads_together,
    interpreted,
    kernel_name,
    over_blocks,
    parts,
    product,
    specs,
    turn,
    with_ones,
    with_rows,
)


def flash_backward(
    q_BHKL: jax.Array,
    k_BHKM: jax.Array,
    v_BHKM: jax.Array,
    bias_B1M: jax.Array | None,
    y_BHKL: jax.Array,
    log_sum_BH1L: jax.Array,
    dy_BHKL: jax.Array,
    dlog_sum_BH1L: jax.Array,
    query_block: int,
    key_block: int,
    interpret: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of queries, keys and values, from those of the attention and of its log sums."""
    batch, heads, width, length = q_BHKL.shape
    keys, masked = k_BHKM.shape[3], bias_B1M is not None
    few = keys == key_block
    group = heads_together(heads, query_block * keys) if few else 1
    columns, rows, whole = specs(group, query_block, keys)
    kernel = _few_keys if few else functools.partial(_many_keys, key_block=key_block)
    dtype, scores = q_BHKL.dtype, (2, key_block, query_block)
    working = [
        pltpu.VMEM((keys, width + SPARE * masked), dtype),
        pltpu.VMEM((keys, width), dtype),
        pltpu.VMEM(scores, jnp.float32),
        pltpu.VMEM(scores, jnp.float32),
    ]
    sums = [pltpu.VMEM((group, width, keys), jnp.float32)] * 2
    return pl.pallas_call(
        functools.partial(kernel, masked=masked),
        grid=(batch, heads // group, length // query_block),
        in_specs=[
            *[columns(width), rows(width), rows(width), columns(width), columns(width)],
            *[columns(1), columns(1), *[whole] * masked],
        ],
        out_specs=[columns(width), rows(width), rows(width)],
        out_shape=[jax.ShapeDtypeStruct(x.shape, dtype) for x in (q_BHKL, k_BHKM, v_BHKM)],
        scratch_shapes=sums if few else sums + working,
        compiler_params=compiler_params(group * keys, width, group * key_block * query_block),
        name=kernel_name('backward', q_BHKL, keys, masked),
        interpret=interpreted(interpret),
    )(
        *[q_BHKL, k_BHKM, v_BHKM, y_BHKL, dy_BHKL, log_sum_BH1L, dlog_sum_BH1L],
        *[bias_B1M] * masked,
    )


def _mean(y_ref, dy_ref, dlog_sum_ref, head: int) -> jax.Array:
    """The mean of the weights' gradients, by the weights, less the gradient of the log of the sums."""
    y_KP, dy_KP = (ref[0, head].astype(jnp.float32) for ref in (y_ref, dy_ref))
    return jnp.sum(y_KP * dy_KP, 0, keepdims=True) - dlog_sum_ref[0, head]


def _begin(*sums) -> None:
    @pl.when(pl.program_id(2) == 0)
    def _():
        for ref in sums:
            ref[...] = jnp.zeros_like(ref)


def _finish(dk_ref, dk_sum_ref, dv_ref, dv_sum_ref, scale: float) -> None:
    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _():
        dk_ref[0] = (dk_sum_ref[...] * scale).astype(dk_ref.dtype)
        dv_ref[0] = dv_sum_ref[...].astype(dv_ref.dtype)


def _few_keys(q_ref, k_ref, v_ref, y_ref, dy_ref, log_sum_ref, dlog_sum_ref, *refs, masked: bool) -> None:
    dq_ref, dk_ref, dv_ref, dk_sum_ref, dv_sum_ref = refs[masked:]
    scale = q_ref.shape[2] ** -0.5
    _begin(dk_sum_ref, dv_sum_ref)
    for head in range(q_ref.shape[1]):
        q_KP, k_KM, v_KM, dy_KP = (ref[0, head] for ref in (q_ref, k_ref, v_ref, dy_ref))
        k_RM = with_rows(k_KM, refs[0][0]) if masked else k_KM
        scores_MP = product(k_RM, with_ones(q_KP, masked), ROWS)
        weights_MP = jnp.exp2(scores_MP * (scale * LOG2_E) - log_sum_ref[0, head] * LOG2_E)
        dweights_MP = product(v_KM, dy_KP, ROWS)
        dscores_MP = weights_MP * (dweights_MP - _mean(y_ref, dy_ref, dlog_sum_ref, head))
        weights_MP, dscores_MP = weights_MP.astype(q_KP.dtype), dscores_MP.astype(q_KP.dtype)
        dv_sum_ref[head] += product(dy_KP, weights_MP, COLUMNS)
        dk_sum_ref[head] += product(q_KP, dscores_MP, COLUMNS)
        dq_ref[0, head] = (product(k_KM, dscores_MP) * scale).astype(dq_ref.dtype)
    _finish(dk_ref, dk_sum_ref, dv_ref, dv_sum_ref, scale)


def _many_keys(
    q_ref, k_ref, v_ref, y_ref, dy_ref, log_sum_ref, dlog_sum_ref, *refs, key_block: int, masked: bool
) -> None:
    bias_ref = refs[0] if masked else None
    dq_ref, dk_ref, dv_ref, dk_sum_ref, dv_sum_ref, k_MR_ref, v_MK_ref, scores_ref, dweights_ref = refs[
        masked:
    ]
    _begin(dk_sum_ref, dv_sum_ref)

    @pl.when(pl.program_id(2) == 0)
    def _():
        turn(k_ref, k_MR_ref, key_block, bias_ref)
        turn(v_ref, v_MK_ref, key_block)

    q_KP, dy_KP, width = q_ref[0, 0], dy_ref[0, 0], q_ref.shape[2]
    q_RP, scale, columns = with_ones(q_KP, masked), width**-0.5, parts(q_KP.shape[1])
    log_sum_1P = log_sum_ref[0, 0] * LOG2_E
    mean_1P = _mean(y_ref, dy_ref, dlog_sum_ref, 0)

    def prepare(block, slot):
        at = pl.ds(pl.multiple_of(block * key_block, key_block), key_block)
        k_NR, v_NK = k_MR_ref[at, :], v_MK_ref[at, :]
        for part in columns:
            scores_ref[slot, :, part] = product(k_NR, q_RP[:, part])
            dweights_ref[slot, :, part] = product(v_NK, dy_KP[:, part])

    def use(block, slot, dqs):
        at = pl.ds(pl.multiple_of(block * key_block, 128), key_block)
        k_KN = k_ref[0, 0, :, at]
        dk_KN = dv_KN = jnp.zeros((width, key_block), jnp.float32)
        added = []
        for part, dq_KP in zip(columns, dqs):
            weights_NP = jnp.exp2(scores_ref[slot, :, part] * (scale * LOG2_E) - log_sum_1P[:, part])
            dscores_NP = weights_NP * (dweights_ref[slot, :, part] - mean_1P[:, part])
            weights_NP, dscores_NP = weights_NP.astype(k_KN.dtype), dscores_NP.astype(k_KN.dtype)
            dv_KN = dv_KN + product(dy_KP[:, part], weights_NP, COLUMNS)
            dk_KN = dk_KN + product(q_KP[:, part], dscores_NP, COLUMNS)
            added.append(dq_KP + product(k_KN, dscores_NP))
        dk_sum_ref[0, :, at] += dk_KN
        dv_sum_ref[0, :, at] += dv_KN
        return added

    def step(block, slot, dqs):
        prepare(block + 1, 1 - slot)
        return use(block, slot, dqs)

    prepare(0, 0)
    zeros = [jnp.zeros((width, columns[0].stop), jnp.float32)] * len(columns)
    for part, dq_KP in zip(columns, over_blocks(k_ref.shape[3] // key_block, use, step, zeros)):
        dq_ref[0, 0, :, part] = (dq_KP * scale).astype(dq_ref.dtype)
    _finish(dk_ref, dk_sum_ref, dv_ref, dv_sum_ref, scale)
