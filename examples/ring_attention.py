"""Attention over a sequence that is split over devices, with the mask of one device.

Each device has some of the queries, keys and values. Keys and values go around a ring:
in each step a device computes the attention of its queries to the keys that it has at
the moment, and adds it to what it has so far. `part` says where these weights lie among
all weights, so every device draws its part of one mask, by one key, and causal masks
count from the start of the sequence. So the output and the gradients do not depend on
the number of devices, except for rounding.

    python examples/ring_attention.py

computes them on 1, 2, 4 and 8 devices, which are eight parts of the CPU, and says how far
they are from those of one call without a ring, and how much memory a device needs. It
takes half a minute.

References:
  Liu, Zaharia and Abbeel, "Ring attention with blockwise transformers for near-infinite
  context", arXiv:2310.01889 (2023).
"""

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AxisType, PartitionSpec

import jaxdrop

Sums = tuple[Array, Array, Array]


def ring_attention(
    rng: Array,
    query: Array,
    key: Array,
    value: Array,
    rate: float | Array,
    *,
    axis_name: str,
    **options: Any,
) -> Array:
    """Attention of the queries of this device to the keys of all devices, in `shard_map`.

    Args:
      rng: the same random key on all devices.
      query: (B, T / devices, N, H), and so for keys and values.
      key: those of this device.
      value: those of this device.
      rate: probability of dropping a weight.
      axis_name: the mesh axis along which the sequence is split.
      **options: of `jaxdrop.dot_product_attention`, such as `is_causal`.

    Returns:
      (B, T / devices, N, H), the rows of this device.
    """
    devices, here = lax.axis_size(axis_name), lax.axis_index(axis_name)
    (batch, queries, heads, _), keys = query.shape, key.shape[1]
    whole = batch, heads, devices * queries, devices * keys
    to_the_next = [(i, (i + 1) % devices) for i in range(devices)]

    # Under `checkpoint`, the backward pass computes the weights again, as within a device.
    @jax.checkpoint
    def step(carry: tuple[Sums, Any], number: Array) -> tuple[tuple[Sums, Any], None]:
        sums, (key, value) = carry
        there = (here - number) % devices  # where these keys come from
        result = jaxdrop.dot_product_attention(
            jax.random.clone(rng),  # one key for all, on purpose
            query,
            key,
            value,
            rate,
            part=jaxdrop.Part((0, 0, here * queries, there * keys), whole),
            return_residual=True,
            **options,
        )
        pair = lax.ppermute((key, value), axis_name, to_the_next)
        return (added(sums, *result), pair), None

    rows = jnp.zeros_like(query[..., 0], jnp.float32)
    start = jnp.zeros_like(query, jnp.float32), rows, rows - jnp.inf
    (sums, _), _ = lax.scan(step, (start, (key, value)), jnp.arange(devices))
    numerator, denominator, _ = sums
    seen = denominator > 0
    mean = numerator / jnp.where(seen, denominator, 1)[..., None]
    return jnp.where(seen[..., None], mean, 0).astype(query.dtype)


def added(sums: Sums, out: Array, residual: Array) -> Sums:
    """Adds the output for some keys, with the exponential of its log-sum-exp as weight.

    Numerator and denominator are divided by the exponential of the highest log-sum-exp,
    so that nothing overflows. It cancels in the end, so it is a constant for gradients.
    """
    numerator, denominator, highest = sums
    new = lax.stop_gradient(jnp.maximum(highest, residual))
    origin = jnp.where(jnp.isneginf(new), 0, new)  # where nothing was seen yet
    shrink, weight = jnp.exp(highest - origin), jnp.exp(residual - origin)
    numerator = numerator * shrink[..., None] + out * weight[..., None]
    return numerator, denominator * shrink + weight, new


def split_over(devices: int, rate: float, **options: Any) -> Any:
    """`ring_attention` as a function of a random key and of whole queries, keys and values."""
    some, kinds = jax.devices()[:devices], (AxisType.Auto,)
    mesh = jax.make_mesh((devices,), ("ring",), axis_types=kinds, devices=some)
    rows = PartitionSpec(None, "ring")
    attend = partial(ring_attention, rate=rate, axis_name="ring", **options)
    specs = (PartitionSpec(), rows, rows, rows)
    return jax.shard_map(attend, mesh=mesh, in_specs=specs, out_specs=rows)


def value_and_grads(attend: Any, rng: Array, *arrays: Array) -> tuple[Array, ...]:
    """The output, and the gradients of a sum over it."""

    def loss(*arrays: Array) -> tuple[Array, Array]:
        out = attend(rng, *arrays)
        return jnp.sum(jnp.sin(out)), out

    grads, out = jax.grad(loss, (0, 1, 2), has_aux=True)(*arrays)
    return out, *grads


def main(argv: Sequence[str] | None = None) -> None:
    """Compares rings of several sizes with one call."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=2048, help="of the sequence")
    args = parser.parse_args(argv)
    jax.config.update("jax_num_cpu_devices", 8)
    rng = jax.random.key(0)
    arrays = jax.random.normal(jax.random.key(1), (3, 1, args.length, 4, 32))
    call = partial(jaxdrop.dot_product_attention, rate=0.1, is_causal=True)
    expected = jax.jit(partial(value_and_grads, call))(rng, *arrays)
    print("devices  output  gradients  MiB of temporaries per device")
    for devices in (1, 2, 4, 8):
        ring = partial(value_and_grads, split_over(devices, 0.1, is_causal=True))
        compiled = jax.jit(ring).lower(rng, *arrays).compile()
        found = compiled(rng, *arrays)
        out, *grads = (float(abs(a - b).max()) for a, b in zip(found, expected, strict=True))
        temporaries = compiled.memory_analysis().temp_size_in_bytes / 2**20
        print(f"{devices:7}  {out:6.0e}  {max(grads):9.0e}  {temporaries:8.1f}")


if __name__ == "__main__":
    main()
