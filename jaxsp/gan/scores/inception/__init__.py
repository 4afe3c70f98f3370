"""The Inception network of the FID, in plain JAX, with weights from a local file.

The graph is the public InceptionV3 of 2015-12-05 that the Fréchet inception distance
is defined with, from its input of 299 x 299 pixels to the 2048 means of its last layer
(`pool3`); batch normalization is folded into the convolutions. Two things set it apart
from the network of the article: average pools do not count the padding, and the last
block has a maximum pool where the one before it has an average pool.

The weights are no part of this package. They are converted once from a public file, in
jaxsp's repository:

    python tools/convert_inception.py SOURCE DEST.npz

The .npz holds `NAME.w`, the kernel [height, width, in, out], float16 or float32, and
`NAME.b`, the bias [out], float32, of 94 convolutions, named as in the original graph
with dots for slashes, and the checksum of all of them, `sha256`.
"""

from jaxsp.gan.scores.inception.network import Inception, features
from jaxsp.gan.scores.inception.weights import load

__all__ = ["Inception", "features", "load"]
