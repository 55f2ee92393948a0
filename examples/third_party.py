"""Dropout in models of packages that nobody here wrote, and that know nothing of this library.

Four models of three packages, tiny and with random weights, get dropout of attention
weights, stochastic depth with a rising rate and dropout of embeddings by rules alone:
a BERT and a ResNet of transformers (flax.linen), a vision transformer of equimo
(equinox) and a graph attention network of jraphx (flax.nnx). For each model the program
checks what a user relies on, prints a table and writes it, with all versions.

The packages are no dependency of any other part. From a clone:

    python -m venv .venv-third-party
    .venv-third-party/bin/pip install '.[third-party]'
    .venv-third-party/bin/python examples/third_party.py

It takes about a minute.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdrop import Rule, drop_path, dropout, match, plant, sites
from jaxdrop.frameworks import equinox, linen, nnx as nnx_layers

RESULT = Path(__file__).parent / "third_party.json"
Rules = dict[Any, Any]
half, quarter = partial(dropout, rate=0.5), partial(dropout, rate=0.25)


class Case(NamedTuple):
    """A model as a function of parameters and inputs, and where which dropout belongs.

    The function returns an output and running statistics; `normalization` is the scope
    of a layer that has some, or None.
    """

    package: str
    name: str
    apply: Callable[..., tuple[jax.Array, Any]]
    params: Any
    inputs: tuple[jax.Array, ...]
    attention: Rules
    branches: Rules
    embeddings: Rules
    normalization: str | None = None


def branch_rules(*patterns: str, **options: Any) -> Rules:
    """Stochastic depth of the residual branches in these scopes, with a rate that rises."""
    rule = Rule(partial(drop_path, **options), rate=(0.0, 0.5))
    return {match.named_scope(pattern): rule for pattern in patterns}


def bert() -> Case:
    """Linen opens scopes of its own, and the dropout layers of the package are off."""
    from transformers import BertConfig, FlaxBertModel

    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    model = FlaxBertModel(config, input_shape=(1, 8))

    def apply(params: Any, tokens: jax.Array) -> tuple[jax.Array, None]:
        return model(tokens, params=params).last_hidden_state, None

    tokens = jnp.arange(32).reshape(4, 8)
    return Case(
        "transformers",
        "FlaxBertModel",
        linen.dropout_sites(apply),
        model.params,
        (tokens,),
        attention={match.function("softmax"): quarter},
        branches=branch_rules("*/layer/*/output/dense"),
        embeddings={"embeddings/dropout": half},
    )


def resnet() -> Case:
    """It returns the statistics of its normalization, which no rule drops from."""
    from transformers import FlaxResNetModel, ResNetConfig

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[2, 2], layer_type="basic")
    model = FlaxResNetModel(config, input_shape=(1, 32, 32, 3))

    def apply(params: Any, images: jax.Array) -> tuple[jax.Array, Any]:
        variables = {**model.params, "params": params}
        outputs, state = model(images, params=variables, train=True)
        return outputs.pooler_output, state["batch_stats"]

    images = jax.random.normal(jax.random.key(1), (4, 3, 32, 32))
    return Case(
        "transformers",
        "FlaxResNetModel",
        linen.dropout_sites(apply),
        model.params["params"],
        (images,),
        attention={},
        branches=branch_rules("*/stages/*/layers/*/layer"),
        embeddings={match.named_scope("*/embedder"): half},
        normalization="*/embedder/embedder/normalization",
    )


def vision_transformer() -> Case:
    """Equinox opens no scopes for the modules of the package: `named_scopes` does."""
    import equinox as eqx
    from equimo.models.vit import VisionTransformer

    model = VisionTransformer(
        img_size=16,
        in_channels=3,
        dim=16,
        patch_size=4,
        num_heads=[2],
        depths=[3],
        num_classes=5,
        key=jax.random.key(0),
    )
    params, rest = eqx.partition(model, eqx.is_inexact_array)

    def call(model: Any, image: jax.Array) -> jax.Array:
        return model(image, key=jax.random.key(0), inference=True)

    scoped = equinox.named_scopes(equinox.dropout_sites(call))

    def apply(params: Any, image: jax.Array) -> tuple[jax.Array, None]:
        return scoped(eqx.combine(params, rest), image), None

    return Case(
        "equimo",
        "VisionTransformer",
        apply,
        params,
        (jax.random.normal(jax.random.key(1), (3, 16, 16)),),
        attention={"*/attn/attn_drop": quarter},
        branches=branch_rules("blocks/*/attn", "blocks/*/mlp", batch_axis=None),
        embeddings={match.named_scope("patch_embed"): half},
    )


def graph_attention() -> Case:
    """Its dropout layers have the rate 0, and it has no embedding."""
    from flax import nnx
    from jraphx.nn.models import GAT

    model = GAT(
        8, 8, 3, out_features=8, norm="batch_norm", residual=True, heads=2, rngs=nnx.Rngs(0)
    )
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    scoped = nnx_layers.named_scopes(
        nnx_layers.dropout_sites(lambda model, *inputs: model(*inputs))
    )

    def apply(params: Any, *inputs: jax.Array) -> tuple[jax.Array, Any]:
        model = nnx.merge(graph, params, rest, copy=True)
        return scoped(model, *inputs), nnx.state(model, nnx.BatchStat)

    nodes = jax.random.normal(jax.random.key(1), (10, 8))
    ring = jnp.stack([jnp.arange(10), (jnp.arange(10) + 1) % 10])
    return Case(
        "jraphx",
        "GAT",
        apply,
        params,
        (nodes, ring),
        attention={"convs/*/dropout": quarter},
        branches=branch_rules("convs/*"),
        embeddings={},
        normalization="norms/0",
    )


GROUPS = ("attention", "branches", "embeddings")


def measured(case: Case) -> dict[str, Any]:
    """Plants all rules, checks what comes out, and says where the sites are."""
    groups = {name: getattr(case, name) for name in GROUPS}
    return {
        "package": f"{case.package} {version(case.package)}",
        "model": case.name,
        "dropout layers": sum(row.runs for row in sites(case.apply, case.params, *case.inputs)),
        **{name: runs_of(case, rules) if rules else None for name, rules in groups.items()},
        "checks": checks_of(case),
    }


def runs_of(case: Case, rules: Rules) -> int:
    """How often values are dropped by these rules, in one call of the model."""
    table = sites(case.apply, case.params, *case.inputs, rules=rules)
    return sum(row.runs for row in table if row.rule)


def checks_of(case: Case) -> dict[str, bool]:
    """What a user relies on."""
    plain, statistics = jax.jit(case.apply)(case.params, *case.inputs)
    train = jax.jit(plant(case.apply, {**case.attention, **case.branches, **case.embeddings}))
    first, other, again = (
        train(jax.random.key(seed), case.params, *case.inputs)[0] for seed in (0, 1, 0)
    )

    def loss(params: Any) -> jax.Array:
        return jnp.mean(train(jax.random.key(0), params, *case.inputs)[0] ** 2)

    slopes = jax.tree.leaves(jax.grad(loss)(case.params))
    checks = {
        "each group changes the output": all(
            bool(jnp.any(alone(case, getattr(case, name))[0] != plain))
            for name in GROUPS
            if getattr(case, name)
        ),
        "gradient finite": all(bool(jnp.isfinite(slope).all()) for slope in slopes),
        "two keys differ": bool(jnp.any(first != other)),
        "one key repeats": bool(jnp.all(first == again)),
    }
    if case.normalization:
        # Drops from this layer alone: what it returns is dropped, and its statistics are not.
        y, after = alone(case, {match.named_scope(case.normalization): half})
        name = case.normalization.strip("*/")
        same = [equal for path, equal in leaves_of(statistics, after) if name in path]
        checks["statistics untouched"] = bool(jnp.any(y != plain)) and len(same) >= 2 and all(same)
    return checks


def alone(case: Case, rules: Rules) -> Any:
    """What a model gives with these rules."""
    return jax.jit(plant(case.apply, rules))(jax.random.key(0), case.params, *case.inputs)


def leaves_of(statistics: Any, others: Any) -> list[tuple[str, bool]]:
    """The path of each statistic, and whether the other one is the same."""
    leaves, same = jax.tree_util.tree_leaves_with_path(statistics), jax.tree.leaves(others)
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), bool(jnp.array_equal(a, b)))
        for (path, a), b in zip(leaves, same, strict=True)
    ]


CHECKS = (
    "each group changes the output",
    "gradient finite",
    "two keys differ",
    "one key repeats",
    "statistics untouched",
)


def rows_of(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table in Markdown. A dash stands for what a model does not have."""
    counted = ("dropout layers", *GROUPS)
    rows = [["package", "model", *counted, *CHECKS]]
    rows.append(["---"] * len(rows[0]))
    for record in records:
        counts = ["-" if record[name] is None else str(record[name]) for name in counted]
        says = {True: "yes", False: "NO", None: "-"}
        checks = [says[record["checks"].get(name)] for name in CHECKS]
        rows.append([record["package"], record["model"], *counts, *checks])
    return [f"| {' | '.join(row)} |" for row in rows]


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measures all models; an error if a check fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULT, help="where the numbers go")
    options = parser.parse_args(arguments)
    cases = (bert, resnet, vision_transformer, graph_attention)
    records = [measured(case()) for case in cases]
    print("\n".join(rows_of(records)))
    versions = {name: version(name) for name in ("jax", "flax", "equinox")}
    options.out.write_text(json.dumps({"versions": versions, "models": records}, indent=2) + "\n")
    failed = [
        f"{record['model']}: {name}"
        for record in records
        for name, holds in record["checks"].items()
        if not holds
    ]
    if failed:
        raise SystemExit(f"These do not hold: {', '.join(failed)}.")
    return records


if __name__ == "__main__":
    main()
