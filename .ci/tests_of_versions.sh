# To be sourced. The tests that depend on the version of JAX are the golden masks, the laws
# of all methods, sharding, what is compiled, planting, which reads what JAX traces, and the
# layers of other libraries.

tests_of_versions=(
  base/test_{compat,sharding_parts}.py core/test_words.py
  test_golden.py test_keys.py test_laws.py test_sharding.py test_compilation.py test_versions.py
  test_platforms.py methods/attention/test_{meshes,platforms,transforms,weights_mask}.py
  transforms/test_policies.py frameworks
  planting/test_{combined,derivatives,keys,mark,meshes,rates,report,versions}.py
)

# For CI, which has half an hour for all versions: of the laws, those of one transform.
few_laws=(-k "not test_laws or scan")

version_of() { # PACKAGE ENVIRONMENT
  "$2/bin/python" -c "import importlib.metadata as m, sys; print(m.version(sys.argv[1]))" "$1"
}

run_tests_of_versions() { # ENVIRONMENT [MORE TESTS OR OPTIONS]
  local environment=$1
  shift
  echo "+ $("$environment/bin/python" --version), jax $(version_of jax "$environment")"
  "$environment/bin/pytest" -n auto "$@" "${tests_of_versions[@]/#/tests/}"
}
