"""What `convad-fx demo` shows: a small trained network, and the pictures it was trained on.

Everything is made here: `scenes` draws the pictures, `train` trains the network on them, `network`
loads the weights that `train` left beside it.
"""
