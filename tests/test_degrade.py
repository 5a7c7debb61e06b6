"""Properties of the degradation, and naive float64 oracles for its blur and its shapes."""

import io
from itertools import pairwise

import cofe_reference
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.transform import downscale_local_mean

from rr.data import degrade, haze, synthetic
from rr.data.photo import to_tensor
from rr.data.readable import RHO_MIN, readable
from rr.data.shapes import blurred_disc
from rr.errors import InputError
from rr.evaluate.metrics import psnr
from rr.models.deconvolution import blur


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def circle(size, u, v, radius):
    axis = (torch.arange(size) + 0.5) / size
    return ((axis - u) ** 2 + (axis[:, None] - v) ** 2 <= radius**2)[None, None]


def eyes(n=4, size=96, seed=0):
    """Round images with a gradient, a bright disc at (0.75, 0.5) and dark lines everywhere; black
    outside.
    """
    axis = (np.arange(size) + 0.5) / size
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(n):
        tone = 0.55 + 0.15 * np.cos(3 * axis)[:, None] + 0.1 * axis
        for angle, phase in rng.uniform(0, 1, (8, 2)):
            wave = np.sin(
                40 * (axis * np.cos(6 * angle) + axis[:, None] * np.sin(6 * angle)) + 6 * phase
            )
            tone = tone - 0.12 * np.exp(-((wave - 1) ** 2) / 0.02)
        tone = tone + 0.3 * circle(size, 0.75, 0.5, 0.08)[0, 0].numpy()
        images.append(tone[None] * np.array([1.0, 0.55, 0.35])[:, None, None])
    fov = circle(size, 0.5, 0.5, 0.48).expand(n, 1, size, size)
    return torch.from_numpy(np.stack(images)).float().clamp(0, 1) * fov, fov


@pytest.mark.parametrize(
    "families", [(), *((name,) for name in degrade.FAMILIES), degrade.FAMILIES]
)
def test_severity_0_is_the_identity_bit_by_bit(families):
    x = torch.rand(3, 3, 40, 40, generator=generator(1))
    assert torch.equal(degrade.apply(x, degrade.sample(3, generator(), families, severity=0.0)), x)


def test_the_identity_holds_per_image_in_a_mixed_batch():
    x, fov = eyes()
    y = degrade.apply(
        x, degrade.sample(4, generator(), severity=torch.tensor([0.0, 1.0, 0.0, 0.5])), fov
    )
    assert [torch.equal(a, b) for a, b in zip(x, y, strict=True)] == [True, False, True, False]


@pytest.mark.parametrize("k, name", list(enumerate(degrade.FAMILIES)))
def test_every_family_acts_alone_and_can_be_chosen_per_image(k, name):
    x, fov = eyes()
    chosen = torch.zeros(4, 3)
    chosen[2:, k] = 1
    per_image = degrade.apply(x, degrade.sample(4, generator(), chosen, severity=1.0), fov)
    by_name = degrade.apply(x, degrade.sample(4, generator(), (name,), severity=1.0), fov)
    assert torch.equal(per_image[:2], x[:2])
    assert torch.equal(per_image[2:], by_name[2:])
    assert (by_name - x).abs().amax(dim=(1, 2, 3)).min() > 0.01


def test_the_same_seed_gives_the_same_parameters_and_image_i_does_not_depend_on_how_many_follow():
    a, b, more = (
        degrade.sample(5, generator(7)),
        degrade.sample(5, generator(7)),
        degrade.sample(40, generator(7)),
    )
    other = degrade.sample(5, generator(8))
    for name in a:
        assert torch.equal(a[name], b[name]) and torch.equal(a[name], more[name][:5])
    assert not any(torch.equal(a[name], other[name]) for name in degrade.RANGES)


def test_parameters_fill_their_ranges():
    params = degrade.sample(4000, generator())
    for name, (k, low, high) in degrade.RANGES.items():
        values = params[name]
        assert values.dtype == torch.float32 and values.shape == ((4000, k) if k > 1 else (4000,))
        assert (
            low <= values.min() < low + 0.02 * (high - low)
            and high - 0.02 * (high - low) < values.max() <= high
        )
    assert params["severity"].mean() == pytest.approx(0.5, abs=0.02)


