"""CLIP (Radford et al., 2103.00020): a text and an image tower whose embeddings of a pair lie close.

The text is read causally and its end pooled, the image by a vision transformer with its class token pooled.
OpenAI's towers have the quick GELU; OpenCLIP's (Cherti et al., 2212.07143) the exact one. Either tower works
alone. Hidden states of any layer are captured, as '<layer>.out': generators read those before the last.
"""

# B batch, L tokens, D width, E width of the common space, V vocabulary, I images, T texts

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen.config import Count, Depth, Dtype, Positive, Size, Whole
from jaxgen.encoders.vit import VitBlock, resized_positions, with_tokens
from jaxgen.layers.linear import Linear
from jaxgen.layers.modulation import layer_norm
from jaxgen.layers.patches import grid_of, patchify
from jaxgen.layers.stack import Segment, Stack

# Vision: patch, image, width, depth, heads, hidden; text: width, depth, heads; width of the common space.
SIZES = {
    'B/32': ((32, 224, 768, 12, 12, 3072), (512, 12, 8), 512),
    'B/16': ((16, 224, 768, 12, 12, 3072), (512, 12, 8), 512),
    'L/14': ((14, 224, 1024, 24, 16, 4096), (768, 12, 12), 768),
    'L/14@336': ((14, 336, 1024, 24, 16, 4096), (768, 12, 12), 768),
    'H/14': ((14, 224, 1280, 32, 16, 5120), (1024, 24, 16), 1024),
    'g/14': ((14, 224, 1408, 40, 16, 6144), (1024, 24, 16), 1024),
    'bigG/14': ((14, 224, 1664, 48, 16, 8192), (1280, 32, 20), 1280),
}
OPENCLIP = ('H/14', 'g/14', 'bigG/14')  # with the exact GELU; the others are OpenAI's
TOWERS = ('both', 'text', 'vision')
LOGIT_SCALE = np.log(1 / 0.07)

_small = nn.initializers.normal(0.02)


@flax.struct.dataclass
class Reading:
    """What a tower makes of its input.

    tokens: all of the last layer, [B, L, D], the text's normalised. pooled: the end of the text or the class
    token, normalised, [B, D]. embedding: its projection to the common space, [B, E]; None without one.
    captured: the activations asked for by name.
    """

    tokens: Array
    pooled: Array
    embedding: Array | None
    captured: Mapping[str, Array]


class TextTower(nn.Module):
    """Token ids [B, L] to a Reading. `eos` is the id pooled at its first place, None the highest id."""

    vocabulary: int
    length: int
    width: int
    depth: int
    heads: int
    hidden: int
    projection: int | None
    gelu: str
    epsilon: float
    eos: int | None
    dtype: Any
    attention: str | None
    scan: bool

    @nn.compact
    def __call__(self, ids_BL: Array, mask_BL: Array | None = None, capture: tuple[str, ...] = ()) -> Reading:
        length = ids_BL.shape[1]
        if length > self.length:
            raise ValueError(f'{length} tokens are more than the {self.length} that this CLIP reads')
        token_VD = self.param('token', _small, (self.vocabulary, self.width))
        position_LD = self.param('position', _small, (self.length, self.width))
        # Out of range gives NaN, which is seen; the last row would be taken for any id beyond unnoticed.
        x_BLD = jnp.take(token_VD, ids_BL, axis=0, mode='fill').astype(self.dtype)
        x_BLD = x_BLD + position_LD[:length].astype(self.dtype)
        block = VitBlock(
            self.heads, self.hidden, self.gelu, self.epsilon, True, attention=self.attention, parent=None
        )
        stack = Stack((Segment(block, self.depth),), self.scan, name='blocks')
        x_BLD, captured, _ = stack(x_BLD, mask_BL, capture=capture)
        x_BLD = layer_norm(affine=True, epsilon=self.epsilon, dtype=self.dtype, name='norm')(x_BLD)
        end_B = jnp.argmax(ids_BL if self.eos is None else ids_BL == self.eos, axis=1)
        pooled_BD = jnp.take_along_axis(x_BLD, end_B[:, None, None], axis=1)[:, 0]
        return Reading(x_BLD, pooled_BD, _projected(pooled_BD, self.projection), captured)


