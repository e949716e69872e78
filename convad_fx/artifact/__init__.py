"""A masked network as one file, which a fresh process loads without the model's source.

>>> import tempfile, pathlib, torch, torchvision, convad_fx
>>> model = torchvision.models.resnet18().eval()
>>> masked = convad_fx.convert(model, torch.zeros(1, 3, 64, 64))
>>> path = pathlib.Path(tempfile.mkdtemp(), "resnet18.cfx")
>>> convad_fx.save(masked, path, class_names=[f"class {n}" for n in range(1000)])
>>> again = convad_fx.load(path)
>>> x, mask = torch.rand(1, 3, 64, 64), torch.rand(4, 1, 64, 64) > 0.5
>>> torch.equal(again(x, mask), masked(x, mask))
True
>>> describe(path).class_names[7]
'class 7'
"""

from convad_fx.artifact.file import Artifact, describe, is_artifact, load, save

__all__ = ["Artifact", "describe", "is_artifact", "load", "save"]
