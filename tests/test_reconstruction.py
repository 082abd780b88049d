"""A reconstructed model is what ridge least squares by hand gives, and never worse than without."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import minitron
from minitron import cli
from minitron.errors import CorpusError, MinitronError, OutputError, SourceError, TargetError
from minitron.model.architecture import Architecture
from minitron.model.families import FAMILIES
from minitron.model.plan import PruningPlan, choose_plan
from minitron.model.source import Source
from minitron.model.target_sizes import target_of
from minitron.options import parse_bytes
from minitron.recipes.importance import CalibrationRecipe
from minitron.recipes.pruning import Hidden
from minitron.reconstruction.finished import Finished, RefittedSource
from minitron.reconstruction.head import HeadFitting
from minitron.reconstruction.least_squares import ALPHAS, Sums, fit
from minitron.reconstruction.memory import plan_memory
from minitron.reconstruction.projection import hidden_choice, pair_of
from minitron.reconstruction.reconstruct import fitted_model, reconstruct
from minitron.reconstruction.rotation import RotatedSource, principal_basis
from minitron.records.reconstruction_picture import errors_of
from minitron.records.record_writer import outlines_of
from minitron.scores.measuring import score
from minitron.scores.sweep import Needs
from minitron.scores.weight_scores import random_scores
from minitron.sources.loading import fast_dtype, load_model
from minitron.sources.opening import open_source
from minitron.sources.processes import Processes
from minitron.sources.pruned import PrunedSource
from tests.tiny import SIZES, VARIANTS, tiny_config, tiny_folder

TARGET = {
    "hidden_size": 36,
    "intermediate_size": 50,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
}
# Variants whose stream can be rotated without an output embedding that is untied for it.
UNTIED = [
    variant
    for variant, (family, _) in VARIANTS.items()
    if not tiny_config(variant).tie_word_embeddings and not FAMILIES[family].output_norms
]


# One variant for each column of the table: a refit by hand takes seconds.
ALIKE = (
    "smollm3",
    "seed_oss",
    "seed_oss-biased",
    "granite-biased-tied",
    "gemma3_text",
    "gemma3_text-untied",
)
BY_HAND = [variant for variant in VARIANTS if variant not in ALIKE]


def text(count: int = 21, length: int = 23, seed: int = 5) -> list[Any]:
    """Sequences of random ids: the third and the twentieth of them differ in length."""
    ids = np.random.default_rng(seed).integers(4, SIZES["vocab_size"], (count, length))
    return [row[: length - 4] if i % 7 == 2 else row for i, row in enumerate(ids)]


def pruned(variant: str, folder: Path, **sizes: int) -> tuple[Source, PruningPlan]:
    source = open_source(str(tiny_folder(folder, variant)))
    scores = random_scores(source.architecture, seed=3)
    plan = choose_plan(scores, source.architecture, target_of(source.architecture, sizes))
    return source, plan


def fitted(source: Source, plan: PruningPlan, folder: Path, how: str = "select") -> Source:
    """The model with every fit that helps, whatever its loss: one of twenty is held out."""
    both = [[row for i, row in enumerate(text()) if (i % 20 == 19) == held] for held in (0, 1)]
    made, *_ = fitted_model(source, plan, *both, folder, how=how, dtype=torch.float32, device="cpu")
    return made


def test_a_fit_solves_the_ridge_equations() -> None:
    generator = torch.Generator().manual_seed(1)
    read, wanted, before = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((50, 4), (50, 3), (3, 4))
    )
    sums, held_out = Sums.zeros(4, 3), Sums.zeros(4, 3)
    sums.add(read, wanted)
    held_out.add(read[:9] + 0.1, wanted[:9])
    found = fit(sums, held_out, before)
    errors = {}
    for alpha in ALPHAS:
        ridge = (alpha * (read.T @ read).diagonal().mean()).sqrt()
        left = torch.cat([read, ridge * torch.eye(4, dtype=torch.float64)])
        weight = torch.linalg.lstsq(left, torch.cat([wanted, ridge * before.T])).solution.T
        errors[alpha] = ((read[:9] + 0.1) @ weight.T - wanted[:9]).square().sum(), weight
    best = min(errors, key=lambda alpha: float(errors[alpha][0]))
    assert found.alpha == best
    assert torch.allclose(found.weight, errors[best][1])
    assert held_out.error(found.weight) == pytest.approx(float(errors[best][0]))


@pytest.mark.parametrize("variant", UNTIED)
def test_a_rotation_that_cuts_nothing_keeps_the_logits(variant: str, tmp_path: Path) -> None:
    source = open_source(str(tiny_folder(tmp_path / "whole", variant)))
    width = SIZES["hidden_size"]
    centred = source.architecture.family.norm.kind == "layer"
    spread = torch.randn(width, width, dtype=torch.float64)
    if centred:
        spread = spread - spread.mean(0)
    basis = principal_basis(spread @ spread.T, width, centred=centred)
    ids = torch.from_numpy(np.stack(text(3)[:2])).long()
    with torch.no_grad():
        before, after = (
            load_model(model, dtype=torch.float64)(ids).logits
            for model in (source, RotatedSource(source, basis, source.architecture))
        )
    assert (before - after).abs().max() < 1e-4 * before.abs().max()


@pytest.mark.parametrize("variant", VARIANTS)
def test_reconstructing_what_is_whole_changes_nothing(variant: str, tmp_path: Path) -> None:
    source, plan = pruned(variant, tmp_path / "whole")
    made = fitted(source, plan, tmp_path / "fitted")
    for name, tensor in source.weights.items():
        assert torch.equal(made.tensors[name].read(), tensor.read()), name


class ByHand:
    """The whole of both models in float64, refitted one linear after another by lstsq."""

    def __init__(self, source: Source, small: Source, plan: PruningPlan, basis: torch.Tensor):
        self.teacher, self.student = (
            load_model(model, dtype=torch.float64).requires_grad_(False)
            for model in (source, small)
        )
        self.plan, self.basis = plan, basis
        sequences = text()
        self.held = [i % 20 == 19 for i in range(len(sequences))]
        self.batches = [torch.from_numpy(row)[None].long() for row in sequences]
        family = source.architecture.family
        paths = {part: family.layer_modules.get(part, "") for part in ("q", "k", "v", "gate", "up")}
        self.parts = {
            path.rpartition(".")[2]: [part for part in paths if paths[part] == path]
            for path in dict.fromkeys(paths.values())
        }
        self.zero_centered = int(family.norm.is_zero_centered)
        self.behind = [family.layer_modules.get(n, "") for n in family.output_norms.values()]
        self.before_mlp = family.layer_modules.get("mlp_norm", "mlp")
        key = family.scales.branch
        self.branch = float(getattr(self.student.config, key)) if key else 1.0
        self.epsilon = float(getattr(self.student.config, family.norm.epsilon))
        if family.scales.embedding == "hidden_size":
            self.embed_as_wide(source.architecture.hidden_size)

    def embed_as_wide(self, width: int) -> None:
        """Make up for a class that multiplies embeddings by the root of hidden_size."""
        by, model = (width / self.student.config.hidden_size) ** 0.5, self.student.model
        model.embed_tokens.weight.mul_(by)
        if self.student.config.tie_word_embeddings:
            model.norm.weight.add_(self.zero_centered).div_(by).sub_(self.zero_centered)

    def seen(self, model: Any, module: nn.Module, *, output: bool = False) -> list[torch.Tensor]:
        """The input or output of a module for each sequence, (tokens, width)."""
        found: list[torch.Tensor] = []

        def keep(_: Any, args: tuple[torch.Tensor], result: Any) -> None:
            value = result if output else args[0]
            found.append((value[0] if isinstance(value, tuple) else value).flatten(0, -2))

        hook = module.register_forward_hook(keep)
        with torch.no_grad():
            for ids in self.batches:
                model(ids)
        hook.remove()
        return found

    def rows(self, name: str, layer: int) -> torch.Tensor:
        """The kept outputs of a module, of one part behind the other where it is fused."""
        whole, found, first = self.plan.source, list[torch.Tensor](), 0
        for part in self.parts[name]:
            if part in ("gate", "up"):
                size, kept = whole.intermediate_size, torch.tensor(self.plan.ffn[layer])
            else:
                heads = self.plan.heads[layer] if part == "q" else self.plan.kv_heads[layer]
                kept = torch.cat([torch.arange(h * 8, h * 8 + 8) for h in heads])
                size = 8 * (whole.num_attention_heads if part == "q" else whole.num_key_value_heads)
            found.append(first + kept)
            first += size
        return torch.cat(found)

    def until_norm(self, linear: Any, norm: Any, wanted: list[torch.Tensor]) -> list[torch.Tensor]:
        """What a linear returns where its norm, of the size that it has now, makes `wanted` of it.

        Outputs that the norm closes stay."""
        gain = norm.weight + self.zero_centered
        gain = torch.where(gain.abs() > 1e-3 * gain.abs().max(), gain, torch.nan)
        outputs = self.seen(self.student, linear, output=True)
        found = []
        for out, want in zip(outputs, wanted, strict=True):
            size = (out.square().mean(1, keepdim=True) + self.epsilon).sqrt()
            found.append(torch.where(gain.isnan(), out, want / gain * size))
        return found

    def refit(self, modules: list[Any], read: Any, wanted: Any) -> None:
        """Linears that read the same share one alpha; each is used where it helps."""
        weights = [
            m.weight if m.bias is None else torch.cat([m.weight, m.bias[:, None]], 1)
            for m in modules
        ]
        weight = torch.cat(weights)
        if modules[0].bias is not None:
            read = [torch.cat([x, torch.ones(len(x), 1)], 1) for x in read]
        (x, y), (x_held, y_held) = (
            [torch.cat([t for t, h in zip(of, self.held, strict=True) if h == held]) for of in both]
            for held, both in ((False, (read, wanted)), (True, (read, wanted)))
        )
        found = []
        for alpha in ALPHAS:
            ridge = (alpha * x.square().sum(0).mean()).sqrt()
            left = torch.cat([x, ridge * torch.eye(x.shape[1], dtype=x.dtype)])
            solved = torch.linalg.lstsq(left, torch.cat([y, ridge * weight.T])).solution.T
            found.append((float((x_held @ solved.T - y_held).square().sum()), solved))
        solutions = min(found, key=lambda pair: pair[0])[1].split([len(w) for w in weights])
        outputs = y_held.split([len(w) for w in weights], 1)
        for module, before, after, out in zip(modules, weights, solutions, outputs, strict=True):
            was, now = ((x_held @ w.T - out).square().sum() for w in (before, after))
            if was - now > 1e-6 * out.square().sum():
                module.weight.copy_(after[:, : module.in_features])
                if module.bias is not None:
                    module.bias.copy_(after[:, -1])

    def run(self) -> Any:
        student, teacher = self.student.model, self.teacher.model
        for layer, old in enumerate(self.plan.layers):
            mine, theirs = student.layers[layer], teacher.layers[old]
            following = (*self.plan.layers, None)[layer + 1]
            for block, last in (("self_attn", "o_proj"), ("mlp", "down_proj")):
                ours, whole = getattr(mine, block), getattr(theirs, block)
                names = [n for n in self.parts if n in dict(ours.named_children())]
                outputs = [
                    [
                        y[:, self.rows(n, layer)]
                        for y in self.seen(self.teacher, getattr(whole, n), output=True)
                    ]
                    for n in names
                ]
                wanted = [torch.cat(y, -1) for y in zip(*outputs, strict=True)]
                modules = [getattr(ours, n) for n in names]
                self.refit(modules, self.seen(self.student, modules[0]), wanted)
                between = [x.get_submodule(self.before_mlp) for x in (theirs, mine)]
                if block == "self_attn":
                    stream, here = (
                        self.seen(self.teacher, between[0]),
                        self.seen(self.student, mine),
                    )
                else:
                    then = teacher.norm if following is None else teacher.layers[following]
                    stream, here = (
                        self.seen(self.teacher, then),
                        self.seen(self.student, between[1]),
                    )
                residual = [
                    (x @ self.basis - s) / self.branch for x, s in zip(stream, here, strict=True)
                ]
                module = getattr(ours, last)
                if self.behind:
                    norm = mine.get_submodule(self.behind[block == "mlp"])
                    residual = self.until_norm(module, norm, residual)
                self.refit([module], self.seen(self.student, module), residual)
        self.refit_head()
        return self.student

    def refit_head(self) -> None:
        if self.student.config.tie_word_embeddings:
            return
        head = self.student.lm_head
        wanted = self.seen(self.teacher, self.teacher.lm_head, output=True)
        mean = head.weight.mean(0)
        with torch.no_grad():
            head.weight.sub_(mean)
            read = self.seen(self.student, head)
            self.refit([head], read, [y - y.mean(-1, keepdim=True) for y in wanted])
            head.weight.add_(mean)


@pytest.mark.parametrize("variant", BY_HAND)
def test_selected_and_refitted_is_what_least_squares_by_hand_gives(
    variant: str, tmp_path: Path
) -> None:
    source, plan = pruned(variant, tmp_path / "whole", **TARGET)
    basis = torch.eye(SIZES["hidden_size"], dtype=torch.float64)[:, list(plan.hidden)]
    expected = ByHand(source, PrunedSource(source, plan), plan, basis).run().state_dict()
    made = fitted(source, plan, tmp_path / "fitted")
    for name, tensor in made.tensors.items():
        error = (tensor.read().double() - expected[name]).norm() / expected[name].norm()
        assert error < 1e-4, (name, float(error))


@pytest.mark.parametrize("variant", [variant for variant in UNTIED if variant in BY_HAND])
def test_rotated_and_refitted_is_what_least_squares_by_hand_gives(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, plan = pruned(variant, tmp_path / "whole", **TARGET)
    bases: list[torch.Tensor] = []

    def kept_basis(*args: Any, **options: Any) -> torch.Tensor:
        bases.append(principal_basis(*args, **options))
        return bases[-1]

    monkeypatch.setattr("minitron.reconstruction.projection.principal_basis", kept_basis)
    made = fitted(source, plan, tmp_path / "fitted", "rotate")
    wide = replace(plan.target, hidden_size=SIZES["hidden_size"])
    narrow = replace(plan, target=wide, hidden=tuple(range(SIZES["hidden_size"])))
    start = RotatedSource(PrunedSource(source, narrow), bases[0], plan.target)
    expected = ByHand(source, start, plan, bases[0]).run().state_dict()
    for name, tensor in made.tensors.items():
        error = (tensor.read().double() - expected[name]).norm() / expected[name].norm()
        assert error < 1e-4, (name, float(error))


@pytest.mark.parametrize("variant", ["llama", "nemotron-biased"])
def test_what_a_linear_shall_return_is_summed_by_its_rows_in_the_source(
    variant: str, tmp_path: Path
) -> None:
    source = open_source(str(tiny_folder(tmp_path, variant)))
    scores = random_scores(source.architecture, seed=3)
    sizes = {**TARGET, "num_attention_heads": 2}  # one of each KV group, with another folded in
    target = target_of(source.architecture, sizes)
    plan = choose_plan(scores, source.architecture, target, head_residual=True)
    assert plan.partners is not None
    pair = pair_of(source, plan, None, Processes())
    has_bias = variant == "nemotron-biased"
    read, theirs = torch.randn(50, 36), torch.randn(50, SIZES["hidden_size"])
    seen = torch.cat([theirs, torch.ones(50, 1)], 1) if has_bias else theirs
    sums = Sums.zeros(36, seen.shape[1], squares=True)
    sums.add(read, seen)
    for row in pair.linears(("q", "k", "v", "gate", "up")):
        for position in range(len(plan.layers)):
            name = row.name(position)
            bias = pair.rows[name.replace("weight", "bias")].read() if has_bias else None
            wanted = nn.functional.linear(theirs, pair.rows[name].read(), bias)
            expected = Sums.zeros(36, wanted.shape[1])
            expected.add(read, wanted)
            found = sums.through(pair.kept_rows(row, position))
            weight = torch.randn(wanted.shape[1], 36)
            assert torch.allclose(found.products, expected.products, rtol=1e-4, atol=1e-4), name
            assert found.error(weight) == pytest.approx(expected.error(weight), rel=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_linears_that_multiply_in_bfloat16_fit_to_three_digits_of_float32(
    variant: str, tmp_path: Path
) -> None:
    source, plan = pruned(variant, tmp_path / "whole", **TARGET)
    how = hidden_choice("auto", source.architecture, plan.target)
    both = [[row for i, row in enumerate(text()) if (i % 20 == 19) == held] for held in (0, 1)]
    exact, rounded = (
        fitted_model(
            *(source, plan, *both, tmp_path / str(dtype)), how=how, dtype=dtype, device="cpu"
        )[1]
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert [refit.name for refit in exact] == [refit.name for refit in rounded]
    assert exact != rounded
    # Later, another fit may be the better one on a text as short as this.
    for one, two in zip(exact[:4], rounded[:4], strict=True):
        assert abs(one.error_after - two.error_after) < 3e-3 * one.error_before, one.name


def test_products_of_what_is_the_same_are_as_those_of_what_is_not() -> None:
    read, wanted = torch.randn(1500, 300), torch.randn(1500, 140)
    sums = Sums.zeros(300, 140)
    sums.add(read, wanted)
    x, y = read.double(), wanted.double()
    assert torch.allclose(sums.inputs, x.T @ x, rtol=1e-12, atol=1e-9)
    assert torch.equal(sums.inputs, sums.inputs.T)
    assert torch.allclose(sums.products, y.T @ x, rtol=1e-12, atol=1e-9)
    rough = Sums.zeros(300, 140)
    rough.add(read, wanted, torch.float32)
    assert (rough.inputs - sums.inputs).norm() < 1e-6 * sums.inputs.norm()
    assert rough.inputs.dtype == torch.float64


@pytest.mark.parametrize("how", ["select", "rotate"])
def test_the_output_embedding_is_fitted_some_rows_at_a_time(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, plan = pruned("nemotron", tmp_path / "whole", **TARGET)
    whole = fitted(source, plan, tmp_path / "one", how).tensors["lm_head.weight"].read()
    monkeypatch.setattr("minitron.reconstruction.head.BYTES_AT_ONCE", 7 * (42 + 36) * 8)
    read: list[int] = []
    blocks = HeadFitting._blocks

    def watched(self: HeadFitting) -> Any:
        for rows in blocks(self):
            read.append(len(rows))
            yield rows

    monkeypatch.setattr(HeadFitting, "_blocks", watched)
    made = fitted(source, plan, tmp_path / "two", how).tensors["lm_head.weight"].read()
    assert read == 2 * [*[7] * 14, 3]  # of 101
    assert (made - whole).norm() < 1e-6 * whole.norm()
    assert not torch.equal(whole, PrunedSource(source, plan).tensors["lm_head.weight"].read())


NORMED_BEHIND = ("olmo2", "gemma2", "gemma3_text")


@pytest.mark.parametrize(
    ("variant", "hidden"),
    [*product(UNTIED, ("select", "rotate")), *product(NORMED_BEHIND, ("select",))],
)
def test_held_out_loss_is_never_higher_than_without(
    variant: str, hidden: Hidden, tmp_path: Path
) -> None:
    source, plan = pruned(variant, tmp_path / "whole", **TARGET)
    made = reconstruct(
        source, plan, text(), tmp_path, hidden=hidden, dtype=torch.float32, device="cpu"
    )
    assert made.record is not None
    losses = made.record["losses"]
    if made.record["used"]:
        assert losses["reconstructed"] < losses["pruned"]
    else:
        expected = PrunedSource(source, plan).tensors
        assert made.source.tensors.keys() == expected.keys()
        assert all(
            torch.equal(t.read(), expected[n].read()) for n, t in made.source.tensors.items()
        )


@pytest.mark.parametrize("variant", NORMED_BEHIND)
def test_a_stream_with_norms_behind_what_is_added_is_not_rotated(
    variant: str, tmp_path: Path
) -> None:
    source, plan = pruned(variant, tmp_path / "whole", **TARGET)
    untied = replace(source.architecture, flags=frozenset())
    assert hidden_choice("auto", untied, plan.target) == "select"
    np.save(tmp_path / "ids.npy", np.stack(text(2, 9)))
    options: dict[str, Any] = {**TARGET, "corpus": str(tmp_path / "ids.npy"), "hidden": "rotate"}
    with pytest.raises(TargetError, match="norms what a layer adds .* give --hidden select"):
        minitron.prune(str(tmp_path / "whole"), str(tmp_path / "out"), **options)
    assert not (tmp_path / "out").exists()


def test_one_sequence_is_refused_since_none_could_be_held_out(tmp_path: Path) -> None:
    source, plan = pruned("llama", tmp_path / "whole", **TARGET)
    with pytest.raises(TargetError, match="at least 2 sequences"):
        reconstruct(
            source, plan, text(1), tmp_path, hidden="select", dtype=torch.float32, device="cpu"
        )


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Token ids of which `prune` reads the first 21 sequences."""
    path = tmp_path_factory.mktemp("text") / "ids.npy"
    np.save(path, np.random.default_rng(5).integers(4, SIZES["vocab_size"], (21, 23)))
    return str(path)


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t.read() for name, t in open_source(str(folder)).weights.items()}


