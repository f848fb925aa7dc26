"""jaxgen beside diffusers and torch on this CPU: python tests/compare.py [--threads=2,1] [--rounds=5]

The same network with the same weights on the same inputs: sampling with guidance (DiT by DDIM, PixArt by
DPM-Solver++), and DiT's train step (forward, backward, AdamW, average). Each side is a process of its own,
held to the same cores, which answers calls; calls go round and wait for each other. That both sides draw
the same latents is checked. A ratio is their time over ours in the same round; torch runs eagerly and
compiled, and counts with the better of the two. Float32. Needs the extra `parity`.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
SIDES = ('jaxgen', 'torch', 'torch compiled')
CASES = ('sample-dit', 'sample-pixart', 'train-dit')
LARGE = dict(hidden=384, depth=12, heads=6, side=32, text=1024, words=120, batch=4, train_batch=8, steps=10)
TINY = dict(hidden=24, depth=2, heads=2, side=8, text=16, words=6, batch=2, train_batch=2, steps=3)
GUIDANCE, RATE, DECAY, DROP = 4.0, 1e-4, 0.9999, 0.1
BETAS = dict(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule='linear')
AGREEMENT = 1e-3  # largest difference of latents, of the largest latent


def given(size: dict[str, int]) -> dict[str, np.ndarray]:
    """What both sides are called with, in jaxgen's layout."""
    rng, batch = np.random.default_rng(0), size['batch']
    images = max(batch, size['train_batch']), size['side'], size['side'], 4
    text = rng.standard_normal((2, batch, size['words'], size['text']), np.float32)
    lengths = rng.integers(2, size['words'] + 1, (2, batch))
    return {
        'noise': rng.standard_normal(images, np.float32),
        'latents': rng.standard_normal(images, np.float32),
        'labels': rng.integers(0, 1000, images[0]).astype(np.int32),
        'text': text,
        'text_mask': np.arange(size['words']) < lengths[..., None],
    }


# Ours -------------------------------------------------------------------------------------------------------


def our_network(case: str, size: dict[str, int]) -> tuple[Any, Any]:
    """The network and parameters none of which is zero."""
    import jax

    from jaxgen.models import dit, pixart
    from jaxgen.weights import published

    common = dict(
        hidden=size['hidden'], depth=size['depth'], heads=size['heads'], base_size=size['side'] // 2
    )
    if case == 'sample-pixart':
        network = pixart.build(caption_width=size['text'], caption_length=size['words'], **common)
    else:
        variance = case == 'sample-dit'
        network = dit.build(learned_variance=variance, frequency_shift=1, norm_epsilon=1e-5, **common)
    inputs = published.family_of(network).inputs(network)
    shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)['params']
    rng = np.random.default_rng(1)

    def drawn(leaf: Any) -> Any:
        scale = 0.02 if leaf.ndim < 2 else min(leaf.shape[-2:]) ** -0.5 / 2
        return jax.numpy.asarray(scale * rng.standard_normal(leaf.shape, np.float32))

    return network, jax.tree.map(drawn, shapes)


def our_sampling(case: str, size: dict[str, int], network: Any, params: Any) -> Callable[[], np.ndarray]:
    """One call of the sampler, compiled."""
    import jax

    from jaxgen.conditioning.request import Request
    from jaxgen.diffusion import path, prediction, sampler
    from jaxgen.diffusion.solvers import ddim, dpm_solver
    from jaxgen.diffusion.spacings import training_steps

    arrays, batch, side = given(size), size['batch'], size['side']
    walk = path.build('vp', betas='linear')
    kept, dropped = np.zeros(batch, bool), np.ones(batch, bool)
    if case == 'sample-dit':
        label = arrays['labels'][:batch]
        conditions = [{'label': label, 'drop': kept}, {'label': label, 'drop': dropped}]
        solver, spacing = ddim.build(), training_steps.build(walk, 'leading')
    else:
        texts = zip(arrays['text'], arrays['text_mask'])
        conditions = [{'text': text, 'text_mask': mask, 'drop': kept} for text, mask in texts]
        solver, spacing = dpm_solver.build(), training_steps.build(walk, 'linspace', extra=True)
    built = sampler.build(
        {'model': lambda params, *inputs: network.apply({'params': params}, *inputs)},
        walk,
        prediction.build('noise', 'steps', learned_variance=True, path=walk),
        solver,
        (side, side, 4),
        8 * side,
        spacing,
        steps=size['steps'],
        guidance=GUIDANCE,
    )
    noise, keys = arrays['noise'][:batch], jax.random.split(jax.random.key(0), batch)
    object.__setattr__(built, 'noise', lambda keys: noise)
    draw = jax.jit(lambda params, request, knobs: built.sample({'model': params}, request, knobs))
    request, knobs = Request(*conditions, keys), built.knobs()
    return lambda: np.asarray(draw(params, request, knobs))


