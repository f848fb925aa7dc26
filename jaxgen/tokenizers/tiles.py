"""Maps too large for one piece, by overlapping tiles that are blended into each other, as diffusers does.

Each tile goes through the network alone, with attention and norms of its own, so memory stays that of one
tile whatever the size of the map; the last tiles of a row or column are smaller. Tiles are done one after
another, each shape of them compiled once.
"""

# B batch, H height, W width, C channels

import itertools
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax

Run = Callable[[Array], Array]
Place = tuple[int, int]


def in_tiles(run: Run, tile: int, tile_out: int, overlap: float) -> Run:
    """`run` by tiles of side `tile` that become `tile_out`, `overlap` of one lying on the next."""
    step, blended = int(tile * (1 - overlap)), int(tile_out * overlap)

    def tiled(x_BHWC: Array) -> Array:
        height, width = x_BHWC.shape[1:3]
        if height <= tile and width <= tile:
            return run(x_BHWC)
        rows, columns = range(0, height, step), range(0, width, step)
        tiles = _tiles(run, x_BHWC, list(itertools.product(rows, columns)), tile)
        kept = tile_out - blended
        whole = []
        for row in rows:
            for column in columns:
                # A tile is blended with its neighbours as they are after their own blending.
                for axis, before in ((1, (row - step, column)), (2, (row, column - step))):
                    if before in tiles:
                        tiles[row, column] = _blend(tiles[before], tiles[row, column], blended, axis)
            line = [tiles[row, column][:, :kept, :kept] for column in columns]
            whole.append(jnp.concatenate(line, 2))
        return jnp.concatenate(whole, 1)

    return tiled


def _tiles(run: Run, x_BHWC: Array, places: list[Place], tile: int) -> dict[Place, Array]:
    height, width = x_BHWC.shape[1:3]
    alike: dict[Place, list[Place]] = {}
    for row, column in places:
        shape = min(tile, height - row), min(tile, width - column)
        alike.setdefault(shape, []).append((row, column))
    done = {}
    for shape, starts in alike.items():

        def cut(start: Array, shape: Place = shape) -> Array:
            sizes = (len(x_BHWC), *shape, x_BHWC.shape[-1])
            return run(lax.dynamic_slice(x_BHWC, (0, start[0], start[1], 0), sizes))

        done.update(zip(starts, lax.map(cut, jnp.asarray(starts))))
    return done


def _blend(before: Array, tile: Array, length: int, axis: int) -> Array:
    """The tile, its beginning faded in over the end of the one before."""
    length = min(before.shape[axis], tile.shape[axis], length)
    if not length:
        return tile
    share = jnp.arange(length) / length
    share = jnp.expand_dims(share, [a for a in range(tile.ndim) if a != axis])
    end = lax.slice_in_dim(before, before.shape[axis] - length, None, axis=axis)
    start, rest = jnp.split(tile, [length], axis)
    return jnp.concatenate([end * (1 - share) + start * share, rest], axis)
