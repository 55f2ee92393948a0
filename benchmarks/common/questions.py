"""What a formula does not say of a method: rates 0 and 1, borders, counts, what falls together.

A probe answers one question, or several of a kind, for jaxdrop and each peer;
its docstring says how it measures.
"""

import importlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from common.feeding import KEY, RATE, call, fed, find, layer, to_numpy, to_tensor
from common.peers import OURS
from common.probing import attempt, refused
from jax import Array

import jaxdrop

Answers: TypeAlias = dict[str, Callable[[], str]]
"""From the name of a library to a function that finds out what it does."""
Probe = TypeVar("Probe", bound=Callable[..., Answers])
Layer: TypeAlias = Callable[..., Callable[[Any], Any]]

QUESTIONS: list[tuple[str, str, Callable[..., Answers], tuple[Any, ...]]] = []
"""A method, a question, the probe that answers it, and its arguments."""

ONES = np.ones((4, 3), np.float32)
TORCH, TIMM, VISION = "torch.nn.functional.dropout", "timm.layers.", "torchvision.ops."


def asks(method: str, questions: str | Mapping[str, tuple[Any, ...]]) -> Callable[[Probe], Probe]:
    """Enters a probe of a method, once for each question, with its arguments for it."""
    entered = {questions: ()} if isinstance(questions, str) else questions

    def enter(probe: Probe) -> Probe:
        QUESTIONS.extend((method, each, probe, arguments) for each, arguments in entered.items())
        return probe

    return enter


def told(tell: Callable[[Any], str], found: Mapping[str, Callable[[], Any]]) -> Answers:
    """Answers that put what is found into words."""
    return {name: lambda find=find: tell(find()) for name, find in found.items()}


def distinct(y: Any) -> str:
    """The different values of an array."""
    texts = {f"{value:.4g}" for value in to_numpy(y).ravel()}
    return ", ".join(sorted(texts)).replace("nan", "NaN")


def masked(x: np.ndarray, keep: bool, keep_prob: float) -> Array:
    """Our output where the mask keeps all, or nothing."""
    return jaxdrop.apply_mask(jaxdrop.Mask.pack(jnp.full(x.shape, keep), keep_prob), jnp.asarray(x))


@asks(
    "dropout, drop_path",
    {
        "NaN at a dropped place gives": (np.nan, RATE),
        "-1 at a dropped place gives": (-1, RATE),
        "infinity at rate 1 gives": (np.inf, 1),
    },
)
def dropped_values(value: float, rate: float) -> Answers:
    """An input of this value alone, all of it dropped by the mask that is fed."""
    x = np.full((4, 3, 6, 6), value, np.float32)
    draws = [] if rate == 1 else [np.zeros]  # at rate 1 these three do not draw
    found = {
        OURS: lambda: masked(x, False, 1 - rate),
        "keras": lambda: call("keras.layers.Dropout", x, *draws, rate=rate),
        "flax": lambda: call("flax.linen.Dropout", x, *draws, rate=rate),
        "torch": lambda: call(TORCH, x, *draws, rate=rate),
        "timm": lambda: call(f"{TIMM}DropPath", x, np.zeros, rate=rate),
        "torchvision": lambda: call(f"{VISION}StochasticDepth", x, np.zeros, rate=rate, mode="row"),
    }
    return told(distinct, found)


@asks("dropout, drop_path", "error of the scale in bfloat16, rate 0.1")
def bfloat16_scale() -> Answers:
    """Sum of outputs, all kept, over that of `x / 0.9` rounded once, minus 1; x in [1, 2)."""
    x = jax.random.uniform(KEY, (2**12, 1, 4, 4), minval=1, maxval=2).astype(jnp.bfloat16)
    exact = (np.asarray(x, np.float64) / 0.9).astype(jnp.bfloat16).astype(np.float64)

    def error(y: Any) -> str:
        return f"{100 * (to_numpy(y).sum() / exact.sum() - 1):.2g} %"

    found = {
        OURS: lambda: masked(x, True, 0.9),
        "torch": lambda: call(TORCH, x, np.ones, rate=0.1),
        "timm": lambda: call(f"{TIMM}DropPath", x, np.ones, rate=0.1),
        "torchvision": lambda: call(f"{VISION}StochasticDepth", x, np.ones, rate=0.1, mode="row"),
    }
    return told(error, found)


