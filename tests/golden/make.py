"""Writes the golden masks and signatures that the tests compare with.

A new method of `tests/support/table` gets its pattern, and all others keep theirs, by

    python tests/golden/make.py --add NAME

Without that, all masks and patterns are written anew. Do it only for a major release, in
which masks may change:

    python tests/golden/make.py

The signatures, which show a default that changed, are written by

    python tests/golden/make.py --signatures

test_golden.py also rebuilds the masks of Threefry keys from the NumPy reference.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "support"))
from golden_masks import CASE_OF_METHODS, draw, encoded, key_of
from signatures import signatures
from table.methods import RECORDS

MASKS_PATH = Path(__file__).with_name("masks.json")
METHODS_PATH = Path(__file__).with_name("methods.json")
SIGNATURES_PATH = Path(__file__).with_name("signatures.txt")
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


def patterns(records):
    """What each record decides of ones, by name."""
    return {record.name: encoded(record.pattern(key_of(CASE_OF_METHODS))) for record in records}


def write(found, path):
    path.write_text(json.dumps(found, indent=1) + "\n")


def add(names, path=METHODS_PATH):
    """Adds patterns behind those that there are, and refuses to touch any of these."""
    there, records = json.loads(path.read_text()), {record.name: record for record in RECORDS}
    for name in names:
        if name in there:
            sys.exit(f"{name} has a golden pattern, which may change in a major release only.")
        if name not in records:
            sys.exit(f"{name} is no record of tests/support/table; these are: {', '.join(records)}")
    write({**there, **patterns([records[name] for name in names])}, path)


def make_all():
    """All masks and patterns anew."""
    rows = [{**case, "mask": encoded(draw(key_of(case), case))} for case in cases()]
    MASKS_PATH.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    write(patterns(RECORDS), METHODS_PATH)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--add", nargs="+", metavar="NAME", help="of new records, and no others")
    parser.add_argument("--signatures", action="store_true", help="of all public names alone")
    asked = parser.parse_args()
    if asked.signatures:
        SIGNATURES_PATH.write_text("\n".join(signatures()) + "\n")
    else:
        add(asked.add) if asked.add else make_all()
