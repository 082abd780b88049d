"""Compare converting a `.nemo` to a Hub folder with `cp` and with a simple script: time and memory.

A random bf16 Nemotron is written as a tar in three layouts (one state dict, zarr, torch_dist); the
first is also cast to float16, split over two ranks, and gzipped. The ways alternate, each in a
separate process after its imports; memory is the peak of anonymous pages above that after the
imports. `minitron` scans for NaN, as always. The simple script extracts the archive, loads all of
it, splits the fused projections and saves. The results of both are compared by sha256.

    python benchmarks/nemo_copy.py --folder /path/with/35GB --gigabytes 4 --repeats 3
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

from copying import Peak, weights_digest

# Two layers are a gigabyte; head_dim is not hidden_size / heads, as in Minitron-8B.
SIZES = {
    "vocab_size": 65536,
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_attention_heads": 24,
    "num_key_value_heads": 4,
    "head_dim": 128,
}
CASES = {  # name: (archive, options of convert)
    "state_dict": ("state_dict", {}),
    "zarr": ("zarr", {}),
    "torch_dist": ("torch_dist", {}),
    "state_dict to float16": ("state_dict", {"dtype": "float16"}),
    "two tensor-parallel ranks": ("ranks", {}),
    "state_dict, tar.gz": ("gzipped", {}),
}
NOT_NAIVE = {
    "two tensor-parallel ranks",
    "state_dict, tar.gz",
}  # the simple script does not read them
SPLIT = {  # part of a tensor's name: the dimension that ranks split
    "word_embeddings": 0,
    "output_layer": 0,
    "linear_qkv.weight": 0,
    "linear_fc1.weight": 0,
    "linear_proj": 1,
    "linear_fc2": 1,
}
WAYS = ("cp", "minitron", "naive")


def architecture(gigabytes: float) -> Any:
    """The architecture with as many layers as this size allows, in bf16."""
    from minitron.model.architecture import Architecture

    layers = 1
    while True:
        made = Architecture(model_type="nemotron", num_hidden_layers=layers, **SIZES)
        if 2 * made.parameters >= gigabytes * 1e9:
            return made
        layers += 1


def make_source(folder: Path, gigabytes: float) -> None:
    """Write a Hub folder of random weights, and from it the three archives."""
    import torch

    import minitron
    from minitron.files.safetensors_file import TensorSpec
    from minitron.records.folder_writer import write_json, write_weights
    from minitron.sources.opening import zoo

    made = architecture(gigabytes)
    specs = {name: TensorSpec(torch.bfloat16, shape) for name, shape in made.shapes().items()}
    torch.manual_seed(0)
    hub = folder / "hub"
    hub.mkdir(parents=True)
    pieces = ((name, (torch.randn(spec.shape) * 0.02).bfloat16()) for name, spec in specs.items())
    write_weights(hub, specs, pieces)
    layers = made.num_hidden_layers
    config = {"model_type": "nemotron", "num_hidden_layers": layers, "dtype": "bfloat16", **SIZES}
    write_json(hub / "config.json", {**config, "max_position_embeddings": 4096})
    shutil.copyfile(zoo()["tiny"] / "tokenizer.model", hub / "tokenizer.model")
    for layout in ("zarr", "torch_dist"):
        minitron.convert(
            str(hub), str(folder / f"{layout}.nemo"), to="nemo", dist_format=layout, check=False
        )
    write_state_dict(folder)


def write_state_dict(folder: Path) -> None:
    """Write the model as torch.save files in a tar, like older NeMo: whole, split, gzipped."""
    import torch

    from minitron.conversion.nemo_archive import open_archive
    from minitron.conversion.nemo_source import read_checkpoint

    root = folder / "unpacked"
    with tarfile.open(folder / "zarr.nemo") as archive:
        beside = [entry for entry in archive if "model_weights" not in entry.name]
        archive.extractall(root, beside, filter="data")
    tensors = read_checkpoint(open_archive(folder / "zarr.nemo"), is_gated=False).tensors
    whole = {f"model.{name}": tensor.read() for name, tensor in tensors.items()}
    saved = root / "model_weights.ckpt"
    torch.save(whole, saved)
    for name, mode in {"state_dict": "w", "gzipped": "w:gz"}.items():
        level = {"compresslevel": 1} if mode == "w:gz" else {}
        with tarfile.open(folder / f"{name}.nemo", mode, **level) as archive:
            archive.add(root, arcname=".")
    saved.unlink()
    for rank in range(2):
        place = root / f"mp_rank_{rank:02d}"
        place.mkdir()
        torch.save({k: part_of(k, v, rank) for k, v in whole.items()}, place / saved.name)
    edit_ranks(root / "model_config.yaml")
    with tarfile.open(folder / "ranks.nemo", "w") as archive:
        archive.add(root, arcname=".")
    shutil.rmtree(root)


def part_of(name: str, tensor: Any, rank: int) -> Any:
    """The part of a tensor that one of two ranks has."""
    for part, dimension in SPLIT.items():
        if part in name and tensor.dim() > 1:
            return tensor.chunk(2, dimension)[rank].clone()
    return tensor


def edit_ranks(path: Path) -> None:
    """Two ranks share every matrix."""
    import yaml

    settings = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**settings, "tensor_model_parallel_size": 2}))


def run_minitron(case: str, source: Path, out: Path) -> None:
    """Convert with minitron."""
    import minitron

    minitron.convert(str(source), str(out), keep_vocab_padding=True, **CASES[case][1])


def run_cp(case: str, source: Path, out: Path) -> None:
    """Copy the same number of bytes."""
    subprocess.run(["cp", source, out], check=True)


def run_naive(case: str, source: Path, out: Path) -> None:
    """Convert with the simple script: extract, load all, split, save."""
    import numpy as np
    import torch
    import torch.distributed.checkpoint as dcp
    from safetensors.torch import save_file

    unpacked = out.with_name("unpacked")
    with tarfile.open(source) as archive:
        archive.extractall(unpacked, filter="data")
    weights = unpacked / "model_weights"
    state: dict[str, Any] = {}
    if CASES[case][0] == "state_dict":
        state = torch.load(unpacked / "model_weights.ckpt", weights_only=True)
        state = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    elif CASES[case][0] == "torch_dist":
        reader = dcp.FileSystemReader(weights)
        for name, entry in reader.read_metadata().state_dict_metadata.items():
            if hasattr(entry, "size"):
                state[name] = torch.empty(entry.size, dtype=entry.properties.dtype)
        dcp.load(state, storage_reader=reader)
        state = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    else:
        for path in weights.iterdir():
            if not (path / ".zarray").exists():
                continue
            shape = json.loads((path / ".zarray").read_text())["shape"]
            chunks = sorted(path.glob("[0-9]*"), key=lambda p: [int(i) for i in p.name.split(".")])
            parts = [np.fromfile(chunk, np.int16) for chunk in chunks]
            tensor = torch.from_numpy(np.concatenate(parts)).view(torch.bfloat16).view(shape)
            state[path.name.removeprefix("model.")] = tensor
    dtype = CASES[case][1].get("dtype")
    named = {
        name: tensor.to(getattr(torch, dtype)) if dtype else tensor
        for name, tensor in hub_names(state).items()
    }
    out.mkdir()
    save_file(named, out / "model.safetensors", {"format": "pt"})
    shutil.rmtree(unpacked)


def hub_names(state: dict[str, Any]) -> dict[str, Any]:
    """The tensors split and renamed as on the Hub, all in memory."""
    import torch

    groups, head_dim = SIZES["num_key_value_heads"], SIZES["head_dim"]
    per_group = SIZES["num_attention_heads"] // groups
    named = {
        "model.embed_tokens.weight": state["embedding.word_embeddings.weight"],
        "lm_head.weight": state["output_layer.weight"],
    }
    for end in ("weight", "bias"):
        named[f"model.norm.{end}"] = state[f"decoder.final_layernorm.{end}"]
    layered: dict[tuple[int, str], Any] = {}
    for name, tensor in state.items():
        if not name.startswith("decoder.layers."):
            continue
        rest = name.removeprefix("decoder.layers.")
        first, _, kind = rest.partition(".")
        if first.isdigit():
            layered[int(first), kind] = tensor
        else:
            layered.update({(layer, rest): part for layer, part in enumerate(tensor)})
    hub = {
        "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
        "mlp.linear_fc1.weight": "mlp.up_proj.weight",
        "mlp.linear_fc2.weight": "mlp.down_proj.weight",
    }
    for end in ("weight", "bias"):
        for theirs in ("input_layernorm.", "self_attention.linear_qkv.layer_norm_"):
            hub[f"{theirs}{end}"] = f"input_layernorm.{end}"
        for theirs in ("pre_mlp_layernorm.", "mlp.linear_fc1.layer_norm_"):
            hub[f"{theirs}{end}"] = f"post_attention_layernorm.{end}"
    for (layer, kind), tensor in layered.items():
        prefix = f"model.layers.{layer}"
        if kind in hub:
            named[f"{prefix}.{hub[kind]}"] = tensor.contiguous()
        elif kind == "self_attention.linear_qkv.weight":
            fused = tensor.view(groups, per_group + 2, head_dim, -1)
            q, k, v = fused[:, :per_group], fused[:, per_group], fused[:, per_group + 1]
            for letter, part in zip("qkv", (q, k, v), strict=True):
                flat = torch.reshape(part, (-1, fused.shape[-1])).contiguous()
                named[f"{prefix}.self_attn.{letter}_proj.weight"] = flat
    return named


def one_way(case: str, way: str, source: Path, out: Path) -> None:
    """Run one way after its imports; print seconds, CPU seconds and bytes above the base."""
    import torch
    import torch.distributed.checkpoint  # noqa: F401

    import minitron.verbs.convert  # noqa: F401

    torch.zeros(1).bfloat16().float()
    # cp starts after the imports too: on a virtual machine, memory that was free meanwhile may have
    # been returned to the host, which slows the next process that needs it.
    run = {"cp": run_cp, "minitron": run_minitron, "naive": run_naive}[way]
    with Peak() as peak:
        started, cpu = time.perf_counter(), time.process_time()
        run(case, source, out)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    print(json.dumps({"seconds": seconds, "cpu": cpu, "bytes": peak.most - peak.base}))


def measure(case: str, way: str, source: Path, out: Path) -> dict[str, float]:
    """Run one way in a process; the caller removes the result."""
    command = [sys.executable, __file__, "--case", case, "--way", way]
    command += ["--source", str(source), "--out", str(out)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return dict(json.loads(printed.splitlines()[-1]))


def remove(path: Path) -> None:
    """Remove a file or a folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def compare(case: str, source: Path, folder: Path, ways: list[str], repeats: int) -> None:
    """Medians of the ways on one archive, which alternate, and ratios to cp."""
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    digests = {}
    for repeat in range(repeats):
        for way in ways[repeat % len(ways) :] + ways[: repeat % len(ways)]:
            out = folder / f"out-{way}"
            remove(out)
            os.sync()  # do not wait for the writes of another way
            runs[way].append(measure(case, way, source, out))
            if repeat == 0 and way != "cp":
                digests[way] = weights_digest(out)
            remove(out)
    assert len(set(digests.values())) == 1, f"{case}: the results differ"
    for way, of_way in runs.items():
        median = {key: statistics.median(run[key] for run in of_way) for key in of_way[0]}
        pairs = zip(of_way, runs["cp"], strict=True)
        ratio = statistics.median(run["seconds"] / cp["seconds"] for run, cp in pairs)
        print(
            f"| {case} | {way} | {median['seconds']:.2f} | {ratio:.2f} | {median['cpu']:.2f} "
            f"| {median['bytes'] / 1e6:.0f} |",
            flush=True,
        )


def main() -> None:
    """Write the archives that are missing, then run every case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="a place with eight times the space")
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--source", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.way:
        one_way(options.case, options.way, options.source, options.out)
        return
    if not (options.folder / "state_dict.nemo").exists():
        make_source(options.folder, options.gigabytes)
    size = (options.folder / "zarr.nemo").stat().st_size
    print(f"{size / 1e9:.2f} GB, {options.repeats} repeats, medians; ratios within a repeat")
    print("| case | way | seconds | x cp | CPU seconds | MB above base |")
    print("|---|---|---:|---:|---:|---:|")
    for case in options.cases:
        source = options.folder / f"{CASES[case][0]}.nemo"
        ways = [way for way in options.ways if way != "naive" or case not in NOT_NAIVE]
        compare(case, source, options.folder, ways, options.repeats)


if __name__ == "__main__":
    main()
