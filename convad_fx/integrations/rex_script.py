"""A script for ``ReX IMAGE --script``, configured by environment variables.

CONVAD_FX_MODEL and CONVAD_FX_WEIGHTS: as `--model` and `--weights` of `convad-fx explain`.
"""

import os

from convad_fx.integrations import rex

preprocess, prediction_function, model_shape = rex.script(
    os.environ.get("CONVAD_FX_MODEL", "resnet50"),
    weights=os.environ.get("CONVAD_FX_WEIGHTS", "DEFAULT"),
)
