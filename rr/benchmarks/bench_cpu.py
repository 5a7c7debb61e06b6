"""The rows of `rr bench cpu`: each function prepares one comparison, and yields it as rr.bench.Task.

One thread each, on both sides. Peers are taken as their documentation shows them, and once more with what it offers for
speed. Pictures are drawn (rr.synthetic) or come with scikit-image: nothing is downloaded.
"""

import copy
import cProfile
import json
import math
import os
import pstats
import subprocess
import sys
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms import functional as tv

from rr import files as io
from rr import restore, studies
from rr.benchmarks.bench import (
    Gate,
    NotMeasured,
    Task,
    hotspots,
    need,
    parameters,
    seconds,
    with_trunk,
)
from rr.data import dataset as data
from rr.data import degrade, packing, photo, sources, synthetic
from rr.data.photo import read_photograph, to_photograph, to_tensor
from rr.evaluate import metrics
from rr.models import backbones
from rr.models.diffusion import Diffusion
from rr.models.readability import Readability
from rr.paper import LABELS
from rr.train import loop as train
from rr.workflow import forked

ONE_THREAD = {
    f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")
}  # of processes started here
REFERENCE = io.ROOT / "tests" / "cofe_reference.py"  # of the degradation
SHAPES = (
    (64, 112),
    (64, 56),
    (128, 56),
    (128, 28),
    (256, 28),
    (192, 35),
)  # of 3x3 convolutions: channels, side
NOTEBOOK = """# %% tags=["parameters"]
number: int = 1  # printed

# %%
import torch, torchvision
import rr.models.restorer

print(number, torch.ones(2).sum())
"""


def notebook():
    """T1: what a run of a notebook that imports torch costs beyond its own work, which here is none."""
    need("papermill")
    if sys.platform != "linux":
        raise NotMeasured("forked kernels need Linux")
    import jupytext
    import nbformat
    import papermill

    with (
        TemporaryDirectory() as folder,
        forked.server(1) as variables,
    ):  # as `rr reproduce` starts it, once for all notebooks
        script, twin, ours, theirs = (
            Path(folder) / name for name in ("tiny.py", "tiny.ipynb", "ours.ipynb", "theirs.ipynb")
        )
        script.write_text(NOTEBOOK)
        jupytext.write(jupytext.read(script, fmt="py:percent"), twin)

        def command(*words):
            return subprocess.run([sys.executable, "-m", *map(str, words)], env=os.environ | ONE_THREAD | variables,
                                  cwd=folder, check=True, capture_output=True, text=True).stderr  # fmt: skip

        def printed(path):
            return [
                output.text
                for cell in nbformat.read(path, 4).cells
                for output in cell.get("outputs", [])
            ]

        run = partial(command, "rr", "run", script, "--executed", ours)
        papermill_command = partial(command, "papermill", twin, theirs, "-k", "python3")
        papermill_warm = partial(
            papermill.execute_notebook, twin, theirs, kernel_name="python3", progress_bar=False
        )
        if "without the server" in run():
            raise NotMeasured("the server of forks takes no job here; `rr run` says why")
        papermill_command()
        differ = printed(ours) != printed(theirs) or not printed(ours)
        peers = {
            "papermill": papermill_command,
            "papermill: execute_notebook, warm": papermill_warm,
        }
        yield Task(
            "a notebook that imports torch",
            "notebooks",
            1,
            run,
            5,
            Gate("outputs that differ", differ, 0),
            peers,
            note="ours: the command `rr run`, while a server of forks is there, which is not counted",
            why=lambda: (
                f"`rr --help`, Python and imports, takes {seconds(partial(command, 'rr', '--help')):.2f} s of it"
            ),
        )


