"""The split into training, validation and test images, 64/16/20, near-duplicates kept together."""

from itertools import combinations

import numpy as np
import pandas as pd
from PIL import Image
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

SPLITS = {"train": 0.64, "val": 0.16, "test": 0.20}  # paper 2.2
NEAR_BITS = (
    15  # of 256. A resized or recompressed photograph differs in <= 12 bits, two eyes in >= 60
)
# Gaussian filters of the rows and of the columns of a hash's thumbnail
SMOOTH = [ndimage.gaussian_filter1d(np.eye(n), 2, axis=0) for n in (16, 17)]
MAX_PAIRS = 2**20  # pairs of near-duplicates that are collected before they are merged


def dhash(image):
    """Perceptual hash of an image, uint8 (S, S, 3): 256 bits as uint8 (32,).

    The bits are the signs of the horizontal differences of a grey thumbnail of 17 x 16 pixels. It
    shows the inner 70 %, because the rim is the same in all eyes, and is high-pass filtered,
    because so is the vignetting. A uniform image has hash 0, whatever its noise.
    """
    edge = 0.15 * len(image)
    box = (edge, edge, len(image) - edge, len(image) - edge)
    grey = Image.fromarray(image).convert("L").convert("F").resize((17, 16), Image.BOX, box=box)
    rows, columns = SMOOTH
    grey = grey - rows @ grey @ columns.T
    return np.packbits(grey[:, 1:] > grey[:, :-1] + 0.25)


def near_duplicates(hashes):
    """Group number (N,) of each hash, uint8 (N, 32). Hashes that differ in at most NEAR_BITS bits
    are in one group, and so are all that are connected by such steps.

    The search is exact, and fast for a million hashes. The bits are cut into NEAR_BITS + 2 bands.
    Two hashes that differ in at most NEAR_BITS bits agree in at least two whole bands (pigeonhole
    principle), so only hashes that agree in two bands are compared.
    """
    unique, inverse = np.unique(hashes, axis=0, return_inverse=True)
    order = np.random.default_rng(0).permutation(256)  # neighbouring bits are alike: mix them
    bits = np.unpackbits(unique, axis=1)[:, order]
    power = 1 << np.arange(16, dtype=np.uint32)
    bands = [band @ power[: band.shape[1]] for band in np.array_split(bits, NEAR_BITS + 2, axis=1)]
    words = np.ascontiguousarray(unique).view(np.uint64)  # (N, 4), to count differing bits
    group = np.arange(len(unique))
    for first, second in combinations(bands, 2):
        key = (first << 16) | second
        while len(pairs := _near_pairs(key, group, words)):
            ones = np.ones(len(pairs), bool)
            graph = coo_array((ones, tuple(pairs.T)), shape=(len(unique), len(unique)))
            group = connected_components(graph, directed=False)[1][group]
    return group[inverse.ravel()]


def _near_pairs(key, group, words):
    """Pairs (M, 2) of groups that have near-duplicates with equal keys, at most about MAX_PAIRS.

    Hashes are sorted by key and group. Each one is compared with those of its key that come after
    its own group, one position further in every turn. Because a group is skipped, a thousand black
    images cost a thousand comparisons and not a million.
    """
    both = key.astype(np.uint64) << 32 | group.astype(np.uint64)
    order = np.argsort(both)
    both, key, group = both[order], key[order], group[order]
    ends = np.flatnonzero(np.append(both[1:] != both[:-1], True)) + 1  # of the runs of one group
    left, right = np.arange(len(order)), np.repeat(ends, np.diff(ends, prepend=0))
    pairs, count = [np.empty((0, 2), int)], 0
    while len(left) and count < MAX_PAIRS:
        inside = right < len(order)
        left, right = left[inside], right[inside]
        same_key = key[left] == key[right]
        left, right = left[same_key], right[same_key]
        distance = np.bitwise_count(words[order[left]] ^ words[order[right]]).sum(1)
        near = distance <= NEAR_BITS
        pairs.append(np.stack([group[left[near]], group[right[near]]], 1))
        count += near.sum()
        right = right + 1
    return np.concatenate(pairs)


def split(labels, groups, seed=0):
    """The split (N,) of each image: "train", "val" or "test", 64/16/20 within each label pattern.

    labels: (N, 4), NaN if unknown. All images of a group are in one split. Within each pattern the
    groups are shuffled; the first 64 % of the images are for training, and so on. scikit-learn's
    StratifiedGroupKFold needs minutes for 100,000 images, and fails for fewer than ten.
    """
    pattern = np.nan_to_num(np.asarray(labels), nan=2) @ [1, 3, 9, 27]
    images = pd.DataFrame({"group": groups, "pattern": pattern}).groupby("group")["pattern"]
    table = images.agg(["size", "min"]).sample(frac=1, random_state=seed)
    sizes = table.groupby("min")["size"]
    middle = (sizes.cumsum() - table["size"] / 2) / sizes.transform("sum")  # of the group, 0 to 1
    chosen = np.searchsorted(np.cumsum(list(SPLITS.values()))[:-1], middle, side="right")
    names = pd.Series(np.array(list(SPLITS))[chosen], index=table.index)
    return names.loc[groups].to_numpy()
