"""Does each method of jaxdrop mean what the same method of other libraries means?

    python benchmarks/definitions.py

makes two tables, prints them in Markdown and writes them, with versions, to a
JSON file. The first feeds our decisions to the peer's real function in the place
of its random numbers: same mask in, same output out. Its rows are those of the
tests' table of peers. The second asks what a formula does not say: rates 0 and
1, borders, counts, what is counted together (common/questions.py).
"""

import argparse
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from common.feeding import KEY, fed, find_libraries, layer, library_of, to_numpy, to_tensor
from common.peers import OURS, find
from common.probing import attempt, how
from common.questions import QUESTIONS, Answers
from common.results import RESULTS, cell, command, table, write_json

# The formulas of peers, by which the tests hold our methods where no peer is installed.
sys.path.append(str(Path(__file__).parent.parent / "tests" / "support"))
from table.peers import COMPARISONS, RATE, Comparison

TOLERANCE = 1e-6  # of float32 numbers around 1: a few roundings
PATH = RESULTS / "definitions.json"


def numbers(*shape: int) -> np.ndarray:
    """Float32 numbers of both signs, away from 0, so that zeros are what was dropped."""
    generator = np.random.default_rng(0)
    values = generator.uniform(0.5, 2, shape) * generator.choice([-1, 1], shape)
    return values.astype(np.float32)


def compare(comparison: Comparison, peer: str, options: Mapping[str, Any]) -> dict[str, str]:
    """Our method and the peer's function, given our decisions; the formula must be the peer's."""
    x, ours, theirs, formula = numbers(*comparison.shape), [], [], []
    how_found = f"{comparison.how}."
    for key in [KEY] if comparison.keys == 1 else jax.random.split(KEY, comparison.keys):
        method = partial(comparison.method, key, rate=comparison.rate)
        decisions = comparison.decisions(np.asarray(method(np.ones_like(x))))
        ours.append(np.asarray(method(x)))
        formula.append(comparison.formula(x, decisions, 1 - comparison.rate))
        if library_of(peer) == "the":  # the authors, whose code is no library
            theirs.append(formula[-1])
            continue
        call = _CALLS.get(peer, layer)(peer, comparison.rate, **options)
        with fed(decisions) as requests:
            theirs.append(to_numpy(call(x)))
        how_found = f"{comparison.how}, in the place of `{requests[0].function}`."
    if difference(formula, theirs) > TOLERANCE:
        raise ValueError(f"{peer}: its formula in the tests' table of peers is another.")
    result = verdict(ours, theirs, comparison.reason)
    return {"jaxdrop": comparison.ours, "peer": peer, "how": how_found, "result": result}


def verdict(ours: Any, theirs: Any, reason: str | None) -> str:
    """Same, or by how much they differ and why."""
    most = difference(ours, theirs)
    if most <= TOLERANCE:
        return "same"
    text = f"differs by up to {float(f'{100 * most:.2g}'):g} %"
    return f"{text}: {reason}" if reason else text


