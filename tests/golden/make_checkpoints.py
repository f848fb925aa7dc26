"""Makes checkpoint.pt and checkpoint_legacy.pt, as torch.save writes them in its two layouts.

What is in them is said once more, without torch, in tests/weights/test_pickled.py.
"""

import argparse
import pathlib

import numpy as np
import torch
from seeded import normal

HERE = pathlib.Path(__file__).parent


def tree() -> dict:
    """A checkpoint with something of everything."""
    base = torch.from_numpy(normal('base', (4, 6)))
    model = torch.nn.Linear(3, 2)
    model.load_state_dict(
        {k: torch.from_numpy(normal(k, tuple(v.shape))) for k, v in model.state_dict().items()}
    )
    return {
        'model': model.state_dict(),
        'views': {'whole': base, 'turned': base.T, 'part': base[1:3, ::2], 'repeated': base[:1].expand(3, 6)},
        'dtypes': {
            'bfloat16': base.bfloat16(),
            'float16': base.half(),
            'int64': torch.arange(5),
            'bool': base > 0,
            'float8': base.to(torch.float8_e4m3fn),
            'scalar': torch.tensor(2.5),
            'empty': torch.zeros(0, 3),
        },
        'parameter': torch.nn.Parameter(base[0]),
        'args': argparse.Namespace(learning_rate=1e-4, name='tiny'),
        'loss': np.float64(0.25),
        'seen': {1, 2},
        'rest': [
            None,
            True,
            2**40,
            'text',
            b'bytes',
            (1, 2.5),
            base.shape,
            torch.device('cpu'),
            torch.float32,
        ],
    }


if __name__ == '__main__':
    torch.save(tree(), HERE / 'checkpoint.pt')
    torch.save(tree(), HERE / 'checkpoint_legacy.pt', _use_new_zipfile_serialization=False)
