"""The paper's own numbers and the gaps in its text (RetinaRegen, arXiv 2502.19153).

The numbers were measured by its authors on SynFundus-1M, which is available by application only.
They are quoted beside ours. They cannot be compared in size, because the data differ.
"""

from typing import NamedTuple

LABELS = (
    "fundus",
    "macula",
    "disc",
    "retina",
)  # 2.2: a valid fundus image, and what of it is readable


class Score(NamedTuple):
    psnr: float
    ssim: float
    lpips: float


RETINAREGEN = Score(27.4521, 0.9556, 0.1911)  # C1: abstract and 3.2, optic-disc (RO) subset

OTHER_BACKBONES = {
    "lowest": Score(9.4982, 0.0773, 0.5300),
    "highest": Score(10.5970, 0.2226, 0.7857),
}  # C2: 3.2, ranges

EXTRACTORS = {  # C3: Table 1, in its order
    "attention": Score(27.0733, 0.9461, 0.1736),
    "alexnet": Score(25.7213, 0.9445, 0.2383),
    "resnet18": Score(25.8058, 0.9320, 0.2092),
    "resnet34": RETINAREGEN,
    "resnet50": Score(26.4427, 0.9446, 0.1836),
    "vgg16": Score(24.8090, 0.9106, 0.2038),
    "resnext50": Score(26.5226, 0.9458, 0.1939),
    "mobilenet": Score(26.5648, 0.9202, 0.1511),
}

FUSIONS = {  # C4: 3.2
    "upsample-static": Score(11.99, 0.350, 0.546),
    "upsample-dynamic": Score(12.21, 0.681, 0.329),
    "bilinear-static": RETINAREGEN,
    "bilinear-dynamic": Score(15.26, 0.713, 0.271),
}


def ranked(table, metric):
    """The keys of one of the paper's tables, {key: paper.Score}, best first."""
    return sorted(table, key=lambda key: getattr(table[key], metric), reverse=metric != "lpips")


class Choice(NamedTuple):
    """A gap of the paper: its words, our choice, and reasonable alternatives."""

    about: str
    paper: str
    ours: str
    alternatives: str


