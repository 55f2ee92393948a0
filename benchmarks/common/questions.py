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
from common.feeding import KEY, RATE, Asked, call, fed, layer, to_numpy, to_tensor
from common.peers import OURS, find
from common.probing import attempt, refused
from jax import Array

import jaxdrop

Answers: TypeAlias = dict[str, Callable[[], str]]
"""From the name of a library to a function that finds out what it does."""
Probe = TypeVar("Probe", bound=Callable[..., Answers])

QUESTIONS: list[tuple[str, str, Callable[..., Answers], tuple[Any, ...]]] = []
"""A method, a question, the probe that answers it, and its arguments."""

ONES = np.ones((4, 3), np.float32)
KEYS = jax.random.split(KEY, 64)
TORCH, KERAS, FLAX = "torch.nn.functional.dropout", "keras.layers.Dropout", "flax.linen.Dropout"
PATHS = {"timm": "timm.layers.DropPath", "torchvision": "torchvision.ops.StochasticDepth"}
BLOCKS = {"timm": "timm.layers.DropBlock2d", "torchvision": "torchvision.ops.DropBlock2d"}
PATCHES = "timm.layers.PatchDropout"


def asks(method: str, *questions: str, **several: Any) -> Callable[[Probe], Probe]:
    """Enters a probe of a method, once for each question; `several` has their arguments."""
    entered = several.get("given", [()] * len(questions))

    def enter(probe: Probe) -> Probe:
        for question, arguments in zip(questions, entered, strict=True):
            QUESTIONS.append((method, question, probe, arguments))
        return probe

    return enter


def told(tell: Callable[[Any], str], ours: Callable[[], Any], **peers: Any) -> Answers:
    """Answers that put into words what is found of ours and of the peers."""
    found = {OURS: ours, **peers}
    return {name: lambda find=find: tell(find()) for name, find in found.items()}


def calls(peers: Mapping[str, str], *arguments: Any, **options: Any) -> dict[str, Any]:
    """A function for each peer that calls it with our draws."""
    return {name: partial(call, peer, *arguments, **options) for name, peer in peers.items()}


def distinct(y: Any) -> str:
    """The different values of an array."""
    texts = {f"{value:.4g}" for value in to_numpy(y).ravel()}
    return ", ".join(sorted(texts)).replace("nan", "NaN")


def masked(x: Any, keep: bool, keep_prob: float) -> Array:
    """Our output where the mask keeps all, or nothing."""
    return jaxdrop.apply_mask(jaxdrop.Mask.pack(jnp.full(x.shape, keep), keep_prob), jnp.asarray(x))


@asks(
    "dropout, drop_path",
    "NaN at a dropped place gives",
    "-1 at a dropped place gives",
    "infinity at rate 1 gives",
    given=[(np.nan, RATE), (-1, RATE), (np.inf, 1)],
)
def dropped_values(value: float, rate: float) -> Answers:
    """An input of this value alone, all of it dropped by the mask that is fed."""
    x = np.full((4, 3, 6, 6), value, np.float32)
    peers = {"keras": KERAS, "flax": FLAX, "torch": TORCH, **PATHS}
    found = calls(peers, x, np.zeros, rate=rate)
    return told(distinct, lambda: masked(x, False, 1 - rate), **found)


@asks("dropout, drop_path", "error of the scale in bfloat16, rate 0.1")
def bfloat16_scale() -> Answers:
    """Sum of outputs, all kept, over that of `x / 0.9` rounded once, minus 1; x in [1, 2)."""
    x = jax.random.uniform(KEY, (2**12, 1, 4, 4), minval=1, maxval=2).astype(jnp.bfloat16)
    exact = to_numpy((to_numpy(x) / 0.9).astype(jnp.bfloat16))

    def error(y: Any) -> str:
        return f"{100 * (to_numpy(y).sum() / exact.sum() - 1):.2g} %"

    found = calls({"torch": TORCH, **PATHS}, x, np.ones, rate=0.1)
    return told(error, lambda: masked(x, True, 0.9), **found)


