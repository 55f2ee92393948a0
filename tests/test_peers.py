"""Each method equals the formula of its peers, restated here in NumPy and given our mask.

The peers themselves are called by benchmarks/definitions.py, whose tables stand
in benchmarks/README.md.
"""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from modes import enable_x64, make_key
from numpy.lib.stride_tricks import sliding_window_view

import jaxdrop
from jaxdrop import rescale

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
KEY = make_key("raw")
RATE, KEEP = 0.25, 0.75  # on the grid of rates, so that 0.75 is what is divided by
SELU_LIMIT = -1.6732632423543772 * 1.0507009873554805
EXACT = 1e-12


def numbers(*shape):
    """Of both signs and away from 0, so that zeros are what was dropped."""
    values = np.random.default_rng(0)
    return values.uniform(0.5, 2, shape) * values.choice([-1, 1], shape)


def in_double(method, x, *arguments, **options):
    with enable_x64():
        return np.asarray(method(KEY, jnp.asarray(x), *arguments, **options))


def close(ours, theirs, tolerance=EXACT):
    assert len(np.unique(ours == 0)) == 2, "nothing, or everything, was dropped"
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


def test_dropout_is_that_of_torch_and_of_the_jax_libraries():
    x = numbers(16, 9)
    y = in_double(jaxdrop.dropout, x, RATE)
    noise = (y != 0).astype(float)
    close(y, x * (noise / KEEP))  # torch.nn.functional.dropout
    close(y, np.where(noise, x / KEEP, 0))  # flax, equinox, keras
    close(y, noise * x / KEEP)  # haiku.dropout


def test_dropout_divides_by_the_probability_drawn_with_and_peers_by_the_rate_asked_for():
    x = numbers(16, 9)
    y = in_double(jaxdrop.dropout, x, 0.1)
    keep_prob = 1 - 6554 / 2**16
    close(y, np.where(y != 0, x / keep_prob, 0))
    assert 5e-6 < abs(keep_prob / 0.9 - 1) < 1e-5


def test_broadcast_dims_is_the_noise_shape_of_keras_and_the_broadcast_dims_of_flax():
    x = numbers(4, 6, 6)
    y = in_double(jaxdrop.dropout, x, RATE, broadcast_dims=1)
    noise = y[:, :1] != 0
    close(y, np.where(np.broadcast_to(noise, x.shape), x / KEEP, 0))


@pytest.mark.parametrize("channel_axis", [1, -1])  # torch's dropout2d, keras's SpatialDropout2D
def test_spatial_dropout_has_one_mask_a_sample_and_channel_as_torch_and_keras(channel_axis):
    x = numbers(4, 6, 5, 6)
    y = in_double(jaxdrop.spatial_dropout, x, RATE, channel_axis=channel_axis)
    noise = (y[:, :, :1, :1] if channel_axis == 1 else y[:, :1, :1, :]) != 0
    close(y, x * noise / KEEP)


@pytest.mark.parametrize("shared", [(), (2, 3)])  # alpha_dropout, feature_alpha_dropout
def test_alpha_dropout_is_that_of_torch_and_keras(shared):
    x = numbers(4, 6, 5, 6)
    y = in_double(jaxdrop.alpha_dropout, x, RATE, broadcast_dims=shared)
    noise = np.asarray(jaxdrop.draw_mask(KEY, x.shape, RATE, broadcast_dims=shared).unpack()) * 1.0
    assert len(np.unique(noise)) == 2
    a = 1 / np.sqrt((SELU_LIMIT**2 * RATE + 1) * KEEP)
    torch = x * noise * a + (noise - 1) * -SELU_LIMIT * a - SELU_LIMIT * a * RATE
    keras = a * (x * noise + SELU_LIMIT * (1 - noise)) - a * SELU_LIMIT * RATE
    np.testing.assert_allclose(y, torch, rtol=EXACT, atol=EXACT)
    np.testing.assert_allclose(y, keras, rtol=EXACT, atol=EXACT)


