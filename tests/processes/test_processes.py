"""The same masks and the same training in one process and in several."""

import pickle
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from modes import quick_jit
from processes import run_with_all_children
from spread import COUNTING, KEY, RATE, drops_of_layouts, drops_of_methods
from table.methods import METHODS

from jaxdrop import dropout

TABLE = {method.name: method for method in METHODS}
ROWS, COLUMNS = (4, 2)  # of the mesh


def results_of(folder, counts):
    """What each process of each group found."""
    worker = Path(__file__).with_name("worker.py")
    run_with_all_children(worker, folder, log=folder / "log", timeout=400)
    return {
        count: [
            pickle.loads((folder / f"{count}_{index}.pickle").read_bytes())
            for index in range(count)
        ]
        for count in counts
    }


def whole(shape, parts):
    """The array that the parts of all processes make up."""
    found = np.full(shape, np.nan)
    for index, part in parts:
        found[index] = part
    assert not np.isnan(found).any()
    return found


def decisions(name, y):
    """What was dropped; where nothing is, the signs of the noise."""
    return TABLE.get(name, TABLE["dropout"]).decisions(y, RATE)


def alone():
    """What the drops leave of ones in this process, on one device."""
    drops = drops_of_methods() | drops_of_layouts(AxisType.Auto)
    plain = {name: drop(KEY, ones(shape)) for name, (drop, shape, _) in drops.items()}
    return plain | {"one mask": tiles(False), "a mask of its own": tiles(True)}


def tiles(fold):
    """`dropout` of each device's part, with the keys that `shard_map` is told to make."""
    return jnp.block([[tile(fold, i, j) for j in range(COLUMNS)] for i in range(ROWS)])


def tile(fold, row, column):
    key = jax.random.wrap_key_data(KEY)
    if fold:
        key = jax.random.fold_in(jax.random.fold_in(key, row), column)
    return dropout(key, ones((64 // ROWS, 256 // COLUMNS)), RATE)


def ones(shape):
    return jnp.ones(shape, jnp.float32)


def assert_masks_are_those_of_one_process(group, expected):
    """What was dropped is bitwise the same; values differ only as programs round."""
    for part in group[0]["drawn"]:
        for name in group[0]["drawn"][part][0]:
            parts = [shard for process in group for shard in process["drawn"][part][0][name]]
            y, plain = whole(expected[name].shape, parts), np.asarray(expected[name])
            np.testing.assert_array_equal(decisions(name, y), decisions(name, plain), name)
            np.testing.assert_allclose(y, plain, rtol=1e-5, atol=1e-6, err_msg=name)


def assert_no_mask_communicates(group):
    for process in group:
        communicated = {part: calls for part, (_, calls) in process["drawn"].items()}
        assert communicated.pop("counting")  # sums over all rows; so the search can find
        assert not any(communicated.values()), communicated


def test_groups_of_two_and_four_processes_draw_the_masks_and_train_as_one_does(tmp_path):
    groups = results_of(tmp_path, counts=(1, 2, 4))
    curves = groups[1][0]["curves"]
    for process in [process for group in groups.values() for process in group]:
        jax.tree.map(np.testing.assert_array_equal, process["curves"], curves)
    with_dropout, without = groups[2][0]["communicated"].values()
    assert with_dropout == without == ["all-reduce"]  # of the gradients
    expected = jax.device_get(quick_jit(alone)())
    assert expected.keys() >= {*TABLE, *COUNTING}
    for count in (2, 4):
        assert_masks_are_those_of_one_process(groups[count], expected)
        assert_no_mask_communicates(groups[count])
