"""Pruning writes what surgery by hand on the loaded model would, byte for byte."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import minitron
from minitron import cli
from minitron.errors import ImportanceError, TargetError
from minitron.model.architecture import Architecture
from minitron.model.families import FAMILIES as TABLE
from minitron.model.importance import Importance
from minitron.scores.weight_scores import random_scores
from minitron.sources.opening import open_source, zoo
from minitron.verbs.prune import PruningReport
from tests.tiny import FAMILIES, SIZES, VARIANTS, tiny_folder, tiny_model, weights_of

TARGET = {
    "hidden_size": 36,
    "intermediate_size": 50,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
}


def by_hand(model: torch.nn.Module, importance: Importance) -> dict[str, torch.Tensor]:
    """The pruned state dict, cut name by name from the loaded model, without the product's plan."""

    def top(scores: torch.Tensor, count: int) -> torch.Tensor:
        return scores.argsort(descending=True, stable=True)[:count].sort().values

    hidden = top(importance.axis("hidden"), TARGET["hidden_size"])
    layers = top(importance.axis("layers"), TARGET["num_hidden_layers"])
    head_dim, per_group = SIZES["head_dim"], 3
    cut: dict[str, torch.Tensor] = {}
    state = model.state_dict()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        cut[name] = state[name][:, hidden]
    for name in ("model.norm.weight", "model.norm.bias"):
        if name in state:
            cut[name] = state[name][hidden]
    for new, old in enumerate(layers.tolist()):
        ffn = top(importance.axis("ffn")[old], TARGET["intermediate_size"])
        groups = importance.axis("heads")[old].view(2, per_group)
        heads = torch.cat([top(groups[g], 2) + g * per_group for g in range(2)])
        rows = torch.cat([torch.arange(h * head_dim, (h + 1) * head_dim) for h in heads.tolist()])
        for name, tensor in state.items():
            prefix = f"model.layers.{old}."
            if not name.startswith(prefix):
                continue
            part = name.removeprefix(prefix)
            if "norm" in part and "q_norm" not in part and "k_norm" not in part:
                value = tensor[hidden]
            elif part == "self_attn.q_proj.weight":
                value = tensor[rows][:, hidden]
            elif part == "self_attn.qkv_proj.weight":
                value = torch.cat([tensor[rows], tensor[6 * head_dim :]])[:, hidden]
            elif part == "mlp.gate_up_proj.weight":
                value = tensor[torch.cat([ffn, ffn + SIZES["intermediate_size"]])][:, hidden]
            elif part == "self_attn.q_proj.bias" or (
                part == "self_attn.q_norm.weight" and len(tensor) > head_dim  # over all heads
            ):
                value = tensor[rows]
            elif part in ("self_attn.k_proj.weight", "self_attn.v_proj.weight"):
                value = tensor[:, hidden]
            elif part == "self_attn.o_proj.weight":
                value = tensor[hidden][:, rows]
            elif part in ("mlp.up_proj.weight", "mlp.gate_proj.weight"):
                value = tensor[ffn][:, hidden]
            elif part in ("mlp.up_proj.bias", "mlp.gate_proj.bias"):
                value = tensor[ffn]
            elif part == "mlp.down_proj.weight":
                value = tensor[hidden][:, ffn]
            elif part in ("self_attn.o_proj.bias", "mlp.down_proj.bias"):
                value = tensor[hidden]
            else:  # k and v biases, norms over head_dim
                value = tensor
            cut[f"model.layers.{new}.{part}"] = value
    return cut


def ids_file(path: Path, samples: int = 3, length: int = 9) -> str:
    ids = np.random.default_rng(1).integers(SIZES["vocab_size"], size=(samples, length))
    np.save(path, ids)
    return str(path)


