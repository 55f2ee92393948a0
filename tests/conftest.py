"""One strict configuration for all tests: eight devices, no silent promotion."""

import gc

import hypothesis
import jax
import jaxtyping
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)

# Shapes and dtypes are checked inside the core. Public functions make their
# own errors, which these checks would hide.
jaxtyping.install_import_hook(
    ["jaxdrop.base.names"]
    + [f"jaxdrop.core.{name}" for name in ("words", "threshold", "layout", "apply")],
    "beartype.beartype",
)


def pytest_addoption(parser):
    """How to try the tests that are marked for accelerators where there is none."""
    parser.addoption("--accelerator", help="run the tests marked so on this platform: cpu")


def pytest_collection_finish():
    """Looks for garbage in less and less often, which takes a tenth of the time otherwise."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


hypothesis.settings.register_profile(
    "default",
    deadline=None,  # the first example compiles
    max_examples=50,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
# For tests/fuzz: `pytest tests/fuzz --hypothesis-profile=nightly -n auto`. The option is read
# after this file, so it overrides the profile that is loaded here.
hypothesis.settings.register_profile(
    "nightly",
    hypothesis.settings.get_profile("default"),
    max_examples=5000,
    derandomize=False,
    print_blob=True,
)
hypothesis.settings.load_profile("default")
