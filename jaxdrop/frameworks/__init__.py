"""Drops as layers of other libraries, one module for each: linen, nnx, equinox and haiku.

Each imports its library, so import the one that you use: `from jaxdrop.frameworks import
linen`. Nothing of `jaxdrop` needs them. They teach a library two things alone: where a
drop gets its key from, and when it drops nothing.
"""
