"""Drops as layers of other libraries, one module for each: linen, nnx, equinox and haiku.

Each imports its library, so import the one that you use: `from jaxdrop.frameworks import
linen`. Nothing of `jaxdrop` needs them. A layer knows two things alone: where a drop gets
its key from, and when it drops nothing. For models that were written without these layers,
`named_scopes` and `dropout_sites` say where `plant` may put a drop. `marks` is that for
linen and haiku. For nnx and equinox, `copies` calls a function with changed modules, which
`variants` makes; `nnx_copies` and `equinox_copies` know how a framework holds its modules.
"""
