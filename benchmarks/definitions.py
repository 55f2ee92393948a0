"""Compares each method of jaxdrop with the same method of other libraries.

Run it as `python benchmarks/definitions.py`. It makes two tables, prints them in
Markdown and writes them, with versions, to a JSON file. The first calls the
peer's real function with our mask in the place of its random numbers: same mask
in, same output out. The second asks what a formula does not say: rates 0 and 1,
borders, counts, what is counted together. Each probe is a function of a module
in `comparisons`, whose docstring says how it measures; what raises gets the name
of the exception.
"""

import argparse
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from comparisons import (
    asked_blocks,
    asked_dropout,
    asked_noise,
    asked_paths,
    asked_rates,
    asked_tokens,
    same_dropout,
    same_groups,
    same_noise,
)
from comparisons.libraries import find_libraries, library_of
from comparisons.rows import Answers
from comparisons.verdicts import TOLERANCE
from peers import OURS
from probing import attempt, how, markdown
from results_file import write_json

RESULTS = Path(__file__).parent / "results" / "definitions.json"
COMPARISONS = [*same_dropout.ROWS, *same_noise.ROWS, *same_groups.ROWS]
QUESTIONS = [
    *asked_dropout.ROWS,
    *asked_rates.ROWS,
    *asked_noise.ROWS,
    *asked_paths.ROWS,
    *asked_blocks.ROWS,
    *asked_tokens.ROWS,
]


def main(arguments: Sequence[str] | None = None) -> None:
    """Compares, prints, and writes the results, unless peers are left out of them.

    Results that lack a peer go where `--json` says, and not over the full ones.
    """
    parser = argparse.ArgumentParser(description="Compares jaxdrop's definitions with its peers'.")
    parser.add_argument("--json", type=Path, help=f"where the results go; else {RESULTS.name}")
    path = parser.parse_args(arguments).json
    versions, missing = find_libraries()
    for name, reason in missing.items():
        print(f"{name} is left out: {reason}")
    same_mask, definitions = _compare(missing), _ask(missing)
    print(_table(["jaxdrop", "peer", "same mask in"], same_mask), end="\n\n")
    print(_table(["method", "question", "jaxdrop", "peers"], definitions))
    if missing and path is None:
        print(f"\n{RESULTS.name} stays as it is: {', '.join(missing)} left out. See --json.")
        return
    path = path or RESULTS
    results = {"environment": _environment(versions, missing)}
    results |= {"same_mask": same_mask, "definitions": definitions}
    write_json(path, results)


def _compare(missing: Mapping[str, str]) -> list[dict[str, str]]:
    return [
        {"jaxdrop": ours, "peer": peer, "how": how(probe), "result": probe(peer, *arguments)}
        for ours, peer, probe, arguments in COMPARISONS
        if library_of(peer) not in missing
    ]


def _ask(missing: Mapping[str, str]) -> list[dict[str, str]]:
    return [
        {"method": method, "question": each, "how": how(probe)}
        | _answers(probe(*arguments), missing)
        for method, each, probe, arguments in QUESTIONS
    ]


def _answers(answers: Answers, missing: Mapping[str, str]) -> dict[str, str]:
    """What jaxdrop does, and what peers do, those together that do the same."""
    ours = attempt(answers.pop(OURS))
    peers: dict[str, list[str]] = {}
    for name, answer in answers.items():
        if library_of(name) not in missing:
            peers.setdefault(attempt(answer), []).append(name)
    told = [f"{', '.join(names)}: {answer}" for answer, names in peers.items()]
    return {"jaxdrop": ours, "peers": "; ".join(told)}


def _environment(versions: Mapping[str, str], missing: Mapping[str, str]) -> dict[str, Any]:
    return {
        "backend": jax.default_backend(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "peers": versions,
        "left_out": missing,
        "tolerance": TOLERANCE,
        "command": "python benchmarks/definitions.py",
    }


def _table(heading: Sequence[str], rows: Sequence[Mapping[str, str]]) -> str:
    return markdown(heading, ([row[name] for name in row if name != "how"] for row in rows))


if __name__ == "__main__":
    main()
