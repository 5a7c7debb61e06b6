"""The bench of notebook 10 on a small pack, and the answers it notes."""

import pandas as pd
import pytest
import torch

from rr import checkpoint, studies
from rr.data import dataset as data
from rr.data import packing, sources
from rr.errors import InputError
from rr.evaluate import matters, metrics
from rr.models.bridge import Bridge
from rr.models.restorer import Denoiser


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return packing.pack(sources.embedded(60), 32, tmp_path_factory.mktemp("data"))


def test_a_bench_restores_with_the_weights_of_a_run_and_scores_every_image(packed, tmp_path):
    bench = matters.bench(tmp_path, packed, "cpu")
    torch.manual_seed(0)
    made = {
        studies.BRIDGE: Bridge(32, width=4),
        studies.RETINAREGEN: Denoiser(32, width=4, latent=4, T=10, condition=(8, 1, 1)),
    }
    for each, model in made.items():
        checkpoint.save(studies.folder(tmp_path, each, 3) / "denoiser", model, {})
        found = bench.weights(each, 3)
        assert type(found) is type(model)
        x_hat = bench.restored(found, 5)
        again = model.eval().restore(bench.y, bench.fov, torch.Generator().manual_seed(5))
        assert torch.allclose(x_hat, again, atol=1e-6) and len(bench.restored(found, 5, 2)) == 2
        table = bench.scored(x_hat)
        assert list(table.index) == list(bench.names)
        assert table.psnr.to_numpy() == pytest.approx(metrics.psnr(bench.x, x_hat).numpy())
    with pytest.raises(InputError, match="no checkpoint there"):
        bench.weights(studies.ONE_STEP, 3)


def test_under_the_literal_protocol_doing_nothing_is_perfect(packed, tmp_path):
    packed = data.Packed(packed.path)
    packed.table.loc[packed.table["split"] == "test", "disc"] = 0
    bench = matters.bench(tmp_path, packed, "cpu", "literal")
    assert (bench.scored(bench.y).psnr == metrics.PSNR_MAX).all()


def test_answers_say_what_the_intervals_say():
    answers = matters.Answers()
    a, b = (
        [pd.DataFrame({"psnr": [20.0 + shift, 21.0 + shift, 22.0 + shift]})] for shift in (0.0, 1.5)
    )
    assert answers.better(1, "b over a", b, a) == "b over a: yes, by +1.50 [+1.50, +1.50] dB."
    assert "the other way round" in answers.better(
        1, "a over b", a, b
    ) and "not told apart" in answers.better(2, "same", a, a)
    assert (
        answers.note(4, "share", (1.0, 0.5, 2.0, 1), ("nothing", "a gain", "a loss"))["answer"]
        == "a gain"
    )
    assert [row["point"] for row in answers] == [1, 1, 2, 4] and answers[0][
        "difference"
    ] == pytest.approx(1.5)
