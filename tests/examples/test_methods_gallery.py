"""The gallery has a panel for every method, and each panel says what the method does."""

import re

import numpy as np
import pytest
from scripts import EXAMPLES, ROOT, run
from table.methods import RECORDS
from table.record import Gallery

import jaxdrop

DRAWS = 256  # so that parts which are dropped independently differ in one of them
SELU_LIMIT = -1.7580993408473766
RATE = 0.3
RECORD = {r.function: r for r in RECORDS if isinstance(r.gallery, Gallery)}


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import methods_gallery

    return methods_gallery


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """A run in a process of its own: where it drew, what it drew and what it printed."""
    path = tmp_path_factory.mktemp("gallery")
    script = (
        f"import sys; sys.path.insert(0, {str(EXAMPLES)!r})\n"
        "import numpy as np, methods_gallery\n"
        f"options = ['--seeds', '{DRAWS}', '--out', {str(path)!r}]\n"
        f"np.savez({str(path / 'draws.npz')!r}, **methods_gallery.main(options))\n"
    )
    flags = dict.fromkeys(("JAX_DEBUG_KEY_REUSE", "JAX_DISABLE_MOST_OPTIMIZATIONS"), "1")
    printed = run("-c", script, **flags).stdout
    return path, dict(np.load(path / "draws.npz")), printed


@pytest.fixture
def draws(small_run):
    return small_run[1]


TABLES = {
    "README.md": ("| for | published as |", slice(None)),
    "docs/methods.md": ("| method | what it drops |", slice(90)),
}


@pytest.mark.parametrize("text", TABLES)
def test_every_panel_is_in_the_table(text):
    head, part = TABLES[text]
    table = (ROOT / text).read_text().split(head)[1].split("\n\n")[0]
    names = {name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row[part])}
    missing = RECORD.keys() - names
    assert not missing, f"The table of methods in {text} does not name {missing}"


def test_panels_are_those_of_the_records(example):
    assert list(example.PANELS) == list(RECORD)
    assert example.RATE == RATE


@pytest.mark.parametrize("name", RECORD)
def test_decisions_are_shared_along_the_axes_stated_and_no_others(example, draws, name):
    panel, y = example.PANELS[name], draws[name]
    assert y.shape == (DRAWS, *panel.axes.values())
    for axis in panel.alike:
        first = y.take([0], list(panel.axes).index(axis) + 1)
        np.testing.assert_array_equal(y, np.broadcast_to(first, y.shape))
    what = RECORD[name].decisions(y, RATE)
    parts = np.unique(what.reshape(DRAWS, -1), axis=1)
    assert parts.shape[1] == example.groups(panel)


def test_methods_that_decide_alike_drop_the_same_places(example, draws):
    dropped = {name: example.hit(panel, draws[name]) for name, panel in example.PANELS.items()}
    for name in ("alpha_dropout", "replace_tokens", "zoneout"):
        np.testing.assert_array_equal(dropped[name], dropped["dropout"])
    for name in ("drop_edges", "drop_nodes"):
        rows = dropped["embedding_dropout"][..., 0]
        np.testing.assert_array_equal(dropped[name][..., 0], rows)
    np.testing.assert_array_equal(dropped["mixout"], dropped["drop_connect"])
    np.testing.assert_array_equal(dropped["drop_condition"], dropped["drop_path"])
    np.testing.assert_allclose(
        draws["variational_dropout"], draws["gaussian_dropout"], rtol=1e-3, atol=1e-5
    )
    weights, keys = dropped["dot_product_attention"], dropped["drop_key"]
    np.testing.assert_array_equal(keys, np.where(weights.all(-1, keepdims=True), keys, weights))


WITH_FACTOR = [name for name, record in RECORD.items() if record.gallery.survivor is not None]


@pytest.mark.parametrize("name", WITH_FACTOR)
def test_survivors_have_the_factor_that_the_record_states(name, example, draws, key):
    keep_prob = float(jaxdrop.draw_mask(key, 1, RATE).keep_prob)
    factor = example.PANELS[name].survivor(keep_prob)
    np.testing.assert_allclose(np.unique(draws[name])[[0, -1]], [0, factor], rtol=1e-6)
    np.testing.assert_allclose(draws[name][draws[name] > 0], factor, rtol=1e-6)


