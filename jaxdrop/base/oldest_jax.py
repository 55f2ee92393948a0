"""The oldest JAX that jaxdrop runs on. It is checked first, so that the user sees this error."""

import jax

OLDEST_JAX = (0, 7, 2)


def require_jax() -> None:
    """Refuses an older JAX."""
    if jax.__version_info__ < OLDEST_JAX:
        oldest = ".".join(map(str, OLDEST_JAX))
        raise ImportError(
            f"jaxdrop: jax must be {oldest} or newer; got {jax.__version__}. "
            f"Run `pip install 'jax>={oldest}'`."
        )
