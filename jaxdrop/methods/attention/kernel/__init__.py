"""Attention by kernels for NVIDIA GPUs.

`passes` is the implementation. Its kernels are in `forward` and `back`; they are made of
`tiles` (what all tiles have in common), `tile` (one tile of the weights) and `mask` (its
mask). `spans` are blocks of the same documents. `blocks` says which arguments
kernels serve and how large tiles are, and `operands` which arrays they take. `run` is the
primitive that runs a kernel, `split` runs it on a mesh, and `export` gives the tiles that
are exported instead. `call` has all that is used of Pallas.
"""