def digests(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_family_prunes_to_what_surgery_by_hand_gives(variant: str, tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "source", variant, dtype=torch.bfloat16)
    corpus = ids_file(tmp_path / "ids.npy")
    minitron.measure_importance(str(source), str(tmp_path / "scores"), corpus=corpus)
    minitron.prune(str(source), str(tmp_path / "out"), **TARGET, corpus=corpus, reconstruct="none")
    wanted = by_hand(
        tiny_model(variant, dtype=torch.bfloat16), Importance.load(tmp_path / "scores")
    )
    pruned, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    loaded = pruned.state_dict()
    assert loaded.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert loaded[name].dtype == torch.bfloat16
        assert torch.equal(loaded[name], tensor), name
    assert pruned(torch.arange(9)[None]).logits.isfinite().all()


def test_sliding_layers_stay_sliding_when_layers_before_them_go(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "source", "qwen2-sliding")
    architecture = Architecture.from_config(open_source(str(source)).config)
    scores = random_scores(architecture, 0)
    layers = torch.tensor([0.0, 3, 2, 1]).double()
    Importance({}, scores.hidden, scores.ffn, scores.heads, layers).save(tmp_path / "scores")
    minitron.prune(
        str(source),
        str(tmp_path / "out"),
        num_hidden_layers=2,
        importance=str(tmp_path / "scores"),
    )
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["layer_types"] == ["full_attention", "sliding_attention"]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_axis_can_be_cut_alone(family: str, tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "source", family)
    # Llama's own config refuses 4 heads here: 42 is no multiple of 4.
    for size, value in {**TARGET, "num_attention_heads": 2}.items():
        out = tmp_path / size
        minitron.prune(str(source), str(out), **{size: value}, scores="random")
        model = AutoModelForCausalLM.from_pretrained(out)
        assert getattr(model.config, size) == value
        untouched = {key: SIZES[key] for key in SIZES if key not in (size, "head_dim")}
        assert {key: getattr(model.config, key) for key in untouched} == untouched


@pytest.mark.parametrize("variant", ["nemotron-biased", "llama", "qwen3-biased-tied"])
def test_pruning_nothing_gives_the_same_tensors(variant: str, tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "source", variant, dtype=torch.float16)
    minitron.prune(str(source), str(tmp_path / "out"), hidden_size=SIZES["hidden_size"])
    before, after = weights_of(source), weights_of(tmp_path / "out")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor.view(torch.int16), after[name].view(torch.int16)), name


def test_the_command_and_the_call_give_the_same_bytes_twice(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "source")
    corpus = ids_file(tmp_path / "ids.npy")
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in TARGET.items()]
    command = [str(source), str(tmp_path / "a"), *flags, f"--corpus={corpus}"]
    from minitron.cli import main

    main(["prune", *command])
    minitron.prune(str(source), str(tmp_path / "b"), **TARGET, corpus=corpus)
    one, other = digests(tmp_path / "a"), digests(tmp_path / "b")
    del one["README.md"], other["README.md"]  # its title is the folder's name
    assert one == other
    configs = {"config.json", "generation_config.json"}
    pictures = {"kept.png", "reconstruction.png"}
    assert {*configs, *pictures, "minitron.json", "model.safetensors"} == {*one}


@pytest.mark.parametrize("sizes", [TARGET, {"ratio": 0.6, "multiple_of": 6, "max_candidates": 2}])
def test_a_dry_run_reports_what_pruning_then_makes_and_writes_nothing(
    sizes: dict[str, Any], tmp_path: Path
) -> None:
    source, out = tiny_folder(tmp_path / "source"), tmp_path / "a" / "out"
    options = {**sizes, "corpus": ids_file(tmp_path / "ids.npy")}
    before = sorted(tmp_path.rglob("*"))
    report = minitron.prune(str(source), str(out), **options, dry_run=True)
    assert isinstance(report, PruningReport)
    assert sorted(tmp_path.rglob("*")) == before
    minitron.prune(str(source), str(out), **options)
    made, record = minitron.inspect(str(out)), json.loads((out / "minitron.json").read_text())
    assert vars(report.pruned) | {"layout": "safetensors"} == vars(made)
    assert report.source == minitron.inspect(str(source))
    assert report.share_of_importance_kept == record["share_of_importance_kept"]
    shown = {row[0]: row[-1] for row in report.rows()}
    turns = record["reconstruction"]["hidden"] == "rotate"
    assert turns or sizes is not TARGET
    assert (shown["hidden_size"] == "by directions") == turns
    assert "dry_run" not in record["recipe"]
    chosen = record.get("search", {"reason": "sizes as named"})
    assert report.to_json()["reason"] == chosen["reason"]