@asks("dropout", "int32 input gives", "complex64 input gives", given=[("int32",), ("complex64",)])
def dtypes(dtype: str) -> Answers:
    """The dtype that comes out, for ones."""
    x = ONES.astype(dtype)
    peers = {"keras": KERAS, "flax": FLAX, "equinox": "equinox.nn.Dropout"}
    ours, torch = partial(jaxdrop.dropout, KEY, x, RATE), partial(call, TORCH, x)
    return told(lambda y: str(y.dtype), ours, torch=torch, **calls(peers, x, np.ones))


@asks("dropout", "rate 0.1 is drawn with", "rate 1e-8 is drawn with", given=[(0.1,), (1e-8,)])
def rates_drawn_with(rate: float) -> Answers:
    """One minus the keep probability that is asked for, in the precision it is compared in."""

    def ours() -> float:
        with jax.enable_x64(True):
            return float(jaxdrop.draw_mask(jax.random.key(0), (), rate).keep_prob)

    def theirs(peer: str, precision: type) -> float:
        with fed(np.ones) as asked:
            layer(peer, rate)(ONES)
        return float(precision(asked[0].probability))

    return told(
        lambda keep_prob: f"{1 - keep_prob:.6g}",
        ours,
        torch=partial(theirs, TORCH, np.float64),
        flax=partial(theirs, FLAX, np.float32),
        keras=partial(theirs, KERAS, np.float32),
    )


@asks("dropout", "random state moves on at rates 0, 0.5, 1")
def random_state() -> Answers:
    """Whether torch's generator and the layer's seed differ after a call."""

    def torch(rate: float) -> bool:
        before = find("torch.get_rng_state")()
        layer(TORCH, rate)(ONES)
        return not before.equal(find("torch.get_rng_state")())

    def keras(rate: float) -> bool:
        drop = find(KERAS)(rate)
        before = [np.array(each.value) for each in drop.variables]
        drop(jnp.ones(3), training=True)
        return not all(map(np.array_equal, before, [each.value for each in drop.variables]))

    def moves(library: Callable[[float], bool]) -> str:
        return ", ".join("yes" if library(rate) else "no" for rate in (0.0, 0.5, 1.0))

    return {
        OURS: lambda: "it has none",
        "torch": partial(moves, torch),
        "keras": partial(moves, keras),
    }


def our_methods(x: Any, block_size: int) -> list[Callable[[Any], Any]]:
    """Those that have peers, except drop_tokens, as functions of the rate."""
    block = partial(jaxdrop.drop_block, block_size=block_size)
    maps = [jaxdrop.gaussian_dropout, jaxdrop.spatial_dropout, jaxdrop.drop_path, block]
    return [partial(m, KEY, x) for m in (jaxdrop.dropout, jaxdrop.alpha_dropout, *maps)]


@asks("all with peers", "rates -0.1, 1.5, NaN are")
def bad_rates() -> Answers:
    """Whether making a layer of that rate, or calling it, raises."""
    x = np.ones((4, 3, 8, 8), np.float32)

    def refusals(call: Callable[[float], Any]) -> str:
        call(RATE)  # raises where something else than the rate is wrong
        found = [refused(call, rate) for rate in (-0.1, 1.5, float("nan"))]
        return found[0] if len(set(found)) == 1 else ", ".join(found)

    def theirs(peer: str, x: Any = x, **options: Any) -> str:
        return refusals(lambda rate: layer(peer, rate, **options)(x))

    ours = [*our_methods(x, 3), partial(jaxdrop.drop_tokens, KEY, x)]
    return {
        OURS: lambda: ", ".join({refusals(method) for method in ours}),
        "torch": partial(theirs, "torch.nn.AlphaDropout"),
        "torchvision StochasticDepth": partial(theirs, PATHS["torchvision"]),
        "torchvision DropBlock2d": partial(theirs, BLOCKS["torchvision"], block_size=3),
        "timm DropPath": partial(theirs, PATHS["timm"]),
        "timm PatchDropout": partial(theirs, PATCHES, x[0]),
        "timm DropBlock2d": partial(theirs, BLOCKS["timm"], block_size=3),
        "keras": partial(theirs, "keras.layers.AlphaDropout"),
    }