def test_a_mild_blur_changes_the_blur_alone_and_within_its_range():
    params = degrade.sample(2000, generator())
    mild = degrade.mild_blur(params, generator(1))
    assert mild.keys() == params.keys() and all(
        mild[name] is params[name] for name in params if name != "blur_sigma"
    )
    low, high = 1.5 / 512, 4 / 512
    assert (
        low <= mild["blur_sigma"].min() < 1.01 * low
        and 0.99 * high < mild["blur_sigma"].max() <= high
    )
    assert torch.equal(degrade.mild_blur(params, generator(1))["blur_sigma"], mild["blur_sigma"])
    x, fov = eyes()
    few, strong = (
        {name: v[:4] for name, v in p.items()} | {"severity": torch.ones(4)} for p in (mild, params)
    )
    few, strong = (
        degrade.apply(x, p | {"families": torch.tensor([[0.0, 0, 1]] * 4)}, fov)
        for p in (few, strong)
    )
    assert (psnr(x, few) > psnr(x, strong) + 3).all()


def test_haze_is_seeded_per_image_and_absent_at_severity_0():
    x, fov = eyes(5)
    params = haze.sample(5, generator(7))
    more = haze.sample(40, generator(7))
    assert all(torch.equal(params[name], more[name][:5]) for name in params)
    for name, (_, low, high) in haze.RANGES.items():
        assert low <= params[name].min() < params[name].max() <= high
    mixed = haze.sample(5, generator(7), torch.tensor([0.0, 1.0, 0.0, 0.5, 0.0]))
    y = haze.apply(x, mixed, fov)
    assert [torch.equal(a, b) for a, b in zip(x, y, strict=True)] == [
        True,
        False,
        True,
        False,
        True,
    ]
    assert (
        (y * ~fov).abs().max() == 0 and 0 <= y.min() and y.max() <= 1 and y.dtype == torch.float32
    )
    alone = haze.apply(x[3:4], {name: v[3:4] for name, v in mixed.items()}, fov[3:4])
    assert (alone[0] - y[3]).abs().max() < 1e-6


def test_haze_equals_the_scattering_equation():
    """One image in float64 with numpy and scipy, far enough from the border for scipy's own
    treatment of it.
    """
    x, _ = eyes(1, size=128)
    p = haze.sample(1, generator(2), 0.7)
    y = haze.apply(x, p)[0].double().numpy()
    p = {name: value[0].numpy().astype(float) for name, value in p.items()}
    s, image = 0.7, x[0].double().numpy()
    axis = (np.arange(128) + 0.5) / 128
    r2 = (axis - p["haze_u"]) ** 2 + (axis[:, None] - p["haze_v"]) ** 2
    t = np.exp(
        -s * (p["haze_depth"] + p["haze_more"] * (1 - np.exp(-r2 / (2 * p["haze_reach"] ** 2))))
    )
    blurred = gaussian_filter(image, (0, *[s * p["blur_sigma"] * 128] * 2), truncate=6)
    own = image.mean((1, 2)) / image.mean((1, 2)).max()
    veil = p["haze_level"] * (own + p["haze_white"] * (1 - own))
    expected = t * blurred + (1 - t) * veil[:, None, None]
    np.testing.assert_allclose(y[:, 16:-16, 16:-16], expected[:, 16:-16, 16:-16], atol=1e-5)


def test_haze_takes_contrast_away_more_and_more_and_no_training_draws_it():
    x, fov = eyes(12)
    params = haze.sample(12, generator())
    inside, left = circle(96, 0.5, 0.5, 0.4).expand(12, 1, 96, 96), []
    for severity in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = haze.apply(x, params | {"severity": torch.full((12,), severity)}, fov)
        left.append(readable(x, y, inside)[1]["gain"].mean().item())
    assert left[0] == pytest.approx(1) and all(
        before > 1.2 * after for before, after in pairwise(left)
    ), left
    assert not any("haze" in name for name in (*degrade.FAMILIES, *degrade.sample(1, generator())))