def test_a_dry_run_prints_a_table_and_the_command_that_prunes_and_pushes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from minitron.cli import main

    source, out = str(tiny_folder(tmp_path / "source")), str(tmp_path / "out")
    monkeypatch.setattr("minitron.verbs.prune.check_push_to_hub", None)  # no token is looked for
    pruning = ["prune", source, out, "--scores", "random", "--hidden-size", "36"]
    pruning += ["--push-to-hub", "me/small"]
    main([*pruning, "--dry-run"])
    printed = capsys.readouterr().out
    assert f"minitron {' '.join(pruning)}\n" == printed.rpartition("Next:\n  ")[2]
    rows = {line.split()[0]: line.split()[1:] for line in printed.splitlines()[1:9]}
    assert rows["hidden_size"] == ["42", "36", "85.7", "%"]
    parameters = minitron.inspect(source).parameters
    assert rows["parameters"][0] == f"{parameters:,}"
    assert {"bytes", "kv_cache_bytes_per_token"} < rows.keys()
    main([*pruning, "--dry-run", "--json"])
    assert json.loads(capsys.readouterr().out)["pruned"]["hidden_size"] == 36
    assert not Path(out).exists()


def test_a_recipe_file_gives_what_flags_give_and_flags_come_before_it(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "source")
    (tmp_path / "recipe.yaml").write_text(
        f"source: {source}\nhidden_size: 30\nscores: random\nseed: 4\n"
    )
    from minitron.cli import main

    recipe = f"--recipe={tmp_path / 'recipe.yaml'}"
    main(["prune", recipe, "--out", str(tmp_path / "a"), "--hidden-size", "33"])
    minitron.prune(str(source), str(tmp_path / "b"), hidden_size=33, scores="random", seed=4)
    assert (
        digests(tmp_path / "a")["model.safetensors"]
        == (digests(tmp_path / "b")["model.safetensors"])
    )


def test_a_published_recipe_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from minitron.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny-quarter-prune").mkdir()  # no file of options
    corpus = ["--corpus", "random", "--samples", "2", "--seq-len", "16"]
    main(["prune", "tiny", "out", "--recipe", "tiny-quarter-prune", *corpus])
    assert minitron.inspect("out").parameters == minitron.inspect("tiny-quarter").parameters


def test_saved_importance_gives_what_measuring_gives(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "source")
    corpus = ids_file(tmp_path / "ids.npy")
    scores = str(tmp_path / "scores")
    minitron.measure_importance(str(source), scores, corpus=corpus)
    sizes: dict[str, Any] = {**TARGET, "corpus": corpus}
    minitron.prune(str(source), str(tmp_path / "a"), **sizes, reconstruct="none")
    minitron.prune(str(source), str(tmp_path / "b"), **TARGET, importance=scores)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (
        tmp_path / "b" / "model.safetensors"
    ).read_bytes()


def test_shards_and_pickled_weights_give_the_same_bytes(tmp_path: Path) -> None:
    whole = tiny_folder(tmp_path / "whole")
    sharded = tiny_folder(tmp_path / "sharded", max_shard_size="40KB")
    pickled = tiny_folder(tmp_path / "pickled")
    (pickled / "model.safetensors").unlink()
    torch.save(tiny_model().state_dict(), pickled / "pytorch_model.bin")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    written = []
    for source in (whole, sharded, pickled):
        out = tmp_path / f"{source.name}-out"
        minitron.prune(str(source), str(out), **TARGET, scores="random")
        written.append((out / "model.safetensors").read_bytes())
    assert written[0] == written[1] == written[2]


def test_a_tied_head_saved_beside_the_embedding_is_left_out(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "source", "nemotron-tied")
    (source / "model.safetensors").unlink()
    state = tiny_model("nemotron-tied").state_dict()
    assert "lm_head.weight" in state
    torch.save(state, source / "pytorch_model.bin")
    minitron.prune(str(source), str(tmp_path / "out"), **TARGET, scores="random")
    assert "lm_head.weight" not in weights_of(tmp_path / "out")


