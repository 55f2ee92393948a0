"""Groups of 1, 2 and 4 processes, with eight devices a group, draw masks and train the digits.

Run as `python worker.py FOLDER`. It imports everything before it forks, so that
all processes share the time that this takes; each starts a JAX of its own.
"""

import os
import pickle
import re
import sys
from pathlib import Path

import jax
from jax.sharding import AxisType
from meshes import COLLECTIVE
from processes import run_group
from scripts import EXAMPLES
from spread import COUNTING, KEY, drops_of_layouts, drops_of_methods, ones

sys.path.insert(0, str(EXAMPLES))
import train_digits as example

EPOCHS = 3  # of ten steps
QUICK = {"xla_backend_optimization_level": 0}
# Every method on one kind of mesh in each group, as programs take long to compile. Which
# kind the groups of 2 and of 4 processes have can be turned round: MESH_KINDS=Auto,Explicit.
KINDS = [AxisType[name] for name in os.environ.get("MESH_KINDS", "Explicit,Auto").split(",")]
KIND_OF_METHODS = dict(zip((2, 4), KINDS, strict=True))
TREATMENTS = {name: example.TREATMENTS[name] for name in ("expected", "no dropout")}


def collectives(compiled):
    return re.findall(rf"{COLLECTIVE.pattern}\S*\(", compiled.as_text())


def draw(drops, kind):
    """This process's parts of what the drops leave of ones, and what was communicated for it."""
    inputs = {name: ones(shape, spec, kind) for name, (_, shape, spec) in drops.items()}

    def run(key, inputs):
        return {name: drop(key, inputs[name]) for name, (drop, *_) in drops.items()}

    compiled = jax.jit(run).lower(KEY, inputs).compile(QUICK)  # one program for all
    parts = {
        name: [(part.index, jax.device_get(part.data)) for part in y.addressable_shards]
        for name, y in compiled(KEY, inputs).items()
    }
    return parts, collectives(compiled)


def draw_all(count):
    """What is drawn by drops that decide by themselves, and by those that count."""
    found = {kind.name: draw(drops_of_layouts(kind), kind) for kind in KIND_OF_METHODS.values()}
    methods, kind = drops_of_methods(), KIND_OF_METHODS[count]
    counting = {name: methods.pop(name) for name in COUNTING}
    return found | {"methods": draw(methods, kind), "counting": draw(counting, kind)}


def train():
    """The curves of the example, with dropout alone to save time."""
    example.start = jax.jit(example.start, static_argnums=0)  # one program for all weights
    example.TREATMENTS = {"expected": TREATMENTS["expected"]}
    return example.train(1, EPOCHS)["expected"]


def communicated_by_training():
    """What an epoch communicates, with dropout and without."""
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
    data, keys, labels, state = example.start(1)
    found = {}
    for name, treatment in TREATMENTS.items():
        epoch = example.make_train_epoch(treatment, mesh)
        found[name] = collectives(epoch.lower(data, 0, keys, labels, state).compile())
    return found


def run_process(index, count, port, folder):
    """All that one process of a group does."""
    jax.config.update("jax_num_cpu_devices", 8 // count)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", count, index, initialization_timeout=120)
    assert (jax.process_count(), jax.device_count()) == (count, 8)
    assert jax.local_device_count() == 8 // count
    result = {"curves": train()}
    if count > 1:
        result["drawn"] = draw_all(count)
    if (index, count) == (0, 2):
        result["communicated"] = communicated_by_training()
    Path(folder, f"{count}_{index}.pickle").write_bytes(pickle.dumps(result))
    jax.distributed.shutdown()


if __name__ == "__main__":
    for size in (1, 2, 4):
        run_group(run_process, size, sys.argv[1])
