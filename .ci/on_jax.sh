#!/usr/bin/env bash
# Runs the tests that depend on the version of JAX on one version of it:
#
#     bash .ci/on_jax.sh 0.9.2 [PYTHON]   on this version
#     bash .ci/on_jax.sh lowest [PYTHON]  on the lowest version of every dependency, JAX too
#     bash .ci/on_jax.sh next [PYTHON]    on the newest pre-release or nightly build, if the
#                                         index has one that is newer than the newest release
#
# For nightly builds, name JAX's index of them in PIP_EXTRA_INDEX_URL. On the newest version,
# `.ci/run` runs all tests.
set -euo pipefail
cd "$(dirname "$0")/.."

# The golden masks, the laws of all methods, sharding, what is compiled, planting, which reads
# what JAX traces, kernels, and the layers of other libraries.
tests=(
  base/test_{compat,sharding_parts}.py core/test_words.py
  test_golden.py test_keys.py test_laws.py test_sharding.py test_compilation.py test_versions.py
  test_platforms.py methods/attention/test_{meshes,platforms,transforms,weights_mask}.py
  methods/attention/test_kernel.py::test_mask_is_that_of_dropout
  transforms/test_policies.py frameworks
  planting/test_{combined,derivatives,keys,mark,meshes,rates,reach,report,versions}.py
)

version_of() { # PACKAGE
  "$environment/bin/python" -c "import importlib.metadata as m, sys; print(m.version(sys.argv[1]))" "$1"
}

which=$1
python=${2:-python3}
environment=.venv-jax-$which
# First, since they take long: no process waits for the other at the end. On the lowest
# versions CI has no time for them, and runs them on the version of its own environment.
more=(tests/processes)
"$python" -m venv --clear "$environment"
pip=("$environment/bin/pip" --quiet)

case $which in
  lowest)
    "$environment/bin/python" .ci/lowest.py >"$environment/lowest.txt"
    "${pip[@]}" install '.[test]' --constraint "$environment/lowest.txt"
    # The texts run flax, and the example runs Orbax. Of the laws, those of one transform, since
    # CI has half an hour for all versions.
    more=(tests/test_docs.py tests/examples/test_resume_training.py -k "not test_laws or scan")
    ;;
  next)
    "${pip[@]}" install '.[test]' --upgrade
    release=$(version_of jax)
    "${pip[@]}" install --upgrade --pre jax jaxlib
    if [[ $(version_of jax) == "$release" ]]; then
      echo "No version of JAX is newer than the release $release."
      exit
    fi
    ;;
  *)
    "${pip[@]}" install '.[test]' "jax==$which" "jaxlib==$which"
    ;;
esac

echo "+ $("$environment/bin/python" --version), jax $(version_of jax)"
"$environment/bin/pytest" -n auto "${more[@]}" "${tests[@]/#/tests/}"
