"""What the pipeline delivers from a cache of features: python tests/data/rates.py [FOLDER] [--threads=1,2,4]

Caches of noise are written (0.7 GB in all, unless FOLDER has them) in the layout of DiT at 256 px, whose
latents are there as seen and mirrored, and of PixArt-Sigma at 1024 px with up to 300 vectors of T5-XXL, and
read as a train job reads them: drawn, flipped, padded, joined.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable

import ml_dtypes
import numpy as np
from etils import epath

from jaxgen.conditioning import t5
from jaxgen.data.cached import Cached, Layout
from jaxgen.data.pipeline import batches
from jaxgen.data.shards import Writer, shards
from jaxgen.data.source import Description

# Side of the latents, mirrored too, width of the text's vectors, images, images a batch.
KINDS = {'DiT, 256 px': (32, True, None, 4096, 256), 'PixArt-Sigma, 1024 px': (128, False, 4096, 256, 32)}
WORDS, SECONDS = 300, 8.0


def noise(folder: epath.Path, layout: Layout, side: int, count: int) -> list[str]:
    """The shards of a cache, which is made if it is not there."""
    rng = np.random.default_rng(0)
    planned = shards(folder, 'train', count, max(1, 2**28 // layout.bytes_of(WORDS if layout.text else 0)))
    if not folder.exists():
        folder.mkdir(parents=True)
        writer = Writer(planned)
        for i in range(count):
            moments = rng.standard_normal((layout.variants, side, side, 8), np.float32)
            arrays = {'moments': moments.astype(np.float16)}
            if layout.text:
                words = rng.standard_normal((int(rng.integers(100, WORDS + 1)), layout.text[1]), np.float32)
                arrays['text'] = words.astype(ml_dtypes.bfloat16)
            example = {'size': (8 * side, 8 * side), 'label': i % 1000, 'caption': 'of noise ' * 10}
            writer.write(layout.pack(example, arrays), np.zeros(4), np.zeros(4), side * side)
    return [os.fspath(shard.path) for shard in planned]


def labels(examples: list) -> dict[str, np.ndarray]:
    """What a conditioner on classes hands to a batch."""
    return {'label': np.asarray([example['label'] for example in examples], np.int32)}


def rate(source: Cached, arrays: Callable, flip: bool, batch: int, threads: int) -> tuple[float, float]:
    """Images a second, and images a second of processor time."""
    walk = batches(source, arrays, seed=0, batch=batch, flip=flip, threads=threads)
    next(walk)
    begun, processor, images = time.monotonic(), time.process_time(), 0
    while time.monotonic() - begun < SECONDS:
        next(walk)
        images += batch
    return images / (time.monotonic() - begun), images / (time.process_time() - processor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('folder', nargs='?', default=None)
    parser.add_argument('--threads', default='1,2,4')
    given = parser.parse_args()
    folder = epath.Path(given.folder or tempfile.mkdtemp())
    print('| cache | threads | images/s | a CPU-second | tokens/s |')
    print('|---|---|---|---|---|')
    for number, (kind, (side, mirrored, width, count, batch)) in enumerate(KINDS.items()):
        text = ('bfloat16', width) if width else None
        layout = Layout((('moments', 'float16', (side, side, 8)),), 1 + mirrored, text)
        paths = noise(folder / str(number), layout, side, count)
        description = Description(8 * side, 1000, bool(text), None, ('moments',), (side, side, 4))
        source = Cached(paths, description, layout, {})
        arrays = t5.build(size='xxl', length=WORDS, dtype='bfloat16').arrays if text else labels
        for threads in map(int, given.threads.split(',')):
            images, processor = rate(source, arrays, mirrored, batch, threads)
            tokens = images * (side // 2) ** 2
            print(f'| {kind} | {threads} | {images:,.0f} | {processor:,.0f} | {tokens:,.0f} |', flush=True)


if __name__ == '__main__':
    main()