def packed(size=224, n=256, batch=64, passes=8):
    """T2: batches of a packed data set, against a DataLoader over the JPEG files it was made from."""
    with TemporaryDirectory() as folder:
        files = [Path(folder) / f"{i:04d}.jpg" for i in range(n)]
        for i, file in enumerate(files):
            Image.fromarray(synthetic.fundus(0, i % 64, size).image).save(file, quality=95)
        table = pd.DataFrame({"name": [file.stem for file in files]})
        source = sources.Source({"kind": "jpeg"}, table, partial(_decoded, files))
        pack = packing.pack(source, size, Path(folder) / "packed")
        shares, jpegs = list(np.arange(n).reshape(-1, batch)), Files(files)

        def ours():
            for share in passes * shares:
                pack.batch(share)

        def with_masks():
            _all(data.batches(pack, passes * shares))

        gate = max(float((batch.x - torch.stack([jpegs[i] for i in share])).abs().mean())
                   for batch, share in zip(data.batches(pack, shares), shares))  # fmt: skip
        np.save(Path(folder) / "array.npy", pack.pixels(range(n)).numpy())
        mapped = np.load(Path(folder) / "array.npy", mmap_mode="r")

        def from_map():
            for share in passes * shares:
                torch.from_numpy(mapped[share]).float().div_(255)

        one_by_one = DataLoader(jpegs, batch)
        at_once = DataLoader(
            Together(files), batch, collate_fn=lambda images: torch.stack(images).float().div_(255)
        )
        peers = {
            "DataLoader: PIL": partial(_all, one_by_one),
            "DataLoader: torchvision, a batch at once": partial(_all, at_once),
        }
        for call, what in (
            (ours, ""),
            (with_masks, ", ours with labels and masks, as rr.train reads"),
        ):
            yield Task(f"float batches of {batch} images of {size} px{what}", "images", passes * n, call, 15,
                       Gate("mean difference", gate, 1e-6), peers, peer_amount=n,
                       why=lambda: f"where ours spends its time: {hotspots(call)}")  # fmt: skip
        yield Task(f"float batches of {batch} images of {size} px, from arrays on both sides", "images", passes * n, ours, 1,
                   Gate("mean difference", gate, 1e-6), {"numpy memory map, fancy index": from_map})  # fmt: skip


def _decoded(files, i, size):
    return np.asarray(Image.open(files[i]).convert("RGB")), dict.fromkeys(LABELS, 1)


class Files(Dataset):
    """JPEG files as images in [0, 1], one by one, read by PIL."""

    def __init__(self, files):
        self.files = files

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        with Image.open(self.files[i]) as photo:
            return tv.to_tensor(photo.convert("RGB"))


class Together(Files):
    """The same files, uint8, those of a batch in one call, read by torchvision."""

    def __getitems__(self, rows):
        return decode_jpeg([read_file(str(self.files[i])) for i in rows], ImageReadMode.RGB)


def _all(batches):
    for _ in batches:
        pass


def photographs(frames=((1024, 768), (1024, 1024), (2048, 1536), (3000, 2250)), size=224, n=4):
    """T3: photographs prepared, from a JPEG file to a square crop, round a field of view that is known, or that ours finds.

    frames: width and height, which the eye fills.
    """
    from skimage.data import retina

    drawn = {f"{width} x {height} px": [_framed(synthetic.fundus(0, i, 512).image, width, height) for i in range(n)]
             for width, height in frames}  # fmt: skip
    for name, images in {**drawn, "1411 x 1411 px (retina)": [retina()]}.items():
        with TemporaryDirectory() as folder:
            for i, image in enumerate(images):
                Image.fromarray(image).save(Path(folder) / f"{i}.jpg", quality=92)
            source = sources.folder(folder)
            files = [Path(folder) / name for name in source.table["name"]]
            crops, rows = zip(*(source.image(i, size) for i in range(len(files))))
            boxes = [(row["box_left"], row["box_top"], row["box_left"] + row["box_side"], row["box_top"] + row["box_side"])
                     for row in rows]  # fmt: skip

            def theirs(method=None, draft=False):
                resized = []
                for file, box in zip(files, boxes):
                    with Image.open(file) as opened:
                        width, side = opened.width, box[2] - box[0]
                        if draft:
                            opened.draft(
                                "RGB", [math.ceil(length * size / side) for length in opened.size]
                            )
                        crop = opened.convert("RGB").crop(
                            [round(edge * opened.width / width) for edge in box]
                        )
                        resized.append(np.asarray(crop.resize((size, size), method)))
                return resized

            differences = [
                np.abs(crop.astype(float) - area).mean()
                for crop, area in zip(crops, theirs(Image.BOX))
            ]
            peers = {
                "PIL: resize": theirs,
                "PIL: draft, BOX": partial(theirs, Image.BOX, draft=True),
            }
            ours, found, search = (
                lambda: [source.image(i, size) for i in range(len(files))],
                [],
                photo.find_fov,
            )
            with patch.object(
                photo, "find_fov", lambda image: found.append(search(image)) or found[-1]
            ):
                ours()

            def told():
                known = iter(found)
                with patch.object(photo, "find_fov", lambda image: next(known)):
                    return ours()

            gate = Gate("mean difference from PIL's BOX, of 255", max(differences), 2)
            for call, how in (
                (told, "told where the eye is, as the peer"),
                (ours, "which looks for the eye"),
            ):
                yield Task(f"JPEG of {name} to {size} px, {how}", "photographs", len(files), call, 3, gate, peers,
                           why=lambda: f"where ours spends its time: {functions(lambda: source.image(0, size))}")  # fmt: skip


