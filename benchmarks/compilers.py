"""TPUs and GPUs to compile for where there are none, by the compilers' own packages.

    python benchmarks/compilers.py

prints what pip has to install, without dependencies, for the version of JAX that is
there.
"""

import contextlib
import importlib.metadata
import importlib.util
import os
from typing import Any

import jax
from jax.experimental import topologies

from jaxsp import _devices

__all__ = ["TARGETS", "MissingCompilerError", "devices", "requirements", "versions"]

# What is published of NVIDIA's H100 (SXM), as XLA wants to be told of a GPU.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84978434048
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  cuda_compute_capability { major: 9 minor: 0 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
# By name: the platform, its arrangement, and how many chips that are.
TARGETS = {
    "v5e-8": ("tpu", "v5e:2x4", 8),
    "v5e-256": ("tpu", "v5e:16x16", 256),
    "h100-8": ("cuda", "1x1x8", 8),
}
_PACKAGES = {"tpu": "libtpu", "cuda": "jax-cuda12-pjrt"}


class MissingCompilerError(Exception):
    """A compiler is not installed; the message is one line that says what to write."""


def devices(target: str) -> list[Any]:
    """Devices of a kind of machine, on which nothing runs but for which jit compiles.

    Args:
      target: a name in `TARGETS`.

    Returns:
      The devices, in the order in which `jaxsp.Workers` takes them.

    Raises:
      MissingCompilerError: if the package with the compiler is not there.
    """
    platform, arrangement, count = TARGETS[target]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # that there is no driver
    jax.devices("cpu")  # which finds plugins
    if platform == "tpu":
        if importlib.util.find_spec("libtpu") is None:
            raise MissingCompilerError(
                f"no compiler for {target}: pip install libtpu, or make accelerators."
            )
        # Without these libtpu looks for a TPU, and for minutes asks a cloud about it.
        os.environ["TPU_SKIP_MDS_QUERY"] = "1"
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # nobody has a TPU
        found = topologies.get_topology_desc(arrangement, "tpu").devices
    else:
        if importlib.util.find_spec("jax_plugins.xla_cuda12") is None:
            version = jax.__version__
            raise MissingCompilerError(
                f"no compiler for {target}: pip install --no-deps "
                f"jax-cuda12-plugin=={version} jax-cuda12-pjrt=={version}, or make "
                "accelerators."
            )
        found = topologies.get_topology_desc(
            "", "cuda", topology=arrangement, target_config=_H100
        ).devices
    if len(found) != count:
        raise RuntimeError(f"{target} has {count} devices, got {len(found)}.")
    return _devices.in_a_ring(list(found))


def versions() -> dict[str, str]:
    """The versions of JAX and of the compilers that are installed."""
    known = {}
    for package in ("jax", "jaxlib", *_PACKAGES.values()):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            known[package] = importlib.metadata.version(package)
    return known


def requirements() -> list[str]:
    """The compilers of this version of JAX, as it names them itself, for pip."""
    extras = ("tpu", "cuda12-local")
    found = [
        needed.partition(";")[0].strip()
        for needed in importlib.metadata.requires("jax") or []
        if any(f'extra == "{extra}"' in needed for extra in extras)
        and needed.startswith(("libtpu", "jax-cuda12"))
    ]
    return [*found, f"jax-cuda12-pjrt=={jax.__version__}"]


if __name__ == "__main__":
    print("\n".join(requirements()))
