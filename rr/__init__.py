"""RetinaRegen, reproduced: readability classifier, conditional features, diffusion and VAE.

The map of the package, in the order of imports. A part imports only parts above it.

    errors, paper, presets, studies    the error for users; numbers, presets, lists of runs
    files, provenance, checkpoint      what is written, and where it comes from
    models                             the paper, one file per section
    data                               drawn eyes, photographs, degradation, packed images, pairs
    train                              the training loop and all training configurations
    restore                            restore a photograph with a trained model
    evaluate                           metrics, baselines, statistics, claims, tables, figures
    workflow                           the jobs of `rr reproduce`, and running one notebook
    cli                                the command line

Images are float32 tensors (N, 3, H, W), RGB, with values in [0, 1], unless a docstring says
otherwise.
"""

import gc

# With a low threshold the garbage collector takes a tenth of the time in which torch is imported.
gc.set_threshold(500_000)

__version__ = "0.1.0"