def test_prune_writes_a_plain_folder_of_the_fitted_weights(
    tmp_path: Path, calibration: str
) -> None:
    whole, out = tiny_folder(tmp_path / "whole", "nemotron-biased"), tmp_path / "half"
    options: dict[str, Any] = {"reconstruct": "auto", "corpus": calibration, **TARGET}
    minitron.prune(str(whole), str(out), **options)
    record = json.loads((out / "minitron.json").read_text())["reconstruction"]
    assert record["hidden"] == "rotate"
    assert record["tokens"] == 21 * 23
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == []
    model = AutoModelForCausalLM.from_pretrained(out)
    source = open_source(str(whole))
    importance = score(source, CalibrationRecipe(corpus=calibration))
    target = target_of(source.architecture, TARGET)
    plan = choose_plan(importance, source.architecture, target)
    sequences = list(np.load(calibration))
    made = reconstruct(
        source, plan, sequences, tmp_path, hidden="auto", dtype=torch.float32, device="cpu"
    )
    assert made.record is not None
    assert record["losses"] == made.record["losses"]
    for name, tensor in made.source.tensors.items():
        assert torch.equal(model.state_dict()[name], tensor.read()), name


def test_the_same_command_gives_the_same_bytes(tmp_path: Path, calibration: str) -> None:
    whole = tiny_folder(tmp_path / "whole", "qwen3")
    for name in ("one", "two"):
        minitron.prune(
            str(whole), str(tmp_path / name), reconstruct="auto", corpus=calibration, **TARGET
        )
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def test_a_rotation_unties_and_a_selection_keeps_tied(tmp_path: Path, calibration: str) -> None:
    whole = tiny_folder(tmp_path / "whole", "qwen3-biased-tied")
    options: dict[str, Any] = {"reconstruct": "auto", "corpus": calibration, **TARGET}
    minitron.prune(str(whole), str(tmp_path / "auto"), **options)
    minitron.prune(str(whole), str(tmp_path / "turned"), hidden="rotate", **options)
    for name, is_tied in (("auto", True), ("turned", False)):
        config = json.loads((tmp_path / name / "config.json").read_text())
        record = json.loads((tmp_path / name / "minitron.json").read_text())
        if record["reconstruction"]["used"]:
            assert config["tie_word_embeddings"] is is_tied
        whole_count = sum(t.numel() for t in tensors_of(tmp_path / name).values())
        assert record["target"]["parameters"] == whole_count


