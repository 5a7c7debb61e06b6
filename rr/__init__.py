"""RetinaRegen, reproduced: readability classifier, conditional features, diffusion and VAE.

Imports point one way, from left to right being "is used by":

    presets, paper, io
    -> weights, anatomy, synthetic, degrade, metrics, photo
    -> sources -> data
    -> readability, features, fusion, diffusion, vae -> backbones
    -> checkpoint -> restorer, train
    -> figures
    -> notebooks (run by notebook.py and __main__.py)

Images are float32 tensors (N, 3, H, W), RGB, values in [0, 1], wherever no docstring says otherwise.
"""

__version__ = "0.1.0"