def test_counts_are_kept_in_every_draw(draws):
    fixed = draws["fixed_count_dropout"]
    np.testing.assert_array_equal((fixed > 0).sum(axis=-1), 8)
    tokens = draws["drop_tokens"][..., 0]
    np.testing.assert_array_equal(tokens.sum(axis=-1), 7)


def test_sums_are_kept_in_every_draw(draws):
    blocks = draws["drop_block"]
    some_kept = blocks.any(axis=(2, 3))
    np.testing.assert_allclose(blocks.sum(axis=(2, 3)), 64 * some_kept, rtol=1e-5)
    heads = draws["drop_heads"]
    np.testing.assert_allclose(heads.sum(axis=3), 4 * heads.any(axis=3), rtol=1e-6)
    np.testing.assert_allclose(draws["drop_key"].sum(axis=-1), 8, rtol=1e-6)


def test_what_is_dropped_from_alpha_dropout_is_the_limit_of_selu(draws, key):
    """Standardised input keeps mean 0, q b + p (a a' + b) = 0, and variance 1."""
    q = float(jaxdrop.draw_mask(key, 1, 0.3).keep_prob)
    a = (q + SELU_LIMIT**2 * q * (1 - q)) ** -0.5
    b = -a * (1 - q) * SELU_LIMIT
    expected = np.where(draws["dropout"] > 0, a + b, a * SELU_LIMIT + b)
    np.testing.assert_allclose(draws["alpha_dropout"], expected, rtol=1e-5)


def test_blocks_and_squares_are_whole(draws):
    maps = (draws["drop_block"] == 0).transpose(0, 1, 4, 2, 3).reshape(-1, 8, 8)
    inside = np.lib.stride_tricks.sliding_window_view(maps, (3, 3), (1, 2)).all(axis=(3, 4))
    covered = np.zeros_like(maps)
    for row, column in np.ndindex(3, 3):
        covered[:, row : row + 6, column : column + 6] |= inside
    np.testing.assert_array_equal(covered, maps)
    squares = (draws["cutout"][..., 0] == 0).reshape(-1, 8, 8)
    rows, columns = squares.any(axis=2), squares.any(axis=1)
    np.testing.assert_array_equal(squares, rows[:, :, None] & columns[:, None])
    for edge in (rows, columns):
        assert set(edge.sum(axis=1)) == {2, 3, 4}  # at the border half is cut off
        assert np.diff(edge, axis=1).sum(axis=1).max() <= 2  # in one piece


def test_panels_lay_each_element_in_its_place(example):
    panel = example.PANELS["spatial_dropout"]
    values = np.arange(2 * 8 * 8 * 4).reshape(2, 8, 8, 4)
    laid = example.lay_out(panel, values)
    for sample, row, column, channel in [(0, 0, 0, 0), (0, 1, 5, 3), (1, 7, 0, 2)]:
        assert laid[sample, row, channel, column] == values[sample, row, column, channel]
    panel = example.PANELS["drop_connect"]
    values = np.arange(72).reshape(6, 12)
    np.testing.assert_array_equal(example.lay_out(panel, values)[0, :, 0], values)


def test_hits_go_from_kept_to_dropped_or_strongly_disturbed(example):
    y = np.array([0.0, 0.5, 1.0])
    np.testing.assert_allclose(example.hit(example.PANELS["dropout"], y), [1, 0, 0])
    softly = example.hit(example.PANELS["concrete_dropout"], y / 0.7)
    np.testing.assert_allclose(softly, [1, 0.5, 0], atol=1e-12)
    std = (0.3 / 0.7) ** 0.5
    noisy = example.hit(example.PANELS["gaussian_dropout"], 1 + std * np.array([0, -1, 9]))
    np.testing.assert_allclose(noisy, [0, 0.5, 1])


def test_table_tells_of_every_panel(example, small_run):
    path, draws, printed = small_run
    rows = {line.split()[0]: line for line in printed.splitlines() if line}
    for name, panel in example.PANELS.items():
        found = example.strength(panel, draws[name])
        assert f" {found[0]:.3f}  {found.mean():.3f} ± " in rows[name]
        assert f" {example.decisions(panel)[0]} " in rows[name]
        assert rows[name].endswith(panel.keeps)
    assert (path / "methods_gallery.png").stat().st_size > 10_000
