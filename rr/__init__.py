"""RetinaRegen, reproduced: readability classifier, conditional features, diffusion and VAE.

Imports point one way, from left to right being "is used by":

    presets, paper, io -> weights, synthetic, degrade, metrics -> data
    -> readability, features, fusion, diffusion, vae -> backbones -> restorer, train -> figures -> notebooks, __main__

Images are float32 tensors (N, 3, H, W), RGB, values in [0, 1], wherever no docstring says otherwise.
"""

__version__ = "0.1.0"
