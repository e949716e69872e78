"""One row per picture: its columns, and the mask as runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from convad_fx.errors import Unavailable
from convad_fx.explain import Explanation
from convad_fx.explain.encoding import decode_mask, encode_mask
from convad_fx.explain.evaluator import Mask

if TYPE_CHECKING:
    import pyarrow


#: Column, Arrow type, meaning; the documentation's table is made of it.
COLUMNS = (
    ("key", "string", "the picture's name: source, then the way inside it"),
    ("sha256", "string", "of the picture's file"),
    ("bytes", "int64", "size of that file"),
    ("target", "int32", "the class explained"),
    ("target_name", "string", "its name, null where classes have none"),
    ("confidence_whole", "double", "softmax of the target on the whole picture"),
    ("confidence_kept", "double", "on the kept pixels, in the batch they were found in"),
    ("confidence_recheck", "double", "on the kept pixels, asked again alone"),
    ("sufficient", "bool", "whether that reached gamma times the whole"),
    ("minimal", "bool", "whether no block of the search's `minimal` side can be spared"),
    ("size", "double", "share of the pixels kept"),
    ("pixels", "int64", "their number"),
    ("evaluations", "int64", "masks the network was asked about"),
    ("deviation", "double", "with --precision: of logits from float32's, where compared"),
    ("metrics", "metrics", "by name, those asked for"),
    ("mask", "rle", "kept pixels, COCO run lengths"),
    ("contrast", "contrast", "what must be hidden for another class, where asked for"),
    ("image_digest", "string", "SHA-256 of the network's input"),
    ("seconds_load", "double", "reading, decoding, resizing"),
    ("seconds_search", "double", "the explanation and its metrics"),
    ("overlay", "string", "the picture drawn, relative to the folder, where asked for"),
    ("device", "string", "cpu or cuda"),
    ("model", "string", "as named on the command line"),
    ("weights_digest", "string", "SHA-256 of parameters and buffers"),
    ("policy", "string", "how pixels were switched off, JSON"),
    ("seed", "int64", "of the search"),
    ("versions", "string", "of convad_fx and torch, JSON"),
    ("run", "string", "digest of the provenance: one value per run"),
    ("provenance", "string", "all the answer depends on but the picture, JSON"),
)


def arrow() -> Any:
    """The module pyarrow.

    Raises:
        Unavailable: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise Unavailable(
            "Parquet needs pyarrow, which is not installed",
            hint='pip install "convad_fx[many]"',
        ) from error
    return pyarrow


def schema() -> pyarrow.Schema:
    """The table's schema: one field per column.

    >>> schema().field("mask").type.field("counts").type
    ListType(list<element: int32>)
    """
    pa = arrow()
    rle = pa.struct(
        [("size", pa.list_(pa.int32())), ("counts", pa.list_(pa.field("element", pa.int32())))]
    )
    kinds = {
        "string": pa.string(),
        "int32": pa.int32(),
        "int64": pa.int64(),
        "double": pa.float64(),
        "bool": pa.bool_(),
        "metrics": pa.map_(pa.string(), pa.float64()),
        "rle": rle,
        "contrast": pa.struct(
            [
                ("mask", rle),
                ("changes", pa.bool_()),
                ("becomes", pa.int32()),
                ("becomes_name", pa.string()),
                ("confidence", pa.float64()),
                ("suffices", pa.bool_()),
                ("minimal", pa.bool_()),
            ]
        ),
    }
    return pa.schema([(name, kinds[kind]) for name, kind, _ in COLUMNS])


def row_of(
    explanation: Explanation, metrics: Mapping[str, float], more: Mapping[str, Any]
) -> dict[str, Any]:
    """The row of an explanation, as JSON values; `more` are the columns it does not know."""
    plain = explanation.to_dict()
    contrast = explanation.contrast
    row = {
        **{name: plain[name] for name, _, _ in COLUMNS if name in plain},
        **more,
        "metrics": dict(metrics),
        "mask": encode_rle(explanation.mask),
        "contrast": None
        if contrast is None
        else {**contrast.to_dict(), "mask": encode_rle(contrast.mask)},
    }
    if contrast is not None:
        del row["contrast"]["size"], row["contrast"]["pixels"]
    return {name: row[name] for name, _, _ in COLUMNS}


def table(rows: list[dict[str, Any]]) -> pyarrow.Table:
    """Rows as a table of the schema."""
    pa = arrow()
    ready = [{**row, "metrics": list(row["metrics"].items())} for row in rows]
    return pa.Table.from_pylist(ready, schema=schema())


def encode_rle(mask: Mask) -> dict[str, list[int]]:
    """COCO's uncompressed run lengths: column by column, hidden first; `size` is height, width.

    >>> import numpy as np
    >>> encode_rle(np.array([[True, False], [True, True]]))
    {'size': [2, 2], 'counts': [0, 2, 1, 1]}
    """
    return {"size": list(mask.shape), "counts": encode_mask(mask.T)}


def decode_rle(rle: Mapping[str, Any]) -> Mask:
    """The mask (H, W) that `encode_rle` wrote.

    >>> decode_rle({"size": [2, 2], "counts": [0, 2, 1, 1]}).tolist()
    [[True, False], [True, True]]

    Raises:
        DamagedExplanation: the runs do not fill the size.
    """
    height, width = rle["size"]
    return decode_mask(list(rle["counts"]), (width, height)).T
