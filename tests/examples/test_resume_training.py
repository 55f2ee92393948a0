"""A process that is killed and started again trains as if it had never been killed."""

import json
import signal
import subprocess

import pytest
from scripts import EXAMPLES, run

# Runs the example, writes down each loss, and kills itself where it is told to.
SCRIPT = f"""
import json, os, pathlib, signal, sys, time
sys.path.insert(0, {str(EXAMPLES)!r})
import resume_training as example

directory, out, seed, die_after_step, die_in_save = sys.argv[1:]

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def rename_or_die(old, new, rename=os.rename):
    if pathlib.Path(new).name == die_in_save:
        die()
    rename(old, new)

os.rename = rename_or_die
with open(out, "w", buffering=1) as file:
    for step, loss in example.train(pathlib.Path(directory), 30, 10, int(seed)):
        print(json.dumps([step, loss]), file=file)
        if str(step) == die_after_step:
            while not pathlib.Path(directory, "10").exists():  # saved in the background
                time.sleep(0.01)
            die()
"""


def losses(directory, seed, die_after_step="never", die_in_save="never"):
    """The loss of each step of one process, which must die if it is told to."""
    out = directory.with_suffix(".losses")
    command = ("-c", SCRIPT, directory, out, seed, die_after_step, die_in_save)
    if (die_after_step, die_in_save) == ("never", "never"):
        run(*command, JAX_DEBUG_KEY_REUSE="1")
    else:
        with pytest.raises(subprocess.CalledProcessError) as killed:
            run(*command, JAX_DEBUG_KEY_REUSE="1")
        assert killed.value.returncode == -signal.SIGKILL, killed.value.stderr
    return dict(map(json.loads, out.read_text().splitlines()))


def checkpoints(directory):
    return sorted(path.name for path in directory.iterdir())


def test_losses_after_being_killed_are_bitwise_those_of_an_uninterrupted_run(tmp_path):
    expected = losses(tmp_path / "uninterrupted", seed=0)
    assert list(expected) == list(range(30))
    killed = tmp_path / "killed"

    between = losses(killed, seed=0, die_after_step="16")
    assert list(between) == list(range(17))
    assert checkpoints(killed) == ["10"]

    # Another seed, so that the key can come from the checkpoint alone.
    in_save = losses(killed, seed=1, die_in_save="20")
    assert list(in_save)[:10] == list(range(10, 20))
    assert checkpoints(killed) == ["10", "20.orbax-checkpoint-tmp"]  # complete, not yet named

    resumed = losses(killed, seed=2)
    assert list(resumed) == list(range(10, 30))
    assert checkpoints(killed) == ["10", "20", "30"]

    for found in (between, in_save, resumed):
        assert found == {step: expected[step] for step in found}