def test_saved_importance_and_text_give_what_measuring_on_it_gives(
    tmp_path: Path, calibration: str
) -> None:
    whole, saved = tiny_folder(tmp_path / "whole", "llama"), tmp_path / "scores.safetensors"
    minitron.importance(str(whole), str(saved), corpus=calibration)
    options: dict[str, Any] = {"reconstruct": "auto", "corpus": calibration, **TARGET}
    minitron.prune(str(whole), str(tmp_path / "one"), **options)
    minitron.prune(str(whole), str(tmp_path / "two"), importance=str(saved), **options)
    one, two = (tensors_of(tmp_path / name) for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def rotated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that keeps directions of its source's stream."""
    folder = tmp_path_factory.mktemp("rotated") / "small"
    text: dict[str, Any] = {"corpus": "self", "samples": 40, "seq_len": 64}
    sizes = {"hidden_size": 96, "num_hidden_layers": 2}
    minitron.prune("tiny-quarter", str(folder), reconstruct="auto", **text, **sizes)
    return folder


def test_a_card_shows_the_error_of_each_linear_before_and_after_its_fit(rotated: Path) -> None:
    record = json.loads((rotated / "minitron.json").read_text())["reconstruction"]
    assert 0 < record["share_of_variance_kept"] < 1
    assert len(record["corpus_digest"]) == 64
    architecture = open_source(str(rotated)).architecture
    errors = errors_of(record, architecture)
    kinds = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "output embedding"]
    assert list(errors) == kinds
    assert [error.layer for error in errors["down_proj"]] == [0, 1]
    assert sum(map(len, errors.values())) == len(record["linears"])
    assert all(one.after <= one.before for of_kind in errors.values() for one in of_kind)
    picture = rotated / "reconstruction.png"
    first = picture.read_bytes()
    assert first.startswith(b"\x89PNG")
    picture.unlink()
    minitron.card(str(rotated))
    assert picture.read_bytes() == first
    card = (rotated / "README.md").read_text()
    alt = "![relative squared error of each linear on held-out text, before and after its fit"
    assert alt in card
    assert "](reconstruction.png)" in card
    share = f"{record['share_of_variance_kept']:.1%}"
    assert f"its 96 main directions of 128, which carry {share} of its variance" in card
    assert f"{record['losses']['reconstructed']:.3f} with the fit" in card
    assert "of hidden" not in card  # no channel is kept


