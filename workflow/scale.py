"""The cost of a data set as it grows: packed once, and read once as a training reads it.

    python workflow/scale.py [IMAGES ...]        default: 10000 30000 100000

For each number of embedded eyes of 128 px, a fresh process packs them with two workers. We measure
its seconds, its bytes, and the largest memory of all its processes together (Linux's PSS, in which
pages that processes share count once). Then another process reads two epochs of batches of 64 on
one thread: the first reads from the disk what is not in memory, the second reads from memory.
results/bench/scale.csv and scale.json are written after every number; rows of other numbers stay.
The exponents in scale.json are slopes of log(seconds) against log(images): 1 means proportional.
The packs are temporary. They need 50 kB of disk per image.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil

from rr.errors import InputError
from rr.files import ROOT, write_table
from rr.provenance import provenance, read_result, write_result

SIZE, WORKERS, BATCH = 128, 2, 64
RESULT = ROOT / "results" / "bench" / "scale.json"
EPOCHS = f"""\
import sys, time
import numpy as np
import torch
from rr.data.dataset import Packed, batches

torch.set_num_threads(1)
packed = Packed(sys.argv[1])
rows = np.random.default_rng(0).permutation(packed.rows("train"))
shares = np.array_split(rows, -(-len(rows) // {BATCH}))
for _ in range(2):
    started = time.perf_counter()
    count = sum(len(batch.x) for batch in batches(packed, shares))
    print(count, time.perf_counter() - started)
"""


def main(numbers):
    started = time.time()
    earlier = read_result(RESULT)["numbers"]["rows"] if RESULT.exists() else []
    rows = {row["images"]: row for row in earlier}
    for n in numbers:
        rows[n] = measure(n)
        table = pd.DataFrame(rows.values()).sort_values("images")
        write_table(RESULT.with_name("scale.csv"), table)
        seconds = ("prepare_seconds", "epoch_seconds") if len(table) > 1 else ()
        log = np.log(table[["images", *seconds]])
        exponents = {key: np.polyfit(log["images"], log[key], 1)[0] for key in seconds}
        numbers = {"rows": table.to_dict("records"), "exponents": exponents}
        write_result(RESULT, numbers, files=["scale.csv"], started=started, size=SIZE,
                     workers=WORKERS, batch=BATCH)  # fmt: skip
        print(table.drop(columns="commit").round(2).to_string(index=False))
    print(", ".join(f"exponent of {key}: {value:.2f}" for key, value in exponents.items()))


def measure(n):
    """One row of the table: what n images cost."""
    with tempfile.TemporaryDirectory() as folder:
        out, started = Path(folder) / "data", time.perf_counter()
        peak = peak_memory("-m", "rr", "data", "prepare", "embedded", "--size", SIZE,
                           "--workers", WORKERS, "--n", n, "--out", out)  # fmt: skip
        seconds = time.perf_counter() - started
        command = [sys.executable, "-c", EPOCHS, out]
        lines = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        count, first_epoch, _, epoch = map(float, lines.stdout.split())
        size = sum(path.stat().st_size for path in out.iterdir())
    return {
        "images": n,
        "prepare_seconds": seconds,
        "prepare_images_per_s": n / seconds,
        "peak_mib": peak / 2**20,
        "bytes": size,
        "epoch_images": int(count),
        "epoch_seconds": epoch,
        "epoch_images_per_s": count / epoch,
        "first_epoch_seconds": first_epoch,
        "commit": provenance()["commit"],
    }


def peak_memory(*words):
    """Run Python with these words. Returns the largest memory of it and its children, in bytes."""
    process = psutil.Popen([sys.executable, *map(str, words)], cwd=ROOT, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        try:
            family = [process, *process.children(recursive=True)]
            peak = max(peak, sum(member.memory_full_info().pss for member in family))
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            pass  # one of them has just ended
        time.sleep(0.2)
    if process.returncode:
        raise InputError(f"{' '.join(map(str, words))}: failed, see above")
    return peak


if __name__ == "__main__":
    try:
        main([int(word) for word in sys.argv[1:]] or [10_000, 30_000, 100_000])
    except (InputError, ValueError) as error:
        sys.exit(f"error: {error}")
