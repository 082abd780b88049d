"""Threads build and load models side by side, and none empties the weights of another."""

import threading
from pathlib import Path

import pytest
import torch
from torch import nn

import minitron.sources.loading
from minitron.sources.loading import load_model
from minitron.sources.opening import open_source
from tests.tiny import tiny_folder


def test_a_model_is_loaded_while_another_thread_builds_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tiny_folder(tmp_path / "m"))
    alone = load_model(open_source(folder)).state_dict()
    build, begun, others_done = (
        minitron.sources.loading.new_model,
        threading.Event(),
        threading.Event(),
    )

    def slowly(config: object) -> object:
        if threading.current_thread() is not threading.main_thread():
            begun.set()
            others_done.wait(30)
        return build(config)  # type: ignore[arg-type]

    monkeypatch.setattr("minitron.sources.loading.new_model", slowly)
    loaded: list[object] = []
    other = threading.Thread(target=lambda: loaded.append(load_model(open_source(folder))))
    other.start()
    assert begun.wait(30)
    try:
        beside = load_model(open_source(folder)).state_dict()
    finally:
        others_done.set()
        other.join()
    assert all(torch.equal(beside[name], tensor) for name, tensor in alone.items())
    assert loaded
    assert not nn.Linear(2, 2).weight.is_meta