def test_alpha_dropout_keeps_mean_and_variance_where_torchs_reference_shifts_the_mean():
    p, a = 0.3, 1 / np.sqrt((SELU_LIMIT**2 * 0.3 + 1) * 0.7)
    for sign, mean in [(-1, 0), (1, -0.908)]:  # of b = sign * a p a'; torch._refs adds it
        b = sign * a * p * SELU_LIMIT
        dropped = a * SELU_LIMIT + b
        assert abs((1 - p) * b + p * dropped - mean) < 5e-4
        second = (1 - p) * (a**2 + b**2) + p * dropped**2  # a x + b, for x of variance 1
        assert abs(second - ((1 - p) * b + p * dropped) ** 2 - 1) < EXACT


def test_gaussian_dropout_is_that_of_keras():
    x = numbers(16, 9)
    deviation = np.sqrt(RATE / (1 - RATE))
    noise = (in_double(jaxdrop.gaussian_dropout, np.ones_like(x), RATE) - 1) / deviation
    ours = in_double(jaxdrop.gaussian_dropout, x, RATE)
    np.testing.assert_allclose(ours, x * (noise * deviation + 1), rtol=EXACT)


@pytest.mark.parametrize(
    ("rule", "divisor"), [(rescale.expected, KEEP), (rescale.none, 1)]
)  # timm's scale_by_keep
def test_drop_path_decides_for_each_sample_as_timm_and_torchvision_by_row(rule, divisor):
    x = numbers(16, 9)
    y = in_double(jaxdrop.drop_path, x, RATE, rescale=rule)
    close(y, x * ((y[:, :1] != 0) / divisor))


def test_drop_path_without_a_batch_axis_decides_once_as_torchvision_by_batch():
    x, seen = numbers(4, 9), set()
    for seed in range(8):
        y = jaxdrop.drop_path(
            make_key("raw", seed), jnp.asarray(x, "float32"), 0.5, batch_axis=None
        )
        seen.add(survives := bool(y[0, 0]))
        np.testing.assert_allclose(y, x * (survives / 0.5), rtol=1e-6)
    assert seen == {True, False}


def test_drop_path_rates_are_those_of_peers_for_one_block_more_without_the_first():
    ours = jaxdrop.drop_path_rates(0.4, 4)
    timm_and_convnext = np.linspace(0, 0.4, 5)
    efficientnet = [0.4 * block / 5 for block in range(5)]
    np.testing.assert_allclose(ours, timm_and_convnext[1:])
    np.testing.assert_allclose(jaxdrop.drop_path_rates(0.4, 5)[:-1], efficientnet[1:])


def dilated(seeds, block):
    """Torchvision's max-pool of padded seeds: dropped is what a block reaches."""
    padded = np.pad(seeds, [(0, 0), (0, 0), *[(block - 1, block - 1)] * 2])
    return sliding_window_view(padded, (block, block), (2, 3)).any((4, 5))


def drop_block(shape, **options):
    """Our input and output, and the peers' mask of the seeds that are found from it."""
    x = numbers(*shape)
    y = in_double(jaxdrop.drop_block, x, 0.3, channel_axis=1, block_size=3, **options)
    seeds = sliding_window_view(y == 0, (3, 3), (2, 3)).all((4, 5))
    return x, y, 1.0 - dilated(seeds, 3)


def test_drop_block_of_one_map_is_that_of_torchvision_and_timm():
    x, y, noise = drop_block((1, 1, 12, 10))
    close(y, x * noise * (noise.size / noise.sum()))


def test_drop_block_counts_in_each_map_where_peers_count_over_the_batch():
    x, y, noise = drop_block((4, 3, 12, 10))
    kept = noise.mean((2, 3), keepdims=True)
    close(y, x * noise / kept)
    peers = x * noise * (noise.size / noise.sum())
    close(y, peers * noise.mean() / kept)
    assert not np.allclose(y, peers)


