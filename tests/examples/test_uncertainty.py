"""The example on uncertainty: its parts keep their laws, and a small run agrees with NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scripts import EXAMPLES, run

from jaxdrop import uncertainty


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import uncertainty as example

    return example


@pytest.fixture
def random():
    return np.random.default_rng(0)


def test_each_seed_learns_from_some_images_and_is_tested_with_all_others(example, key):
    data = example.load_data(jax.random.split(key, 2))
    images = np.concatenate([data.images, data.test_images], axis=1)
    labels = np.concatenate([data.labels, data.test_labels], axis=1)
    one, other = np.concatenate([images, labels[..., None]], axis=-1)
    assert data.images.shape == (2, example.IMAGES, 64)
    assert not np.array_equal(one, other)
    np.testing.assert_array_equal(sorted(one.tolist()), sorted(other.tolist()))


def test_other_kinds_are_made_of_the_digits(example, key, random):
    images = random.uniform(size=(50, 64)).astype(np.float32)
    digits, noise, shuffled, rotated = np.asarray(example.make_kinds(key, jnp.asarray(images)))
    np.testing.assert_array_equal(digits, images)
    order = [int(np.flatnonzero(images[0] == pixel)[0]) for pixel in shuffled[0]]
    assert sorted(order) == list(range(64)) != order
    np.testing.assert_array_equal(shuffled, images[:, order])
    np.testing.assert_array_equal(
        rotated.reshape(50, 8, 8)[:, ::-1].swapaxes(1, 2), digits.reshape(50, 8, 8)
    )
    assert noise.min() >= 0
    assert noise.max() <= 2 * images.mean()


def test_rejecting_follows_the_doubt(example, random):
    wrong = random.permutation(np.arange(1000) < 50)
    left = 100 - example.SHARES
    knowing = example.reject(wrong.astype(float), wrong)
    np.testing.assert_allclose(knowing, 100 * np.maximum(0, left - 95) / left)
    misled = example.reject(-wrong.astype(float), wrong)
    np.testing.assert_allclose(misled, 100 * 5 / left)


def test_areas_are_shares_of_pairs_in_order(example, random):
    doubt, wrong = random.integers(0, 9, size=(4, 30)).astype(float), np.arange(30) < 7
    pairs = [(doubt[0, wrong], doubt[0, ~wrong]), *((other, doubt[0]) for other in doubt[1:])]
    expected = [
        np.mean((more[:, None] > less) + 0.5 * (more[:, None] == less)) for more, less in pairs
    ]
    np.testing.assert_allclose(example.tell_apart(doubt, wrong), expected)


def test_pooled_bins_are_those_of_all_seeds_together(example, random):
    from uncertainty_figure import FEW, pool

    p = jnp.asarray(random.dirichlet(np.full(10, 0.1), size=(3, 200)), jnp.float32)
    labels = jnp.asarray(random.integers(0, 10, size=(3, 200)))
    diagram = uncertainty.expected_calibration_error
    each = jax.device_get(jax.vmap(diagram)(p, labels))
    together = diagram(p, labels)
    drawn = np.asarray(together.count) >= FEW
    confidence, accuracy, _ = pool(each)
    np.testing.assert_allclose(confidence, together.confidence[drawn], rtol=1e-5)
    np.testing.assert_allclose(accuracy, together.accuracy[drawn], rtol=1e-5)


def test_samples_that_agree_say_what_one_of_them_says(example, random):
    p = jnp.asarray(random.dirichlet(np.ones(10), size=(2, 4, 60)), jnp.float32)
    samples = jnp.repeat(p[:, None], 2, axis=1)
    parts = jax.vmap(uncertainty.classification)(samples)
    entropy, none = np.asarray(parts.total), np.asarray(parts.epistemic)
    results = example.measure(
        example.Predictions(
            labels=jnp.asarray(random.integers(0, 10, size=(2, 60))),
            samples=samples,
            means=dict.fromkeys(example.PREDICTORS, parts.probabilities),
            doubts=dict(zip(example.DOUBTS, (entropy, entropy, entropy, none), strict=True)),
        )
    )
    for row in results.counts.values():
        np.testing.assert_allclose(row["MI"], 0, atol=1e-6)
        np.testing.assert_array_equal(row["error, %"], results.scores["MC mean"]["error, %"])
    assert list(results.counts) == [1, 2]
    for column in example.KINDS[1:]:
        np.testing.assert_array_equal(results.areas["mutual information, MC"][column], 0.5)
    scaling, mc = (results.rejection[f"entropy, {of}"] for of in ("weight scaling", "MC mean"))
    np.testing.assert_array_equal(scaling, mc)


def small_run(tmp_path):
    """Runs the example in a process of its own; what it drew and measured, and printed."""
    script = (
        f"import sys; sys.path.insert(0, {str(EXAMPLES)!r})\n"
        "import numpy as np, uncertainty as example\n"
        "measure, kept = example.measure, []\n"
        "example.measure = lambda predictions: kept.append(predictions) or measure(predictions)\n"
        f"options = '--seeds 2 --epochs 8 --samples 4 --out'.split() + [{str(tmp_path)!r}]\n"
        "results, (predictions,) = example.main(options), kept\n"
        "np.savez(\n"
        f"    {str(tmp_path / 'found.npz')!r},\n"
        "    labels=predictions.labels,\n"
        "    samples=predictions.samples[:, :, 0],\n"
        "    mean=predictions.means['MC mean'][:, 0],\n"
        "    answers=results.answers,\n"
        "    **{f'{name} {k}': row[name] for k, row in results.counts.items() for name in row},\n"
        "    **{f'mean {name}': of for name, of in results.scores['MC mean'].items()},\n"
        ")\n"
    )
    flags = dict.fromkeys(("JAX_DEBUG_KEY_REUSE", "JAX_DISABLE_MOST_OPTIMIZATIONS"), "1")
    printed = run("-c", script, **flags).stdout
    return np.load(tmp_path / "found.npz"), printed


def entropy(p):
    return -np.sum(p * np.log(np.where(p > 0, p, 1)), axis=-1)


def test_small_run_measures_what_numpy_does(tmp_path):
    found, printed = small_run(tmp_path)
    samples, labels = found["samples"].astype(float), found["labels"]
    assert samples.shape == (2, 4, labels.shape[1], 10)
    for count in (1, 2, 4):
        groups = samples.reshape(2, -1, count, *samples.shape[2:])
        mean = groups.mean(axis=2)
        errors = 100 * np.mean(mean.argmax(axis=-1) != labels[:, None], axis=(1, 2))
        information = np.mean(entropy(mean) - entropy(groups).mean(axis=2), axis=(1, 2))
        # A tie of two probabilities may fall either way: one answer at the most.
        np.testing.assert_allclose(found[f"error, % {count}"], errors, atol=100 / labels.shape[1])
        np.testing.assert_allclose(found[f"MI {count}"], information, atol=1e-5)
    np.testing.assert_allclose(found["mean"], samples.mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(found["mean NLL"], found["NLL 4"], rtol=1e-5)
    np.testing.assert_allclose(found["answers"].sum(axis=-1), 100, rtol=1e-5)
    for name in ("weight scaling", "MC, k = 4", "mutual information, MC", "MC less no dropout"):
        assert f"\n  {name} " in printed
    assert (tmp_path / "uncertainty.png").stat().st_size > 10_000
