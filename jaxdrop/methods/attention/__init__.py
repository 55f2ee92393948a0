"""Methods for attention: its weights, its heads, and its keys.

`dot_product` has the public function and a table of implementations. Each
implementation is a function of checked `arguments`. `whole` is the textbook formula,
and JAX differentiates it. An implementation with derivatives of its own has an object
of `passes`, as `tiled` and `kernel` do. `tiled` uses `tiling` (where tiles are),
`block_sizes` (how large they are), `tile_weights` (the weights in a tile), `tiles` (the
part of the mask for a tile) and `linear` (maps with a transpose of their own).
`operands` defines the arrays and their layout.

`kernel` is loaded only by those who ask for it. Its kernels are `kernel_forward` and
`kernel_back`, made of `kernel_tile` (one tile) and `kernel_mask` (its mask).
`kernel_blocks` says what they serve and how large tiles are, `kernel_operands` what they
take, `kernel_run` how they are run, `kernel_split` how on a mesh, `kernel_export` what is
exported instead, and `kernel_call` has all that is used of Pallas. `heads_and_keys` does
not depend on the other files.
"""