class VisionTower(nn.Module):
    """Normalised pixels [B, H, W, 3] of any size that patches divide to a Reading.

    Other sizes than `image` resize the positions as transformers does, bicubic without antialiasing.
    """

    patch: int
    image: int
    width: int
    depth: int
    heads: int
    hidden: int
    projection: int | None
    gelu: str
    epsilon: float
    dtype: Any
    attention: str | None
    scan: bool

    @nn.compact
    def __call__(self, x_BHWC: Array, capture: tuple[str, ...] = ()) -> Reading:
        grid = grid_of(x_BHWC, self.patch)
        patches = Linear(self.width, use_bias=False, kernel_init=_small, name='patch')
        x_BLD = patches(patchify(x_BHWC.astype(self.dtype), self.patch))
        token_D = self.param('class_token', _small, (self.width,))
        position_LD = self.param('position', _small, (1 + (self.image // self.patch) ** 2, self.width))
        x_BLD = with_tokens(token_D[None], x_BLD) + resized_positions(position_LD, grid).astype(self.dtype)

        def norm(x: Array, name: str) -> Array:
            return layer_norm(affine=True, epsilon=self.epsilon, dtype=self.dtype, name=name)(x)

        block = VitBlock(
            self.heads, self.hidden, self.gelu, self.epsilon, attention=self.attention, parent=None
        )
        stack = Stack((Segment(block, self.depth),), self.scan, name='blocks')
        x_BLD, captured, _ = stack(norm(x_BLD, 'pre_norm'), capture=capture)
        pooled_BD = norm(x_BLD[:, 0], 'norm')
        return Reading(x_BLD, pooled_BD, _projected(pooled_BD, self.projection), captured)


class Clip(nn.Module):
    """One tower or both, read by `read_text` and `read_image`; called with texts and images, their logits."""

    text: TextTower | None = None
    vision: VisionTower | None = None

    def setup(self) -> None:
        if self.text and self.vision:
            self.logit_scale = self.param('logit_scale', nn.initializers.constant(LOGIT_SCALE), ())

    def __call__(self, ids_TL: Array | None = None, x_IHWC: Array | None = None) -> Array | Reading:
        """The logits of images against texts; of a CLIP with one tower, what that reads."""
        text = self.read_text(ids_TL) if self.text else None
        image = self.read_image(x_IHWC) if self.vision else None
        if text is None or image is None:
            return image if text is None else text
        return self.logits(image.embedding, text.embedding)

    def read_text(
        self, ids_BL: Array, mask_BL: Array | None = None, capture: tuple[str, ...] = ()
    ) -> Reading:
        """What the text tower makes of token ids, those under a False of the mask left out."""
        return self.text(ids_BL, mask_BL, capture)

    def read_image(self, x_BHWC: Array, capture: tuple[str, ...] = ()) -> Reading:
        """What the vision tower makes of normalised pixels."""
        return self.vision(x_BHWC, capture)

    def logits(self, image_IE: Array, text_TE: Array) -> Array:
        """The similarity of embeddings at the learned temperature, [I, T]."""
        return jnp.exp(self.logit_scale.astype(jnp.float32)) * similarity(image_IE, text_TE)


def similarity(image_IE: Array, text_TE: Array) -> Array:
    """The cosine of every image's with every text's embedding, [I, T], float32."""
    return unit(image_IE) @ unit(text_TE).T


def unit(x_BE: Array) -> Array:
    """Embeddings of length 1, float32."""
    x_BE = x_BE.astype(jnp.float32)
    return x_BE / jnp.linalg.norm(x_BE, axis=-1, keepdims=True)


def _projected(pooled_BD: Array, width: int | None) -> Array | None:
    if width is None:
        return None
    return Linear(width, use_bias=False, kernel_init=_small, name='projection')(pooled_BD)


def build(
    size: str = 'L/14',
    towers: str = 'both',
    project: bool = True,
    projection: Size | None = None,
    gelu: str | None = None,
    epsilon: Positive = 1e-5,
    vocabulary: Count = 49408,
    length: Size = 77,
    eos: Whole | None = None,
    text_width: Size | None = None,
    text_depth: Depth | None = None,
    text_heads: Size | None = None,
    text_hidden: Size | None = None,
    patch: Size | None = None,
    image: Size | None = None,
    width: Size | None = None,
    depth: Depth | None = None,
    heads: Size | None = None,
    hidden: Size | None = None,
    dtype: Dtype = 'float32',
    attention: str | None = None,
    scan: bool = True,
) -> Clip:
    """A CLIP of a published size; what is given beside overrides it.

    towers: 'both', 'text' or 'vision'; project: whether one alone has its projection. eos: the id that ends a
    text; without, texts end at their highest id, as OpenAI's code and old configs have it. The sizes named
    text_... are the text's, the others the image's.
    """
    if size not in SIZES:
        raise ValueError(f'CLIP has no size {size!r}; choose from {", ".join(SIZES)}.')
    if towers not in TOWERS or (towers == 'both' and not project):
        raise ValueError(
            f'towers is {towers!r} and project {project}; choose from {", ".join(TOWERS)}, both with project.'
        )
    vision_size, text_size, common = SIZES[size]
    gelu = gelu or ('erf' if size in OPENCLIP else 'quick')
    common = projection or common if project else None
    shared = {
        'projection': common,
        'gelu': gelu,
        'epsilon': epsilon,
        'dtype': jnp.dtype(dtype),
        'attention': attention,
        'scan': scan,
        'parent': None,
    }
    given = (text_width, text_depth, text_heads)
    text_width, text_depth, text_heads = (ours or theirs for ours, theirs in zip(given, text_size))
    given = (patch, image, width, depth, heads, hidden)
    patch, image, width, depth, heads, hidden = (ours or theirs for ours, theirs in zip(given, vision_size))
    text = TextTower(
        vocabulary=vocabulary,
        length=length,
        width=text_width,
        depth=text_depth,
        heads=text_heads,
        hidden=text_hidden or 4 * text_width,
        eos=eos,
        **shared,
    )
    vision = VisionTower(
        patch=patch, image=image, width=width, depth=depth, heads=heads, hidden=hidden, **shared
    )
    return Clip(None if towers == 'vision' else text, None if towers == 'text' else vision)