@asks("dropout", {"int32 input gives": (np.int32,), "complex64 input gives": (np.complex64,)})
def dtypes(dtype: type) -> Answers:
    """The dtype that comes out, for ones."""
    x = ONES.astype(dtype)
    found = {
        OURS: lambda: jaxdrop.dropout(KEY, x, RATE),
        "torch": lambda: layer(TORCH)(x),
        "keras": lambda: call("keras.layers.Dropout", x, np.ones),
        "flax": lambda: call("flax.linen.Dropout", x, np.ones),
        "equinox": lambda: call("equinox.nn.Dropout", x, np.ones),
    }
    return told(lambda y: str(y.dtype), found)


@asks("dropout", {"rate 0.1 is drawn with": (0.1,), "rate 1e-8 is drawn with": (1e-8,)})
def rates_drawn_with(rate: float) -> Answers:
    """One minus the keep probability that is asked for, in the precision it is compared in."""

    def ours() -> float:
        with jax.enable_x64(True):
            return float(jaxdrop.draw_mask(jax.random.key(0), (), rate).keep_prob)

    def theirs(peer: str, precision: type) -> float:
        with fed(np.ones) as asked:
            layer(peer, rate)(ONES)
        return float(precision(asked[0].probability))

    found = {
        OURS: ours,
        "torch": partial(theirs, TORCH, np.float64),
        "flax": partial(theirs, "flax.linen.Dropout", np.float32),
        "keras": partial(theirs, "keras.layers.Dropout", np.float32),
    }
    return told(lambda keep_prob: f"{1 - keep_prob:.6g}", found)


@asks("dropout", "random state moves on at rates 0, 0.5, 1")
def random_state() -> Answers:
    """Whether torch's generator and the layer's seed differ after a call."""

    def torch(rate: float) -> bool:
        before = find("torch.get_rng_state")()
        layer(TORCH, rate)(ONES)
        return before.equal(find("torch.get_rng_state")())

    def keras(rate: float) -> bool:
        drop = find("keras.layers.Dropout")(rate)
        before = [np.array(each.value) for each in drop.variables]
        drop(jnp.ones(3), training=True)
        return all(map(np.array_equal, before, [each.value for each in drop.variables]))

    def moves(stays: Callable[[float], bool]) -> str:
        return ", ".join("no" if stays(rate) else "yes" for rate in (0.0, 0.5, 1.0))

    return {OURS: lambda: "it has none"} | told(
        moves, {"torch": lambda: torch, "keras": lambda: keras}
    )


@asks("all with peers", "rates -0.1, 1.5, NaN are")
def bad_rates() -> Answers:
    """Whether making a layer of that rate, or calling it, raises."""
    x = np.ones((4, 3, 8, 8), np.float32)

    def theirs(peer: str, **options: Any) -> str:
        tokens = x[0] if peer.endswith("PatchDropout") else x
        return _refusals(lambda rate: layer(peer, rate, **options)(tokens))

    return {
        OURS: lambda: ", ".join(
            {_refusals(lambda rate, m=m: m(KEY, x, rate)) for m in (*_with_peers(3), _tokens)}
        ),
        "torch": partial(theirs, "torch.nn.AlphaDropout"),
        "torchvision StochasticDepth": partial(theirs, f"{VISION}StochasticDepth", mode="row"),
        "torchvision DropBlock2d": partial(theirs, f"{VISION}DropBlock2d", block_size=3),
        "timm DropPath": partial(theirs, f"{TIMM}DropPath"),
        "timm PatchDropout": partial(theirs, f"{TIMM}PatchDropout"),
        "timm DropBlock2d": partial(theirs, f"{TIMM}DropBlock2d", block_size=3),
        "keras": partial(theirs, "keras.layers.AlphaDropout"),
    }


@asks("all with peers but drop_tokens", "traced rate under jit")
def traced_rates() -> Answers:
    """Rate 0.25 as an argument of `jit`; keras's layers are made inside."""
    x = np.ones((4, 5, 6), np.float32)

    def works(*drops: Callable[[Array], Any]) -> str:
        jax.jit(lambda rate: [drop(rate) for drop in drops])(RATE)
        return "works"

    def keras(name: str) -> str:
        return works(lambda rate: layer(f"keras.layers.{name}", rate)(x))

    layers = ("Dropout", "AlphaDropout", "GaussianDropout", "SpatialDropout1D")
    return {
        OURS: lambda: works(*[lambda rate, m=m: m(KEY, x, rate) for m in _with_peers(2)]),
        "keras": lambda: ", ".join({attempt(partial(keras, name)) for name in layers}),
    }