def test_large_targets_are_sharded_with_an_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minitron.records.folder_writer.MAX_SHARD_SIZE", "30KB")
    source = tiny_folder(tmp_path / "source")
    minitron.prune(str(source), str(tmp_path / "out"), **TARGET, scores="random")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    weights = weights_of(tmp_path / "out")
    assert index["weight_map"].keys() == weights.keys()
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in weights.values())
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.hidden_size == 36


def test_tokenizer_and_license_files_are_copied_unchanged(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "source")
    opaque = ("tokenizer.model", "vocab.txt", "merges.txt", "LICENSE", "chat_template.jinja")
    for name in opaque:
        (source / name).write_bytes(f"{name}\r\n\x00".encode())
    shutil.copy(zoo()["tiny"] / "tokenizer.json", source)
    (source / "special_tokens_map.json").write_bytes(b'{"eos_token":\t"</s>"}\r\n')
    (source / "tokenizer_config.json").write_bytes(
        b'{"tokenizer_class":\t"PreTrainedTokenizerFast"}\r\n'
    )
    names = (*opaque, "tokenizer.json", "special_tokens_map.json", "tokenizer_config.json")
    (source / "notes.txt").write_text("not part of a tokenizer")
    minitron.prune(str(source), str(tmp_path / "out"), hidden_size=30, scores="random")
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    assert not (tmp_path / "out" / "notes.txt").exists()


def test_the_record_states_what_was_kept_and_what_made_it(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "source")
    minitron.prune(str(source), str(tmp_path / "out"), hidden_size=30, scores="random", seed=7)
    record = json.loads((tmp_path / "out" / "minitron.json").read_text())
    assert record["schema"] == 1
    assert record["command"] == "prune"
    assert record["recipe"]["seed"] == 7
    assert "out" not in record["recipe"]
    assert record["kept"].keys() == {"hidden"}
    assert record["target"]["hidden_size"] == 30
    assert record["target"]["parameters"] == sum(
        tensor.numel() for tensor in weights_of(tmp_path / "out").values()
    )


