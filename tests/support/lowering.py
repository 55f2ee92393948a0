"""Programs for platforms that need not be there."""

import jax


def lowered(platform, function, *operands):
    """The program for a platform, which compiles for the device that is there."""
    return jax.jit(function).trace(*operands).lower(lowering_platforms=(platform,))
