"""Checks of arguments, run by public functions before anything is traced."""

import numbers
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.export import is_symbolic_dim
from jax.sharding import NamedSharding, PartitionSpec

from jaxdrop.base.axes import broadcasts, other_axes
from jaxdrop.base.describe import describe, way_out
from jaxdrop.base.sharding import has_explicit_axes, laid_like, spread_to, whole
from jaxdrop.base.types import Key, KnownOrTraced

RAW_KEY_SHAPES = ((2,), (4,))  # threefry2x32; rbg and unsafe_rbg
_NEW_KEY = "Make one with jax.random.key."


@dataclass(frozen=True, slots=True)
class Check:
    """Checks the arguments of one function; each message begins with its name.

    A public function makes a `Check` and passes it to its helpers, so that their
    messages name the function that the user called. Each method returns the argument in
    canonical form.
    """

    function: str

    def __str__(self) -> str:
        return self.function

    def one_key(self, key: Any, name: str = "key", advice: str = _NEW_KEY) -> Key:
        """Returns `key` if it is one key, typed or raw. The advice is for what is no key."""
        if _is_numeric(key, np.ndarray):
            key = jnp.asarray(key)
        if isinstance(key, jax.Array):
            if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
                batch = key.shape
            elif key.dtype == jnp.uint32 and key.shape[-1:] in RAW_KEY_SHAPES:
                batch = key.shape[:-1]
            else:
                batch = None
            if batch == ():
                # `jax.random` accepts four raw words as a key only if their kind is given.
                return jax.random.wrap_key_data(key, impl="rbg") if key.shape == (4,) else key
            if batch is not None:
                raise TypeError(
                    f"{self}: {name} must be one key; got a batch of shape {batch}. Use jax.vmap."
                )
        raise TypeError(f"{self}: {name} must be one key; got {describe(key)}. {advice}")

    def inexact_array(self, name: str, x: Any, advice: str | None = None) -> Array:
        """Returns `x` as a JAX array if it is floating or complex. The advice is for integers."""
        known = np.ndarray | np.generic | float | complex
        if _is_numeric(x, known) or hasattr(x, "__jax_array__"):
            x = jnp.asarray(x)
        if not isinstance(x, jax.Array):
            raise TypeError(f"{self}: {name} must be an array; got {describe(x)}.{way_out(x)}")
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            advice = advice or f"Cast it, as in {name}.astype(jnp.float32)."
            raise TypeError(f"{self}: {name} must be floating or complex; got {x.dtype}. {advice}")
        if x.dtype.name == "float8_e8m0fnu":  # only an exponent: all numbers are 2^n, none is 0
            raise TypeError(f"{self}: {name} must have a dtype with a zero; got {x.dtype}.")
        return x

    def real_array(self, name: str, x: Any) -> Array:
        """Returns `x` as a JAX array if it is floating and not complex."""
        x = self.inexact_array(name, x)
        if jnp.iscomplexobj(x):
            raise TypeError(f"{self}: {name} must be real; got {x.dtype}.")
        return x

    def any_array(self, name: str, x: Any) -> Array:
        """Returns `x` as a JAX array of numbers or booleans."""
        known = np.ndarray | np.generic | numbers.Number
        if _is_numeric(x, known) or hasattr(x, "__jax_array__"):
            x = jnp.asarray(x)
        if not isinstance(x, jax.Array) or jnp.issubdtype(x.dtype, jax.dtypes.extended):
            raise TypeError(
                f"{self}: {name} must be an array of numbers; got {describe(x)}.{way_out(x)}"
            )
        return x

    def integer_array(self, name: str, x: Any) -> Array:
        """Returns `x` as a JAX array if it is made of integers."""
        x = self.any_array(name, x)
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise TypeError(f"{self}: {name} must be integers; got {x.dtype}.")
        return x

    def like(self, name: str, value: Any, x: Any, x_name: str, dtype: Any = None) -> Array:
        """Returns `value` with the shape and sharding of `x`, in its dtype or the given one.

        It must broadcast to the shape of `x`, and its kind must not be wider than the dtype.
        """
        dtype = x.dtype if dtype is None else dtype
        if isinstance(value, int | np.integer | np.ndarray) and not _holds(dtype, value):
            raise ValueError(f"{self}: {name} must fit into {dtype}; got {value}.")
        given = self.any_array(name, value)
        # 0 and 1 exist in every kind, so that `fill=0` works for booleans too.
        is_flag = isinstance(value, int) and value in (0, 1)
        if _kind(given.dtype) > _kind(dtype) and not is_flag:
            raise TypeError(
                f"{self}: {name} must be of the kind of {x_name}; got {given.dtype} for {dtype}."
            )
        if not broadcasts(given.shape, x.shape):
            raise ValueError(
                f"{self}: {name} must broadcast to {x_name}; got {given.shape} for {x.shape}."
            )
        missing = (1,) * (x.ndim - given.ndim)
        wide = jnp.broadcast_to(given.astype(dtype).reshape(missing + given.shape), x.shape)
        return laid_like(wide, x) if isinstance(x, jax.Array) else wide

    def flags(self, name: str, value: Any, x: Array, x_name: str) -> Array:
        """Returns booleans with the shape and the sharding of `x`."""
        value = self.any_array(name, value)
        if value.dtype != jnp.bool_:
            raise TypeError(f"{self}: {name} must be boolean; got {value.dtype}.")
        return self.like(name, value, x, x_name, jnp.bool_)

    def floating(self, name: str, value: Any) -> Array:
        """Returns a parameter as a real floating array; it may be a Python integer."""
        known = isinstance(value, int | np.integer) and not isinstance(value, bool)
        return self.real_array(name, float(value) if known else value)

    def parameter(self, name: str, value: Any, x: Array) -> Array:
        """Returns a parameter that broadcasts to `x`, with the number of axes of `x`."""
        given = self.floating(name, value)
        if not broadcasts(given.shape, x.shape):
            raise ValueError(
                f"{self}: {name} must broadcast to x; got {given.shape} for {x.shape}."
            )
        return spread_to(whole(given).reshape((1,) * (x.ndim - given.ndim) + given.shape), x)

    def amount(self, name: str, value: Any, *, positive: bool = False) -> float | Array:
        """Returns a known number as a checked float, and a traced one as a scalar array."""
        if isinstance(value, np.ndarray) and value.ndim == 0:
            value = value[()]
        if isinstance(value, jax.Array) and _is_real(value.dtype):
            if value.shape != ():
                raise ValueError(f"{self}: {name} must be a scalar; got shape {value.shape}.")
            return value
        if not _is_real_number(value):
            raise TypeError(f"{self}: {name} must be a real number; got {describe(value)}.")
        if not 0 <= value < float("inf") or (positive and value == 0):
            kind = "positive" if positive else "at least 0"
            raise ValueError(f"{self}: {name} must be {kind} and finite; got {value}.")
        return float(value)

    def known_probability(self, name: str, rate: Any) -> float:
        """Returns a probability as a float; it must be known while tracing."""
        return float(self.probability(name, self._known(name, self.probability(name, rate))))

    def known_amount(self, name: str, value: Any) -> float:
        """Returns a number of at least 0 as a float; it must be known while tracing."""
        return float(self.amount(name, self._known(name, self.amount(name, value))))

    def _known(self, name: str, value: Any) -> float:
        try:
            return float(value)
        except jax.errors.ConcretizationTypeError:
            raise TypeError(
                f"{self}: {name} must be known while tracing; got {describe(value)}."
                " Close over a Python number, or make it static."
            ) from None

    def probability(self, name: str, rate: Any) -> KnownOrTraced:
        """Returns a known probability as a checked float, and a traced one as a scalar array."""
        if isinstance(rate, np.ndarray) and rate.ndim == 0:
            rate = rate[()]
        if _is_real_number(rate):
            rate = float(rate)
            if not 0 <= rate <= 1:
                raise ValueError(f"{self}: {name} must lie in [0, 1]; got {rate}.")
            return rate
        if not isinstance(rate, jax.Array) or not _is_real(rate.dtype):
            raise TypeError(f"{self}: {name} must be a real number; got {describe(rate)}.")
        if rate.shape != ():
            raise ValueError(
                f"{self}: {name} must be a scalar; got shape {rate.shape}. Use jax.vmap, or"
                " draw_mask and apply_mask for a rate per element."
            )
        return rate if jnp.issubdtype(rate.dtype, jnp.floating) else rate.astype(jnp.float32)

    def probabilities(
        self, name: str, rate: Any, shape: tuple[int, ...], other: str
    ) -> KnownOrTraced:
        """Returns one probability, or an array that broadcasts to a shape, with its axes."""
        if np.ndim(rate) == 0 or not isinstance(rate, jax.Array | np.ndarray):
            return self.probability(name, rate)
        if not _is_real(rate.dtype):
            raise TypeError(f"{self}: {name} must be real; got {rate.dtype}.")
        if isinstance(rate, np.ndarray) and not ((rate >= 0) & (rate <= 1)).all():
            raise ValueError(f"{self}: {name} must lie in [0, 1]; got {rate}.")
        if not broadcasts(rate.shape, shape):
            raise ValueError(
                f"{self}: {name} must broadcast to {other}; got {rate.shape} for {shape}."
            )
        rate = jnp.asarray(rate)
        rate = rate if jnp.issubdtype(rate.dtype, jnp.floating) else rate.astype(jnp.float32)
        return rate.reshape((1,) * (len(shape) - rate.ndim) + rate.shape)

    def axes(self, name: str, axes: Any, ndim: int) -> tuple[int, ...]:
        """Returns the axes as sorted non-negative integers."""
        given = self.integers(name, axes)
        for axis in given:
            if not -ndim <= axis < ndim:
                raise ValueError(
                    f"{self}: {name} must lie in [{-ndim}, {ndim}) for {ndim} axes; got {axis}."
                )
        canonical = sorted(axis % ndim for axis in given)
        if len(set(canonical)) < len(canonical):
            raise ValueError(f"{self}: {name} must name each axis once; got {given}.")
        return tuple(canonical)

    def axis(self, name: str, axis: Any, ndim: int) -> int:
        """Returns one axis as a non-negative integer."""
        found = self.axes(name, axis, ndim)
        if len(found) != 1:
            raise ValueError(f"{self}: {name} must be one axis; got {axis}.")
        return found[0]

    def distinct_axes(self, x: Array, **named: int | None) -> tuple[int, ...]:
        """Returns the given axes of `x`, which must be distinct."""
        given = {name: value for name, value in named.items() if value is not None}
        found = tuple(self.axis(name, value, x.ndim) for name, value in given.items())
        if len(set(found)) < len(found):
            raise ValueError(
                f"{self}: {' and '.join(given)} must differ; got"
                f" {' and '.join(map(str, given.values()))} for {x.ndim} axes."
            )
        return found

    def spatial_axes(
        self, x: Array, batch_axis: int | None, channel_axis: int | None
    ) -> tuple[int, ...]:
        """Returns all axes of `x` except the two named ones; at least one must remain."""
        others = self.distinct_axes(x, batch_axis=batch_axis, channel_axis=channel_axis)
        spatial = other_axes(x.ndim, others)
        if not spatial:
            raise ValueError(
                f"{self}: x must have a spatial axis besides batch_axis and channel_axis;"
                f" got shape {x.shape}. Pass batch_axis=None for one sample."
            )
        return spatial

    def shape(self, shape: Any) -> tuple[int, ...]:
        """Returns the shape as a tuple of non-negative integers."""
        if isinstance(shape, Sequence) and any(map(is_symbolic_dim, shape)):
            return tuple(shape)  # that of an array
        sizes = self.integers("shape", shape)
        if any(size < 0 for size in sizes):
            raise ValueError(f"{self}: shape must have no negative sizes; got {sizes}.")
        return sizes

    def function_of(self, name: str, value: Any, arguments: str) -> None:
        """Refuses what cannot be called."""
        if not callable(value):
            raise TypeError(
                f"{self}: {name} must be a function of {arguments}; got {describe(value)}."
            )

    def whole_number(self, name: str, value: Any, least: int | None = None) -> int:
        """Returns one integer of at least `least`."""
        (number,) = self.edges(name, value, 1, least)
        return number

    def edges(self, name: str, value: Any, count: int, least: int | None) -> tuple[int, ...]:
        """Returns `count` integers; a single one stands for all of them."""
        given = self.integers(name, value)
        if not isinstance(value, Sequence | np.ndarray):
            given *= count
        if len(given) != count:
            raise ValueError(
                f"{self}: {name} must be one number, or one for each of {count} axes; got {value}."
            )
        if least is not None and any(edge < least for edge in given):
            raise ValueError(f"{self}: {name} must be at least {least}; got {value}.")
        return given

    def integers(self, name: str, values: Any) -> tuple[int, ...]:
        """Returns one or several integers as a tuple."""
        several = tuple(values) if isinstance(values, Sequence | np.ndarray) else (values,)
        try:
            if not any(isinstance(value, bool) for value in several):
                return tuple(map(operator.index, several))
        except TypeError:
            pass
        raise TypeError(f"{self}: {name} must be integers; got {values!r}.")

    def sharding(self, out_sharding: Any, ndim: int) -> NamedSharding | None:
        """Returns the sharding that a user passed as `out_sharding`, in the forms that
        JAX accepts.
        """
        if out_sharding is None:
            return None
        sharding, mesh = out_sharding, jax.sharding.get_abstract_mesh()
        if isinstance(out_sharding, PartitionSpec) and not mesh.empty:
            sharding = NamedSharding(mesh, out_sharding)
        if not isinstance(sharding, NamedSharding) or not has_explicit_axes(sharding):
            raise TypeError(
                f"{self}: out_sharding must be a NamedSharding, or a PartitionSpec in a mesh"
                f" context, with Explicit axes; got {out_sharding!r}."
            )
        if len(sharding.spec) > ndim:
            raise ValueError(
                f"{self}: out_sharding must have at most {ndim} entries; got {sharding.spec}."
            )
        return sharding


def _is_numeric(value: Any, kinds: Any) -> bool:
    """Whether a value of some kinds holds numbers; NumPy has arrays of texts and objects too."""
    return isinstance(value, kinds) and np.asarray(value).dtype.kind in "biufcV"


def _is_real(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)


def _is_real_number(value: Any) -> bool:
    if isinstance(value, np.generic):  # bfloat16 is not registered as a `numbers.Real`
        return _is_real(value.dtype)
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _kind(dtype: Any) -> int:
    kinds = (jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating)
    return next(i for i, kind in enumerate(kinds) if jnp.issubdtype(dtype, kind))


def _holds(dtype: Any, value: Any) -> bool:
    """Whether a known integer fits into an integer dtype. For other values only the
    kind is checked.
    """
    if isinstance(value, int) and abs(value) >= 2**63:  # NumPy would make it an object
        return False
    integers = np.issubdtype(np.asarray(value).dtype, np.integer)
    if not integers or not jnp.issubdtype(dtype, jnp.integer) or np.size(value) == 0:
        return True
    least, most = int(jnp.iinfo(dtype).min), int(jnp.iinfo(dtype).max)
    return least <= int(np.min(value)) and int(np.max(value)) <= most