@asks("all with peers but drop_tokens", "traced rate under jit")
def traced_rates() -> Answers:
    """Rate 0.25 as an argument of `jit`; keras's layers are made inside."""
    x = np.ones((4, 5, 6), np.float32)
    layers = ("Dropout", "AlphaDropout", "GaussianDropout", "SpatialDropout1D")

    def works(*drops: Callable[[Any], Any]) -> str:
        jax.jit(lambda rate: [drop(rate) for drop in drops])(RATE)
        return "works"

    def keras(name: str) -> str:
        return works(lambda rate: layer(f"keras.layers.{name}", rate)(x))

    return {
        OURS: lambda: works(*our_methods(x, 2)),
        "keras": lambda: ", ".join({attempt(partial(keras, name)) for name in layers}),
    }


@asks("alpha_dropout", "rate 1 gives")
def alpha_at_rate_one() -> Answers:
    """Ones as the input."""
    peers = {"torch": "torch.nn.AlphaDropout", "keras": "keras.layers.AlphaDropout"}
    ours = partial(jaxdrop.alpha_dropout, KEY, ONES, 1)
    return told(distinct, ours, **calls(peers, ONES, np.ones, rate=1))


@asks("alpha_dropout", "mean and variance for standardised input, rate 0.3")
def alpha_moments() -> Answers:
    """Exact, from the outputs for 1 and -1 where kept, and from that for 0 where dropped."""
    x, mask, p = np.array([1, -1, 0], np.float32), np.array([1.0, 1.0, 0.0]), 0.3

    def ours() -> np.ndarray:
        # Over many places; what is dropped is the same for both inputs.
        one, minus_one = (to_numpy(jaxdrop.alpha_dropout(KEY, jnp.full(99, v), p)) for v in x[:2])
        keep = one != minus_one
        return np.array([one[keep][0], minus_one[keep][0], one[~keep][0]])

    def moments(y: Any) -> str:
        one, minus_one, dropped = to_numpy(y)
        mean = (1 - p) * (one + minus_one) / 2 + p * dropped
        square = (1 - p) * (one**2 + minus_one**2) / 2 + p * dropped**2
        return f"{round(mean, 3) + 0:g}, {square - mean**2:.3g}"

    peers = {"torch": "torch.nn.AlphaDropout", "keras": "keras.layers.AlphaDropout"}
    references = {"torch._refs": "torch._refs.nn.functional.alpha_dropout"}
    found = calls(peers, x, mask, rate=p) | calls(references, x, 1 - mask, rate=p)
    return told(moments, ours, **found)


@asks("gaussian_dropout", "rate 1 gives")
def gaussian_at_rate_one() -> Answers:
    """Ones as the input."""
    found = calls({"keras": "keras.layers.GaussianDropout"}, ONES, np.ones, rate=1)
    return told(distinct, partial(jaxdrop.gaussian_dropout, KEY, ONES, 1), **found)


@asks("gaussian_dropout", "bfloat16 outputs rounded once")
def gaussian_in_bfloat16() -> Answers:
    """Share of them that equal `x (1 + sqrt(p / q) e)`, our noise e being fed; x in [1, 2)."""
    x = jax.random.uniform(KEY, (64, 64), minval=1, maxval=2).astype(jnp.bfloat16)
    factor = to_numpy(jaxdrop.gaussian_dropout(KEY, jnp.ones(x.shape), RATE))
    noise = (factor - 1) / np.sqrt(RATE / (1 - RATE))
    exact = (to_numpy(x) * factor).astype(jnp.bfloat16)
    found = calls({"keras": "keras.layers.GaussianDropout"}, x, noise, dtype="bfloat16")
    ours = partial(jaxdrop.gaussian_dropout, KEY, x, RATE)
    return told(lambda y: f"{100 * np.mean(np.asarray(y) == exact):.3g} %", ours, **found)


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


