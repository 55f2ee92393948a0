#!/usr/bin/env bash
# Builds the package, and tries what a user gets who starts today: on the newest Python of
# this machine, with the newest JAX that installs there.
#
#     bash .ci/package.sh [PYTHON]
#
# The tests come from the sdist and run without the repository beside them, so they test the
# wheel: each public name by the examples of its docstring, and each method by its golden mask.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${1:-$(python3 .ci/newest_python.py)}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m venv "$work/tools"
"$work/tools/bin/pip" install --quiet build twine
"$work/tools/bin/python" -m build --outdir "$work/dist" . >"$work/log" || { cat "$work/log" && exit 1; }
"$work/tools/bin/twine" check --strict "$work"/dist/*
"$work/tools/bin/python" .ci/check_description.py "$work"/dist/*.whl

wheel=("$work"/dist/*.whl)
"$python" -m venv "$work/user"
"$work/user/bin/pip" install --quiet "${wheel[0]}"
# With nothing but the package and what it depends on.
(cd "$work" && user/bin/python -c "
import jax, jaxdrop
print(jaxdrop.dropout(jax.random.key(0), jax.numpy.ones(8), 0.5))")

"$work/user/bin/pip" install --quiet "${wheel[0]}[test]"
tar -xzf "$work"/dist/*.tar.gz -C "$work" --strip-components=1 --exclude='*/jaxdrop'
cd "$work"
"$work/user/bin/pytest" -n auto tests/test_docs.py tests/test_golden.py
