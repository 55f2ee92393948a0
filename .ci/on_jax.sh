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
source .ci/tests_of_versions.sh

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
    # The texts run flax, and the example runs Orbax.
    more=(tests/test_docs.py tests/examples/test_resume_training.py "${few_laws[@]}")
    ;;
  next)
    "${pip[@]}" install '.[test]' --upgrade
    release=$(version_of jax "$environment")
    "${pip[@]}" install --upgrade --pre jax jaxlib
    if [[ $(version_of jax "$environment") == "$release" ]]; then
      echo "No version of JAX is newer than the release $release."
      exit
    fi
    ;;
  *)
    "${pip[@]}" install '.[test]' "jax==$which" "jaxlib==$which"
    ;;
esac

run_tests_of_versions "$environment" "${more[@]}"
