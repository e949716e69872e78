"""For ``ReX IMAGE --script``: copy it, or say what to load in the environment.

CONVAD_FX_MODEL: a name as for `convad-fx explain --model`; CONVAD_FX_WEIGHTS, likewise.
"""

import os

from convad_fx.integrations import rex

preprocess, prediction_function, model_shape = rex.script(
    os.environ.get("CONVAD_FX_MODEL", "resnet50"),
    weights=os.environ.get("CONVAD_FX_WEIGHTS", "DEFAULT"),
)
