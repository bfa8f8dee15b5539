"""A forward pass on the CPU as the C library comes, and with foldwise/inference/device.py: CPU seconds, page faults.

    .venv/bin/python benchmarks/memory.py [PICTURES]

Each in a process of its own, since the setting stays. Random weights; batches of 32 and 256 pictures of 64 pixels.
"""

import multiprocessing
import resource
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "{{cookiecutter.project_slug}}"))

PICTURES = int(sys.argv[1]) if len(sys.argv) == 2 else 1024


def measure(keep: bool) -> None:
    """Print the figures of one setting."""
    import timm
    import torch

    from foldwise.inference.device import keep_freed_memory

    torch.set_num_threads(1)
    if keep:
        keep_freed_memory()
    net = timm.create_model("tf_efficientnet_lite0").to(memory_format=torch.channels_last).eval()
    for batch in (32, 256):
        pictures = torch.randn(batch, 3, 64, 64).to(memory_format=torch.channels_last)
        with torch.inference_mode():
            net(pictures)
            before = resource.getrusage(resource.RUSAGE_SELF)
            for _ in range(PICTURES // batch):
                net(pictures)
        after = resource.getrusage(resource.RUSAGE_SELF)
        user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
        faults, peak = after.ru_minflt - before.ru_minflt, after.ru_maxrss / 1024
        seconds = f"user {user:.2f} s  system {system:.2f} s"
        what = "kept" if keep else "as it comes"
        print(f"{what:12s} batch {batch:3d}  {seconds}  {faults:7,} page faults  peak {peak:.0f} MiB")


if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["timm"])
    for keep in (False, True, False, True):
        process = context.Process(target=measure, args=(keep,))
        process.start()
        process.join()
