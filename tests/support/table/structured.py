"""Records of what drops feature maps, blocks, squares of images and residual branches."""

from functools import partial

import jax
from fresh import kinds
from fuzzing import options
from reference import methods as reference, regions
from table.record import (
    MATRICES,
    Fresh,
    Fuzz,
    Gallery,
    Method,
    Spread,
    Timed,
    behind_first,
    between_first_and_last,
)

import jaxdrop

IMAGES = ((0, 2, 3), (2, 0, 3), (1, 1, 1), (2, 3, 4, 33), (1, 2, 3, 2, 5))
images = partial(
    Method, shape=(3, 4, 5, 8), small=(1, 2, 2, 2), odd_shapes=IMAGES, broadcasts=False
)
maps = partial(
    Gallery, axes={"sample": 2, "height": 8, "width": 8, "channel": 4}, columns=("channel", "width")
)
block_fuzz = partial(
    Fuzz,
    regions.block,
    run=jaxdrop.drop_block,
    least=1,
    most=4,
    told=options.loss_of_gamma,
)


def cut(key: jax.Array, x: jax.Array, rate: float, size: int = 2) -> jax.Array:
    """`cutout` has no rate: the edge of the square is half of the image."""
    del rate
    return jaxdrop.cutout(key, x, size)


def cut_by_size(key, x, rate, size, **axes):
    del rate
    return jaxdrop.cutout(key, x, size, **axes)


RECTANGLES = {"area": (0.2, 0.6), "aspect": (0.5, 2)}

RECORDS = [
    images(
        "spatial_dropout",
        jaxdrop.spatial_dropout,
        shared=between_first_and_last,
        fuzz=Fuzz(reference.spatial, options.images, least=1, most=4),
        gallery=maps(),
        timed=Timed((64, 56, 56, 256)),
    ),
    images(
        "drop_block",
        partial(jaxdrop.drop_block, block_size=2),
        keeps_mean=False,
        fuzz=block_fuzz(lambda *drawn: {**options.blocks(*drawn), "exact": True}),
        # In float32, as for traced rates, gamma is not known exactly.
        fresh=Fresh(partial(kinds.blocks, over=1, edges=(2, 2), exact=True), traced=False),
        gallery=maps(
            keeps="the sum of a constant map",
            survivor=None,
            drawn=(2 * 4 * 6 * 6, "seeds"),
            note="blocks of 3 x 3 in each map",
            run=partial(jaxdrop.drop_block, block_size=3),
        ),
        timed=Timed(
            (64, 56, 56, 64),
            "7 x 7",
            lambda shape: (shape[0], shape[1] - 6, shape[2] - 6, shape[3]),  # seeds
            run=partial(jaxdrop.drop_block, block_size=7),
        ),
    ),
    images(
        "drop_block of the paper",
        partial(jaxdrop.drop_block, block_size=(3, 1), exact=False, batch_axis=None),
        shape=(4, 5, 8),
        odd_shapes=((1, 2, 3), (3, 0, 4), (9, 1, 33)),
        small=(2, 2, 2),
        keeps_mean=False,
        counts=True,
        fuzz=block_fuzz(lambda *drawn: {**options.blocks(*drawn), "exact": False}),
        fresh=Fresh(partial(kinds.blocks, over=0, edges=(3, 1), exact=False), traced=False),
        gallery="differs in gamma alone",
        timed="differs in gamma alone",
    ),
    images(
        "cutout",
        cut,
        shared=lambda ndim: (ndim - 1,),
        keeps_mean=False,
        takes_rate=False,
        takes_traced_rate=False,
        fuzz=Fuzz(regions.cut_out, options.squares, cut_by_size, least=1, most=4),
        fresh=Fresh(partial(kinds.squares, edge=2)),
        gallery=maps(
            keeps="-",
            survivor=lambda keep_prob: 1,
            asked="4 x 4",
            drawn=(2, "centres"),
            note="a square, alike along channel",
            run=partial(cut, size=4),
        ),
        timed=Timed(
            (128, 224, 224, 3),
            "56 x 56",
            lambda shape: (shape[0], 2),  # coordinates, of one word each
            run=partial(cut, size=56),
        ),
    ),
    images(
        "random_erasing",
        partial(jaxdrop.random_erasing, **RECTANGLES),
        odd_shapes=((0, 2, 3, 1), (2, 0, 3, 2), (1, 1, 1, 1), (2, 3, 4, 33)),
        shared=lambda ndim: (ndim - 1,),
        keeps_mean=False,
        drops_all_at_one=False,
        argument=None,
        fuzz=Fuzz(regions.erased, options.rectangles, jaxdrop.random_erasing, least=2, most=4),
        fresh=Fresh(partial(kinds.rectangles, **RECTANGLES)),
        gallery=maps(
            keeps="-",
            survivor=lambda keep_prob: 1,
            drawn=(2 * 4, "words"),
            note="a rectangle, alike along channel",
            run=partial(jaxdrop.random_erasing, area=(0.2, 0.5)),
        ),
        timed=Timed(
            (128, 224, 224, 3),
            "",
            lambda shape: (shape[0], 4),  # a decision, a size and two places
            run=jaxdrop.random_erasing,
        ),
        # So many samples that no word of decisions lies on two devices.
        spread=Spread(partial(jaxdrop.random_erasing, **RECTANGLES), (128, 8, 8, 4)),
    ),
    Method(
        "drop_path",
        jaxdrop.drop_path,
        odd_shapes=MATRICES,
        shared=behind_first,
        broadcasts=False,
        fuzz=Fuzz(reference.path, options.batch_axis),
        timed=Timed((64, 256, 1024)),
    ),
    Method(
        "shake_drop",
        jaxdrop.shake_drop,
        odd_shapes=MATRICES,
        shared=behind_first,
        linear=False,  # its derivative is another map
        keeps_mean=False,
        broadcasts=False,
        at_dropped=lambda rate: None,
        at_kept=1.0,
        drops_all_at_one=False,
        fuzz=Fuzz(reference.shaken, options.batch_axis),
        gallery=Gallery(keeps="0.7 of it, on average", fate="disturbed", survivor=None),
        timed=Timed((64, 256, 1024)),
    ),
    Method(
        "drop_path of a batch",
        partial(jaxdrop.drop_path, batch_axis=None),
        shared=lambda ndim: tuple(range(ndim)),
        broadcasts=False,
        gallery="one decision makes no picture",
        timed="differs from drop_path in the number of decisions alone",
    ),
]
