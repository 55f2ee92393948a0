#!/usr/bin/env bash
# Runs the tests that depend on the version of JAX on one version of it:
#
#     bash .ci/on_jax.sh VERSION [PYTHON]
#
# They are the golden masks, the laws of all methods, sharding, what is compiled, and
# planting, which reads what JAX traces. Programs are compiled in less time than usual,
# as nearly all of them run once.
set -euo pipefail
cd "$(dirname "$0")/.."

version=$1
python=${2:-python3}
environment=.venv-jax-$version
tests=(
  core test_golden.py test_laws.py test_sharding.py test_compilation.py test_versions.py
  attention/test_meshes.py attention/test_transforms.py attention/test_weights_mask.py
  transforms/planting transforms/test_policies.py
)

"$python" -m venv "$environment"
"$environment/bin/pip" install --quiet '.[test]' "jax==$version" "jaxlib==$version"
XLA_FLAGS=--xla_backend_optimization_level=0 \
  "$environment/bin/pytest" -n auto "${tests[@]/#/tests/}"
