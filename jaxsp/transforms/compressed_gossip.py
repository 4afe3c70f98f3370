"""Gossip through compressors: differences to what neighbours know travel."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxsp import _arguments, comm
from jaxsp.compressors import Compressor
from jaxsp.topology import Topology


class CompressedGossipState(NamedTuple):
    r"""What `compressed_gossip` keeps.

    Attributes:
      count: the number of updates so far, an int32 scalar.
      public: $\hat x_m$, what the neighbours know of this worker's parameters.
      neighbours: $\sum_j W_{mj} \hat x_j$, what this worker knows of theirs.
      traffic: the bits sent to and received from neighbours.
    """

    count: chex.Array
    public: optax.Params
    neighbours: optax.Params
    traffic: comm.Traffic


def compressed_gossip(
    topology: Topology,
    compressor: Compressor,
    step_size: chex.Numeric,
    *,
    key: chex.PRNGKey,
    axis_name: comm.AxisName,
) -> optax.GradientTransformationExtraArgs:
    r"""Mix parameters with the neighbours' through compressors, as CHOCO-Gossip does.

    With $x_m = z_m + u_m$ the point that the update leads to,

    $$c_m = C(x_m - \hat x_m), \qquad \hat x_m \leftarrow \hat x_m + c_m, \qquad
    z_m + u_m \leftarrow x_m + \gamma \Big(\sum_j W_{mj} \hat x_j - \hat x_m\Big).$$

    Only $c_m$ travels, to each neighbour. The mean of the workers is kept. With the
    identity and $\gamma = 1$ it is `gossip`; a compressor with constant $\delta$ needs
    a smaller $\gamma$, of the order of $(1 - \lambda_2)^2 / \delta$ in theory and much
    larger in practice. All start with $\hat x_m = 0$.

    Args:
      topology: a fixed mixing matrix, from `jaxsp.topology`.
      compressor: $C$, contractive.
      step_size: $\gamma$, above 0 and at most 1.
      key: a key that all workers share; each draws with its own, made from it.
      axis_name: the worker axis, `Workers.axis_name`.

    Returns:
      The transformation; `update` needs `params`.

    Raises:
      ValueError: for a bad argument, a compressor that is not contractive, a
        time-varying topology, or parameters that are not floating point.

    References:
      Koloskova, Stich, Jaggi, Decentralized Stochastic Optimization and Gossip
      Algorithms with Compressed Communication, 2019, arXiv 1902.00340.
    """
    _arguments.check_topology(topology)
    if not isinstance(topology, Topology):
        raise ValueError(
            "topology must be fixed, because neighbours remember what they were sent, "
            f"got {topology!r}: use gossip for a time-varying one."
        )
    if not isinstance(compressor, Compressor):
        _arguments.refuse("compressor", "of jaxsp.compressors", compressor)
    channel = comm.check_contractive(comm.channel(axis_name, compressor, key=key))
    _arguments.check_probability("step_size", step_size)

    def init_fn(params):
        _arguments.check_floating(params)
        return CompressedGossipState(
            count=jnp.zeros([], jnp.int32),
            public=optax.tree.zeros_like(params),
            neighbours=optax.tree.zeros_like(params),
            traffic=comm.no_traffic(),
        )

    def update_fn(updates, state, params=None, **extra_args):
        del extra_args
        comm.check_unchecked(axis_name)
        params = _arguments.require_params(params)
        step_key: Any = channel.at(state.count).key
        if not compressor.shared_key:
            step_key = comm.worker_key(step_key, axis_name)
        point = optax.tree.add(params, updates)
        difference = optax.tree.sub(point, state.public)
        payload = comm.encode(compressor, step_key, difference)

        def arrived(payload):
            return comm.decode(compressor, payload, difference)

        public = optax.tree.add(state.public, arrived(payload))
        heard, traffic = comm.mix_payloads(  # Σ W c_j
            payload, state.traffic, arrived, topology, axis_name
        )
        neighbours = optax.tree.add(state.neighbours, heard)
        moved = jax.tree.map(
            lambda x, s, h: x + jnp.asarray(step_size, x.dtype) * (s - h),
            point,
            neighbours,
            public,
        )
        state = CompressedGossipState(
            count=jnp.asarray(optax.safe_increment(state.count)),
            public=public,
            neighbours=neighbours,
            traffic=traffic,
        )
        return optax.tree.sub(moved, params), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