def test_haze_is_the_same_at_every_size():
    x, fov = eyes(3, size=384)
    params = haze.sample(3, generator(5), 1.0)
    small, small_y = (
        torch.from_numpy(downscale_local_mean(a.numpy(), (1, 1, 4, 4)))
        for a in (x, haze.apply(x, params))
    )
    assert psnr(small_y, haze.apply(small, params)).min() > 40


@pytest.mark.parametrize("aimed", [True, False])
def test_replay_through_a_csv_is_exact(aimed):
    x, fov = eyes(6)
    aim = {"centre": torch.rand(6, 2, generator=generator(3))}
    aim |= {"radius": torch.rand(6, generator=generator(4))}
    params = degrade.sample(6, generator(5), **(aim if aimed else {}))
    text = degrade.to_table(params).assign(name="an unrelated column").to_csv(index=False)
    again = degrade.from_table(pd.read_csv(io.StringIO(text)))
    assert again.keys() == params.keys()
    assert all(torch.equal(again[name], params[name]) for name in params)
    assert torch.equal(degrade.apply(x, again, fov), degrade.apply(x, params, fov))


def test_an_image_does_not_depend_on_its_batch():
    x, fov = eyes()
    params = degrade.sample(4, generator(), severity=0.8)
    whole = degrade.apply(x, params, fov)
    for i in range(4):
        alone = degrade.apply(
            x[i : i + 1], {name: v[i : i + 1] for name, v in params.items()}, fov[i : i + 1]
        )
        assert (alone[0] - whole[i]).abs().max() < 1e-6


@pytest.mark.parametrize("families", [*((name,) for name in degrade.FAMILIES), degrade.FAMILIES])
def test_the_degradation_is_the_same_at_every_size(families):
    def smaller(image):
        return torch.from_numpy(downscale_local_mean(image.numpy(), (1, 1, 4, 4)))

    x, _ = eyes(2, size=384)
    params = degrade.sample(2, generator(2), families, severity=1.0)
    y = degrade.apply(smaller(x), params)
    between_sizes = psnr(smaller(degrade.apply(x, params)), y).min()
    assert between_sizes > 40 and between_sizes > psnr(smaller(x), y).max() + 6


def test_outside_the_field_of_view_is_black_and_values_stay_in_range():
    x, fov = eyes(16)
    y = degrade.apply(x, degrade.sample(16, generator(), severity=1.0), fov)
    assert (y * ~fov).abs().max() == 0
    assert 0 <= y.min() and y.max() <= 1 and y.dtype == torch.float32


@pytest.mark.parametrize("families", [*((name,) for name in degrade.FAMILIES), degrade.FAMILIES])
def test_psnr_falls_with_severity(families):
    x, fov = eyes(12, size=64)
    params = degrade.sample(12, generator(), families)
    curve = []
    for severity in (0.1, 0.3, 0.5, 0.7, 0.9, 1.0):
        params["severity"] = torch.full((12,), severity)
        curve.append(psnr(x, degrade.apply(x, params, fov)).mean().item())
    assert all(before > after for before, after in pairwise(curve)), curve


def test_an_aimed_degradation_is_complete_inside_and_absent_far_away():
    x, fov = eyes(3)
    aim = {"centre": torch.tensor([[0.75, 0.5]]).expand(3, 2), "radius": torch.full((3,), 0.12)}
    params = degrade.sample(3, generator(), severity=1.0, **aim)
    y = degrade.apply(x, params, fov)
    far = ~circle(96, 0.75, 0.5, 0.18)
    assert torch.equal(y * far, x * far)
    unaimed = {name: value for name, value in params.items() if name not in ("centre", "radius")}
    everywhere = degrade.apply(x, unaimed, fov)
    inside = circle(96, 0.75, 0.5, 0.12)
    assert torch.equal(y * inside, everywhere * inside)
    assert ((y - x).abs() * inside).amax(dim=(1, 2, 3)).min() > 0.05
    assert (params["spot_u"] - 0.75).abs().max() <= 0.12 and torch.equal(
        params["hole_v"], torch.full((3,), 0.5)
    )


