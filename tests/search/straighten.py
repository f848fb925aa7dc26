"""Reflow end to end through the jobs: train a flow, draw its pairs, train on them, judge both in few steps.

PYTHONPATH=tests python -m search.straighten FOLDER prints the figures as JSON; test_straighten.py runs it.
"""

import json
import pathlib
import sys
from typing import Any

from jaxgen import recipe
from jaxgen.jobs import evaluate, search, train

STEPS = (1, 2, 16)


def config(steps: int, rate: float) -> dict[str, Any]:
    """A small DiT on the corners."""
    return {
        'data': {'name': 'search.corners', 'resolution': 16},
        'tokenizer': {'name': 'pixels'},
        'conditioner': {'name': 'labels', 'classes': 4},
        'path': {'name': 'linear'},
        'prediction': {'output': 'data'},
        'model': {'name': 'dit', 'patch': 4, 'hidden': 64, 'depth': 3, 'heads': 2, 'scan': False},
        'objective': {'name': 'diffusion', 'times': 'logit_normal', 'mean': 0.5, 'drop': 0.0},
        'sampler': {'name': 'diffusion', 'solver': {'name': 'euler'}, 'steps': 16},
        'metric': {'name': 'search.corners:judge'},
        'optimizer': {
            'name': 'muon',
            'learning_rate': rate,
            'schedule': 'cosine',
            'warmup': 20,
            'options': {'consistent_rms': 0.5},
        },
        'ema': {'decay': 0.99},
        'train': {'steps': steps, 'batch': 64, 'sample_batch': 64, 'log_every': 200, 'save_every': steps},
    }


def judged(built: recipe.Recipe, folder: pathlib.Path) -> list[float]:
    """Alignment by the number of Euler steps."""
    scores = [evaluate.run(built, folder, knobs=f'steps={steps}') for steps in STEPS]
    return [score['metrics']['alignment'] for score in scores]


def main(folder: pathlib.Path) -> None:
    first, second = folder / 'first', folder / 'second'
    settings = {**config(1600, 2e-3), 'search': {'name': 'pairs', 'count': 2048}}
    built = recipe.build(settings)
    train.run(built, first)
    search.run(built, first)
    again = {
        **config(1000, 1e-3),
        'data': {'name': 'pairs', 'path': str(first / 'pairs'), 'resolution': 16},
        'objective': {'name': 'reflow'},
        'networks': {'model': {'init_from': str(first)}},
    }
    rebuilt = recipe.build(again)
    train.run(rebuilt, second)
    figures = {'steps': STEPS, 'before': judged(built, first), 'after': judged(rebuilt, second)}
    print(json.dumps(figures))


if __name__ == '__main__':
    main(pathlib.Path(sys.argv[1]))