@asks("drop_path_rates", "rate 0.4, 4 blocks", "rate 0.4, 1 block", given=[(4,), (1,)])
def path_rates(depth: int) -> Answers:
    """From the function that makes them, or from a small model of so many blocks."""

    def shown(rates: Sequence[float]) -> str:
        return ", ".join(f"{rate:.3g}" for rate in rates)

    def of(model: Any) -> str:
        kind = find(PATHS["torchvision"])
        return shown([part.p for part in model.modules() if isinstance(part, kind)])

    def convnext() -> str:
        models = importlib.import_module("torchvision.models.convnext")
        return of(models.ConvNeXt([models.CNBlockConfig(8, None, depth)], 0.4))

    def efficientnet() -> str:
        models = importlib.import_module("torchvision.models.efficientnet")
        blocks = [models.MBConvConfig(1, 3, 1, 8, 8, depth)]
        return of(models.EfficientNet(blocks, 0.0, stochastic_depth_prob=0.4))

    return {
        OURS: lambda: shown(jaxdrop.drop_path_rates(0.4, depth)),
        "timm": lambda: shown(find("timm.layers.calculate_drop_path_rates")(0.4, depth)),
        "torchvision ConvNeXt": convnext,
        "torchvision EfficientNet": efficientnet,
    }


def blocks_answers(
    ours: Callable[[], str], tell: Callable[[Any, Asked], str], x: Any, draw: Any, **options: Any
) -> Answers:
    """Ours, and what is told of each peer's output for `x` and of the noise that it asked for."""

    def theirs(peer: str) -> str:
        drop = layer(peer, **options)
        with fed(draw) as asked:
            y = drop(x)
        return tell(y.numpy(), asked[0])

    return {OURS: ours, **{name: partial(theirs, peer) for name, peer in BLOCKS.items()}}


def our_blocks(maps: int, size: tuple[int, ...], rate: float, block: int) -> np.ndarray:
    """What our method makes of so many maps of ones, of one or more channels."""
    channels = () if len(size) == 3 else (1,)
    x = jnp.ones((maps, *size, *channels))
    return np.asarray(jaxdrop.drop_block(KEY, x, rate, block_size=block))


