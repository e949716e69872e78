"""The demo of `convad-fx demo`: a small trained network, and the pictures it was trained on.

`scenes` draws the pictures, `train` trains the network on them, and `network` loads its weights.
"""
