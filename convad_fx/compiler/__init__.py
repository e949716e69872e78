"""From a trained model to a masked graph: capture, analysis, passes, lowering.

`kernels` are the functions that the emitted code calls.
"""