def one_seed(shape: Sequence[int]) -> np.ndarray:
    """A seed in the middle of the first map; fit to be fed."""
    seeds = np.zeros(shape)
    seeds[0, 0, shape[2] // 2, shape[3] // 2] = 1
    return seeds


def each_seed(shape: Sequence[int]) -> np.ndarray:
    """A seed in each map, in another place in each, as far as there are places."""
    one_each = np.eye(shape[2] * shape[3]).reshape(-1, *shape[1:])
    return np.pad(one_each, [(0, shape[0] - len(one_each)), (0, 0), (0, 0), (0, 0)])


_MAPS = np.ones((64, 1, 8, 8), np.float32)  # as many as there are places for a seed
_EIGHT = {"x": _MAPS, "draw": each_seed, "block_size": 3}


@asks("drop_block", "gamma at rate 0.5, blocks of 3 in 8 x 8")
def block_gamma() -> Answers:
    """The probability that the peer asks for; ours from `drop_block_gamma`."""

    def ours() -> str:
        return f"{jaxdrop.drop_block_gamma(0.5, (8, 8), 3):.4f}"

    return blocks_answers(ours, lambda _, asked: f"{asked.probability:.4f}", rate=0.5, **_EIGHT)


@asks(
    "drop_block",
    "share kept at rate 0.5, the same blocks",
    "share kept at rate 1, the same blocks",
    given=[(0.5,), (1.0,)],
)
def block_share(rate: float) -> Answers:
    """A position that c seeds drop is kept with probability (1 - gamma)^c.

    Both are the peer's own; of ours the mean of 2^18 maps is taken, with a
    standard error below 0.0005.
    """

    def share(y: Any, asked: Asked) -> str:
        return f"{np.mean((1 - asked.probability) ** (y == 0).sum(0)):.3f}"

    def ours() -> str:
        return f"{np.mean(our_blocks(2**18, (8, 8), rate, 3) != 0):.3f}"

    return blocks_answers(ours, share, rate=rate, **_EIGHT)


@asks("drop_block", "elements that a seed drops, the same blocks")
def block_at_the_border() -> Answers:
    """Each seed alone; of ours the fewest that are dropped in any of 2^14 maps."""

    def sizes(y: Any) -> np.ndarray:
        counts = np.unique(np.sum(y == 0, (1, 2, 3)))
        return counts[counts > 0]

    def ours() -> str:
        return str(sizes(our_blocks(2**14, (8, 8), 0.02, 3))[0])

    return blocks_answers(ours, lambda y, _: ", ".join(map(str, sizes(y))), rate=0.5, **_EIGHT)


@asks("drop_block", "channels of a sample lose")
def block_channels() -> Answers:
    """Whether the noise that is asked for has 3 channels; of ours whether they differ."""
    x = np.ones((2, 3, 9, 9), np.float32)

    def say(apart: Any) -> str:
        return "blocks of their own" if apart else "the same blocks"

    def ours() -> str:
        y = our_blocks(8, (9, 9, 3), 0.3, 3)
        return say(np.any(y != y[..., :1]))

    options = {"rate": 0.3, "block_size": 3}
    return blocks_answers(ours, lambda _, asked: say(asked.shape[1] == 3), x, np.zeros, **options)


@asks("drop_block", "factor of a map without blocks beside one with a block of 3 in 8 x 8")
def block_counts() -> Answers:
    """Two samples of ones; a seed is fed to the first. Of ours all maps that lose nothing."""

    def ours() -> str:
        y = our_blocks(64, (8, 8), 0.1, 3)
        return distinct(y[np.all(y != 0, (1, 2, 3))])

    options = {"rate": 0.1, "block_size": 3}
    return blocks_answers(ours, lambda y, _: distinct(y[1]), _MAPS[:2], one_seed, **options)


@asks(
    "drop_block",
    "block of 4 in 12 x 12 is",
    "block of 7 in 5 x 9 is",
    "block of 7 in 4 x 9 is",
    given=[(4, 12, 12), (7, 5, 9), (7, 4, 9)],
)
def block_edges(block: int, height: int, width: int) -> Answers:
    """Height and width of what a seed in the middle drops; of ours the least in 2^12 maps."""
    x = np.ones((1, 1, height, width), np.float32)

    def edges(dropped: Any) -> str:
        return f"{dropped.any(1).sum()} x {dropped.any(0).sum()}"

    def ours() -> str:
        dropped = our_blocks(2**12, (height, width), 0.02, block)[..., 0] == 0
        return edges(min(dropped[dropped.any((1, 2))], key=np.sum))

    options = {"rate": 0.3, "block_size": block}
    return blocks_answers(ours, lambda y, _: edges(y[0, 0] == 0), x, one_seed, **options)


@asks("drop_block", "factor in float16 where 66,560 elements are kept")
def block_in_float16() -> Answers:
    """Ones, of which nothing is dropped; float16 reaches to 65,504."""
    x = np.ones((1, 1, 260, 256), np.float16)

    def ours() -> str:
        return distinct(jaxdrop.drop_block(KEY, x, 1e-9, block_size=3, channel_axis=1))

    options = {"rate": 1e-3, "block_size": 3}
    return blocks_answers(ours, lambda y, _: distinct(y), x, np.zeros, **options)


def our_tokens(x: Any, rate: float, key: Array = KEY) -> Array:
    """The tokens that are kept."""
    return jaxdrop.drop_tokens(key, x, rate)[0]


_COUNTS = [(10, 0.25), (20, 0.9), (4, 0.9), (4, 1)]


@asks("drop_tokens", *(f"tokens kept of {n} at rate {r}" for n, r in _COUNTS), given=_COUNTS)
def kept_tokens(length: int, rate: float) -> Answers:
    """Length of the output, without a prefix."""
    x = np.ones((1, length, 1), np.float32)
    timm = partial(call, PATCHES, x, rate=rate, num_prefix_tokens=0)
    return told(lambda y: str(y.shape[1]), partial(our_tokens, x, rate), timm=timm)


@asks("drop_tokens", "order by default")
def order_of_tokens() -> Answers:
    """Of 64 tokens at rate 0.5."""
    x = np.arange(64, dtype=np.float32).reshape(1, 64, 1)

    def order(y: Any) -> str:
        return "kept" if np.all(np.diff(to_numpy(y)[0, :, 0]) > 0) else "random"

    return told(order, partial(our_tokens, x, 0.5), timm=partial(call, PATCHES, x, rate=0.5))


@asks("drop_tokens", "prefix by default")
def default_prefix() -> Answers:
    """How many first tokens survive 64 calls at rate 0.75."""
    x = np.arange(8, dtype=np.float32).reshape(1, 8, 1)

    def prefix(calls: Sequence[Any]) -> str:
        return str(len(set.intersection(*({*to_numpy(y).ravel().tolist()} for y in calls))))

    return told(
        prefix,
        lambda: [our_tokens(x, 0.75, key) for key in KEYS],
        timm=lambda: [call(PATCHES, x, rate=0.75) for _ in KEYS],
    )


@asks("drop_tokens", "positions of a prefix and the last of 2 tokens; at rate 0")
def positions_of_tokens() -> Answers:
    """At rate 0.5 one of the two is kept; the noise that is fed, or our key, makes it the last."""
    x = np.ones((1, 3, 1), np.float32)

    def ours(rate: float) -> str:
        return str(max(jaxdrop.drop_tokens(k, x, rate, prefix=1)[1][0].tolist() for k in KEYS))

    def theirs(rate: float, *draws: Any) -> str:
        positions = call(f"{PATCHES}WithIndices", x, *draws, rate=rate)[1]
        return str(positions if positions is None else positions[0].tolist())

    return {
        OURS: lambda: f"{ours(0.5)}; {ours(0)}",
        "timm": lambda: f"{theirs(0.5, [[1.0, 0.0]])}; {theirs(0)}",
    }


def erased_elements(erased: np.ndarray) -> str:
    """The fewest and the most that a sample loses."""
    counts = erased.sum((2, 3))
    return " to ".join(map(str, sorted({counts.min(), counts.max()})))


def erased_samples(erased: np.ndarray) -> str:
    """Whether those of a batch lose the same."""
    return "one square" if np.all(erased == erased[:, :1]) else "squares of their own"


@asks(
    "cutout, as to RandomErasing",
    "elements that 3 x 3 zeroes in 8 x 8",
    "4 samples lose",
    given=[(erased_elements,), (erased_samples,)],
)
def erased_squares(tell: Callable[[np.ndarray], str]) -> Answers:
    """64 batches of 4 samples; the peers' RandomErasing is set to squares of 9 / 64 of the area."""
    x, share = _MAPS[:4], 9 / 64

    def torchvision() -> Any:
        erase = find("torchvision.transforms.v2.RandomErasing")(1, (share, share), (1, 1))
        return [erase(to_tensor(x)) for _ in KEYS]

    def timm() -> Any:
        eraser = find("timm.data.random_erasing.RandomErasing")
        erase = eraser(1, share, share, 1, 1, device="cpu")
        return [erase(to_tensor(x)) for _ in KEYS]

    def keras() -> Any:
        options = {"fill_value": 0.0, "data_format": "channels_first"}
        erase = find("keras.layers.RandomErasing")((1.0, 1.0), (share, share), **options)
        return [erase(x, training=True) for _ in KEYS]

    return told(
        lambda batches: tell(np.stack([np.asarray(y)[:, 0] == 0 for y in batches])),
        lambda: [jaxdrop.cutout(key, x, 3, channel_axis=1) for key in KEYS],
        torchvision=torchvision,
        timm=timm,
        keras=keras,
    )
