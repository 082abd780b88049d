"""Peak memory of a run and a digest of its result, for the benchmarks that copy weights.

with Peak() as peak:
    ...
print(peak.most - peak.base, weights_digest(folder))
"""

import hashlib
import threading
import time
from pathlib import Path


def weights_digest(folder: Path) -> str:
    """sha256 of all tensors in the order of their names, independent of the shards."""
    import torch
    from safetensors import safe_open

    total = hashlib.sha256()
    located = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            located.update(dict.fromkeys(file.keys(), path))
    for name in sorted(located):
        with safe_open(located[name], framework="pt") as file:
            total.update(name.encode())
            total.update(file.get_tensor(name).view(torch.uint8).numpy().data)
    return total.hexdigest()


class Peak:
    """Samples the peak of anonymous memory; mapped pages of files do not count."""

    def __enter__(self) -> "Peak":
        self.base = self.most = anonymous_memory()
        self.running = True
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while self.running:
            self.most = max(self.most, anonymous_memory())
            time.sleep(0.005)

    def __exit__(self, *error: object) -> None:
        self.running = False
        self.thread.join()


def anonymous_memory() -> int:
    """RssAnon of this process, in bytes."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.split("RssAnon:")[1].split()[0])
