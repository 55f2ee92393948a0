"""Methods for attention: its weights, its heads, and its keys.

`dot_product` has the public function and a table of implementations. Each
implementation is a function of checked `arguments`. `whole` is the textbook formula,
and JAX differentiates it. An implementation with derivatives of its own has an object
of `passes`, as `tiled` and `kernel` do. `tiled` uses `tiling` (where tiles are),
`block_sizes` (how large they are), `tile_weights` (the weights in a tile), `tiles` (the
part of the mask for a tile) and `linear` (maps with a transpose of their own).
`operands` defines the arrays and their layout.

The folder `kernel` is loaded only by those who ask for it. `heads_and_keys` does not
depend on the other files.
"""
