"""Writes the golden masks that test_golden.py compares with.

Run it only for a major release, in which masks may change:

    python tests/golden/make.py

test_golden.py also rebuilds those of Threefry keys from the NumPy reference.
"""

import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "support"))
from golden_masks import draw, encoded, key_of
from table.methods import CUTOUT, METHODS, pattern

PATH = Path(__file__).with_name("masks.json")
RATES = [0.5, 0.25, 0.1, 1 / 3, 0.9, 0.999, 1e-5, 0.0, 1.0]
SHAPES = [(), (33,), (3, 10), (4, 64), (2, 3, 40)]
KEYS = {
    "threefry2x32": ([[0, 0], [0, 42], [0xFFFFFFFF, 0x80000000]], SHAPES),
    "rbg": ([[0, 1, 2, 3], [5, 0, 5, 0]], [(2, 3, 40)]),
    "unsafe_rbg": ([[4, 5, 6, 7]], [(2, 3, 40)]),
}


def cases():
    """All combinations, without the masks."""
    for implementation, (keys, shapes) in KEYS.items():
        for data in keys:
            for shape in shapes:
                for rate in RATES:
                    yield {"impl": implementation, "key": data, "shape": shape, "rate": rate}
                if shape and shape[-1] > 3:
                    yield {"impl": implementation, "key": data, "shape": shape, "count": 3}


if __name__ == "__main__":
    rows = [{**case, "mask": encoded(draw(key_of(case), case))} for case in cases()]
    PATH.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    key = key_of({"impl": "threefry2x32", "key": [0, 42]})
    patterns = {method.name: encoded(pattern(method, key)) for method in [*METHODS, CUTOUT]}
    PATH.with_name("methods.json").write_text(json.dumps(patterns, indent=1) + "\n")