def difference(a: Any, b: Any) -> float:
    """The largest difference, as a share of the larger of the two numbers, or of 1."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"shapes must be the same; got {a.shape} and {b.shape}.")
    return float(np.max(np.abs(a - b) / np.maximum(np.maximum(np.abs(a), np.abs(b)), 1)))


def _torch_attention(peer: str, rate: float) -> Callable[[Any], Any]:
    def attend(x: Any) -> Any:
        query, values = to_tensor(x), np.eye(x.shape[-2], dtype=np.float32)
        values = np.broadcast_to(values, (*x.shape[:-1], x.shape[-2]))
        return find(peer)(query, query, to_tensor(values), dropout_p=rate)

    return attend


def _flax_attention(peer: str, rate: float) -> Callable[[Any], Any]:
    options = {"dropout_rng": KEY, "dropout_rate": rate, "deterministic": False}

    def weights(x: Any) -> Any:
        query = np.swapaxes(x, 1, 2)  # flax has positions before heads
        return find(peer)(query, query, **options)

    return weights


def _timm_tokens(peer: str, rate: float, **options: Any) -> Callable[[Any], Any]:
    def drop(x: Any) -> Any:
        tokens, indices = find(peer)(rate, **options)(to_tensor(x))
        positions = np.pad(indices + 1, [(0, 0), (1, 0)])  # timm counts without the prefix
        return np.concatenate([tokens, positions[:, :, None]], axis=2)

    return drop


def _keras_rnn(peer: str, rate: float) -> Callable[[Any], Any]:
    def apply(x: Any) -> Any:
        identity = {"kernel_initializer": "identity", "recurrent_initializer": "zeros"}
        rnn = find(peer)(
            x.shape[-1], activation=None, dropout=rate, return_sequences=True, **identity
        )
        return rnn(x, training=True)

    return apply


# What must be called in another way than a layer or a function of an array and a rate.
_CALLS: dict[str, Callable[..., Callable[[Any], Any]]] = {
    "torch.nn.functional.scaled_dot_product_attention": _torch_attention,
    "flax.linen.dot_product_attention_weights": _flax_attention,
    "timm.layers.PatchDropoutWithIndices(ordered=True)": _timm_tokens,
    "keras.layers.SimpleRNN(dropout=...), of its input": _keras_rnn,
}


def between_layers() -> str:
    """The shape of the mask that it asks for, given 6 steps of a batch of 4 with 5 features."""
    layers = find("torch.nn.LSTM")(5, 5, num_layers=2, dropout=RATE)
    with fed(np.ones) as asked:
        layers(to_tensor(np.ones((6, 4, 5), np.float32)))
    (mask,) = asked
    same = (mask.shape, mask.probability) == ((6, 4, 5), 1 - RATE)
    return "a new mask at each step, unlike locked_dropout" if same else "another mask"


def same_mask(missing: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """The first table."""
    for comparison in COMPARISONS:
        for peer, options in comparison.peers.items():
            if library_of(peer) not in missing:
                yield compare(comparison, peer, options)
    if "torch" not in missing:
        names = {"jaxdrop": "dropout", "peer": "torch.nn.LSTM(dropout=...), between its layers"}
        yield {**names, "how": how(between_layers), "result": between_layers()}


def definitions(missing: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """The second table."""
    for method, question, probe, arguments in QUESTIONS:
        named = {"method": method, "question": question, "how": how(probe)}
        yield {**named, **_answers(probe(*arguments), missing)}


def _answers(answers: Answers, missing: Mapping[str, str]) -> dict[str, str]:
    """What jaxdrop does, and what peers do, those together that do the same."""
    ours = attempt(answers.pop(OURS))
    peers: dict[str, list[str]] = {}
    for name, answer in answers.items():
        if library_of(name) not in missing:
            peers.setdefault(attempt(answer), []).append(name)
    told = [f"{', '.join(names)}: {answer}" for answer, names in peers.items()]
    return {"jaxdrop": ours, "peers": "; ".join(told)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Compares, prints, and writes the results, unless peers are left out of them.

    Results that lack a peer go where `--json` says, and not over the full ones.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help=f"where the results go; else {PATH.name}")
    path = parser.parse_args(arguments).json
    versions, missing = find_libraries()
    for name, reason in missing.items():
        print(f"{name} is left out: {reason}")
    results = {
        "environment": {
            "backend": jax.default_backend(),
            "python": platform.python_version(),
            "jax": jax.__version__,
            "peers": versions,
            "left_out": missing,
            "tolerance": TOLERANCE,
            "command": command("definitions.py"),
        },
        "same_mask": list(same_mask(missing)),
        "definitions": list(definitions(missing)),
    }
    titles = {"jaxdrop": "jaxdrop", "peer": "peer", "same mask in": "result"}
    print(_table(results["same_mask"], titles), end="\n\n")
    print(
        _table(results["definitions"], {n: n for n in ("method", "question", "jaxdrop", "peers")})
    )
    if missing and path is None:
        print(f"\n{PATH.name} stays as it is: {', '.join(missing)} left out. See --json.")
    else:
        write_json(path or PATH, results)


def _table(rows: Sequence[dict[str, str]], titles: Mapping[str, str]) -> str:
    return table(rows, {title: cell(name) for title, name in titles.items()})


if __name__ == "__main__":
    main()
