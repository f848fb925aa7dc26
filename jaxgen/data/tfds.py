"""Any prepared TensorFlow Datasets data set, read without TensorFlow.

It must lie on disk in a random-access format (file_format='array_record'), as
`tfds build <name> --file_format=array_record` prepares it; pictures are decoded here.
"""

from collections.abc import Sequence

import tensorflow_datasets as tfds
from PIL import Image

from jaxgen import images
from jaxgen.config import Side
from jaxgen.data.source import Description, Example, check_resolution

_RANDOM_ACCESS = ('array_record', 'parquet')


class Records:
    """A split of a data set as examples with the library's names."""

    def __init__(self, records: Sequence[dict], description: Description, keys: dict[str, str]):
        self.records = records
        self.description = description
        self.keys = keys

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        record = self.records[index]
        stored = record[self.keys['image']]
        if isinstance(stored, bytes):
            image = images.decode(stored)
        else:
            image = images.to_rgb(Image.fromarray(stored[..., 0] if stored.shape[-1] == 1 else stored))
        side = self.description.resolution
        example: Example = {'image': images.crop(images.fit(image, side), side)}
        if 'label' in self.keys:
            example['label'] = int(record[self.keys['label']])
        if 'caption' in self.keys:
            caption = record[self.keys['caption']]
            example['caption'] = caption.decode() if isinstance(caption, bytes) else str(caption)
        return example


def _feature(builder: tfds.core.DatasetBuilder, option: str, key: str) -> tfds.features.FeatureConnector:
    features = builder.info.features
    if key not in features:
        raise ValueError(f'{option} is {key!r}, and {builder.name!r} has the features {sorted(features)}')
    return features[key]


def _builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(
            f'there is no data set {name!r} in {data_dir or "the default folder of TFDS"}; prepare it with '
            f"'tfds build {name} --file_format=array_record', or give its data_dir"
        ) from error


def build(
    dataset: str,
    split: str = 'train',
    resolution: Side = 256,
    data_dir: str | None = None,
    image_key: str = 'image',
    label_key: str | None = None,
    caption_key: str | None = None,
) -> Records:
    """The split of a prepared data set 'set', 'set/config' or 'set/config:version' below `data_dir`.

    `split` is any that TFDS reads, slices such as 'train[:5%]' too; pictures are cut to centred squares.
    """
    check_resolution(resolution)
    builder = _builder(dataset, data_dir)
    if not builder.is_prepared() or builder.info.file_format.value not in _RANDOM_ACCESS:
        raise ValueError(
            f'{dataset!r} in {str(builder.data_dir)!r} is not prepared for random access; prepare it with '
            f"'tfds build {dataset} --file_format=array_record'"
        )
    decoders = {}
    if isinstance(_feature(builder, 'image_key', image_key), tfds.features.Image):
        decoders[image_key] = tfds.decode.SkipDecoding()
    keys = {'image': image_key}
    classes = names = None
    if label_key is not None:
        feature = _feature(builder, 'label_key', label_key)
        if not isinstance(feature, tfds.features.ClassLabel):
            raise ValueError(f'label_key {label_key!r} of {dataset!r} is {feature!r}; give one of classes')
        keys['label'] = label_key
        classes, names = feature.num_classes, tuple(feature.names)
    if caption_key is not None:
        _feature(builder, 'caption_key', caption_key)
        keys['caption'] = caption_key
    records = builder.as_data_source(split, decoders=decoders)
    return Records(records, Description(resolution, classes, caption_key is not None, names), keys)
