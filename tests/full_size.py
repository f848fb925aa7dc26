"""Loading published weights at full size: python tests/full_size.py FOLDER

Writes random files with published names into FOLDER (8 GB, kept for the next time), loads each in a process
of its own, and prints how long that took and how much anonymous memory it needed beside the arrays' size.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import jax
import numpy as np
from flax import linen as nn
from memory import anonymous

from jaxgen.encoders import t5
from jaxgen.models import pixart
from jaxgen.weights import published, safetensors
from jaxgen.weights.names import entries

ROOT = pathlib.Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, in one of its published layouts."""

    build: Callable[[], nn.Module]
    layout: str


CASES = {
    'pixart-xl-2': Case(lambda: pixart.build(micro_conditioning=True), 'authors'),
    't5-xl-encoder': Case(lambda: t5.build('xl'), 'transformers'),
    'pixart-small': Case(lambda: pixart.build(hidden=576, heads=8, depth=14), 'diffusers'),
}
LARGE = ('pixart-xl-2', 't5-xl-encoder')


def abstract(network: nn.Module) -> dict:
    """The layout of a network's parameters, on the first device."""
    inputs = published.family_of(network).inputs(network)
    shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)['params']
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), shapes)


def write(case: Case, path: pathlib.Path) -> None:
    """A file of random weights."""
    network, rng = case.build(), np.random.default_rng(0)
    table = published.family_of(network).layouts(network)[case.layout]

    def drawn(entry: safetensors.Entry) -> safetensors.Entry:
        return entry._replace(make=lambda: rng.random(entry.shape, np.float32))

    safetensors.write(path, map(drawn, entries(table, abstract(network))))


def measure(case: Case, path: pathlib.Path) -> dict[str, float]:
    """Seconds, all and the processor's; bytes of the arrays, the largest stored one, the memory needed."""
    network = case.build()
    like = abstract(network)
    jax.device_put(np.zeros(1)).block_until_ready()
    peak, done, before = 0, threading.Event(), anonymous()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start, worked = time.perf_counter(), time.process_time()
    params = jax.block_until_ready(published.load(network, str(path), like))
    seconds, worked = time.perf_counter() - start, time.process_time() - worked
    done.set()
    watcher.join()
    return {
        'seconds': seconds,
        'worked': worked,
        'arrays': sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
        'largest': max(array.nbytes for array in safetensors.read(path).values()),
        'peak': peak - before,
    }


def apart(name: str, folder: pathlib.Path) -> dict[str, float]:
    """The measurement in a fresh process, of a file that is written if there is none."""
    path = folder / f'{name}.safetensors'
    if not path.exists():
        write(CASES[name], path)
    command = [sys.executable, __file__, str(folder), name]
    environment = {'PYTHONPATH': str(ROOT), **os.environ, 'JAX_PLATFORMS': 'cpu'}
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout)


def main(folder: pathlib.Path) -> None:
    """All large cases."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in LARGE:
        found = apart(name, folder)
        peak, arrays, largest = (found[key] / 1e9 for key in ('peak', 'arrays', 'largest'))
        print(f"{name}: {found['seconds']:.1f} s, {found['worked']:.1f} s of them the processor's")
        print(f'  arrays {arrays:.3f} GB; anonymous memory {peak:.3f} GB, {peak / arrays:.3f} times as much')
        print(f'  the largest stored tensor {largest:.3f} GB')


if __name__ == '__main__':
    folder = pathlib.Path(sys.argv[1])
    if len(sys.argv) > 2:
        name = sys.argv[2]
        print(json.dumps(measure(CASES[name], folder / f'{name}.safetensors')))
    else:
        main(folder)