def test_the_result_loads_in_a_process_that_has_only_transformers(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "source")
    minitron.prune(str(source), str(tmp_path / "out"), **TARGET, scores="random")
    check = (
        "import sys, torch; from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "assert type(model).__module__.startswith('transformers.')\n"
        "assert not any(m.startswith(('minitron', 'modeling_nemotron')) for m in sys.modules)\n"
        "print(model(torch.arange(7)[None]).logits.shape[-1])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", check, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert ran.stdout.strip() == str(SIZES["vocab_size"])


def test_no_whole_tensor_is_ever_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minitron.files.tensor_stream.PIECE_BYTES", 1024)
    monkeypatch.setattr("minitron.sources.pruned.PIECE_BYTES", 1024)
    source = tiny_folder(tmp_path / "source")
    minitron.prune(str(source), str(tmp_path / "pieces"), **TARGET, scores="random")
    largest: list[int] = []
    from minitron.files.lazy_tensor import StoredTensor

    read = StoredTensor.read

    def watched(self: StoredTensor, *bounds: Any) -> torch.Tensor:
        rows = read(self, *bounds)
        largest.append(rows.nbytes)
        return rows

    monkeypatch.setattr(StoredTensor, "read", watched)
    minitron.prune(str(source), str(tmp_path / "watched"), **TARGET, scores="random")
    assert max(largest) <= 2048  # a cut row is shorter than what is read for it
    monkeypatch.undo()
    minitron.prune(str(source), str(tmp_path / "whole"), **TARGET, scores="random")
    written = [(tmp_path / n / "model.safetensors").read_bytes() for n in ("pieces", "whole")]
    assert written[0] == written[1]


def attention_of(folder: Path, layer: int) -> dict[str, torch.Tensor]:
    prefix = f"model.layers.{layer}.self_attn."
    found = weights_of(folder)
    return {n.removeprefix(prefix): t for n, t in found.items() if n.startswith(prefix)}


def heads_of(tensor: torch.Tensor, dimension: int = 0) -> tuple[torch.Tensor, ...]:
    return tensor.split(SIZES["head_dim"], dim=dimension)


def test_a_kv_group_follows_its_query_heads(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "source")
    corpus = ids_file(tmp_path / "ids.npy")
    measured = minitron.measure_importance(str(source), str(tmp_path / "scores"), corpus=corpus)
    out = minitron.prune(
        str(source),
        str(tmp_path / "out"),
        num_key_value_heads=1,
        importance=str(tmp_path / "scores"),
    )
    assert (out.config["num_key_value_heads"], out.config["num_attention_heads"]) == (1, 3)
    for layer in range(SIZES["num_hidden_layers"]):
        group = int(measured.axis("kv_heads")[layer].argmax())
        whole, cut = attention_of(source, layer), attention_of(tmp_path / "out", layer)
        for name in ("k_proj.weight", "v_proj.weight"):
            assert torch.equal(cut[name], heads_of(whole[name])[group])
        kept = slice(3 * group, 3 * group + 3)
        assert torch.equal(cut["q_proj.weight"], torch.cat(heads_of(whole["q_proj.weight"])[kept]))
        columns = heads_of(whole["o_proj.weight"], 1)[kept]
        assert torch.equal(cut["o_proj.weight"], torch.cat(columns, dim=1))
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_norms_over_all_heads_are_cut_with_the_heads(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "source", "olmo2", num_key_value_heads=6)
    scores = random_scores(Architecture("olmo2", **{**SIZES, "num_key_value_heads": 6}), 1)
    scores.save(tmp_path / "scores")
    options: dict[str, Any] = {"num_attention_heads": 3, "importance": str(tmp_path / "scores")}
    minitron.prune(str(source), str(tmp_path / "out"), **options)
    for layer in range(4):
        whole, cut = attention_of(source, layer), attention_of(tmp_path / "out", layer)
        kept = scores.axis("kv_heads")[layer].argsort(descending=True)[:3].sort().values
        for part in ("q_norm", "k_norm", "q_proj", "k_proj", "v_proj"):
            heads = heads_of(whole[f"{part}.weight"])
            assert torch.equal(cut[f"{part}.weight"], torch.cat([heads[head] for head in kept]))
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


# A norm over all heads depends on those that are cut.
APART = [family for family in FAMILIES if "all_q_norm" not in TABLE[family].layer_modules]


@pytest.mark.parametrize("family", APART)
def test_heads_that_share_no_kv_head_are_cut_with_their_own(family: str, tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "source", family, num_key_value_heads=6)
    scores = random_scores(Architecture(family, **{**SIZES, "num_key_value_heads": 6}), 1)
    scores.save(tmp_path / "scores")
    options: dict[str, Any] = {"num_attention_heads": 3, "importance": str(tmp_path / "scores")}
    out = minitron.prune(str(source), str(tmp_path / "out"), **options)
    assert (out.config["num_key_value_heads"], out.config["num_attention_heads"]) == (3, 3)
    whole = AutoModelForCausalLM.from_pretrained(source).eval()
    with torch.no_grad():
        for layer, attention in enumerate(layer.self_attn for layer in whole.model.layers):
            gone = scores.axis("kv_heads")[layer].argsort(descending=True)[3:]
            for head in gone.tolist():  # a head whose output nobody reads is not there
                attention.o_proj.weight[:, head * 8 : (head + 1) * 8] = 0
    ids = torch.arange(1, 30)[None]
    cut = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(cut(ids).logits, whole(ids).logits, rtol=1e-4, atol=1e-4)
    folded = minitron.prune(str(source), str(tmp_path / "folded"), head_residual=True, **options)
    assert contents_of(folded) == contents_of(out)  # no group loses a part of its heads
    again = minitron.remake(str(tmp_path / "out"), str(tmp_path / "again"))
    assert contents_of(again) == contents_of(out)


def contents_of(folder: Any) -> dict[str, bytes]:
    return {name: tensor.read().numpy().tobytes() for name, tensor in folder.tensors.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_head_residual_is_added_to_queries_alone(tmp_path: Path, dtype: torch.dtype) -> None:
    source = tiny_folder(tmp_path / "source", dtype=dtype)
    heads = torch.tensor([[2.0, 3, 1, 1, 2, 3]]).repeat(4, 1).double()
    Importance(made_by={}, heads=heads).save(tmp_path / "scores")
    options = {"num_attention_heads": 4, "importance": str(tmp_path / "scores")}
    minitron.prune(str(source), str(tmp_path / "plain"), **options)
    minitron.prune(str(source), str(tmp_path / "folded"), head_residual=True, **options)
    for layer in range(4):
        whole = heads_of(attention_of(source, layer)["q_proj.weight"])
        plain, folded = (attention_of(tmp_path / name, layer) for name in ("plain", "folded"))
        # Of each group's ranks 1 2 3, the second takes in the third.
        wanted = [
            (2 * whole[0].float() - whole[2].float()).to(dtype),
            whole[1],
            (2 * whole[4].float() - whole[3].float()).to(dtype),
            whole[5],
        ]
        assert torch.equal(folded.pop("q_proj.weight"), torch.cat(wanted))
        assert not torch.equal(plain.pop("q_proj.weight"), torch.cat(wanted))
        assert all(torch.equal(folded[name], plain[name]) for name in plain)


def test_steps_measure_what_the_last_one_left(tmp_path: Path) -> None:
    source, corpus = tiny_folder(tmp_path / "source"), ids_file(tmp_path / "ids.npy", 5, 12)
    text = {"corpus": corpus, "reconstruct": "none"}
    whole = minitron.prune(str(source), str(tmp_path / "steps"), **TARGET, **text, steps=2)
    assert whole.config["hidden_size"] == TARGET["hidden_size"]
    record = json.loads((tmp_path / "steps" / "minitron.json").read_text())
    halfway = {
        "hidden_size": 39,
        "intermediate_size": 57,
        "num_attention_heads": 6,
        "num_hidden_layers": 3,
    }
    minitron.prune(str(source), str(tmp_path / "half"), **halfway, **text)
    minitron.prune(str(tmp_path / "half"), str(tmp_path / "rest"), **TARGET, **text)
    once, twice = weights_of(tmp_path / "steps"), weights_of(tmp_path / "rest")
    assert once.keys() == twice.keys()
    assert all(torch.equal(once[name], twice[name]) for name in once)
    assert record["recipe"]["steps"] == 2


def test_steps_go_by_sizes_that_the_family_takes(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "source", "llama", num_key_value_heads=6, hidden_size=48)
    corpus = ids_file(tmp_path / "ids.npy", 3, 9)
    out = minitron.prune(
        str(source),
        str(tmp_path / "out"),
        hidden_size=33,
        num_attention_heads=3,
        corpus=corpus,
        steps=3,
    )
    assert [out.config[key] for key in ("hidden_size", "num_key_value_heads")] == [33, 3]


def test_sizes_that_cut_nothing_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    source, out = str(tiny_folder(tmp_path / "source", vocab_size=60)), str(tmp_path / "out")
    with pytest.raises(TargetError, match="nothing to cut: name sizes, such as --hidden-size"):
        minitron.prune(source, out)
    cli.main(["prune", source, out, "--hidden-size", "42"])
    assert f"nothing is cut: {source} has these sizes already" in caplog.text
    printed = capsys.readouterr().out
    assert "distill" not in printed
    assert f"Next:\n  minitron inspect {out}\n" in printed
    assert "worse" not in (tmp_path / "out" / "README.md").read_text()


def test_neurons_that_no_token_uses_are_not_kept_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = str(tiny_folder(tmp_path / "source"))
    options = {"corpus": ids_file(tmp_path / "ids.npy", 1, 1), "reconstruct": "none"}
    minitron.prune(source, str(tmp_path / "out"), intermediate_size=60, **options)
    assert "layers fewer ffn have a score above 0 than are kept" in caplog.text


def test_random_scores_have_no_share(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, out = str(tiny_folder(tmp_path / "source", vocab_size=60)), tmp_path / "out"
    caplog.set_level("INFO")
    minitron.prune(source, str(out), hidden_size=30, scores="random")
    assert "kept 30 of 42 hidden\n" in caplog.text
    assert json.loads((out / "minitron.json").read_text())["share_of_importance_kept"] == {}
    card = (out / "README.md").read_text()
    assert "ranked by random scores." in card
    assert "Share of the score" not in card


def test_contiguous_layers_are_neighbours(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "source")
    layers = torch.tensor([1.0, 5, 2, 3]).double()
    Importance(made_by={}, layers=layers).save(tmp_path / "scores")
    options = {"num_hidden_layers": 2, "importance": str(tmp_path / "scores")}
    minitron.prune(str(source), str(tmp_path / "any"), **options)
    minitron.prune(str(source), str(tmp_path / "run"), contiguous_layers=True, **options)
    kept = [
        json.loads((tmp_path / name / "minitron.json").read_text())["kept"]["layers"]
        for name in ("any", "run")
    ]
    assert kept == ["1,3", "0-1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"scores": "modelopt", "head_residual": True},
            "combined with --scores modelopt",
        ),
        ({"steps": 0}, "--steps is 0: it must be at least 1"),
        ({"steps": 2, "head_residual": True}, "cannot be combined with --head-residual"),
    ],
)
def test_choices_that_do_not_go_together_are_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    source, corpus = tiny_folder(tmp_path / "source"), ids_file(tmp_path / "ids.npy")
    with pytest.raises(TargetError, match=message):
        minitron.prune(str(source), str(tmp_path / "out"), **TARGET, corpus=corpus, **options)
    assert not (tmp_path / "out").exists()


def test_a_ratio_without_text_narrows_hidden_and_ffn_alike(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "source")
    whole = minitron.inspect(str(source)).parameters
    out = minitron.prune(
        str(source), str(tmp_path / "out"), ratio=0.5, multiple_of=1, scores="random"
    )
    kept = {key: out.config[key] / SIZES[key] for key in ("hidden_size", "intermediate_size")}
    assert abs(minitron.inspect(str(tmp_path / "out")).parameters / whole - 0.5) <= 0.025
    assert abs(kept["hidden_size"] - kept["intermediate_size"]) < 0.05
    assert all(
        out.config[key] == SIZES[key] for key in ("num_attention_heads", "num_hidden_layers")
    )


def test_a_budget_without_sizes_is_searched_and_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    source = tiny_folder(tmp_path / "source")
    corpus = ids_file(tmp_path / "ids.npy", 8, 16)
    options = {"multiple_of": 6, "corpus": corpus, "seq_len": 16, "max_candidates": 4}
    minitron.prune(str(source), str(tmp_path / "out"), params="40K", **options)
    assert abs(minitron.inspect(str(tmp_path / "out")).parameters / 40_000 - 1) <= 0.05
    record = json.loads((tmp_path / "out" / "minitron.json").read_text())
    assert len(record["search"]["candidates"]) == 4
    assert record["search"]["reason"] in caplog.text
    assert "comparing all 4 shapes" in caplog.text


def test_sizes_and_a_budget_are_not_given_together(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="--hidden-size and a budget are both given"):
        minitron.prune("tiny", str(tmp_path / "out"), hidden_size=160, ratio=0.5, scores="random")


def test_importance_of_another_model_is_refused_by_name(tmp_path: Path) -> None:
    source, other = tiny_folder(tmp_path / "source"), tiny_folder(tmp_path / "other", seed=1)
    corpus = ids_file(tmp_path / "ids.npy")
    minitron.measure_importance(str(other), str(tmp_path / "scores"), corpus=corpus)
    with pytest.raises(ImportanceError, match=f"was measured on {other}.* not those of {source}"):
        minitron.prune(
            str(source), str(tmp_path / "out"), **TARGET, importance=str(tmp_path / "scores")
        )
    assert not (tmp_path / "out").exists()
