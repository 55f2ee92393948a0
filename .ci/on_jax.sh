#!/usr/bin/env bash
# Runs the tests that depend on the version of JAX on one version of it:
#
#     bash .ci/on_jax.sh VERSION [PYTHON]
#
# They are the golden masks, the laws of all methods, sharding, what is compiled, and
# planting, which reads what JAX traces.
set -euo pipefail
cd "$(dirname "$0")/.."

version=$1
python=${2:-python3}
environment=.venv-jax-$version
tests=(
  base/test_{compat,sharding_parts}.py core/test_{bernoulli,words}.py
  test_golden.py test_laws.py test_sharding.py test_compilation.py test_versions.py
  test_platforms.py methods/attention/test_{meshes,platforms,transforms,weights_mask}.py
  transforms/test_policies.py
  planting/test_{derivatives,keys,mark,meshes,versions}.py
)

"$python" -m venv "$environment"
"$environment/bin/pip" install --quiet '.[test]' "jax==$version" "jaxlib==$version"
"$environment/bin/pytest" -n auto "${tests[@]/#/tests/}"
