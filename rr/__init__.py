"""RetinaRegen, reproduced: readability classifier, conditional features, diffusion and VAE.

Imports point one way, from left to right being "is used by":

    presets, paper, io
    -> weights, anatomy, synthetic, degrade, metrics, photo
    -> sources -> data
    -> readability, features, fusion, diffusion, vae -> backbones
    -> checkpoint -> restorer, train -> notebooks 00 to 06
    paper, io -> studies -> tables -> comparisons -> notebooks 07 to 11, without torch; figures serve all
    notebook (runs one) -> forked, workflow (all as jobs) -> reproduce, report, readme, __main__

Images are float32 tensors (N, 3, H, W), RGB, values in [0, 1], wherever no docstring says otherwise.
"""

__version__ = "0.1.0"
