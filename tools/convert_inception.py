r"""Converts a public file of the FID's Inception network to the .npz that jaxsp reads.

Download one of these two files:

  https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/\
pt_inception-2015-12-05-6726825d.pth
  https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/\
inception-2015-12-05.pt

and convert it, with PyTorch:

  python tools/convert_inception.py SOURCE DEST.npz

The state dictionary of the first may also come as a .safetensors file, which takes the
package safetensors instead. With the statistics of batch normalization, $\gamma$ being
1 where the file has none,

$$w \leftarrow \frac{w \gamma}{\sqrt{\mathrm{var} + 10^{-3}}}, \qquad
b = \beta - \frac{\mathrm{mean} \cdot \gamma}{\sqrt{\mathrm{var} + 10^{-3}}}.$$
"""

import argparse
import hashlib
import pathlib
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from jaxsp.gan import files
from jaxsp.gan.scores.cache import digest
from jaxsp.gan.scores.inception import kernel_shapes

# The names of the convolutions of `kernel_shapes`, in the same order, in the public
# state dictionary.
_A = "1x1 5x5_1 5x5_2 3x3dbl_1 3x3dbl_2 3x3dbl_3 _pool"
_B = "3x3 3x3dbl_1 3x3dbl_2 3x3dbl_3"
_C = "1x1 7x7_1 7x7_2 7x7_3 7x7dbl_1 7x7dbl_2 7x7dbl_3 7x7dbl_4 7x7dbl_5 _pool"
_D = "3x3_1 3x3_2 7x7x3_1 7x7x3_2 7x7x3_3 7x7x3_4"
_E = "1x1 3x3_1 3x3_2a 3x3_2b 3x3dbl_1 3x3dbl_2 3x3dbl_3a 3x3dbl_3b _pool"
_BLOCKS = {
    "Conv2d_": "1a_3x3 2a_3x3 2b_3x3 3b_1x1 4a_3x3",
    "Mixed_5b.branch": _A,
    "Mixed_5c.branch": _A,
    "Mixed_5d.branch": _A,
    "Mixed_6a.branch": _B,
    "Mixed_6b.branch": _C,
    "Mixed_6c.branch": _C,
    "Mixed_6d.branch": _C,
    "Mixed_6e.branch": _C,
    "Mixed_7a.branch": _D,
    "Mixed_7b.branch": _E,
    "Mixed_7c.branch": _E,
}


_EPSILON = 1e-3  # of batch normalization, in every public file
_SHA256 = {
    "pt_inception-2015-12-05-6726825d.pth": (
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
    ),
    "inception-2015-12-05.pt": (
        "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
    ),
}


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a file, by name.

    Args:
      path: a state dictionary, .pth or .safetensors, or a TorchScript module, .pt.

    Returns:
      The tensors.
    """
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return load_file(path)
    import torch

    if path.suffix != ".pt":
        found = torch.load(path, map_location="cpu", weights_only=True)
    else:
        found = {
            f"{name}.{part}": getattr(module, part)
            for name, module in torch.jit.load(path, map_location="cpu").named_modules()
            for part in ("weight", "beta", "mean", "var")
            if hasattr(module, part)
        }
    return {name: tensor.detach().numpy() for name, tensor in found.items()}


def fold(tensors: Mapping[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    """Folds batch normalization into the convolutions.

    Args:
      tensors: of either public file.
      dtype: of the kernels.

    Returns:
      Kernels `NAME.w` [height, width, in, out] and biases `NAME.b` [out].

    Raises:
      ValueError: if a tensor is missing, has another shape, or makes numbers that are
        not finite.
    """
    parts = ["conv.weight", "bn.bias", "bn.running_mean", "bn.running_var"]
    if "layers.conv.weight" in tensors:  # the TorchScript module
        parts = ["weight", "beta", "mean", "var"]
        stems = [f"layers.{name}." for name in kernel_shapes()]
    else:
        parts += ["bn.weight"] * ("Conv2d_1a_3x3.bn.weight" in tensors)
        stems = [f"{b}{name}." for b, line in _BLOCKS.items() for name in line.split()]
    arrays = {}
    for (name, shape), stem in zip(kernel_shapes().items(), stems, strict=True):
        height, width, into, out = shape
        found = []
        for part in parts:
            tensor = tensors.get(stem + part)
            wanted = (out,) if found else (out, into, height, width)
            if tensor is None or tensor.shape != wanted:
                has = "is missing" if tensor is None else f"is of shape {tensor.shape}"
                raise ValueError(f"{stem}{part}, of shape {wanted}, {has}.")
            found.append(tensor.astype(np.float64))
        kernel, beta, mean, variance, *gamma = found
        with np.errstate(all="ignore"):
            scale = (gamma[0] if gamma else 1.0) / np.sqrt(variance + _EPSILON)
            arrays[f"{name}.w"] = (kernel.transpose(2, 3, 1, 0) * scale).astype(dtype)
            arrays[f"{name}.b"] = (beta - mean * scale).astype(np.float32)
        if not all(np.isfinite(arrays[f"{name}.{kind}"]).all() for kind in "wb"):
            raise ValueError(f"{stem}* make numbers that are not finite.")
    return arrays


def convert(source: pathlib.Path, dest: pathlib.Path, dtype: str = "float32") -> str:
    """Writes the .npz of a public file.

    Args:
      source: the file that was downloaded.
      dest: the .npz to write.
      dtype: of the kernels, "float32", or "float16" for half the size.

    Returns:
      The checksum of the arrays, which the file holds too.

    Raises:
      OSError: if a file cannot be read or written.
      ValueError: if the source is not such a file, or has another checksum than the
        public file of its name; nothing is written then.
    """
    if dest.suffix != ".npz":
        raise ValueError(f"DEST must end in .npz; got {dest}.")
    with source.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if (wanted := _SHA256.get(source.name, found)) != found:
        raise ValueError(
            f"{source} has the sha256 {found}, and the public file of that name has "
            f"{wanted}: download it again."
        )
    arrays = fold(read(source), dtype)
    checksum = digest(arrays)
    with files.replacing(dest, parents=True) as path:
        np.savez(path, sha256=checksum, **arrays)  # pyright: ignore[reportArgumentType]
    return checksum


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; the exit code."""
    parser = argparse.ArgumentParser(
        formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__
    )
    parser.add_argument("source", type=pathlib.Path, help="the file downloaded")
    parser.add_argument("dest", type=pathlib.Path, help="the .npz to write")
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        default="float32",
        help="of the kernels: 87 or 44 MB",
    )
    options = parser.parse_args(argv)
    try:
        checksum = convert(options.source, options.dest, options.dtype)
    except Exception as error:  # torch has errors of many kinds for a wrong file
        print(f"{options.source}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(f"{options.dest}: sha256 of the arrays {checksum}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
