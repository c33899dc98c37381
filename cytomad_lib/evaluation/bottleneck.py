"""A generator cut in two at its bottleneck, to study the information in each path.

The generator is a U-Net: from brightfield to phase there is the long way, down to the bottleneck
and up again, and there are short cuts, the skip connections, from every stage of the encoder and
from the input image itself. Cut in two, each part can be changed on its own:

- `split_generator`: gives a `SplitGenerator`, with `encode` and `decode`.
- `Code`: the output of `encode`: bottleneck features and skips. Features can be changed, and skips
  can be exchanged between cells or set to zero.

Example
-------
>>> from cytomad_lib.networks import build_generator
>>> split = split_generator(build_generator(image_size=32, base_filters=4))
>>> code = split.encode(np.random.default_rng(0).normal(size=(3, 32, 32, 1)).astype("float32"))
>>> code.bottleneck.shape, len(code.skips)
((3, 32), 5)
>>> image = split.decode(code)                             # as the generator itself
>>> other = split.decode(code.with_feature(7, 2.0))        # feature 7 set to 2
>>> blind = split.decode(code.without_skips())             # from the bottleneck alone
"""

from dataclasses import dataclass, replace

import numpy as np

from cytomad_lib.backend import keras
from cytomad_lib.data.errors import CytomadError
from cytomad_lib.training.steps import without_gradients

AT_ONCE = 100  # cells per slice; bounds the memory, does not change the result


@dataclass(frozen=True, eq=False)
class Code:
    """The output of the encoder for some cells.

    Parameters
    ----------
    bottleneck : float32 array (cells, features)
    skips : list of float32 arrays (cells, height, width, channels)
        In the order of the decoder: from the smallest to the input image.
    """

    bottleneck: np.ndarray
    skips: list

    def __len__(self):
        """Count the cells."""
        return len(self.bottleneck)

    def with_feature(self, number, value):
        """Return the code with one bottleneck feature set to `value`, a number or one per cell."""
        bottleneck = self.bottleneck.copy()
        bottleneck[:, number] = value
        return replace(self, bottleneck=bottleneck)

    def with_skips_of(self, other):
        """Return the code with the skips of as many other cells, or of one cell for all."""
        shapes = [(len(self), *skip.shape[1:]) for skip in other.skips]
        skips = [
            np.ascontiguousarray(np.broadcast_to(skip, shape))
            for skip, shape in zip(other.skips, shapes, strict=True)
        ]
        return replace(self, skips=skips)

    def without_skips(self):
        """Return the code with zeros for all skips: the bottleneck alone."""
        return replace(self, skips=[np.zeros_like(skip) for skip in self.skips])


class SplitGenerator:
    """The two parts of a generator; made by `split_generator`.

    Attributes
    ----------
    encoder : keras.Model
        Brightfield -> bottleneck (n, 1, 1, features) and the skips.
    decoder : keras.Model
        Bottleneck and skips -> phase image.
    """

    def __init__(self, encoder, decoder):
        self.encoder = encoder
        self.decoder = decoder

    def encode(self, brightfield):
        """Return the code of cells.

        Parameters
        ----------
        brightfield : float32 array (cells, size, size, channels)

        Returns
        -------
        Code
        """
        parts = [self._encode_some(some) for some in slices(brightfield)]
        bottleneck, *skips = (np.concatenate(part) for part in zip(*parts, strict=True))
        return Code(bottleneck[:, 0, 0], skips)

    def decode(self, code):
        """Return the phase images of a code: float32 array (cells, size, size, 1), in rad."""
        return outputs(self.decoder, code.bottleneck[:, None, None], *code.skips)

    def mean_code(self, brightfield):
        """Return the mean of the codes of cells, as a `Code` of one cell."""
        total, n = None, 0
        for some in slices(brightfield):
            sums = [part.sum(axis=0, keepdims=True) for part in self._encode_some(some)]
            total = sums if total is None else [a + b for a, b in zip(total, sums, strict=True)]
            n += len(some)
        bottleneck, *skips = (part / n for part in total)
        return Code(bottleneck[:, 0, 0], skips)

    @without_gradients()
    def _encode_some(self, brightfield):
        made = self.encoder(brightfield, training=False)
        return [keras.ops.convert_to_numpy(part) for part in made]


def split_generator(generator):
    """Cut a generator at its bottleneck; the parts share its weights.

    For the conditional recipe's generator, the part that produces the image is cut. The features
    of that generator come from another encoder and do not affect the image: they are not those of
    `Code`.

    Parameters
    ----------
    generator : keras.Model
        From `build_generator`, `build_conditional_generator` or `Run.generator`.

    Returns
    -------
    SplitGenerator
        `decode(encode(x))` is the image that the generator makes of x.

    Raises
    ------
    CytomadError
        If the model has no layer called "bottleneck".
    """
    names = [layer.name for layer in generator.layers]
    if "normalise_image" in names and "generator" in names:
        inner = split_generator(generator.get_layer("generator"))
        image = inner.decoder.outputs[0]
        for finish in ("clean_background", "blur_image"):
            image = generator.get_layer(finish)(image)
        normalised = generator.get_layer("normalise_image").output
        encoder = keras.Model(generator.inputs[0], inner.encoder(normalised), name="encoder")
        return SplitGenerator(encoder, keras.Model(inner.decoder.inputs, image, name="decoder"))
    if "bottleneck" not in names:
        raise CytomadError(
            f"The model {generator.name!r} has no layer 'bottleneck', only {', '.join(names)}. "
            "Expected a generator, such as `run.generator('pretraining')`."
        )
    bottleneck = generator.get_layer("bottleneck").output
    joins = [layer for layer in generator.layers if isinstance(layer, keras.layers.Concatenate)]
    skips = [join.input[1] for join in joins]  # each joins the decoder's stage and a skip
    encoder = keras.Model(generator.inputs[0], [bottleneck, *skips], name="encoder")
    decoder = keras.Model([bottleneck, *skips], generator.outputs[0], name="decoder")
    return SplitGenerator(encoder, decoder)


def slices(array):
    """Cut an array into parts of some cells each."""
    return [array[start : start + AT_ONCE] for start in range(0, len(array), AT_ONCE)]


@without_gradients()
def outputs(network, *inputs):
    """Return the output of a network for several inputs (cells, …), computed slice by slice."""
    parts = zip(*map(slices, inputs), strict=True)
    found = [network(list(some), training=False) for some in parts]
    return np.concatenate([keras.ops.convert_to_numpy(some) for some in found])