def functions(call, n=4):
    """The n Python or C functions in which call() spends most of its time, each with its share, in words."""
    profile = cProfile.Profile()
    profile.runcall(call)
    spent = sorted(
        ((own, name) for (_, _, name), (_, _, own, _, _) in pstats.Stats(profile).stats.items()),
        reverse=True,
    )
    total = sum(own for own, _ in spent)
    return ", ".join(f"{name} {own / total:.0%}" for own, name in spent[:n])


def _framed(eye, width, height):
    """An eye (S, S, 3), enlarged, in the middle of a black frame (height, width, 3), under the noise of a sensor."""
    eye = Image.fromarray(eye).resize((height, height), Image.BICUBIC)
    frame = np.zeros((height, width, 3), np.float32)
    frame[:, (width - height) // 2 :][:, :height] = eye
    frame += np.random.default_rng(0).normal(0, 2, frame.shape)
    return frame.clip(0, 255).astype(np.uint8)


def ssim(size=224, n=64):
    """T4: SSIM of a batch, against scikit-image's with its Gaussian window, image by image."""
    need("skimage")
    from skimage.metrics import structural_similarity

    x, y = _pairs(n, size)
    arrays = list(zip(x.numpy(), y.numpy()))

    score = partial(
        structural_similarity,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1,
    )

    def by_image():
        return np.array([score(a, b, channel_axis=0) for a, b in arrays])

    def by_channel():
        """What channel_axis does inside, without its copies."""
        return np.array([np.mean([score(*channels) for channels in zip(a, b)]) for a, b in arrays])

    gate = Gate("largest difference", np.abs(metrics.ssim(x, y).numpy() - by_image()).max(), 1e-5)
    peers = {"scikit-image": by_image, "scikit-image: channel by channel": by_channel}
    ours = partial(metrics.ssim, x, y)
    yield Task(f"SSIM, {n} images of {size} px", "images", n, ours, 5, gate, peers,
               why=lambda: f"where ours spends its time: {hotspots(ours)}")  # fmt: skip


def _pairs(n, size):
    """Eyes (n, 3, size, size) in [0, 1], and the same with noise."""
    x = torch.cat([to_tensor(synthetic.fundus(0, i % 16, size).image) for i in range(n)])
    return x, (x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(
        0, 1
    )


def lpips(size=224, n=8):
    """T5: LPIPS of every method of a study against the same references, against the package `lpips`."""
    need("lpips")
    import lpips as package

    model = with_trunk(
        package.LPIPS(net="alex", pnet_rand=True, verbose=False)
    )  # pnet_rand: no download of its own
    distance = metrics.load_lpips()
    fast = copy.deepcopy(model).to(memory_format=torch.channels_last)
    methods = len(studies.STUDIES["extractors"])  # the largest study of the paper, Table 1
    x, _ = _pairs(n, size)
    outputs = [(x + 0.02 * k * torch.randn(x.shape, generator=torch.Generator().manual_seed(k))).clamp(0, 1)
               for k in range(1, methods + 1)]  # fmt: skip

    def ours():
        distance.known.clear()  # of another study: nothing is known of its references yet
        return torch.stack([distance(x, y) for y in outputs])

    def theirs(model, **layout):
        with torch.inference_mode():
            a = x.contiguous(**layout)
            return torch.stack(
                [model(a, y.contiguous(**layout), normalize=True).flatten() for y in outputs]
            )

    gate = Gate("largest difference", float((ours() - theirs(model)).abs().max()), 1e-5)
    peers = {
        "lpips": partial(theirs, model),
        "lpips: channels_last": partial(theirs, fast, memory_format=torch.channels_last),
    }
    yield Task(f"LPIPS, {size} px, {methods} methods", "images", n * methods, ours, 1.9, gate, peers,
               why=lambda: f"where ours spends its time: {hotspots(ours)}")  # fmt: skip


def degradation(sizes=(512, 224), targets=(10, 3), n=4):
    """T6: all three families of the degradation, against the field's formulation, with kernels at full resolution."""
    if not REFERENCE.exists():
        raise NotMeasured(
            f"{REFERENCE.name}: is in the project's tests, not in the installed package; run it in a checkout"
        )
    spec = spec_from_file_location(REFERENCE.stem, REFERENCE)
    reference = module_from_spec(spec)
    spec.loader.exec_module(reference)
    for size, target in zip(sizes, targets):
        eyes = [synthetic.fundus(0, i, size) for i in range(n)]
        x = torch.cat([to_tensor(eye.image) for eye in eyes])
        fov = torch.stack([torch.from_numpy(eye.fov) for eye in eyes])[:, None]
        params = degrade.sample(n, torch.Generator().manual_seed(0), severity=1.0)
        ours = partial(degrade.apply, x, params, fov)
        theirs = partial(reference.apply, x, params, fov)
        gate = Gate("largest difference", float((ours() - theirs()).abs().max()), 0.01)
        yield Task(f"degradation, {size} px", "images", n, ours, target, gate, {"full-resolution kernels, scipy": theirs},
                   why=lambda: f"where ours spends its time: {hotspots(ours)}")  # fmt: skip


def classifier(sizes=(80, 224), batch=8):
    """T7: training of InceptionV3, against the fastest 3x3 convolution of this machine, forward and backward."""
    ceiling, shape = _ceiling(batch)
    for size in sizes:
        torch.manual_seed(0)
        model = Readability().train()
        average = train.averaging(copy.deepcopy(model), model, 0.98)
        optimizer = train.OPTIMIZERS["rmsprop"](model.parameters(), lr=1e-4)
        images = data.Batch(torch.rand(batch, 3, size, size), torch.ones(batch, len(LABELS)), None)
        generator = torch.Generator().manual_seed(0)

        def step():
            optimizer.zero_grad(set_to_none=True)
            loss = model.loss(images, generator)["loss"]
            loss.backward()
            optimizer.step()
            average()
            return loss.item()

        flops = _flops(step)
        first = step()
        note = f"{batch} images, {parameters(model) / 1e6:.1f} M parameters, {flops / 1e9:.0f} GFLOP a step"
        gate = Gate(
            "loss on one batch after 10 steps, over the first",
            [step() for _ in range(10)][-1] / first,
            1,
        )
        yield Task(f"InceptionV3, training step, {size} px", "GFLOP", flops / 1e9, step, 0.55, gate,
                   {f"3x3 convolution, {shape}": ceiling}, _flops(ceiling) / 1e9, note=note,
                   why=lambda: f"where its time goes: {hotspots(step)}")  # fmt: skip


def _flops(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def _ceiling(batch):
    """The 3x3 convolution with the most FLOP/s, forward and backward, among SHAPES: (call, its shape in words)."""
    best = 0.0, None, ""
    for channels, side in SHAPES:
        for layout in (torch.contiguous_format, torch.channels_last):
            x = torch.rand(batch, channels, side, side).to(memory_format=layout).requires_grad_()
            w = torch.rand(channels, channels, 3, 3).to(memory_format=layout).requires_grad_()
            g = torch.rand(batch, channels, side, side).to(memory_format=layout)

            def call(x=x, w=w, g=g):
                return torch.autograd.grad(F.conv2d(x, w, padding=1), (x, w), g)

            call()
            rate = _flops(call) / min(seconds(call) for _ in range(3))
            words = f"{channels} channels, {side} px" + (
                ", channels_last" if layout is torch.channels_last else ""
            )
            best = max(best, (rate, call, words), key=lambda each: each[0])
    return best[1:]


def denoiser(dims=(8, 16), size=64, batch=8, steps=200, n=256):
    """T8: our U-Net as a noise predictor, against the one of denoising_diffusion_pytorch, with no more parameters."""
    need("denoising_diffusion_pytorch")
    from denoising_diffusion_pytorch import Unet

    eyes = (
        2 * torch.cat([to_tensor(synthetic.fundus(0, i, size).image) for i in range(n)]) - 1
    )  # the peer's range
    for dim in dims:
        torch.manual_seed(0)
        peer, flash = Unet(dim), Unet(dim, flash_attn=True)
        width = next(
            width for width in count(8, 4) if parameters(backbones.UNet(width)) >= parameters(peer)
        )
        model = backbones.UNet(width)
        psnr = {
            name: _trained(each, eyes, batch // 2, steps)
            for name, each in {"ours": model, "theirs": peer}.items()
        }
        note = "; ".join(f"{name}: {parameters(each) / 1e6:.2f} M parameters, {_macs(each, size) / 1e9:.2f} GMAC an image, "
                         f"{psnr[name]:.2f} dB after {steps} steps of {batch // 2} images"
                         for name, each in {"ours": model, "theirs": peer}.items())  # fmt: skip
        gate = Gate("validation PSNR of theirs over ours, dB", psnr["theirs"] - psnr["ours"], 0)
        x, t = eyes[:batch], torch.arange(1, batch + 1)
        calls = [
            partial(step, x, t, torch.randn_like(x)) for step in map(_step, (model, peer, flash))
        ]
        peers = {
            f"denoising_diffusion_pytorch: Unet({dim})": calls[1],
            f"Unet({dim}, flash_attn=True)": calls[2],
        }
        yield Task(f"U-Net of width {width}, training step, {size} px", "images", batch, calls[0], 3, gate,
                   peers, note=note, why=lambda: f"where ours spends its time: {hotspots(calls[0])}")  # fmt: skip


def _macs(model, size):
    with torch.no_grad():
        return (
            _flops(lambda: model(torch.rand(1, 3, size, size), torch.ones(1, dtype=torch.long))) / 2
        )


def _step(model):
    """A training step with the noise objective: step(x, t, epsilon) => loss."""
    diffusion = Diffusion(T=100, schedule="cosine")
    optimizer = train.OPTIMIZERS["adamw"](model.parameters(), lr=1e-3)

    def step(x, t, epsilon):
        loss = F.mse_loss(_predicted(model, diffusion.add_noise(x, t, epsilon), t), epsilon)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def _predicted(model, x_t, t):
    output = model(x_t, t)
    return getattr(output, "prediction", output)  # ours returns more than the prediction


def _trained(model, eyes, batch, steps):
    """PSNR in dB of the x_0 that follows from the predicted noise, after training.

    Mean over the last eighth of the eyes, which it was not trained on, at steps t from 1 to T; the same noise for every model.
    """
    step, diffusion = _step(model), Diffusion(T=100, schedule="cosine")
    training, x = eyes.split([len(eyes) - len(eyes) // 8, len(eyes) // 8])
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        here = torch.randint(len(training), (batch,), generator=generator)
        t = torch.randint(1, 101, (batch,), generator=generator)
        step(training[here], t, torch.randn(training[here].shape, generator=generator))
    t = torch.linspace(1, 100, len(x)).round().long()
    x_t = diffusion.add_noise(
        x, t, torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    )
    model.eval()
    with torch.no_grad():
        x_0 = diffusion.x_0("noise", _predicted(model, x_t, t), x_t, t).clamp(-1, 1)
    model.train()
    return metrics.psnr((x_0 + 1) / 2, (x + 1) / 2).mean().item()


PEAK = """\
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""  # a small process in between: a child's peak counts that of the process it was forked from


def absolute(size=224, n=16, side=2000):
    """T9: embedded images a second, and one photograph restored in a fresh process."""
    source = sources.embedded(n)

    def draw():
        return [source.image(i, size)[0] for i in range(n)]

    differ = sum((one != two).any() for one, two in zip(draw(), draw()))
    yield Task(f"embedded images of {size} px", "images", n, draw, 100, Gate("images that differ when drawn again", differ, 0),
               why=lambda: f"where its time goes: {functions(draw)}")  # fmt: skip

    with TemporaryDirectory() as folder:
        photo, out = Path(folder) / "photo.jpg", Path(folder) / "restored"
        eye = synthetic.fundus(0, 0, 512)
        params = degrade.sample(1, torch.Generator().manual_seed(0), severity=1.0)
        degraded = degrade.apply(
            to_tensor(eye.image), params, torch.from_numpy(eye.fov)[None, None]
        )
        Image.fromarray(_framed(to_photograph(degraded), side, 3 * side // 4)).save(
            photo, quality=92
        )

        def restore():
            words = [
                sys.executable,
                "-c",
                PEAK,
                sys.executable,
                "-m",
                "rr",
                "restore",
                photo,
                "--out",
                out,
                "--device",
                "cpu",
            ]
            done = subprocess.run(
                words, env=os.environ | ONE_THREAD, capture_output=True, text=True
            )
            if done.returncode:
                raise RuntimeError(f"rr restore: {done.stderr}")
            return int(done.stdout.splitlines()[-1]) / 2**20  # KiB on Linux

        gate = Gate("peak memory, GiB", restore(), 2)
        status = json.loads((out / "restore.json").read_text())["photo.png"]["status"]
        yield Task(f"`rr restore`, {side} px, fresh process", "photographs", 1, restore, 1 / 10, gate,
                   note=f"the photograph was {status}",
                   why=lambda: f"where its time goes: {functions(partial(_restored, photo))}")  # fmt: skip


def _restored(photo):
    return restore.restore_photograph(restore.load_recommended(), read_photograph(photo))


ROWS = {
    "T1": notebook, "T2": packed, "T3": photographs, "T4": ssim, "T5": lpips, "T6": degradation,
    "T7": classifier, "T8": denoiser, "T9": absolute,
}  # fmt: skip