def _with_peers(block_size: int) -> list[Callable[..., Any]]:
    return [
        jaxdrop.dropout,
        jaxdrop.alpha_dropout,
        jaxdrop.gaussian_dropout,
        jaxdrop.spatial_dropout,
        jaxdrop.drop_path,
        partial(jaxdrop.drop_block, block_size=block_size),
    ]


def _tokens(key: Array, x: Any, rate: float) -> Array:
    return jaxdrop.drop_tokens(key, x, rate)[0]


def _refusals(call: Callable[[float], Any]) -> str:
    """What becomes of rates -0.1, 1.5 and NaN, in one word where it is the same."""
    call(RATE)  # raises where something else than the rate is wrong
    found = [refused(call, rate) for rate in (-0.1, 1.5, float("nan"))]
    return found[0] if len(set(found)) == 1 else ", ".join(found)


@asks("alpha_dropout", {"rate 1 gives": ("alpha_dropout", "AlphaDropout")})
def noise_at_rate_one(method: str, name: str) -> Answers:
    """Ones as the input."""
    found = {
        OURS: lambda: getattr(jaxdrop, method)(KEY, ONES, 1),
        "torch": lambda: call(f"torch.nn.{name}", ONES, rate=1),
        "keras": lambda: call(f"keras.layers.{name}", ONES, np.ones, rate=1),
    }
    if method == "gaussian_dropout":
        del found["torch"]  # has none
    return told(distinct, found)


@asks("alpha_dropout", "mean and variance for standardised input, rate 0.3")
def alpha_moments() -> Answers:
    """Exact, from the outputs for 1 and -1 where kept, and from that for 0 where dropped."""
    x, mask, p = np.array([1, -1, 0], np.float32), np.array([1.0, 1.0, 0.0]), 0.3

    def ours() -> np.ndarray:
        # Over many places; what is dropped is the same for both inputs.
        one, minus_one = (
            np.asarray(jaxdrop.alpha_dropout(KEY, jnp.full(99, value), p)) for value in x[:2]
        )
        keep = one != minus_one
        return np.array([one[keep][0], minus_one[keep][0], one[~keep][0]])

    def moments(y: Any) -> str:
        one, minus_one, dropped = to_numpy(y)
        mean = (1 - p) * (one + minus_one) / 2 + p * dropped
        square = (1 - p) * (one**2 + minus_one**2) / 2 + p * dropped**2
        return f"{round(mean, 3) + 0:g}, {square - mean**2:.3g}"

    found = {
        OURS: ours,
        "torch": lambda: call("torch.nn.AlphaDropout", x, mask, rate=p),
        "keras": lambda: call("keras.layers.AlphaDropout", x, mask, rate=p),
        "torch._refs": lambda: call("torch._refs.nn.functional.alpha_dropout", x, 1 - mask, rate=p),
    }
    return told(moments, found)


asks("gaussian_dropout", {"rate 1 gives": ("gaussian_dropout", "GaussianDropout")})(
    noise_at_rate_one
)


@asks("gaussian_dropout", "bfloat16 outputs rounded once")
def gaussian_in_bfloat16() -> Answers:
    """Share of them that equal `x (1 + sqrt(p / q) e)`, our noise e being fed; x in [1, 2)."""
    x = jax.random.uniform(KEY, (64, 64), minval=1, maxval=2).astype(jnp.bfloat16)
    factor = np.asarray(jaxdrop.gaussian_dropout(KEY, jnp.ones(x.shape), RATE), np.float64)
    noise = (factor - 1) / np.sqrt(RATE / (1 - RATE))
    exact = (np.asarray(x, np.float64) * factor).astype(jnp.bfloat16)
    found = {
        OURS: lambda: jaxdrop.gaussian_dropout(KEY, x, RATE),
        "keras": lambda: call("keras.layers.GaussianDropout", x, noise, dtype="bfloat16"),
    }
    return told(lambda y: f"{100 * np.mean(np.asarray(y) == exact):.3g} %", found)


