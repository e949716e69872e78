"""Explain many pictures: folders and tar files in, one Parquet row per picture out.

`sources` streams the pictures, `explainer` makes the row (`rows`) of each with the `options` of the
run, and `store` writes it to disk before the next picture begins, with a digest of everything it
depends on (`provenance`). `run` combines them, in one process or in several.
"""

from convad_fx.many.explainer import Explainer
from convad_fx.many.options import ClassifierSpec, ExplainOptions, rank_device
from convad_fx.many.provenance import Provenance
from convad_fx.many.rows import decode_rle, encode_rle, schema
from convad_fx.many.run import Outcome, Shard, Summary, explain_many
from convad_fx.many.sources import Item, Source, stream
from convad_fx.many.store import Store, read

__all__ = [
    "ClassifierSpec",
    "ExplainOptions",
    "Explainer",
    "Item",
    "Outcome",
    "Provenance",
    "Shard",
    "Source",
    "Store",
    "Summary",
    "decode_rle",
    "encode_rle",
    "explain_many",
    "rank_device",
    "read",
    "schema",
    "stream",
]
