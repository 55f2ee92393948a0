"""Methods for attention: its weights, its heads, and its keys.

`dot_product` is public and has a table of what computes it: each implementation is a
function of checked `arguments`. `whole` is attention as written down, and JAX
differentiates it. An implementation with derivatives of its own brings an object of
`passes`, as `tiled` does; a kernel would be another. `tiled` rests on `tiling` (where
tiles lie), `block_sizes` (how large they are), `tile_weights` (what is in one), `tiles`
(its part of the mask) and `linear` (maps with a transpose of their own). Arrays and how
they are laid out are in `operands`. `heads_and_keys` stands alone.
"""