def test_a_fit_that_is_not_used_has_no_picture_and_the_card_says_so(rotated: Path) -> None:
    copy = rotated.parent / "unused"
    shutil.copytree(rotated, copy)
    (copy / "reconstruction.png").unlink()
    record = json.loads((copy / "minitron.json").read_text())
    record["reconstruction"]["used"] = False
    (copy / "minitron.json").write_text(json.dumps(record))
    minitron.card(str(copy))
    card = (copy / "README.md").read_text()
    assert "Not reconstructed" in card
    assert "the weights are as they were cut" in card
    assert "reconstruction.png" not in card
    assert not (copy / "reconstruction.png").exists()


def test_remake_fits_again_to_the_same_text_and_compares_every_byte(
    rotated: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    again = tmp_path / "again"
    cli.main(["remake", str(rotated), str(again)])
    printed = capsys.readouterr().out.splitlines()[0]
    assert printed == f"{again}: 24 tensors, the same bytes"
    for name in ("model.safetensors", "minitron.json", "config.json", "reconstruction.png"):
        assert (again / name).read_bytes() == (rotated / name).read_bytes(), name
    card = (rotated / "README.md").read_text()
    assert "`minitron remake small again` fits the same weights again to the same text" in card


def test_remake_states_the_largest_difference_of_a_fit_that_comes_out_otherwise(
    rotated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("minitron.reconstruction.least_squares.ALPHAS", (3e-3,))
    caplog.set_level("INFO")
    minitron.remake(str(rotated), str(tmp_path / "again"))
    made, recorded = (
        {name: held.double() for name, held in tensors_of(folder).items()}
        for folder in (tmp_path / "again", rotated)
    )
    apart = {name: float((made[name] - recorded[name]).abs().max()) for name in made}
    shares = {name: apart[name] / float(recorded[name].abs().max()) for name in made}
    worst = max(shares, key=lambda name: shares[name])
    assert apart[worst] > 0
    assert (
        f"other bytes: the largest difference is {max(apart.values()):.2g}, and as a share of its "
        f"tensor's largest value {shares[worst]:.2g}, in {worst}"
    ) in caplog.text
    weights = json.loads((tmp_path / "again" / "minitron.json").read_text())["weights"]
    assert weights["files"] == outlines_of(tmp_path / "again")
    assert "the same bytes" not in caplog.text


def test_remake_without_the_recorded_weights_does_not_call_them_equal(
    rotated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(rotated / "minitron.json", alone)
    monkeypatch.setattr("minitron.reconstruction.least_squares.ALPHAS", (3e-3,))
    caplog.set_level("INFO")
    minitron.remake(str(alone), str(tmp_path / "again"))
    assert "other bytes than recorded; the recorded weights are not there" in caplog.text


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (
            {"corpus": "gone.jsonl"},
            CorpusError,
            "the text that .*small was fitted to cannot be read: .*gone.jsonl.*--corpus names it",
        ),
        ({"corpus_digest": "0" * 64}, CorpusError, "self is not the text that .* was fitted to"),
        ({"hidden": "turn"}, SourceError, "minitron.json is damaged: hidden"),
        ({"dtype": "int8"}, SourceError, "minitron.json is damaged: dtype"),
    ],
    ids=["gone", "another", "damaged", "no dtype"],
)
def test_remake_names_the_text_that_it_cannot_have(
    damage: dict[str, str],
    error: type[MinitronError],
    message: str,
    rotated: Path,
    tmp_path: Path,
) -> None:
    copy = tmp_path / "small"
    shutil.copytree(rotated, copy)
    record = json.loads((copy / "minitron.json").read_text())
    record["reconstruction"] |= damage
    (copy / "minitron.json").write_text(json.dumps(record))
    with pytest.raises(error, match=message):
        minitron.remake(str(copy), str(tmp_path / "again"))
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(("recorded", "used"), [("float16", "float16"), (None, "float32")])
def test_remake_fits_in_the_dtype_that_the_recorded_weights_were_fitted_in(
    recorded: str | None, used: str, rotated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "small"
    shutil.copytree(rotated, copy)
    record = json.loads((copy / "minitron.json").read_text())
    stored = open_source(str(rotated)).tensors["lm_head.weight"].dtype
    assert record["reconstruction"].pop("dtype") == str(fast_dtype(stored, "cpu"))[6:]
    record["reconstruction"] |= {} if recorded is None else {"dtype": recorded}
    (copy / "minitron.json").write_text(json.dumps(record))
    found: list[Any] = []

    def fit(source: Source, plan: PruningPlan, text: Any, recipe: Any, folder: Path) -> Any:
        found.append(recipe.compute_dtype)
        raise KeyboardInterrupt

    monkeypatch.setattr("minitron.verbs.remake.fit_to_source", fit)
    with pytest.raises(KeyboardInterrupt):
        minitron.remake(str(copy), str(tmp_path / "again"))
    assert found == [used]


def test_remake_refuses_changed_weights_and_a_text_for_a_plain_cut(
    rotated: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "small"
    shutil.copytree(rotated, copy)
    with (copy / "model.safetensors").open("r+b") as file:
        file.seek(-2, 2)
        file.write(b"\1\1")
    with pytest.raises(SourceError, match="the weights in .* are not those that"):
        minitron.remake(str(copy), str(tmp_path / "again"))
    minitron.prune("tiny", str(tmp_path / "plain"), num_hidden_layers=4, scores="random")
    with pytest.raises(TargetError, match="--corpus has no effect"):
        minitron.remake(str(tmp_path / "plain"), str(tmp_path / "again"), corpus="self")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reconstruct": "auto", "scores": "random"}, "--reconstruct auto needs text"),
        ({"hidden": "rotate", "scores": "random"}, "--hidden has no effect"),
    ],
)
def test_reconstruction_without_text_is_refused(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(TargetError, match=message):
        minitron.prune("tiny", str(tmp_path / "out"), num_hidden_layers=4, **options)


def stops(place: str, monkeypatch: pytest.MonkeyPatch, stop: Any) -> None:
    """Let a reconstruction stop at a place: where something is finished, before it is noted."""
    add = Finished.add_layer

    def at_layer(self: Finished, position: int, *arguments: Any) -> None:
        if place == str(position):
            stop()
        add(self, position, *arguments)

    monkeypatch.setattr(Finished, "add_layer", at_layer)
    for name, method in (("covariance", "keep_covariance"), ("head", "add_head")):
        if place == name:
            monkeypatch.setattr(Finished, method, stop)
    if place == "weights":
        monkeypatch.setattr("minitron.verbs.prune.write_companions", stop)


KILLED = """
import os, signal, sys
import minitron, pytest
from tests.test_reconstruction import TARGET, stops
place, corpus, whole, out = sys.argv[1:]
with pytest.MonkeyPatch.context() as patch:
    stops(place, patch, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    minitron.prune(whole, out, reconstruct="auto", corpus=corpus, **TARGET)
"""


def killed(place: str, corpus: str, whole: str, out: Path) -> None:
    """Run until the process is killed at a place."""
    command = [sys.executable, "-c", KILLED, place, corpus, whole, str(out)]
    ran = subprocess.run(command, check=False, cwd=Path(__file__).parents[1])
    assert ran.returncode == -signal.SIGKILL
    assert not out.exists()


def interrupted(place: str, corpus: str, whole: str, out: Path) -> None:
    """Run until a person stops it at a place."""
    with pytest.MonkeyPatch.context() as patch:
        stops(place, patch, raise_interrupt)
        with pytest.raises(KeyboardInterrupt):
            minitron.prune(whole, str(out), reconstruct="auto", corpus=corpus, **TARGET)


def raise_interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def is_always_used(patch: pytest.MonkeyPatch) -> None:
    """Use what is fitted all the same: random text helps no random model."""
    is_fitted = "minitron.reconstruction.reconstruct.held_out_loss"
    patch.setattr(is_fitted, lambda model, *_: 2.0 - isinstance(model, RefittedSource))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, calibration: str) -> Path:
    """A source, and beside it what a run makes of it that nothing stops."""
    place = tmp_path_factory.mktemp("unbroken")
    whole = str(tiny_folder(place / "whole", "nemotron-biased"))
    with pytest.MonkeyPatch.context() as patch:
        is_always_used(patch)
        minitron.prune(whole, str(place / "out"), reconstruct="auto", corpus=calibration, **TARGET)
    return place


@pytest.mark.parametrize(
    ("run", "place", "continued"),
    [
        (interrupted, "covariance", 0),
        (interrupted, "0", 0),
        (killed, "2", 2),
        (interrupted, "head", 3),
        (interrupted, "weights", 3),
    ],
)
def test_a_stopped_run_continues_from_its_last_layer_to_the_same_bytes(
    run: Any,
    place: str,
    continued: int,
    tmp_path: Path,
    calibration: str,
    unbroken: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "minitron")
    whole, out = str(unbroken / "whole"), tmp_path / "out"
    run(place, calibration, whole, out)
    is_always_used(monkeypatch)
    layers: list[int] = []
    add = Finished.add_layer

    def watched(self: Finished, position: int, *arguments: Any) -> None:
        layers.append(position)
        add(self, position, *arguments)

    monkeypatch.setattr(Finished, "add_layer", watched)
    monkeypatch.setattr(
        "minitron.candidates.decision.score", None
    )  # importance is not measured again
    minitron.prune(whole, str(out), reconstruct="auto", corpus=calibration, **TARGET)
    assert f"going on from layer {continued} of the smaller model" in caplog.messages
    assert layers == list(range(continued, 3))
    names = sorted(path.name for path in (unbroken / "out").iterdir())
    assert sorted(path.name for path in out.iterdir()) == names
    assert json.loads((out / "minitron.json").read_text())["reconstruction"]["used"]
    for name in names:
        assert (out / name).read_bytes() == (unbroken / "out" / name).read_bytes(), name


def test_a_stopped_run_does_not_continue_on_other_text(tmp_path: Path, calibration: str) -> None:
    whole, corpus = str(tiny_folder(tmp_path / "whole", "llama")), str(tmp_path / "ids.npy")
    np.save(corpus, np.load(calibration))
    interrupted("1", corpus, whole, tmp_path / "out")
    np.save(corpus, np.load(calibration)[:, ::-1])
    with pytest.raises(OutputError, match="begun with other corpus"):
        minitron.prune(whole, str(tmp_path / "out"), reconstruct="auto", corpus=corpus, **TARGET)


@pytest.mark.slow
def test_two_processes_fit_what_one_fits(unbroken: Path, calibration: str, tmp_path: Path) -> None:
    sizes = [f"--{key.replace('_', '-')}={value}" for key, value in TARGET.items()]
    out = tmp_path / "out"
    command = ["prune", str(unbroken / "whole"), str(out), f"--corpus={calibration}", *sizes]
    rendezvous = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(20000 + (os.getpid() + 7) % 20000),
        "WORLD_SIZE": "2",
        "CUDA_VISIBLE_DEVICES": "",
    }
    run = (
        "import sys, pytest; from tests.test_reconstruction import is_always_used;"
        "is_always_used(pytest.MonkeyPatch()); from minitron.cli import main; main(sys.argv[1:])"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", run, *command],
            env={**os.environ, **rendezvous, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    stated = [process.communicate(timeout=240)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert stated[0].startswith(str(out))
    assert stated[1] == ""
    alone = tensors_of(unbroken / "out")
    for name, tensor in tensors_of(out).items():
        assert (tensor - alone[name]).norm() < 1e-5 * alone[name].norm(), name
    assert not (tmp_path / "out.partial").exists()


def test_a_budget_is_not_searched_by_several_processes(
    unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Processes, "of_run", lambda: Processes(count=2))
    with pytest.raises(TargetError, match="a budget is searched by one process"):
        minitron.prune(str(unbroken / "whole"), str(tmp_path / "out"), ratio=0.5, corpus="random")


MEASURED = """
import re, sys
from pathlib import Path
import minitron
from minitron.errors import TargetError
options = dict(corpus="ids.npy", hidden_size=192, intermediate_size=1024, hidden="rotate")
budget, made = "1MiB", None
while made is None:  # what is needed to measure, and to reconstruct; in use is more each time
    try:
        made = minitron.prune("model", "out", memory_budget=budget, importance="scores", **options)
    except TargetError as error:
        budget = re.search("at least ([^;]*)", str(error))[1].replace(" ", "")
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
print(budget, peak)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account")
def test_the_memory_that_is_stated_is_enough(tmp_path: Path) -> None:
    sizes = {"hidden_size": 252, "intermediate_size": 1536, "num_hidden_layers": 2}
    folder = str(tiny_folder(tmp_path / "model", "llama", **sizes, vocab_size=2000))
    np.save(tmp_path / "ids.npy", np.random.default_rng(0).integers(2000, size=(40, 63)))
    random_scores(open_source(folder).architecture, seed=3).save(tmp_path / "scores")
    ran = subprocess.run(
        [sys.executable, "-c", MEASURED],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    budget, peak = ran.stdout.splitlines()[-1].split()
    assert int(peak) <= parse_bytes(budget, "--memory-budget")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("how", ["select", "rotate"])
def test_a_gpu_fits_what_a_cpu_fits(how: str, tmp_path: Path) -> None:
    source, plan = pruned("nemotron-biased", tmp_path / "whole", **TARGET)
    both = [[row for i, row in enumerate(text()) if (i % 20 == 19) == held] for held in (0, 1)]
    one, two = (
        fitted_model(
            *(source, plan, *both, tmp_path / device), how=how, dtype=torch.float32, device=device
        )[0].tensors
        for device in ("cpu", "cuda")
    )
    for name, tensor in one.items():
        assert (two[name].read() - tensor.read()).norm() < 1e-3 * tensor.read().norm(), name


NEMOTRON_15B = Architecture(
    **{"model_type": "nemotron", "hidden_size": 6144, "intermediate_size": 24576},
    **{"num_hidden_layers": 32, "num_attention_heads": 48, "num_key_value_heads": 8},
    **{"head_dim": 128, "vocab_size": 256_000},
)
NEMOTRON_8B = NEMOTRON_15B.resized(
    hidden_size=4096, intermediate_size=16384, num_attention_heads=32
)


def test_15b_is_reconstructed_at_8b_on_a_machine_of_24_gb() -> None:
    options: Any = {"needs": Needs(4, 2, base=1 << 30), "rotates": True}
    lengths = [1024] * 256
    plan = plan_memory(NEMOTRON_15B, NEMOTRON_8B, lengths, budget=22 << 30, **options)
    sums = 2 * 8 * (16384 * 16384 + 16384 * 4096)  # of down, fitted and held out
    assert sums < plan.peak <= 22 << 30
    large = plan_memory(NEMOTRON_15B, NEMOTRON_8B, lengths, budget=80 << 30, **options)
    assert not large.on_disk
    assert large.batch_tokens == 8192
    with pytest.raises(TargetError, match="or give --reconstruct none") as refused:
        plan_memory(NEMOTRON_15B, NEMOTRON_8B, lengths, budget=8 << 30, **options)
    least = parse_bytes(str(refused.value).split("at least ")[1].split(";")[0], "--memory-budget")
    small = plan_memory(NEMOTRON_15B, NEMOTRON_8B, lengths, budget=least, **options)
    assert small.on_disk
    assert small.peak <= least