# fmt: off
CHOICES = (
    Choice("reference image",
           "unreadable images are restored; the target is not named (2.1, 3.1)",
           "`paired`: a readable image, degraded by a known operator, is its own reference; "
           "`literal`: the unreadable input is the target. The two are never mixed",
           "real pairs of one eye; no-reference scores"),
    Choice("image size of the restoration",
           "224 px for the classifier (2.2), nothing else",
           "the size of the classifier, per preset",
           "512 px"),
    Choice("what is unreadable",
           "the experiments target the optic disc (RO) (3.1)",
           "screening: any of the four labels has a probability below 0.5, corrected for the "
           "class weights; protocol `literal`: the label disc is 0",
           "the disc alone; other thresholds"),
    Choice("images that are no fundus",
           "label 1: valid fundus image (2.2)",
           "they are left alone and reported",
           "restored like the others"),
    Choice("who verifies",
           "the classifier that chose the images evaluates them again (2.1)",
           "this classifier, and a ResNet18 that is trained separately for evaluation only",
           "human readers; a reading task"),
    Choice("when an image passes",
           "meets clinical readability standards (2.1)",
           "all four labels have a probability of at least 0.5",
           "the disc alone; another operating point"),
    Choice("class weights",
           "computed from sample proportions (2.2)",
           "negatives / positives per label, within [1/20, 20]; decisions use probabilities that "
           "are corrected for these weights",
           "weights of both classes; focal loss"),
    Choice("augmentation",
           "flip, brightness, contrast (2.2)",
           "half of the images are flipped; brightness +-10 % of the range; contrast 0.9 to 1.1",
           "stronger"),
    Choice("InceptionV3",
           "extracts features \"using residual blocks\" (2.2)",
           "torchvision's InceptionV3, which has no residual blocks",
           "Inception-ResNet"),
    Choice("image range in the diffusion",
           "the decoder's sigmoid constrains to [0, 1] (2.5)",
           "x in [0, 1] throughout",
           "[-1, 1], as in DDPM"),
    Choice("steps T and schedule",
           "beta_t, alpha_t without values (2.4)",
           "cosine with T = 100 or 200; preset `paper`: linear with T = 1000; linear betas are "
           "rescaled by 1000 / T",
           "unscaled betas; sigmoid schedule; zero terminal SNR"),
    Choice("where the reverse chain starts",
           "unreadable images are corrupted with noise (2.1)",
           "at the unreadable image, noised to t_0 = start * T; training shows what a restoration "
           "visits (`Denoiser.training_states`)",
           "pure noise (start = 1)"),
    Choice("what the backbone predicts",
           "the noise (2.4); the VAE's decoder reconstructs the image (2.1, 2.5)",
           "the image for the VAE, the noise for the others",
           "one objective for all backbones"),
    Choice("loss of the VAE in the diffusion",
           "noise MSE (2.4) and BCE + KL (2.5)",
           "BCE + KL against the clear image",
           "noise MSE; both; MSE + beta KL; continuous Bernoulli"),
    Choice("sign of the BCE",
           "printed without its minus (2.5)",
           "the negative log-likelihood",
           "none, because the printed sum would be maximized"),
    Choice("how c joins x_t",
           "\"concatenated\" in words, c + x_t in the formula (2.4)",
           "added, as section 3.2 says throughout",
           "concatenated"),
    Choice("condition and state",
           "x_t^conditioned = c + x_t, also on the left of the reverse step (2.4)",
           "c is added to the network's input only, so that the state keeps its distribution",
           "added to the state at every step"),
    Choice("noise of the reverse step",
           "sqrt(beta_t) epsilon, the letter of the forward noise (2.4)",
           "fresh noise z at every step",
           "none, because the same epsilon gives no sampling"),
    Choice("noise target of a pair y != x",
           "the true noise (2.4)",
           "the epsilon that leads from x to x_t",
           "the drawn noise, trained on x alone"),
    Choice("weight of the squared error at step t (y != x)",
           "none (2.4)",
           "min-SNR: the error of x_0 counts min(SNR, 5) for noise, v and image; the "
           "VAE that predicts the image keeps BCE + KL (2.5), without a weight",
           "no weight; the same weight for every t"),
    Choice("256 to 3 channels",
           "mismatches in resolution and channels (3.2)",
           "a learned 1x1 convolution",
           "mean over channels; 3x3 convolution"),
    Choice("`upsample` and `bilinear`",
           "after upsampling / bilinear interpolation (3.2)",
           "nearest-neighbour repetition / bilinear interpolation",
           "transposed convolution"),
    Choice("`static` and `dynamic`",
           "fixed weights / learned weights (3.2)",
           "1 and 1 / one learned weight per channel and term",
           "a gate from the features; weights that depend on t"),
    Choice("training of compression and attention",
           "not stated (2.3)",
           "the extractor is trained on the four readability labels, then frozen",
           "frozen at random; trained with the denoiser"),
    Choice("static condition",
           "pooling features extracted from all readable images (4)",
           "the mean over the readable training images, per position",
           "also pooled over positions; per-image conditions"),
    Choice("attention block",
           "enhances the feature maps (2.3)",
           "added to the features, without position code or dropout",
           "concatenated; with position code"),
    Choice("time in the VAE",
           "t enters epsilon_theta (2.4); 2.5 does not mention it",
           "one bias per channel of the first convolution, in the diffusion only",
           "no time; FiLM in every layer"),
    Choice("size and widths of the VAE",
           "three convolutions, three transposed (2.5)",
           "4x4 kernels, stride 2; widths and latent size per preset",
           "other kernels; a spatial latent"),
    Choice("InceptionV3's auxiliary head",
           "not mentioned (2.2)",
           "left out",
           "kept at 299 px"),
    Choice("sampling",
           "the DDPM step (2.4)",
           "one call of the network at t_0, which validation prefers (notebook 10); in a training "
           "for the chain: that step, z = 0 at t = 1, x_0 clipped to [0, 1]; DDIM with k steps",
           "no clipping"),
    Choice("length of training, batch, optimizer",
           "RMSprop 1e-4 for the classifier (2.2), nothing else",
           "AdamW for all others, with warm-up, a decay in the last 40 %, and a rate that falls "
           "with the inputs of a layer; images seen and batch per preset; the averaged weights "
           "(EMA) are kept",
           "equal time instead of equal numbers of images"),
    Choice("metrics",
           "PSNR, SSIM, LPIPS (3.1)",
           "data range 1; SSIM with a Gaussian window of 11 px, sigma 1.5; LPIPS AlexNet v0.1; "
           "full frame, field of view and disc",
           "other windows; other trunks"),
    Choice("labels of the embedded data",
           "SynFundus-1M's labels",
           "a declared rule on what the degradation left of a region (`readable`)",
           "human graders"),
)
# fmt: on
