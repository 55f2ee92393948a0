"""Methods for attention: its weights, its heads, and its keys.

`dot_product` has the public function and a table of implementations. Each
implementation is a function of checked `arguments`, which `arrays` gives one batch axis.
`whole` is the textbook formula,
and JAX differentiates it. An implementation with derivatives of its own has an object
of `passes`, as `tiled` and `kernel` do. `tiled` uses `tiling` (where tiles are),
`block_sizes` (how large they are), `skipping` (which see nothing), `tile_weights` and
`tile_slopes` (the weights in a tile and their derivatives), `tiles` (the part of the mask
for a tile) and `linear` (maps with a transpose of their own).
`operands` defines the arrays and their layout.

The folder `kernel` is loaded only by those who ask for it. `heads_and_keys` does not
depend on the other files.
"""
