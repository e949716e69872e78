"""Many pictures: folders and tar files in, one Parquet row per picture out, whatever happens.

Sources stream (`sources`), a question is asked of each picture (`question`), its row (`rows`) is
kept at once where a kill cannot reach it (`store`), under the digest of all it depends on
(`provenance`); `run` ties them together, in one process or several.
"""

from convad_fx.many.provenance import Provenance
from convad_fx.many.question import Explainer, Question, Recipe
from convad_fx.many.rows import decode_rle, encode_rle, schema
from convad_fx.many.run import Outcome, Shard, Summary, explain_many
from convad_fx.many.sources import Item, Source, stream
from convad_fx.many.store import Store, read

__all__ = [
    "Explainer",
    "Item",
    "Outcome",
    "Provenance",
    "Question",
    "Recipe",
    "Shard",
    "Source",
    "Store",
    "Summary",
    "decode_rle",
    "encode_rle",
    "explain_many",
    "read",
    "schema",
    "stream",
]