@asks("spatial_dropout", "decisions for one sample of 3 maps, 4 x 5, no batch axis")
def maps_without_a_batch() -> Answers:
    """Size of the noise that is asked for."""
    x = np.ones((3, 4, 5), np.float32)

    def ours() -> str:
        y = jaxdrop.spatial_dropout(KEY, x, RATE, batch_axis=None, channel_axis=0)
        return "3" if np.all(y == y[:, :1, :1]) else "more"

    def torch() -> str:
        with fed(np.ones) as asked, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            layer("torch.nn.functional.dropout2d")(x)
        return str(np.prod(asked[0].shape)) + ", with a warning" * bool(caught)

    def keras() -> str:
        return distinct(call("keras.layers.SpatialDropout2D", x, np.ones))

    return {OURS: ours, "torch dropout2d": torch, "keras SpatialDropout2D": keras}


@asks("drop_path_rates", {"rate 0.4, 4 blocks": (4,), "rate 0.4, 1 block": (1,)})
def path_rates(depth: int) -> Answers:
    """From the function that makes them, or from a small model of so many blocks."""

    def rates_of(model: Any) -> list[float]:
        kind = find(f"{VISION}StochasticDepth")
        return [part.p for part in model.modules() if isinstance(part, kind)]

    def convnext() -> list[float]:
        models = importlib.import_module("torchvision.models.convnext")
        return rates_of(models.ConvNeXt([models.CNBlockConfig(8, None, depth)], 0.4))

    def efficientnet() -> list[float]:
        models = importlib.import_module("torchvision.models.efficientnet")
        blocks = [models.MBConvConfig(1, 3, 1, 8, 8, depth)]
        return rates_of(models.EfficientNet(blocks, 0.0, stochastic_depth_prob=0.4))

    found = {
        OURS: lambda: jaxdrop.drop_path_rates(0.4, depth),
        "timm": lambda: find(f"{TIMM}calculate_drop_path_rates")(0.4, depth),
        "torchvision ConvNeXt": convnext,
        "torchvision EfficientNet": efficientnet,
    }
    return told(lambda rates: ", ".join(f"{rate:.3g}" for rate in rates), found)


def _ask_blocks(ours: Callable[[], str], theirs: Callable[[Layer], str]) -> Answers:
    """Asks both peers with a function that is given their layer `(rate, block_size) -> call`."""

    def of(peer: str) -> Layer:
        return lambda rate, block: layer(peer, rate, block_size=block)

    return {
        OURS: ours,
        "timm": lambda: theirs(of(f"{TIMM}DropBlock2d")),
        "torchvision": lambda: theirs(of(f"{VISION}DropBlock2d")),
    }


