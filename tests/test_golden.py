"""Masks are a promise: the same in every mode and every supported version of JAX."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_masks import (
    BERNOULLI,
    CASE_OF_METHODS,
    FIXED,
    GOLDEN,
    GOLDEN_METHODS,
    draw,
    encoded,
    key_of,
    stored,
)
from modes import KEY_IMPLEMENTATIONS, enable_x64, make_key
from reference import masks as reference
from scripts import load
from table.methods import RECORDS

import jaxdrop

MAKE = Path(__file__).parent / "golden" / "make.py"
ONE_SHAPE = [case for case in GOLDEN if case["shape"] == [2, 3, 40]]


@pytest.fixture
def make():
    return load(MAKE)


def assert_all_equal(cases, drawn):
    wrong = [case for case in cases if not np.array_equal(drawn(case), stored(case))]
    assert not wrong


def test_there_are_golden_masks_of_every_kind():
    assert {case["impl"] for case in GOLDEN} == {"threefry2x32", "rbg", "unsafe_rbg"}
    assert len(BERNOULLI) == (3 * 5 + 3) * 9
    assert len(FIXED) == 3 * 4 + 3


@pytest.mark.quick
def test_eager_masks():
    assert_all_equal(GOLDEN, lambda case: draw(key_of(case), case))


def test_masks_under_jit_with_a_traced_rate():
    jitted = jax.jit(
        lambda key, rate, shape: jaxdrop.draw_mask(key, shape, rate).unpack(), static_argnums=2
    )
    float32 = [case for case in BERNOULLI if float(np.float32(case["rate"])) == case["rate"]]
    coarse = [case for case in BERNOULLI if 1e-3 < case["rate"] < 0.998]
    for cases in (float32, coarse):
        assert cases
        assert_all_equal(
            cases, lambda case: jitted(key_of(case), case["rate"], tuple(case["shape"]))
        )


def test_masks_under_vmap():
    def batched(case):
        keys = jnp.stack([key_of(case)] * 2)
        return jax.vmap(lambda key: draw(key, case))(jax.random.clone(keys))[1]

    assert_all_equal(ONE_SHAPE, batched)


@pytest.mark.parametrize("enabled", [True, False])
def test_masks_with_x64_on_and_off(enabled):
    with enable_x64(enabled):
        assert_all_equal(ONE_SHAPE, lambda case: draw(key_of(case), case))


@pytest.mark.parametrize("implementation", KEY_IMPLEMENTATIONS)
def test_masks_of_keys_folded_under_vmap_are_those_of_a_loop_except_for_unsafe_rbg(implementation):
    """JAX derives other keys from `unsafe_rbg` under `vmap`, as docs/sharding.md says."""

    def mask(number):
        key = jax.random.fold_in(make_key(implementation, 7), number)
        return jaxdrop.draw_mask(key, 64, 0.5).unpack()

    numbers = jnp.arange(4)
    batched = np.asarray(jax.vmap(mask)(numbers))
    alike = np.array_equal(batched, [mask(number) for number in numbers])
    assert alike == (implementation != "unsafe_rbg")


def test_masks_with_the_other_way_jax_counts():
    with jax.threefry_partitionable(False):
        assert_all_equal(ONE_SHAPE, lambda case: draw(key_of(case), case))


@pytest.mark.quick
def test_numpy_reference_rebuilds_every_mask_of_a_threefry_key():
    plain = [case for case in GOLDEN if case["impl"] == "threefry2x32"]

    def rebuilt(case):
        shape = tuple(case["shape"])
        if "count" in case:
            return reference.fixed_count_mask(case["key"], shape, case["count"], (len(shape) - 1,))
        return reference.mask(case["key"], shape, case["rate"])

    assert_all_equal(plain, rebuilt)


@pytest.mark.quick
@pytest.mark.parametrize("method", RECORDS, ids=lambda method: method.name)
def test_every_method_drops_what_it_did(method):
    add = f"python tests/golden/make.py --add '{method.name}'"
    assert method.name in GOLDEN_METHODS, f"There is no golden pattern; make it by {add}"
    assert encoded(method.pattern(key_of(CASE_OF_METHODS))) == GOLDEN_METHODS[method.name]


def test_golden_patterns_are_of_methods_of_the_table():
    assert GOLDEN_METHODS.keys() == {method.name for method in RECORDS}


def test_new_pattern_is_added_behind_the_others_which_stay_as_they_are(make, tmp_path):
    (name, last), path = list(GOLDEN_METHODS.items())[-1], tmp_path / "methods.json"
    path.write_text(
        text_without_last := make.METHODS_PATH.read_text().replace(f',\n "{name}": "{last}"', "")
    )
    make.add([name], path)
    assert path.read_text() == make.METHODS_PATH.read_text() != text_without_last


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("dropout", "dropout has a golden pattern, which may change in a major release only"),
        ("drop_all", "drop_all is no record of tests/support/table"),
    ],
)
def test_pattern_that_there_is_or_cannot_be_is_not_written(make, name, says, tmp_path):
    path = tmp_path / "methods.json"
    path.write_text(before := make.METHODS_PATH.read_text())
    with pytest.raises(SystemExit, match=says):
        make.add([name], path)
    assert path.read_text() == before


def test_dropout_uses_the_mask_of_draw_mask():
    assert_all_equal(
        [case for case in ONE_SHAPE if 0 < case.get("rate", 0) < 1],
        lambda case: jaxdrop.dropout(key_of(case), jnp.ones(case["shape"]), case["rate"]) != 0,
    )
