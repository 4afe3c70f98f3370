"""The PyTorch side of `peers.py`: the same games, on the leaves of jaxsp's point.

Everything here is given `torch`, which only they import who have it.
"""

import importlib
import importlib.util
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

# What all benchmarks share lies a folder above, where Python does not look by itself.
sys.path.append(str(pathlib.Path(__file__).parents[1]))

__all__ = [
    "MissingPackageError",
    "cooper_side",
    "gan_field",
    "gan_losses",
    "need",
    "saddle_field",
    "tensors",
]


class MissingPackageError(Exception):
    """A package is not installed; the message is one line that says what to write."""


def need(*names: str) -> list[Any]:
    """Import packages.

    Raises:
      MissingPackageError: if some are not there.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingPackageError(
            f"left out, as there is no {' and no '.join(missing)} here: "
            'pip install -e ".[bench]", or make peers.'
        )
    return [importlib.import_module(name) for name in names]


def tensors(torch: Any, tree: Any, dtype: Any) -> list[Any]:
    """The leaves of a tree as tensors."""
    return [torch.tensor(np.asarray(x, dtype)) for x in jax.tree.leaves(tree)]


def saddle_field(torch: Any, f: Callable[..., Any], leaves: Any, data: Any) -> Any:
    """(∇x f, −∇y f)."""
    x, y = torch.autograd.grad(f(*leaves, data), leaves)
    return x, -y


# An MLP's leaves are bias and weights of each layer, in turns.


def _generate(torch, leaves, latents):
    h = latents
    for b, W in zip(leaves[:-2:2], leaves[1:-2:2], strict=True):
        h = torch.relu(torch.addmm(b, h, W))
    return torch.tanh(torch.addmm(leaves[-2], h, leaves[-1]))


def _discriminate(torch, leaves, samples):
    h = samples
    for b, W in zip(leaves[:-2:2], leaves[1:-2:2], strict=True):
        h = torch.nn.functional.leaky_relu(torch.addmm(b, h, W), 0.2)
    return torch.addmm(leaves[-2], h, leaves[-1])[:, 0]


def gan_losses(
    torch: Any, leaves: Sequence[Any], images: Any, latents: Any, apart: bool
) -> tuple[Any, Any]:
    """The non-saturating losses of generator and discriminator.

    Args:
      torch: the package.
      leaves: of both networks, the generator's first.
      images: the real ones, flat.
      latents: of as many generated ones.
      apart: whether each loss has a gradient for its own player alone, so that their
        sum can be given one backward pass; the discriminator then sees the generated
        images twice.
    """
    softplus = torch.nn.functional.softplus
    half = len(leaves) // 2
    x, y = leaves[:half], leaves[half:]
    fakes = _generate(torch, x, latents)
    if apart:
        judged = _discriminate(torch, [v.detach() for v in y], fakes)
        fake = _discriminate(torch, y, fakes.detach())
    else:
        judged = fake = _discriminate(torch, y, fakes)
    real = _discriminate(torch, y, images)
    return softplus(-judged).mean(), softplus(-real).mean() + softplus(fake).mean()


def gan_field(torch: Any, leaves: Sequence[Any], images: Any, latents: Any) -> Any:
    """Both players' gradients, of one pass forward."""
    generator, discriminator = gan_losses(torch, leaves, images, latents, False)
    half = len(leaves) // 2
    grad = torch.autograd.grad
    return (
        *grad(generator, leaves[:half], retain_graph=True),
        *grad(discriminator, leaves[half:]),
    )


def cooper_side(
    side: Callable[..., Any],
    method: str,
    rate: float,
    options: dict[str, float],
    game: Any,
    dtype: Any,
) -> Any:
    """ExtraSGD or ExtraAdam of cooper that plays a game of one worker, eagerly."""
    torch, cooper = need("torch", "cooper")
    torch.set_num_threads(1)
    leaves = [v.requires_grad_() for v in tensors(torch, game.start, dtype)]
    data = [v[0] for v in tensors(torch, game.data, dtype)]
    if data[0].ndim > 3:  # images, which the networks take flat
        data = [v.reshape(*v.shape[:2], -1) for v in data]
    more: dict[str, Any] = {}
    if options:
        more = {"betas": (options["b1"], options["b2"]), "eps": options["eps"]}
    optimizer = getattr(cooper.optim, method)(leaves, lr=rate, **more)
    done = [0]

    def take_gradients(i):
        field = game.torch_field(torch, leaves, data, i)
        for leaf, g in zip(leaves, field, strict=True):
            leaf.grad = g

    def run(count):
        for i in range(done[0], done[0] + count):
            take_gradients(i)
            optimizer.extrapolation()
            take_gradients(i)
            optimizer.step()
        done[0] += count

    def point():
        return np.concatenate([v.detach().numpy().ravel() for v in leaves])

    return side(run, point)