@pytest.mark.parametrize("size", [224, 512])
@pytest.mark.parametrize(
    "families", [("illumination",), ("spots",), ("blur",), degrade.FAMILIES], ids="+".join
)
def test_fields_equal_the_published_formulation(families, size):
    """Shapes in closed form against discs drawn and blurred at full resolution; an edge within half
    a pixel is .005.
    """
    eye = synthetic.fundus(0, 1, size)
    x, fov = to_tensor(eye.image), torch.from_numpy(eye.fov)[None, None]
    params = degrade.sample(1, generator(3), families, 1.0)
    ours, theirs = degrade.apply(x, params, fov), cofe_reference.apply(x, params, fov)
    assert (theirs - x).abs().max() > 0.02
    assert (ours - theirs).abs().max() < 0.01


def test_a_compiler_sees_one_graph():
    (x, _), params = eyes(2, 32), degrade.sample(2, generator(), severity=1.0)
    compiled = torch.compile(degrade.apply, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(x, params), degrade.apply(x, params), atol=1e-5)


def test_blur_equals_a_naive_gaussian():
    x = torch.rand(2, 3, 30, 40, generator=generator())
    sigma = torch.tensor([0.03, 0.1])
    y = blur(x, sigma).numpy()
    for n in range(2):
        s = sigma[n].item() * 40  # in widths, also along the height
        for i, j in [(0, 0), (12, 20), (29, 3), (7, 39)]:
            rows, columns = np.mgrid[:30, :40].astype(float)
            weight = np.exp(-((rows - i) ** 2 + (columns - j) ** 2) / (2 * s * s))
            expected = (weight * x[n].double().numpy()).sum(axis=(1, 2)) / weight.sum()
            np.testing.assert_allclose(y[n, :, i, j], expected, atol=2e-6)
    assert torch.equal(blur(x, torch.zeros(2)), x)


def test_blur_keeps_a_constant_image_up_to_the_border():
    assert (blur(torch.full((1, 3, 50, 50), 0.7), torch.tensor([0.03])) - 0.7).abs().max() < 1e-6


