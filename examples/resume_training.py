"""Killed and started again, training goes on with the losses that it would have had.

The network of `train_digits.py` saves its weights, the optimizer's state and its
key with Orbax every few steps. A step's batch and masks come from
`fold_in(key, step)`, so that the key and the number of the step are all that must
be known of the randomness so far.

    python examples/resume_training.py --directory /tmp/digits

prints the loss of each step, with all of its bits. Kill it at any time, also while
it saves, and give the same command again: it goes on after the last checkpoint that
is complete, with the losses, bit for bit, of a run that was never killed. It takes
ten seconds.
"""

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from train_digits import TREATMENTS, init, load_data, train_step


def start(seed: int) -> dict[str, Any]:
    """All that a checkpoint holds, at step 0."""
    init_key, key = jax.random.split(jax.random.key(seed))
    return {"key": key, "state": init(init_key)}


def train(directory: Path, steps: int, save_every: int, seed: int) -> Iterator[tuple[int, float]]:
    """Yields each step and its loss, from the last checkpoint on if there is one."""
    mesh = jax.make_mesh((jax.device_count(),), ("batch",), axis_types=(AxisType.Auto,))
    everywhere = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec("batch"))
    one_step = partial(train_step, TREATMENTS["expected"], split, load_data())
    take_step = jax.jit(one_step, out_shardings=everywhere)
    saved = jax.jit(start, out_shardings=everywhere)(seed)
    with ocp.CheckpointManager(directory.absolute()) as manager:
        first = manager.latest_step() or 0
        if first > 0:
            saved = manager.restore(first, args=ocp.args.StandardRestore(saved))
        for step in range(first, steps):
            state, loss = take_step(saved["key"], saved["state"], step)
            saved = {"key": saved["key"], "state": state}
            if (step + 1) % save_every == 0:
                manager.save(step + 1, args=ocp.args.StandardSave(saved))
            yield step, float(loss)


def main(argv: Sequence[str] | None = None) -> None:
    """Trains, and prints as it goes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path, required=True, help="where checkpoints lie")
    parser.add_argument("--steps", type=int, default=200, help="how many there are in all")
    parser.add_argument("--save-every", type=int, default=20, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=0, help="of a run without a checkpoint")
    args = parser.parse_args(argv)
    for step, loss in train(args.directory, args.steps, args.save_every, args.seed):
        print(f"step {step:4}  loss {loss:.6f}  {loss.hex()}", flush=True)


if __name__ == "__main__":
    main()
