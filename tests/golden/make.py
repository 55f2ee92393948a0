"""Writes the golden masks that test_golden.py compares with.

Run it only for a major release, in which masks may change:

    python tests/golden/make.py

test_golden.py also rebuilds those of Threefry keys from the NumPy reference.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np

import jaxdrop

sys.path.append(str(Path(__file__).parent.parent / "support"))
from method_table import CUTOUT, METHODS, pattern

PATH = Path(__file__).with_name("masks.json")
RATES = [0.5, 0.25, 0.1, 1 / 3, 0.9, 0.999, 1e-5, 0.0, 1.0]
SHAPES = [(), (33,), (3, 10), (4, 64), (2, 3, 40)]
KEYS = {
    "threefry2x32": ([[0, 0], [0, 42], [0xFFFFFFFF, 0x80000000]], SHAPES),
    "rbg": ([[0, 1, 2, 3], [5, 0, 5, 0]], [(2, 3, 40)]),
    "unsafe_rbg": ([[4, 5, 6, 7]], [(2, 3, 40)]),
}


def encode(mask):
    return np.packbits(np.asarray(mask)).tobytes().hex()


def key_of(implementation, data):
    return jax.random.wrap_key_data(np.array(data, np.uint32), impl=implementation)


def cases():
    """All combinations, without the masks."""
    for implementation, (keys, shapes) in KEYS.items():
        for data in keys:
            for shape in shapes:
                for rate in RATES:
                    yield {"impl": implementation, "key": data, "shape": shape, "rate": rate}
                if shape and shape[-1] > 3:
                    yield {"impl": implementation, "key": data, "shape": shape, "count": 3}


def draw(case):
    key = key_of(case["impl"], case["key"])
    if "count" in case:
        return jaxdrop.draw_fixed_count_mask(key, case["shape"], case["count"], axis=-1)
    return jaxdrop.draw_mask(key, case["shape"], case["rate"])


if __name__ == "__main__":
    rows = [{**case, "mask": encode(draw(case).unpack())} for case in cases()]
    PATH.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    key = key_of("threefry2x32", [0, 42])
    patterns = {method.name: encode(pattern(method, key)) for method in [*METHODS, CUTOUT]}
    PATH.with_name("methods.json").write_text(json.dumps(patterns, indent=1) + "\n")