def test_paper_gamma_is_that_of_peers_and_the_exact_one_keeps_what_was_asked_for():
    height, width, block, p = 8, 8, 3, 0.5
    gamma = (p * height * width) / (block**2 * ((height - block + 1) * (width - block + 1)))
    assert jaxdrop.drop_block_gamma(p, (8, 8), 3, exact=False) == pytest.approx(gamma)

    def share_kept(gamma, reach):
        return np.mean((1 - gamma) ** np.outer(reach, reach))

    whole_blocks, cut_blocks = [1, 2, 3, 3, 3, 3, 2, 1], [2, 3, 3, 3, 3, 3, 3, 2]
    ours = jaxdrop.drop_block_gamma(p, (8, 8), 3)
    assert share_kept(ours, whole_blocks) == pytest.approx(0.5)
    assert share_kept(gamma, whole_blocks) == pytest.approx(0.614, abs=5e-4)  # torchvision
    assert share_kept(gamma, cut_blocks) == pytest.approx(0.463, abs=5e-4)  # timm


def test_drop_tokens_gathers_what_timms_ordered_patch_dropout_gathers():
    x = np.asarray(numbers(4, 17, 3), np.float32)
    y, positions = jaxdrop.drop_tokens(KEY, jnp.asarray(x), RATE, prefix=1)
    noise = np.ones((4, 16))
    np.put_along_axis(noise, np.asarray(positions)[:, 1:] - 1, 0, axis=1)
    kept = np.sort(np.argsort(noise, axis=1, kind="stable")[:, : int(16 * (1 - RATE))])
    gathered = np.take_along_axis(x[:, 1:], kept[:, :, None], axis=1)
    np.testing.assert_array_equal(y, np.concatenate([x[:, :1], gathered], axis=1))


@pytest.mark.parametrize(
    ("length", "rate", "ours", "timms"),
    [(10, 0.25, 8, 7), (20, 0.9, 2, 1), (4, 0.9, 0, 1), (16, 0.25, 12, 12)],
)
def test_drop_tokens_keeps_the_nearest_count_where_timm_rounds_down_to_at_least_one(
    length, rate, ours, timms
):
    tokens, _ = jaxdrop.drop_tokens(KEY, jnp.zeros((length, 1)), rate)
    assert (tokens.shape[0], max(1, int(length * (1.0 - rate)))) == (ours, timms)


@pytest.mark.parametrize("size", [3, 4])
def test_cutout_is_that_of_its_authors_with_the_last_row_of_an_odd_size(size):
    x = np.asarray(numbers(32, 8, 8), np.float32)
    y = np.asarray(jaxdrop.cutout(KEY, jnp.asarray(x), size, channel_axis=None))
    half, expected = size // 2, x.copy()
    for theirs, cut in zip(expected, y, strict=True):
        rows, columns = (np.flatnonzero((cut == 0).any(axis)) for axis in (1, 0))
        centre = [i[0] + half if i[0] else i[-1] + 1 + half - size for i in (rows, columns)]
        first = [np.clip(c - half, 0, 8) for c in centre]
        last = [np.clip(c + half + size % 2, 0, 8) for c in centre]  # the authors: c + half
        theirs[first[0] : last[0], first[1] : last[1]] = 0
    np.testing.assert_array_equal(y, expected)


def test_locked_dropout_has_one_mask_for_all_steps_as_the_cells_of_keras():
    x = numbers(4, 6, 6)
    y = in_double(jaxdrop.locked_dropout, x, RATE, time_axis=1)
    mask = (y[:, 0] != 0) / KEEP
    close(y, np.stack([x[:, step] * mask for step in range(6)], axis=1))


def test_tables_of_definitions_in_the_readme_are_those_measured():
    readme = (BENCHMARKS / "README.md").read_text()
    section = readme.split("## Definitions compared")[1].split("\n## ")[0]
    measured = json.loads((BENCHMARKS / "results/definitions.json").read_text())
    rows = [*measured["same_mask"], *measured["definitions"]]
    cells = [[cell for name, cell in row.items() if name != "how"] for row in rows]
    shown = [line for line in section.splitlines() if line.startswith("| ")]
    headings = [i for i, line in enumerate(shown) if line.startswith("| ---")]
    body = [line for i, line in enumerate(shown) if i not in headings and i + 1 not in headings]
    assert body == ["| " + " | ".join(row) + " |" for row in cells]
    assert not measured["environment"]["left_out"]
    versions = {"jax": measured["environment"]["jax"], **measured["environment"]["peers"]}
    for library, version in versions.items():
        assert f"{library} {version}" in section