def our_training(size: dict[str, int], network: Any, params: Any) -> Callable[[], None]:
    """A train step of the library: its objective, optimizer, guard and average."""
    import jax

    from jaxgen.conditioning.labels import Labels
    from jaxgen.diffusion import path, prediction
    from jaxgen.objectives import diffusion
    from jaxgen.training import ema, guard, optimizer
    from jaxgen.training.state import TrainState
    from jaxgen.training.step import make_step

    walk = path.build('vp', betas='linear')
    objective = diffusion.build(
        {'model': lambda params, *inputs, **options: network.apply({'params': params}, *inputs, **options)},
        walk,
        prediction.build('noise', 'steps', path=walk),
        Labels(1000),
        types.SimpleNamespace(encode=lambda known, batch, keys: batch['latents'], reads=('latents',)),
        times='discrete',
        drop=DROP,
    )
    phase, average, watch = objective.phases[0], ema.build(decay=DECAY), guard.build()
    update = optimizer.build('adamw', RATE, clip=0.0)[0]
    trained = {'model': params}
    step = make_step(phase, {'model': True}, update, ('model',), average, watch, 1)
    state = TrainState(
        trained,
        {phase.name: update.init(trained)},
        {'model': ema.init(params)},
        None,
        {},
        guard.init([phase.name], ['model']),
    )
    arrays, count = given(size), size['train_batch']
    batch = {'latents': arrays['latents'][:count], 'label': arrays['labels'][:count]}
    compiled, number = jax.jit(step, donate_argnums=0), 0
    key, frozen = jax.random.key(0), {'networks': {}}

    def call() -> None:
        nonlocal state, number
        state, metrics = compiled(state, frozen, batch, key, np.int32(number))
        number += 1
        jax.block_until_ready((state, metrics))

    return call


# Theirs -----------------------------------------------------------------------------------------------------


def their_network(case: str, folder: pathlib.Path, threads: int) -> Any:
    """The network that diffusers reads of the folder that ours was written to."""
    import diffusers
    import torch

    torch.set_num_threads(threads)
    kind = diffusers.PixArtTransformer2DModel if case == 'sample-pixart' else diffusers.DiTTransformer2DModel
    return kind.from_pretrained(folder)


def their_sampling(case: str, size: dict[str, int], network: Any, call: Callable) -> Callable[[], np.ndarray]:
    """The loop of diffusers' pipelines between the text encoder and the decoder."""
    import diffusers
    import torch

    arrays, batch = given(size), size['batch']
    noise = torch.from_numpy(arrays['noise'][:batch].transpose(0, 3, 1, 2).copy())
    if case == 'sample-dit':
        scheduler = diffusers.DDIMScheduler(**BETAS, clip_sample=False)
        labels = torch.from_numpy(arrays['labels'][:batch].astype(np.int64))
        inputs = {'class_labels': torch.cat([labels, torch.full_like(labels, 1000)])}
    else:
        scheduler = diffusers.DPMSolverMultistepScheduler(**BETAS)
        text, mask = (torch.from_numpy(np.concatenate(arrays[name])) for name in ('text', 'text_mask'))
        inputs = {
            'encoder_hidden_states': text,
            'encoder_attention_mask': mask.long(),
            'added_cond_kwargs': {'resolution': None, 'aspect_ratio': None},
        }
    network.eval()

    @torch.no_grad()
    def draw() -> np.ndarray:
        scheduler.set_timesteps(size['steps'])
        # Ours begins with as much noise as the path has at the first step, a thousandth less than all.
        x = scheduler.add_noise(torch.zeros_like(noise), noise, scheduler.timesteps[:1])
        for t in scheduler.timesteps:
            output = call(torch.cat([x, x]), timestep=t.expand(2 * batch), **inputs).sample[:, :4]
            positive, negative = output.chunk(2)
            x = scheduler.step(negative + GUIDANCE * (positive - negative), t, x).prev_sample
        return x.numpy().transpose(0, 2, 3, 1)

    return draw


def their_training(size: dict[str, int], network: Any, call: Callable) -> Callable[[], None]:
    """The same step as one writes it in torch, with the fused AdamW and the average in one call."""
    import diffusers
    import torch

    arrays, count = given(size), size['train_batch']
    latents = torch.from_numpy(arrays['latents'][:count].transpose(0, 3, 1, 2).copy())
    labels = torch.from_numpy(arrays['labels'][:count].astype(np.int64))
    scheduler = diffusers.DDPMScheduler(**BETAS)
    parameters = list(network.train().parameters())
    average = [parameter.detach().clone() for parameter in parameters]
    update = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0, fused=True)

    def step() -> None:
        noise, times = torch.randn_like(latents), torch.randint(0, 1000, (count,))
        output = call(scheduler.add_noise(latents, noise, times), timestep=times, class_labels=labels).sample
        torch.nn.functional.mse_loss(output, noise).backward()
        update.step()
        update.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1 - DECAY)

    return step


# One side, and both -----------------------------------------------------------------------------------------


