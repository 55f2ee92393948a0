"""The stored masks, which are a promise: those of `tests/golden`."""

import json
from pathlib import Path

import jax
import numpy as np

import jaxdrop

_FOLDER = Path(__file__).parent.parent / "golden"
GOLDEN = json.loads((_FOLDER / "masks.json").read_text())
GOLDEN_METHODS = json.loads((_FOLDER / "methods.json").read_text())
BERNOULLI = [case for case in GOLDEN if "rate" in case]
CASE_OF_METHODS = {"impl": "threefry2x32", "key": [0, 42]}  # what each pattern is drawn with
FIXED = [case for case in GOLDEN if "count" in case]


def encoded(flags):
    """Booleans as they are stored."""
    return np.packbits(np.asarray(flags)).tobytes().hex()


def stored(case):
    """The mask of a case, as booleans."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(case["mask"]), np.uint8))
    return bits[: int(np.prod(case["shape"], dtype=int))].reshape(case["shape"]).astype(bool)


def key_of(case):
    """The key of a case."""
    return jax.random.wrap_key_data(np.array(case["key"], np.uint32), impl=case["impl"])


def draw(key, case):
    """What a key keeps, in the shape and with the rate or the count of a case."""
    if "count" in case:
        return jaxdrop.draw_fixed_count_mask(key, case["shape"], case["count"], axis=-1).unpack()
    return jaxdrop.draw_mask(key, case["shape"], case["rate"]).unpack()
