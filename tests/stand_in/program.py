"""A program for the real onnxruntime-gpu on the stand-in: `program.py SITE PLAIN PRUNED…` prints JSON.

SITE has onnxruntime-gpu. Of the bundles PLAIN are separated by commas; every graph of theirs is loaded. On
PRUNED, a bundle without convolutions, clips are separated, first one, then the same again, then from threads.
"""

from __future__ import annotations

import ctypes
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path

SITE, PLAIN, PRUNED, RUNTIME = sys.argv[1:5]
sys.path.insert(0, SITE)

from flowsep_runtime import BackendError, Pipeline  # noqa: E402
from flowsep_runtime.backends import why_not  # noqa: E402
from flowsep_runtime.backends.device_graphs import DEVICE_GRAPHS, device_graph_path  # noqa: E402
from flowsep_runtime.backends.onnxruntime import cuda  # noqa: E402
from flowsep_runtime.bundle.manifest import Manifest  # noqa: E402
from tests.stand_in.clips import clip  # noqa: E402

STEPS = 4


def refused(folder: Path, batch: int) -> list[str]:
    """Graphs that do not load wholly on the GPU, and the reasons."""
    manifest = Manifest.read(folder)
    model = manifest.model
    sizes = {
        "batch": batch,
        "frames": model.clip_frames,
        "samples": model.clip_samples,
        "t": model.clip_frames // model.latent_stride,
        "steps": STEPS,
        "channels": model.latent_channels,
        "frequencies": model.latent_frequencies,
        "shifts": int(manifest.graphs["velocity_time"].outputs[0].shape[1]),
    }
    entries = {**manifest.graphs, **manifest.variants.get("cuda", {})}
    paths = [folder / entry.files[0].name for entry in entries.values()]
    errors = []
    for path in (*paths, *map(device_graph_path, DEVICE_GRAPHS)):
        try:
            cuda.open_session(path, sizes, cuda.provider_options(manifest))
        except BackendError as error:
            errors.append(f"{folder.name} {path.name} batch {batch}: {error}")
    return errors


def main() -> None:
    reason = why_not("cuda")
    note: Callable[[bytes], None] = ctypes.CDLL(RUNTIME).stand_in_note
    errors = [] if reason else [e for b in (1, 2) for f in PLAIN.split(",") for e in refused(Path(f), b)]
    folder = Path(PRUNED)
    manifest = Manifest.read(folder)
    pipeline = Pipeline(folder, manifest, cuda.OnnxRuntimeCuda(folder, manifest))
    for mark in (b"mark first", b"mark second"):
        note(mark)
        pipeline.generate(clip(manifest.model), STEPS)
    note(b"mark masked")
    pipeline.run(clip(manifest.model), STEPS, vocode=False)
    note(b"mark threads")
    threads = [
        threading.Thread(target=pipeline.generate, args=(clip(manifest.model), STEPS)) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
        thread.join()
    note(b"mark end")
    import onnxruntime

    print(json.dumps({"version": onnxruntime.__version__, "why_not": reason, "refused": errors}))


if __name__ == "__main__":
    main()