def answer(case: str, side: str, threads: int, folder: pathlib.Path, size: dict[str, int]) -> None:
    """Be one side: make the call once, say so, then make and time one for every line that comes in."""
    if side == 'jaxgen':
        from jaxgen.weights import published

        network, params = our_network(case, size)
        published.save_network(str(folder), network, params)
        train = case == 'train-dit'
        call = our_training(size, network, params) if train else our_sampling(case, size, network, params)
    else:
        import torch

        network = their_network(case, folder, threads)
        forward = torch.compile(network) if side == 'torch compiled' else network
        train = case == 'train-dit'
        call = (
            their_training(size, network, forward) if train else their_sampling(case, size, network, forward)
        )
    latents = call()
    if latents is not None:
        np.save(folder.parent / f'{side}.npy', latents)
    call()
    print('ready', flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        call()
        print(time.perf_counter() - start, flush=True)


def compare(
    case: str, threads: int, rounds: int, tiny: bool = False, sides: Sequence[str] = SIDES
) -> dict[str, Any]:
    """Seconds of each side, call by call, and the ratios of the better of theirs to ours."""
    with tempfile.TemporaryDirectory() as scratch:
        running = {}
        try:
            for side in sides:  # ours first, which writes the weights
                running[side] = _start(case, side, threads, pathlib.Path(scratch) / 'weights', tiny)
                if running[side].stdout.readline() != 'ready\n':
                    raise RuntimeError(f'{case}: {side} did not start; its errors are above.')
            difference = _difference(pathlib.Path(scratch))
            seconds = {side: [] for side in sides}
            for _ in range(rounds):
                for side, process in running.items():
                    process.stdin.write('again\n')
                    process.stdin.flush()
                    seconds[side].append(float(process.stdout.readline()))
        finally:
            for process in running.values():
                process.kill()
                process.wait()
    best = min(sides[1:], key=lambda side: statistics.median(seconds[side]))
    ratios = [theirs / ours for theirs, ours in zip(seconds[best], seconds['jaxgen'])]
    return {
        'case': case,
        'threads': threads,
        'seconds': seconds,
        'best': best,
        'ratio': statistics.median(ratios),
        'ratios': ratios,
        'difference': difference,
    }


def _start(case: str, side: str, threads: int, folder: pathlib.Path, tiny: bool) -> subprocess.Popen:
    cores = sorted(os.sched_getaffinity(0))[:threads]
    if len(cores) < threads:
        raise ValueError(f'--threads={threads}, and this process may use {len(cores)} cores; ask for fewer.')
    environment = {
        **os.environ,
        'PYTHONPATH': str(ROOT),
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': '',
        'OMP_NUM_THREADS': str(threads),
        'TQDM_DISABLE': '1',
        # Both sides allocate anew in every call, which costs less in huge pages.
        'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1',
    }
    command = [sys.executable, __file__, '--answer', side, '--cases', case, '--threads', str(threads)]
    return subprocess.Popen(
        [*command, '--folder', str(folder), *(['--tiny'] if tiny else [])],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )


def _difference(folder: pathlib.Path) -> float | None:
    """How far their latents are from ours, of the largest; refused where they are others."""
    drawn = [np.load(file) for side in SIDES if (file := folder / f'{side}.npy').exists()]
    if not drawn:
        return None
    ours, *others = drawn
    difference = max(float(np.abs(ours - theirs).max() / np.abs(ours).max()) for theirs in others)
    if not difference <= AGREEMENT:
        raise ValueError(f'latents differ by {difference:.1e}; the two sides do not compute the same.')
    return difference


def machine() -> str:
    """Versions, cores and the processor's name."""
    names = ('jax', 'jaxlib', 'torch', 'diffusers', 'numpy')
    versions = ', '.join(f'{name} {importlib.metadata.version(name)}' for name in names)
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
    model = next((line.partition(':')[2].strip() for line in lines if line.startswith('model name')), 'a CPU')
    return f'{model}, {os.cpu_count()} cores; {versions}'


def line(record: dict[str, Any]) -> str:
    """A comparison for people."""
    seconds, ratios = record['seconds'], record['ratios']
    times = ', '.join(f'{side} {statistics.median(taken):.3f} s' for side, taken in seconds.items())
    same = '' if record['difference'] is None else f'; latents differ by {record["difference"]:.0e}'
    ratio = f'{record["best"]} / jaxgen, ratio {record["ratio"]:.2f} ({min(ratios):.2f} to {max(ratios):.2f})'
    return f'{record["case"]}, {record["threads"]} threads: {ratio}; {times}{same}'


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--cases', default=','.join(CASES))
    parser.add_argument('--threads', default='2,1')
    parser.add_argument('--eager', action='store_true', help='leave out torch compiled, which takes minutes')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--tiny', action='store_true', help='miniature networks')
    parser.add_argument('--json', help='a file for all the times')
    parser.add_argument('--answer', choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument('--folder', type=pathlib.Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.answer:
        size = TINY if given.tiny else LARGE
        answer(given.cases, given.answer, int(given.threads), given.folder, size)
        return []
    print(machine(), flush=True)
    sides, records = SIDES[:2] if given.eager else SIDES, []
    for threads in map(int, given.threads.split(',')):
        for case in given.cases.split(','):
            records.append(compare(case, threads, given.rounds, given.tiny, sides))
            print(line(records[-1]), flush=True)
    if given.json:
        pathlib.Path(given.json).write_text(json.dumps(records, indent=2) + '\n')
    return records


if __name__ == '__main__':
    main()
