"""The shapes as a TensorFlow Datasets data set on disk, written and read without TensorFlow.

Pictures are PNG, records are ArrayRecord (random access), one version a choice of sizes. Only a finished
data set is ever seen under its name: it is written under another and renamed.
"""

import contextlib
import dataclasses
import fcntl
import io
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image

from jaxgen.data import shapes_draw, shapes_scene
from jaxgen.data.source import Example


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What a prepared data set is made of; two that differ in any of it lie side by side."""

    resolution: int
    train: int
    test: int
    objects: tuple[int, int]  # the fewest and the most objects of a scene
    seed: int

    @property
    def name(self) -> str:
        low, high = self.objects
        return f'{self.resolution}px_{self.train}_{self.test}_objects{low}to{high}_seed{self.seed}'


def draw(sizes: Sizes, split: str, index: int) -> Example:
    """Example `index` of a split: a function of the seed, the split and the index alone."""
    rng = np.random.default_rng((sizes.seed, ('train', 'test').index(split), index))
    low, high = sizes.objects
    scene = shapes_scene.draw_scene(rng, split, int(rng.integers(low, high + 1)))
    return {
        'caption': shapes_scene.caption(scene, int(rng.integers(shapes_scene.WORDINGS))),
        'label': shapes_scene.label(scene),
        'image': shapes_draw.render(scene, sizes.resolution, rng),
    }


class JaxgenShapes(tfds.core.GeneratorBasedBuilder):
    """Captioned pictures of coloured shapes; 'test' shows combinations that 'train' never shows."""

    VERSION = tfds.core.Version('1.0.0')

    def __init__(self, sizes: Sizes, data_dir: str):
        self.sizes = sizes
        super().__init__(data_dir=data_dir, file_format='array_record')

    def get_default_builder_config(self) -> tfds.core.BuilderConfig:
        """The configuration by whose name the data set lies on disk."""
        return tfds.core.BuilderConfig(name=self.sizes.name)

    def _info(self) -> tfds.core.DatasetInfo:
        side = self.sizes.resolution
        features = {
            'image': tfds.features.Image(shape=(side, side, 3), encoding_format='png'),
            'caption': tfds.features.Text(),
            'label': tfds.features.ClassLabel(names=shapes_scene.LABEL_NAMES),
        }
        # In the order of the indices, so that a smaller data set is the beginning of a larger one.
        return tfds.core.DatasetInfo(
            builder=self,
            description=JaxgenShapes.__doc__,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in ('train', 'test')}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, Example]]:
        for index in range(getattr(self.sizes, split)):
            example = draw(self.sizes, split, index)
            png = io.BytesIO()
            Image.fromarray(example['image']).save(png, 'png')
            yield index, example | {'image': png.getvalue()}


@contextlib.contextmanager
def _alone(data_dir: epath.Path) -> Iterator[None]:
    """Keeps other processes of this machine out; elsewhere (gs://) the renaming alone must do."""
    if '://' in str(data_dir):
        yield
        return
    data_dir.mkdir(parents=True, exist_ok=True)
    with open(data_dir / 'jaxgen_shapes.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _clear_unfinished(folder: epath.Path) -> None:
    """Removes what a killed process left; on a bucket it may be another host's work, and stays."""
    if '://' not in str(folder) and folder.exists():
        for left in folder.glob('incomplete.*'):
            left.rmtree()


def prepare(data_dir: str, sizes: Sizes) -> JaxgenShapes:
    """The data set below `data_dir`, written there where it is not yet; many processes may call at once."""
    root = epath.Path(data_dir).expanduser()
    if JaxgenShapes(sizes, str(root)).is_prepared():
        return JaxgenShapes(sizes, str(root))  # anew: one made before the last write ended knows no splits
    with _alone(root):
        builder = JaxgenShapes(sizes, str(root))  # looks again: another process may have written it meanwhile
        if builder.is_prepared():
            return builder
        _clear_unfinished(root / builder.name / sizes.name)
        try:
            builder.download_and_prepare()
        except OSError:
            # On a bucket two hosts may finish at once, and the later one finds the name taken.
            if not JaxgenShapes(sizes, str(root)).is_prepared():
                raise
    return JaxgenShapes(sizes, str(root))


def records(data_dir: str, sizes: Sizes, split: str) -> Sequence[dict]:
    """The records of a split as they were written, the pictures as PNG."""
    builder = prepare(data_dir, sizes)
    return builder.as_data_source(split, decoders={'image': tfds.decode.SkipDecoding()})
