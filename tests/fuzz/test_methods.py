"""Every method under drawn stacks of transforms against NumPy: values, masks and gradients."""

from pathlib import Path

import pytest
from fuzzing.calls import assert_rounds, calls, other_data, program_of, rebuild, run
from fuzzing.methods import FUZZED
from hypothesis import HealthCheck, Phase, assume, given, seed, settings
from reference.methods import Unclear

# A program takes a hundred times as long to compile as to run, so each runs on several data.
DATA = max(2, settings.default.max_examples // 800)
PROGRAMS = max(4, settings.default.max_examples // 48)


def test_references_share_no_code_with_the_package():
    folder = Path(__file__).parent.parent / "support" / "reference"
    references = {path.name: path.read_text() for path in folder.glob("*.py")}
    assert "methods.py" in references
    assert not [name for name, text in references.items() if "jaxdrop" in text]


@pytest.mark.parametrize("name", FUZZED)
def test_method_under_transforms_equals_the_reference(count, name):
    @settings(max_examples=PROGRAMS, suppress_health_check=[HealthCheck.nested_given])
    @given(call=calls(name))
    def any_program(call):
        program = program_of(call)

        @seed(call.seed)  # so that a program that fails does so again
        @settings(max_examples=DATA, database=None, phases=[Phase.generate])
        @given(call=other_data(call))
        def any_data(call):
            try:
                expected, bound = rebuild(call)
            except Unclear:
                assume(False)
            assert_rounds(call, run(program, call), expected, bound)
            count()

        any_data()
        count("programs")

    any_program()