def _one_seed(shape: Sequence[int]) -> np.ndarray:
    """A seed in the middle of the first map; fit to be fed."""
    seeds = np.zeros(shape)
    seeds[0, 0, shape[2] // 2, shape[3] // 2] = 1
    return seeds


def _dropped_by_each_seed(drop: Layer, rate: float) -> tuple[float, np.ndarray]:
    """Gamma, and for each seed alone what it drops, of 8 x 8 elements in blocks of 3."""

    def seeds(shape: Sequence[int]) -> np.ndarray:
        one_each = np.eye(shape[2] * shape[3]).reshape(-1, *shape[1:])
        return np.pad(one_each, [(0, shape[0] - len(one_each)), (0, 0), (0, 0), (0, 0)])

    with fed(seeds) as asked:
        y = drop(rate, 3)(np.ones((64, 1, 8, 8), np.float32))
    (_, (_, _, height, width), gamma) = asked[0]
    return gamma, y.numpy()[: height * width, 0] == 0


@asks("drop_block", "gamma at rate 0.5, blocks of 3 in 8 x 8")
def block_gamma() -> Answers:
    """The probability that the peer asks for; ours from `drop_block_gamma`."""
    return _ask_blocks(
        lambda: f"{jaxdrop.drop_block_gamma(0.5, (8, 8), 3):.4f}",
        lambda drop: f"{_dropped_by_each_seed(drop, 0.5)[0]:.4f}",
    )


@asks(
    "drop_block",
    {
        "share kept at rate 0.5, the same blocks": (0.5,),
        "share kept at rate 1, the same blocks": (1.0,),
    },
)
def block_share(rate: float) -> Answers:
    """A position that c seeds drop is kept with probability (1 - gamma)^c.

    Both are the peer's own; of ours the mean of 2^18 maps is taken, with a
    standard error below 0.0005.
    """

    def ours() -> str:
        y = jaxdrop.drop_block(KEY, jnp.ones((2**18, 8, 8, 1)), rate, block_size=3)
        return f"{np.mean(y != 0):.3f}"

    def theirs(drop: Layer) -> str:
        gamma, dropped = _dropped_by_each_seed(drop, rate)
        return f"{np.mean((1 - gamma) ** dropped.sum(0)):.3f}"

    return _ask_blocks(ours, theirs)


@asks("drop_block", "elements that a seed drops, the same blocks")
def block_at_the_border() -> Answers:
    """Each seed alone; of ours the fewest that are dropped in any of 2^14 maps."""

    def ours() -> str:
        y = jaxdrop.drop_block(KEY, jnp.ones((2**14, 8, 8, 1)), 0.02, block_size=3)
        sizes = np.sum(np.asarray(y) == 0, (1, 2, 3))
        return str(sizes[sizes > 0].min())

    def theirs(drop: Layer) -> str:
        sizes = np.unique(_dropped_by_each_seed(drop, 0.5)[1].sum((1, 2)))
        return ", ".join(map(str, sizes))

    return _ask_blocks(ours, theirs)


@asks("drop_block", "channels of a sample lose")
def block_channels() -> Answers:
    """Whether the noise that is asked for has 3 channels; of ours whether they differ."""

    def say(apart: Any) -> str:
        return "blocks of their own" if apart else "the same blocks"

    def ours() -> str:
        y = np.asarray(jaxdrop.drop_block(KEY, jnp.ones((8, 9, 9, 3)), 0.3, block_size=3))
        return say(np.any(y != y[..., :1]))

    def theirs(drop: Layer) -> str:
        with fed(np.zeros) as asked:
            drop(0.3, 3)(np.ones((2, 3, 9, 9), np.float32))
        return say(asked[0].shape[1] == 3)

    return _ask_blocks(ours, theirs)


@asks("drop_block", "factor of a map without blocks beside one with a block of 3 in 8 x 8")
def block_counts() -> Answers:
    """Two samples of ones; a seed is fed to the first. Of ours all maps that lose nothing."""

    def ours() -> str:
        y = np.asarray(jaxdrop.drop_block(KEY, jnp.ones((64, 8, 8, 1)), 0.1, block_size=3))
        return distinct(y[np.all(y != 0, (1, 2, 3))])

    def theirs(drop: Layer) -> str:
        with fed(_one_seed):
            return distinct(drop(0.1, 3)(np.ones((2, 1, 8, 8), np.float32))[1])

    return _ask_blocks(ours, theirs)


@asks(
    "drop_block",
    {
        "block of 4 in 12 x 12 is": (4, 12, 12),
        "block of 7 in 5 x 9 is": (7, 5, 9),
        "block of 7 in 4 x 9 is": (7, 4, 9),
    },
)
def block_edges(block: int, height: int, width: int) -> Answers:
    """Height and width of what a seed in the middle drops; of ours the least in 2^12 maps."""

    def edges(dropped: Any) -> str:
        return f"{dropped.any(1).sum()} x {dropped.any(0).sum()}"

    def ours() -> str:
        x = jnp.ones((2**12, height, width, 1))
        dropped = np.asarray(jaxdrop.drop_block(KEY, x, 0.02, block_size=block))[..., 0] == 0
        return edges(min(dropped[dropped.any((1, 2))], key=np.sum))

    def theirs(drop: Layer) -> str:
        with fed(_one_seed):
            return edges(drop(0.3, block)(np.ones((1, 1, height, width), np.float32))[0, 0] == 0)

    return _ask_blocks(ours, theirs)


@asks("drop_block", "factor in float16 where 66,560 elements are kept")
def block_in_float16() -> Answers:
    """Ones, of which nothing is dropped; float16 reaches to 65,504."""
    x = np.ones((1, 1, 260, 256), np.float16)

    def ours() -> str:
        return distinct(jaxdrop.drop_block(KEY, x, 1e-9, block_size=3, channel_axis=1))

    def theirs(drop: Layer) -> str:
        with fed(np.zeros):
            return distinct(drop(1e-3, 3)(x))

    return _ask_blocks(ours, theirs)


@asks(
    "drop_tokens",
    {
        f"tokens kept of {length} at rate {rate}": (length, rate)
        for length, rate in ((10, 0.25), (20, 0.9), (4, 0.9), (4, 1))
    },
)
def kept_tokens(length: int, rate: float) -> Answers:
    """Length of the output, without a prefix."""
    x = np.ones((1, length, 1), np.float32)
    found = {
        OURS: lambda: _tokens(KEY, x, rate),
        "timm": lambda: layer(f"{TIMM}PatchDropout", rate, num_prefix_tokens=0)(x),
    }
    return told(lambda y: str(y.shape[1]), found)


@asks("drop_tokens", "order by default")
def order_of_tokens() -> Answers:
    """Of 64 tokens at rate 0.5."""
    x = np.arange(64, dtype=np.float32).reshape(1, 64, 1)
    found = {
        OURS: lambda: _tokens(KEY, x, 0.5),
        "timm": lambda: layer(f"{TIMM}PatchDropout", 0.5)(x),
    }
    return told(lambda y: "kept" if np.all(np.diff(to_numpy(y)[0, :, 0]) > 0) else "random", found)


@asks("drop_tokens", "prefix by default")
def default_prefix() -> Answers:
    """How many first tokens survive 64 calls at rate 0.75."""
    x = np.arange(8, dtype=np.float32).reshape(1, 8, 1)

    def prefix(drop: Callable[[Array], Any]) -> str:
        calls = [{int(token) for token in to_numpy(drop(key)).ravel()} for key in _keys(64)]
        return str(len(set.intersection(*calls)))

    found = {
        OURS: lambda: lambda key: _tokens(key, x, 0.75),
        "timm": lambda: lambda key: layer(f"{TIMM}PatchDropout", 0.75)(x),
    }
    return told(prefix, found)


@asks("drop_tokens", "positions of a prefix and the last of 2 tokens; at rate 0")
def positions_of_tokens() -> Answers:
    """At rate 0.5 one of the two is kept; the noise that is fed, or our key, makes it the last."""
    x = np.ones((1, 3, 1), np.float32)

    def ours(rate: float) -> str:
        drawn = [jaxdrop.drop_tokens(k, x, rate, prefix=1)[1][0].tolist() for k in _keys(16)]
        return str(max(drawn))

    def theirs(rate: float, *draws: Any) -> str:
        positions = call(f"{TIMM}PatchDropoutWithIndices", x, *draws, rate=rate)[1]
        return str(positions if positions is None else positions[0].tolist())

    return {
        OURS: lambda: f"{ours(0.5)}; {ours(0)}",
        "timm": lambda: f"{theirs(0.5, [[1.0, 0.0]])}; {theirs(0)}",
    }


def _keys(count: int) -> Array:
    return jax.random.split(KEY, count)


def _elements(erased: np.ndarray) -> str:
    counts = erased.sum((2, 3))
    return " to ".join(map(str, sorted({counts.min(), counts.max()})))


def _samples(erased: np.ndarray) -> str:
    return "one square" if np.all(erased == erased[:, :1]) else "squares of their own"


@asks(
    "cutout, as to RandomErasing",
    {"elements that 3 x 3 zeroes in 8 x 8": (_elements,), "4 samples lose": (_samples,)},
)
def erased_squares(tell: Callable[[np.ndarray], str]) -> Answers:
    """64 batches of 4 samples; the peers' RandomErasing is set to squares of 9 / 64 of the area."""
    x, share = np.ones((4, 1, 8, 8), np.float32), 9 / 64

    def torchvision() -> Callable[[Any], Any]:
        erase = find("torchvision.transforms.v2.RandomErasing")(1, (share, share), (1, 1))
        return lambda key: erase(to_tensor(x))

    def timm() -> Callable[[Any], Any]:
        eraser = find("timm.data.random_erasing.RandomErasing")
        erase = eraser(1, share, share, 1, 1, device="cpu")
        return lambda key: erase(to_tensor(x))

    def keras() -> Callable[[Any], Any]:
        options = {"fill_value": 0.0, "data_format": "channels_first"}
        erase = find("keras.layers.RandomErasing")((1.0, 1.0), (share, share), **options)
        return lambda key: erase(x, training=True)

    def erased(cut: Callable[[Array], Any]) -> str:
        return tell(np.stack([np.asarray(cut(key))[:, 0] == 0 for key in _keys(64)]))

    found = {
        OURS: lambda: lambda key: jaxdrop.cutout(key, x, 3, channel_axis=1),
        "torchvision": torchvision,
        "timm": timm,
        "keras": keras,
    }
    return told(erased, found)
