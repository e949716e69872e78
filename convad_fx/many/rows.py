"""The table's columns, an explanation as a row, and masks as run lengths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from convad_fx.errors import Unavailable
from convad_fx.explain import Explanation
from convad_fx.explain.encoding import decode_mask, encode_mask
from convad_fx.explain.evaluator import Mask

if TYPE_CHECKING:
    import pyarrow


#: Column, Arrow type, meaning; docs/many.md has the same table.
COLUMNS = (
    ("key", "string", "the picture's name: the source's name, then the path inside it"),
    ("sha256", "string", "SHA-256 of the picture's file"),
    ("bytes", "int64", "size of that file"),
    ("target", "int32", "the class explained"),
    ("target_name", "string", "its name, null where classes have none"),
    ("is_prediction", "bool", "whether it is the network's answer to the whole picture"),
    ("score", "string", "what the confidences are: softmax, sigmoid, probability or logit"),
    ("confidence_whole", "double", "score of the target on the whole picture"),
    ("confidence_kept", "double", "score on the kept pixels, in the batch of the search"),
    ("confidence_recheck", "double", "score on the kept pixels, evaluated again alone"),
    ("sufficient", "bool", "whether confidence_recheck reaches gamma times confidence_whole"),
    ("minimal", "bool", "whether no block of side `minimal` can be removed"),
    ("size", "double", "share of the pixels kept"),
    ("pixels", "int64", "number of pixels kept"),
    ("evaluations", "int64", "masks that the network evaluated"),
    ("deviation", "double", "with --precision: difference of logits from float32"),
    ("metrics", "metrics", "the metrics selected, by name"),
    ("mask", "rle", "kept pixels, COCO run lengths"),
    ("contrast", "contrast", "with --contrastive: what must be hidden for another class"),
    ("image_digest", "string", "SHA-256 of the network's input"),
    ("seconds_load", "double", "seconds for reading, decoding, resizing"),
    ("seconds_search", "double", "seconds for the explanation and its metrics"),
    ("overlay", "string", "with --overlays: the drawing, relative to the folder"),
    ("device", "string", "cpu or cuda"),
    ("model", "string", "as named on the command line"),
    ("weights_digest", "string", "SHA-256 of parameters and buffers"),
    ("policy", "string", "the policy, JSON"),
    ("seed", "int64", "the search's seed"),
    ("versions", "string", "versions of convad_fx and torch, JSON"),
    ("run", "string", "digest of the provenance: one value per run"),
    ("provenance", "string", "everything besides the picture that the row depends on, JSON"),
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
    """The table's Arrow schema: one field per column.

    >>> schema().field("mask").type.field("counts").type
    ListType(list<element: int32>)
    """
    pa = arrow()
    rle = pa.struct(
        [("size", pa.list_(pa.int32())), ("counts", pa.list_(pa.field("element", pa.int32())))]
    )
    nested = {
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
    return pa.schema(
        [(name, nested.get(kind) or pa.type_for_alias(kind)) for name, kind, _ in COLUMNS]
    )


def row_of(
    explanation: Explanation, metrics: Mapping[str, float], other: Mapping[str, Any]
) -> dict[str, Any]:
    """The row of an explanation, as JSON values; `other` has the columns it does not determine."""
    plain = explanation.to_dict()
    row = {**plain, **other, "metrics": dict(metrics), "mask": encode_rle(explanation.mask)}
    row["contrast"] = None
    if explanation.contrast is not None:
        contrast = explanation.contrast.to_dict()
        del contrast["size"], contrast["pixels"]
        row["contrast"] = {**contrast, "mask": encode_rle(explanation.contrast.mask)}
    return {name: row[name] for name, _, _ in COLUMNS}


def table(rows: list[dict[str, Any]]) -> pyarrow.Table:
    """Rows as a table with the columns of `schema`."""
    pa = arrow()
    rows = [{**row, "metrics": list(row["metrics"].items())} for row in rows]
    return pa.Table.from_pylist(rows, schema=schema())


def encode_rle(mask: Mask) -> dict[str, list[int]]:
    """COCO's uncompressed run lengths: column by column, hidden first; `size` is (height, width).

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
        DamagedExplanation: the run lengths do not add up to height times width.
    """
    height, width = rle["size"]
    return decode_mask(list(rle["counts"]), (width, height)).T
