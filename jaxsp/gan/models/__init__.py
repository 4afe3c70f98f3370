"""Generators and discriminators in flax, and the pair of them that is trained.

A discriminator sees each sample alone: no normalization over the batch, so that the
gradient of a logit with respect to its sample, on which gradient penalties stand, is
what it says. Nothing here keeps running statistics or other state: parameters are all
there is to average, to send and to store.

| model | images | normalization, generator | discriminator |
| --- | --- | --- | --- |
| `mlp`, `md_gan_mlp` | any, and points | none | none |
| `dcgan` | 8x8, 28x28, 32x32, 64x64, ... | layer | none |
| `md_gan_cnn` | 28x28, 32x32 | none | none |
| `resnet` | as `dcgan` | layer | spectral |
| `sagan` | as `dcgan` | layer and spectral | spectral |

Every builder returns a `Gan` and takes

- `sample_shape`: shape of one sample.
- `num_classes`: number of classes of a conditional pair, see `Gan`; 0 for none.
- `latent_size`: length of a latent vector, its class included.
- `width`: units or channels of the layers, as each builder tells.
- `dtype`: type of the computation, such as `jnp.bfloat16` on an accelerator;
  parameters, samples, logits and singular values stay in float32 at least.

and raises a `ValueError` if a shape or a size does not fit. The arguments of the
networks, which are flax modules, have the same names.
"""

from jaxsp.gan.models.arguments import halvings
from jaxsp.gan.models.attention import SelfAttention
from jaxsp.gan.models.convolutional import (
    ConvDiscriminator,
    ConvGenerator,
    MDGanDiscriminator,
    MDGanGenerator,
    dcgan,
    md_gan_cnn,
)
from jaxsp.gan.models.gan import (
    Gan,
    classify,
    discriminate,
    discriminate_and_classify,
    generate,
    init,
    labels_of,
    latents,
    sample,
)
from jaxsp.gan.models.layers import (
    conv,
    dense,
    strided_conv,
    transposed_conv,
    wide_transposed_conv,
)
from jaxsp.gan.models.mlp import MLPDiscriminator, MLPGenerator, md_gan_mlp, mlp
from jaxsp.gan.models.names import NAMES, parse
from jaxsp.gan.models.residual import (
    ResNetDiscriminator,
    ResNetGenerator,
    resnet,
    sagan,
)
from jaxsp.gan.models.spectral import spectral_norm, spectral_normalize

__all__ = [
    "NAMES",
    "ConvDiscriminator",
    "ConvGenerator",
    "Gan",
    "MDGanDiscriminator",
    "MDGanGenerator",
    "MLPDiscriminator",
    "MLPGenerator",
    "ResNetDiscriminator",
    "ResNetGenerator",
    "SelfAttention",
    "classify",
    "conv",
    "dcgan",
    "dense",
    "discriminate",
    "discriminate_and_classify",
    "generate",
    "halvings",
    "init",
    "labels_of",
    "latents",
    "md_gan_cnn",
    "md_gan_mlp",
    "mlp",
    "parse",
    "resnet",
    "sagan",
    "sample",
    "spectral_norm",
    "spectral_normalize",
    "strided_conv",
    "transposed_conv",
    "wide_transposed_conv",
]
