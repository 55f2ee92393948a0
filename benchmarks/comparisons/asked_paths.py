"""Second table, rows on whole maps and paths: `spatial_dropout` and `drop_path_rates`."""

import importlib
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from comparisons.feeding import call_jax, fed, to_tensor
from comparisons.inputs import KEY, RATE
from comparisons.libraries import find, jax_drop
from comparisons.rows import Answers, Row, enters
from comparisons.verdicts import distinct
from peers import OURS

import jaxdrop

ROWS: list[Row] = []
asks = partial(enters, ROWS)


@asks("spatial_dropout", {"decisions for one sample of 3 maps, 4 x 5, no batch axis": ()})
def maps_without_a_batch() -> Answers:
    """Size of the noise that is asked for."""
    x = np.ones((3, 4, 5), np.float32)

    def ours() -> str:
        y = jaxdrop.spatial_dropout(KEY, x, RATE, batch_axis=None, channel_axis=0)
        return "3" if np.all(y == y[:, :1, :1]) else "more"

    def torch() -> str:
        with fed(np.ones) as asked, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            find("torch.nn.functional.dropout2d")(to_tensor(x), RATE)
        return f"{np.prod(asked[0][0])}, with a warning" if caught else str(np.prod(asked[0][0]))

    def keras() -> str:
        return distinct(call_jax(jax_drop("keras.layers.SpatialDropout2D"), x, np.ones))

    return {OURS: ours, "torch dropout2d": torch, "keras SpatialDropout2D": keras}


@asks("drop_path_rates", {"rate 0.4, 4 blocks": (4,), "rate 0.4, 1 block": (1,)})
def path_rates(depth: int) -> Answers:
    """From the function that makes them, or from a small model of so many blocks."""

    def shown(rates: Sequence[float]) -> str:
        return ", ".join(f"{rate:.3g}" for rate in rates)

    def of_model(model: Any) -> str:
        kind = find("torchvision.ops.StochasticDepth")
        return shown([part.p for part in model.modules() if isinstance(part, kind)])

    def convnext() -> str:
        models = importlib.import_module("torchvision.models.convnext")
        return of_model(models.ConvNeXt([models.CNBlockConfig(8, None, depth)], 0.4))

    def efficientnet() -> str:
        models = importlib.import_module("torchvision.models.efficientnet")
        blocks = [models.MBConvConfig(1, 3, 1, 8, 8, depth)]
        return of_model(models.EfficientNet(blocks, 0.0, stochastic_depth_prob=0.4))

    return {
        OURS: lambda: shown(jaxdrop.drop_path_rates(0.4, depth)),
        "timm": lambda: shown(find("timm.layers.calculate_drop_path_rates")(0.4, depth)),
        "torchvision ConvNeXt": convnext,
        "torchvision EfficientNet": efficientnet,
    }
