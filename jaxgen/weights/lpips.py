"""LPIPS's published names: torchvision's VGG16 and LPIPS's file of linear weights, two paths with a comma.

VGG's layers count in one row with activations and poolings. The classifier, and what LPIPS's class holds
besides its linear weights ('lins', the scaling), are left out. The state of its class as a whole is read too.
"""

import numpy as np

from jaxgen.encoders.lpips import Lpips
from jaxgen.weights.names import CONV, SAME, NameMap, Row, Transform

_IGNORED = ('classifier.*', 'lins.*', 'scaling_layer.*')
# [1, channels, 1, 1] <-> [channels]
_WEIGHTS = Transform(lambda a: (a.reshape(-1),), lambda a: a[None, :, None, None])


def inputs(network: Lpips) -> tuple[np.ndarray, ...]:
    """The least that the network reads: two small pictures."""
    picture = np.zeros((1, 2 ** len(network.stages), 2 ** len(network.stages), 3), np.float32)
    return picture, picture


def layouts(network: Lpips) -> dict[str, NameMap]:
    """torchvision's names with LPIPS's, and those of LPIPS's class."""
    rows: dict[str, list[Row]] = {'torchvision': [], 'lpips': []}
    position = 0
    for stage, widths in enumerate(network.stages):
        for number in range(len(widths)):
            ours = f'vgg/convolution_{stage}_{number}'
            names = {'torchvision': f'features.{position}', 'lpips': f'net.slice{stage + 1}.{position}'}
            for layout, theirs in names.items():
                rows[layout].append(Row(f'{theirs}.weight', (f'{ours}/kernel',), CONV))
                rows[layout].append(Row(f'{theirs}.bias', (f'{ours}/bias',), SAME))
            position += 2
        position += 1
        for each in rows.values():
            each.append(Row(f'lin{stage}.model.1.weight', (f'weights_{stage}',), _WEIGHTS))
    return {layout: NameMap(tuple(each), _IGNORED) for layout, each in rows.items()}
