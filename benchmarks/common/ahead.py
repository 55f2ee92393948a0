"""A device to compile for that need not be there: a GPU or a TPU, whose plugin for JAX is needed.

That is `pip install 'jax[cuda12]'` or `pip install 'jax[tpu]'`. Run with
JAX_PLATFORMS=cpu, so that JAX does not look for the device, and for a TPU with
TPU_SKIP_MDS_QUERY=1, so that its compiler does not ask the network which one it has.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from jax.stages import Compiled

HERE = "here"

# What the compiler asks of a device, by the vendor's documentation of compute
# capability 9.0 and the data sheet of the H200.
_H200 = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "threads_per_core_limit": 2048,
    "shared_memory_per_block": 48 << 10,
    "shared_memory_per_block_optin": 227 << 10,
    "shared_memory_per_core": 228 << 10,
    "registers_per_core_limit": 1 << 16,
    "registers_per_block_limit": 1 << 16,
    "core_count": 132,
    "fpus_per_core": 128,
    "clock_rate_ghz": 1.98,
    "memory_bandwidth": 4_800_000_000_000,
    "device_memory_size": 141_000_000_000,
    "l2_cache_size": 50 << 20,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 65535,
    "block_dim_limit_z": 65535,
    "thread_dim_limit_x": 1024,
    "thread_dim_limit_y": 1024,
    "thread_dim_limit_z": 64,
    "device_address_bits": 64,
}
_H200_TEXT = (
    "gpu_device_info {"
    + " ".join(f"{name}: {value}" for name, value in _H200.items())
    + ' cuda_compute_capability { major: 9 } device_vendor: "NVIDIA Corporation"'
    + ' name: "NVIDIA H200" driver_version: "12.8.0" runtime_version: "12.8.0"'
    + ' compile_time_toolkit_version: "12.8.0" dnn_version: "9.10.0" }'
    + ' platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 }'
    + ' device_description_str: "NVIDIA H200"'
)


class Target(NamedTuple):
    """What to compile for: what it is called, the platform to lower for, and the device."""

    name: str
    platform: str | None
    device: Any

    @property
    def backend(self) -> str:
        """The platform that is compiled for."""
        return self.platform or jax.default_backend()

    def compile(self, function: Callable[..., Any], *types: Any, **options: Any) -> Compiled:
        """The program for arguments of the given types; XLA is given the options."""
        if self.platform is None:
            return jax.jit(function).lower(*types).compile(options)
        there = SingleDeviceSharding(self.device)
        placed = jax.tree.map(
            lambda t: jax.ShapeDtypeStruct(t.shape, t.dtype, sharding=there), types
        )
        traced = jax.jit(function, out_shardings=there).trace(*placed)
        return traced.lower(lowering_platforms=(self.platform,)).compile(options)


def target(name: str) -> Target:
    """The device called `here`, `h200` or `v5e`."""
    here = jax.devices()[0]  # also finds the plugins
    if name == "h200":
        described = topologies.get_topology_desc(
            "1x1x1", platform="cuda", topology="1x1x1", target_config=_H200_TEXT
        )
        return Target("NVIDIA H200, compiled ahead of time", "cuda", described.devices[0])
    if name == "v5e":
        described = topologies.get_topology_desc("v5e:2x2", platform="tpu")
        return Target("TPU v5e, compiled ahead of time", "tpu", described.devices[0])
    return Target(here.device_kind, None, here)


TARGETS = (HERE, "h200", "v5e")