def test_spots_equal_blurred_discs():
    """Each spot drawn as a disc and blurred, in float64; the closed form stays within 6 % of the
    brightest spot.
    """
    size = 256
    axis = (np.arange(size) + 0.5) / size
    params = degrade.sample(4, generator(9), ("spots",), severity=1.0)
    field = degrade._spots(
        params, params["severity"], torch.from_numpy(axis).float(), torch.from_numpy(axis).float()
    )
    for n in range(4):
        expected = np.zeros(
            (2 * size, 2 * size)
        )  # a margin, so that light beyond the border is not reflected back
        count = int(params["spot_count"][n])
        assert 5 <= count <= 10
        for k in range(count):
            u, v, radius = (params[f"spot_{name}"][n, k].item() for name in ("u", "v", "radius"))
            r = radius * 512  # cofe-Net's formulas count pixels at 512
            alpha = (14 / 25 + 1 - r / 25) * (1 - np.exp(-(0.5 + r / 25) * 0.3 * r / 25))
            fine = (np.arange(2 * size) + 0.5) / size - 0.5
            disc = alpha * ((fine - u) ** 2 + (fine[:, None] - v) ** 2 <= radius**2)
            expected += gaussian_filter(disc, (5 + 20 * r / 25) / 512 * size)
        expected = expected[size // 2 : -size // 2, size // 2 : -size // 2]
        assert np.abs(field[n, 0].numpy() - expected).max() < 0.06 * expected.max()


@pytest.mark.parametrize("radius, sigma", [(0.2, 0.045), (0.35, 0.06), (0.375, 0.07)])
def test_halo_and_hole_are_blurred_discs(radius, sigma):
    """A disc drawn on a fine grid and blurred, at the extremes of sigma."""
    size = 800
    axis = (np.arange(size) + 0.5) / size * 2 - 1  # two widths, the disc in the middle
    r2 = axis**2 + axis[:, None] ** 2
    expected = gaussian_filter((r2 <= radius**2).astype(float), sigma * size / 2)
    result = blurred_disc(
        torch.from_numpy(r2)[None, None], torch.tensor([radius]), torch.tensor([sigma])
    )
    assert np.abs(result[0, 0].numpy() - expected).max() < 0.005


def test_illumination_factors_are_brightness_contrast_saturation():
    """Against plain numpy, with the halo and the hole out of the picture."""
    x, _ = eyes(1)
    params = degrade.sample(1, generator(), ("illumination",), severity=0.5)
    params |= {"halo_u": torch.tensor([50.0]), "hole_u": torch.tensor([50.0])}
    y = degrade.apply(x, params)[0].double().numpy()
    b, c, s = (
        1 + 0.5 * (params[name].item() - 1) for name in ("brightness", "contrast", "saturation")
    )
    luma = np.array([0.299, 0.587, 0.114])
    z = b * x[0].double().numpy()
    z = c * z + (1 - c) * np.tensordot(luma, z, 1).mean()
    z = s * z + (1 - s) * np.tensordot(luma, z, 1)
    np.testing.assert_allclose(y, z.clip(0, 1), atol=1e-5)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_image_even_under_autocast():
    x, fov = eyes()
    params = degrade.sample(4, generator(), severity=torch.tensor([0.0, 0.3, 0.6, 1.0]))
    with torch.autocast("cuda", torch.bfloat16):
        y = degrade.apply(
            x.cuda(), {name: value.cuda() for name, value in params.items()}, fov.cuda()
        ).cpu()
    assert torch.equal(y[0], x[0]) and (y - degrade.apply(x, params, fov)).abs().max() < 1e-4


def test_the_degradation_is_differentiable():
    x, _ = eyes(1, size=32)
    x.requires_grad_()
    degrade.apply(x, degrade.sample(1, generator(), severity=0.5)).sum().backward()
    assert x.grad.abs().sum() > 0 and x.grad.isfinite().all()


def test_readable_follows_what_happened_to_the_region():
    x, fov = eyes(3)
    disc, macula = (circle(96, u, 0.5, 0.1).expand(3, 1, 96, 96) for u in (0.75, 0.35))
    ok, numbers = readable(x, x, disc)
    assert ok.all() and torch.allclose(numbers["gain"], torch.ones(3).double())
    params = degrade.sample(3, generator(), ("blur",), severity=1.0) | {
        "blur_sigma": torch.full((3,), 10 / 512)
    }
    blurred = degrade.apply(x, params, fov)
    for region in (disc, macula, fov):
        assert not readable(x, blurred, region)[0].any()
    aim = {"centre": torch.tensor([[0.75, 0.5]]).expand(3, 2), "radius": torch.full((3,), 0.14)}
    params = degrade.sample(3, generator(), severity=1.0, **aim) | {
        "blur_sigma": torch.full((3,), 10 / 512)
    }
    aimed = degrade.apply(x, params, fov)
    assert not readable(x, aimed, disc)[0].any() and readable(x, aimed, macula)[0].all()


def test_readable_measures_contrast_and_agreement():
    x, fov = eyes(1)
    _, faint = readable(x, 0.1 + 0.6 * x, fov)  # less contrast, same detail
    assert faint["gain"].item() == pytest.approx(0.6, abs=1e-4) and faint[
        "fidelity"
    ].item() == pytest.approx(1, abs=1e-5)
    other, _ = eyes(1, seed=5)
    ok, numbers = readable(x, other, circle(96, 0.35, 0.5, 0.15))  # sharp, but another eye's detail
    assert not ok.any() and numbers["fidelity"].item() < RHO_MIN
    ok, numbers = readable(x, x, torch.zeros_like(fov))
    assert not ok.any() and numbers["gain"].isnan().all()


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: degrade.sample(1, generator(), ("fog",)), "fog"),
        (lambda: degrade.sample(1, generator(), severity=1.5), "severity"),
        (lambda: degrade.sample(1, generator(), severity=float("nan")), "severity"),
        (lambda: degrade.sample(1, generator(), centre=torch.zeros(1, 2)), "radius"),
        (lambda: haze.sample(1, generator(), severity=1.5), "severity"),
        (
            lambda: haze.apply(torch.zeros(2, 3, 8, 8), haze.sample(1, generator())),
            "2 images",
        ),
        (
            lambda: degrade.apply(torch.zeros(2, 3, 8, 8), degrade.sample(1, generator())),
            "2 images",
        ),
        (lambda: degrade.from_table(pd.DataFrame({"severity": [0.5]})), "families_0"),
    ],
)
def test_bad_input_is_one_clear_line(call, words):
    with pytest.raises(InputError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
