"""Two networks that share the scales of a picture (CoDe), at every split of these: time and accuracy.

`python tests/autoregressive/splits.py RUN [PICTURES]`, RUN of configs/var_shapes.py:code. All splits draw the
same labels from the same seeds, in turns, of which the fastest counts; 'all' is the larger network alone.
"""

import sys
import time

import jax

from jaxgen import recipe
from jaxgen.generate import config_of, make_generator
from jaxgen.program import assemble, load_params

ROUNDS = 5


def main(run, count=256):
    """Print the table as markdown."""
    config = config_of(run)
    config['train']['sample_batch'] = config['metric']['prompts'] = count
    scales = len(recipe.build(config).tokenizer.scales)
    drawers = {}
    for drafted in (*range(scales), 'all'):
        order = dict(config['sampler']['order'])
        if drafted == 'all':
            order = {key: value for key, value in order.items() if key not in ('refiner', 'drafted')}
        else:
            order['drafted'] = drafted
        built = recipe.build({**config, 'sampler': {**config['sampler'], 'order': order}})
        program = assemble(built)
        _, params = load_params(program, run)
        examples = built.metric.examples()
        generate = make_generator(built, program.mesh, count)
        call = (params, examples, range(count), built.sampler.knobs())
        accuracy = built.metric.score(generate(*call), examples)  # and it compiles
        drawers[drafted] = generate, call, accuracy
    fastest = dict.fromkeys(drawers, float('inf'))
    for _ in range(ROUNDS):
        for drafted, (generate, call, _) in drawers.items():
            began = time.perf_counter()
            jax.block_until_ready(generate(*call))
            fastest[drafted] = min(fastest[drafted], time.perf_counter() - began)
    print(f'| scales drafted of {scales} | label | images/s | times the larger alone |\n|---|---|---|---|')
    for drafted, (_, _, accuracy) in drawers.items():
        rate, times = count / fastest[drafted], fastest['all'] / fastest[drafted]
        print(f'| {drafted} | {accuracy["label"]:.3f} | {rate:.1f} | {times:.2f} |')


if __name__ == '__main__':
    main(sys.argv[1], *map(int, sys.argv[2:]))
