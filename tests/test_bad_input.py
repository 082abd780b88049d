"""A mistake is one line that names what was seen, exit code 2, and nothing written."""

import errno
import json
import logging
import os
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import minitron
from minitron import cli
from minitron.cli import main
from minitron.mistakes import usage_of
from minitron.options import flag_of
from minitron.printing import print_record, print_table, without_controls
from minitron.recipe import Recipe
from minitron.recipes import COMMANDS
from minitron.sources.opening import zoo
from tests.processes import exit_code
from tests.tiny import edit_config, tiny_folder, weights_of

VOCABULARY = 4099
RANDOM = ("--scores", "random")
NORM = "model.layers.2.post_attention_layernorm.bias"

Refused = Callable[..., str]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sharded model with a tokenizer."""
    folder = tiny_folder(
        tmp_path_factory.mktemp("bad") / "source", vocab_size=VOCABULARY, max_shard_size="800KB"
    )
    for path in zoo()["tiny"].glob("tokenizer*"):
        shutil.copy(path, folder)
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


@pytest.fixture
def damaged(source: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(source, tmp_path / "damaged"))


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run a command that must be refused; give the line it says without its `minitron: `."""

    def run(*arguments: object) -> str:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert ended.value.code == 2
        assert printed.out == ""
        lines = printed.err.splitlines()
        assert [line for line in lines if line.startswith("minitron: ")] == lines[-1:]
        assert "Traceback" not in printed.err
        assert sorted(tmp_path.rglob("*")) == before
        return lines[-1].removeprefix("minitron: ")

    return run


def ids_file(path: Path, highest: int = 100) -> str:
    ids = np.random.default_rng(1).integers(highest, size=(3, 9))
    ids[0, 0] = highest
    np.save(path, ids)
    return str(path)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("--hidden-size 43", "hidden_size 43 is larger than the source's 42: pruning only cuts"),
        ("--intermediate-size 1000", "intermediate_size 1000 is larger than the source's 66"),
        ("--num-attention-heads 8", "num_attention_heads 8 is larger than the source's 6"),
        ("--num-hidden-layers 5", "num_hidden_layers 5 is larger than the source's 4"),
        (
            "--num-attention-heads 5",
            "num_attention_heads is 5: it must be a multiple of num_key_value_heads, 2",
        ),
        ("--num-attention-heads 1", "num_attention_heads is 1: it must be a multiple of"),
        ("--hidden-size 0", "hidden_size is 0: it must be at least 1"),
        ("--intermediate-size 0", "intermediate_size is 0: it must be at least 1"),
        ("--num-attention-heads 0", "num_attention_heads is 0: it must be at least 1"),
        ("--num-hidden-layers 0", "num_hidden_layers is 0: it must be at least 1"),
        ("--hidden-size -4", "hidden_size is -4: it must be at least 1"),
        ("--num-hidden-layers=-1", "num_hidden_layers is -1: it must be at least 1"),
        ("--num-attention-heads -2", "num_attention_heads is -2: it must be at least 1"),
        ("--hidden-size many", "--hidden-size is many: it must be a whole number"),
        ("--hidden-size 12.5", "--hidden-size is 12.5: it must be a whole number"),
        ("--hidden-size=", "--hidden-size is empty: it must be a whole number"),
        ("--hidden-size", "--hidden-size has no value: give a whole number"),
        ("--ratio half", "--ratio is half: it must be a number"),
        ("--head-residual=maybe", "--head-residual is maybe: it must be true or false"),
        ("--no-such-flag 3", "unknown option --no-such-flag: `minitron prune --help` lists all"),
        ("--scores best", "--scores is best: it must be one of paper, modelopt, contribution, obs"),
        ("--hidden 160", "one of auto, select, rotate; did you mean --hidden-size?"),
        ("--seed first", "--seed is first: it must be a whole number"),
        ("--seed 1 --seed 2", "--seed is given twice: give it once"),
        ("one-word-too-many", "too many words, one-word-too-many: minitron prune SOURCE OUT"),
    ],
)
def test_a_target_that_cannot_be_is_named(
    target: str, says: str, source: Path, tmp_path: Path, refused: Refused
) -> None:
    scores = () if "--scores" in target else RANDOM
    assert says in refused("prune", source, tmp_path / "out", *target.split(), *scores)


def test_a_size_that_the_family_refuses_is_reported_in_its_words(
    tmp_path: Path, refused: Refused
) -> None:
    llama = tiny_folder(tmp_path / "llama", "llama")
    line = refused("prune", llama, tmp_path / "out", "--hidden-size", 40, *RANDOM)
    assert line.startswith("llama refuses this config: ")
    assert "(40) is not a multiple of the number of attention heads (6)" in line


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2'; known families: nemotron, llama, mistral"),
        ({"hidden_size": None}, "config.json has no hidden_size: add it"),
        ({"num_key_value_heads": 4}, "num_attention_heads is 6: it must be a multiple of"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config (awq): start from"),
        ({"kv_channels": 9}, "config.json says head_dim 8, but kv_channels 9: keep the right one"),
        ({"hidden_act": "silly"}, "silly"),
        ({"intermediate_size": 67}, "has shape [66, 42], but config.json asks for [67, 42]"),
        ({"num_hidden_layers": 5}, "has no tensor model.layers.4.input_layernorm.weight"),
        ({"num_hidden_layers": 3}, "has a tensor model.layers.3."),
    ],
    ids=str,
)
def test_a_config_that_does_not_hold_is_reported(
    changed: dict[str, Any], says: str, damaged: Path, tmp_path: Path, refused: Refused
) -> None:
    edit_config(damaged, **changed)
    assert says in refused("prune", damaged, tmp_path / "out", "--hidden-size", 36, *RANDOM)


class TestTheFolder:
    """What is wrong with the source's files; {} stands for one of its shards."""

    @staticmethod
    def without_config(folder: Path, shard: Path) -> str:
        (folder / "config.json").unlink()
        return "has no config.json: it is not a model folder"

    @staticmethod
    def damaged_config(folder: Path, shard: Path) -> str:
        (folder / "config.json").write_text('{"model_type": ')
        return "config.json is not JSON"

    @staticmethod
    def config_only(folder: Path, shard: Path) -> str:
        for path in folder.glob("model*"):
            path.unlink()
        return "has no weights: model.safetensors or pytorch_model.bin, or an index"

    @staticmethod
    def missing_shard(folder: Path, shard: Path) -> str:
        shard.unlink()
        return f"has no {shard.name}, which its index names: fetch it"

    @staticmethod
    def truncated_shard(folder: Path, shard: Path) -> str:
        size = shard.stat().st_size
        os.truncate(shard, size - 5)
        return f"{shard.name} is truncated ({size - 5} bytes of {size}): fetch it again"

    @staticmethod
    def cut_header(folder: Path, shard: Path) -> str:
        os.truncate(shard, 100)
        return f"{shard.name} is truncated or no safetensors file: fetch it again"

    @staticmethod
    def tensor_that_no_shard_has(folder: Path, shard: Path) -> str:
        path = folder / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        index["weight_map"]["model.layers.9.planted"] = shard.name
        path.write_text(json.dumps(index))
        return f"the index says {shard.name} holds model.layers.9.planted, but it does not"

    @staticmethod
    def shard_outside(folder: Path, shard: Path) -> str:
        path = folder / "model.safetensors.index.json"
        path.write_text(path.read_text().replace(shard.name, f"../{shard.name}"))
        return f"names the shard '../{shard.name}', no file of its folder"

    @staticmethod
    def integers(folder: Path, shard: Path) -> str:
        weights = load_file(shard)
        name = min(weights)
        save_file({**weights, name: weights[name].to(torch.int8)}, shard)
        return f"{name} holds int8, not floating-point numbers: start from the unquantized model"

    @pytest.mark.parametrize(
        "damage",
        [
            "without_config",
            "damaged_config",
            "config_only",
            "missing_shard",
            "truncated_shard",
            "cut_header",
            "tensor_that_no_shard_has",
            "shard_outside",
            "integers",
        ],
    )
    def test_it_is_refused_before_any_weight_is_read(
        self,
        damage: str,
        damaged: Path,
        tmp_path: Path,
        refused: Refused,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def read(*_: object) -> None:
            raise AssertionError("a weight was read")

        monkeypatch.setattr("minitron.files.lazy_tensor.StoredTensor.read", read)
        shard = sorted(damaged.glob("*.safetensors"))[-1]
        says = getattr(self, damage)(damaged, shard)
        line = refused("prune", damaged, tmp_path / "out", "--hidden-size", 36, *RANDOM)
        assert says in line
        assert str(damaged) in line


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("ranking", ["random", "magnitude", "paper"])
def test_a_weight_that_is_not_finite_is_named(
    value: float, ranking: str, damaged: Path, tmp_path: Path, refused: Refused
) -> None:
    for shard in damaged.glob("*.safetensors"):
        weights = load_file(shard)
        if NORM in weights:
            weights[NORM][-1] = value
            save_file(weights, shard)
    corpus = ["--corpus", ids_file(tmp_path / "ids.npy")] if ranking == "paper" else []
    target = ["--intermediate-size", 50, "--scores", ranking, *corpus]
    line = refused("prune", damaged, tmp_path / "out", *target)
    assert line == (
        f"{damaged}: {NORM} holds NaN or infinity: the checkpoint is damaged, fetch it again"
    )


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("tny", "tny does not exist: did you mean tiny? Or name a folder"),
        ("", "the model's name is empty: name a folder, or one of the zoo"),
        ("absent", "absent does not exist; name a folder, a .nemo, a .gguf, a Hub id (owner/name)"),
        ("a/b/c", "a/b/c does not exist; name a folder"),
        ("owner/absent", "owner/absent is neither a folder nor in the cache"),
        (__file__, "is not a .nemo"),
    ],
)
@pytest.mark.parametrize(
    "verb", ["prune", "inspect", "importance", "evaluate", "generate", "train"]
)
def test_a_source_that_is_not_there_is_named(
    verb: str,
    name: str,
    says: str,
    tmp_path: Path,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    arguments = {
        "prune": [name, tmp_path / "out", "--hidden-size", 36, *RANDOM],
        "inspect": [name],
        "importance": [name, tmp_path / "out", *RANDOM],
        "evaluate": [name, "--corpus", "a.txt"],
        "generate": [name, "It was"],
        "train": [tmp_path / "out", "--init", name, "--corpus", "a.txt"],
    }
    assert says in refused(verb, *arguments[verb])


class TestTheCorpus:
    @pytest.fixture
    def prune(self, source: Path, tmp_path: Path, refused: Refused) -> Refused:
        return lambda *arguments: refused(
            "prune", source, tmp_path / "out", "--hidden-size", 36, *arguments
        )

    def test_none_where_something_is_ranked(self, prune: Refused) -> None:
        assert prune().startswith("ranking by activations needs --corpus: a text file, a Hub dat")

    def test_none_where_importance_is_measured(
        self, source: Path, tmp_path: Path, refused: Refused
    ) -> None:
        line = refused("importance", source, tmp_path / "out.safetensors")
        assert line.startswith("ranking by activations needs --corpus")

    @pytest.mark.parametrize(
        ("name", "content", "says"),
        [
            ("a.txt", "", "a.txt holds 0 tokens, fewer than one sequence of 64: give more text or"),
            ("a.jsonl", "", "a.jsonl holds 0 tokens, fewer than one sequence of 64"),
            ("a.txt", "It was the best", "tokens, fewer than one sequence of 64: give more text"),
            ("a.jsonl", '{"body": "x"}\n', "a.jsonl, line 1 has no text: its columns are body"),
            ("a.jsonl", "nonsense", "a.jsonl, line 1 is not JSON: Expecting value"),
            ("a.docx", "x", "a.docx is of an unknown kind: use .txt, .jsonl, .parquet"),
            ("a.npy", "x", "a.npy is not a .npy: save an array of whole numbers"),
        ],
    )
    def test_it_holds_no_sequence(
        self, name: str, content: str, says: str, prune: Refused, tmp_path: Path
    ) -> None:
        (tmp_path / name).write_text(content)
        assert says in prune("--corpus", tmp_path / name)

    @pytest.mark.parametrize("kind", ["txt", "npy"])
    def test_it_does_not_exist(
        self, kind: str, prune: Refused, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        name = tmp_path / f"absent.{kind}"
        for how in ("auto", "none"):
            assert prune("--corpus", name, "--reconstruct", how) == f"{name} does not exist"
        assert not caplog.messages  # what other engines do is no part of the mistake

    def test_nor_has_the_output_a_name(self, source: Path, refused: Refused) -> None:
        line = refused("prune", source, "", "--hidden-size", 36, *RANDOM)
        assert line == "the output's name is empty: name what to write"

    def test_it_has_no_name(self, prune: Refused) -> None:
        assert prune("--corpus", "") == (
            "--corpus is empty: name a file, or a Hub dataset as owner/name"
        )

    def test_its_ids_are_of_another_vocabulary(self, prune: Refused, tmp_path: Path) -> None:
        line = prune("--corpus", ids_file(tmp_path / "ids.npy", VOCABULARY))
        assert f"ids.npy holds token id {VOCABULARY}, outside the model's vocabulary of" in line

    def test_it_is_text_but_there_is_no_tokenizer(
        self, damaged: Path, tmp_path: Path, refused: Refused
    ) -> None:
        for path in damaged.glob("tokenizer*"):
            path.unlink()
        (tmp_path / "a.txt").write_text("It was the best of times")
        target = ("--hidden-size", 36, "--corpus", tmp_path / "a.txt")
        line = refused("prune", damaged, tmp_path / "out", *target)
        assert line == f"{damaged} has no tokenizer files: add tokenizer.json"

    @pytest.mark.parametrize(
        ("flag", "value"),
        [("--samples", 0), ("--samples", -3), ("--seq-len", 0), ("--seq-len", -1)],
    )
    @pytest.mark.parametrize("corpus", ["random", "self", "ids"])
    def test_sizes_below_one_are_refused(
        self, flag: str, value: int, corpus: str, prune: Refused, tmp_path: Path
    ) -> None:
        if corpus == "ids":
            corpus = ids_file(tmp_path / "ids.npy")
        line = prune("--corpus", corpus, flag, value)
        assert line == f"{flag} is {value}: it must be at least 1"

    def test_a_sequence_of_one_token_samples_nothing(self, prune: Refused) -> None:
        line = prune("--corpus", "self", "--seq-len", 1, "--samples", 2)
        assert line == "--seq-len is 1: text sampled by the model itself needs at least 2"

    def test_it_is_given_beside_importance(self, prune: Refused) -> None:
        line = prune("--corpus", "random", "--importance", "scores.safetensors")
        assert line == "--importance and --corpus are both given: choose one"


class TestImportance:
    def test_of_another_model_names_both_shapes(
        self, source: Path, tmp_path: Path, refused: Refused
    ) -> None:
        other = tiny_folder(tmp_path / "other", hidden_size=48)
        scores = tmp_path / "scores.safetensors"
        minitron.measure_importance(str(other), str(scores), scores="random")
        line = refused(
            "prune", source, tmp_path / "out", "--hidden-size", 36, "--importance", scores
        )
        assert line == (
            "the importance holds hidden scores of shape [48], the model needs [42]: "
            "it was measured on another model"
        )

    def test_that_is_absent_is_named(self, source: Path, tmp_path: Path, refused: Refused) -> None:
        target = ("--hidden-size", 36, "--importance", tmp_path / "absent")
        line = refused("prune", source, tmp_path / "out", *target)
        assert line == f"{tmp_path / 'absent'} does not exist: make it with `minitron importance`"


class TestTheOutput:
    @pytest.mark.parametrize("verb", ["prune", "importance", "train", "quickstart"])
    @pytest.mark.parametrize("make", [Path.mkdir, Path.touch])
    def test_that_exists_is_named(
        self,
        verb: str,
        make: Callable[[Path], None],
        source: Path,
        tmp_path: Path,
        refused: Refused,
    ) -> None:
        out = tmp_path / "out"
        make(out)
        arguments = {
            "prune": [source, out, "--hidden-size", 36, *RANDOM],
            "importance": [source, out, *RANDOM],
            "train": [out, "--init", source, "--corpus", "self"],
            "quickstart": [out],
        }
        line = refused(verb, *arguments[verb])
        assert line == f"{out} exists already: choose another name or remove it"

    @pytest.mark.parametrize("name", zoo())
    def test_that_would_hide_an_embedded_model_is_refused(
        self, name: str, source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, refused: Any
    ) -> None:
        monkeypatch.chdir(tmp_path)
        says = f"{name} is the name of an embedded model, which a folder of that name would hide: "
        says += f"choose another name, or write ./{name}"
        assert refused("quickstart", name) == says
        assert refused("prune", source, name, "--hidden-size", 36, *RANDOM) == says
        main(["prune", str(source), f"./{name}", "--hidden-size", "36", *RANDOM])

    def test_whose_parents_are_not_there_leaves_none_of_them_where_it_fails(
        self, source: Path, tmp_path: Path, refused: Refused
    ) -> None:
        out = tmp_path / "a" / "b" / "out"  # `refused` compares what is there before and after
        assert "larger than" in refused("prune", source, out, "--hidden-size", 43, *RANDOM)

    def test_is_distinguished_from_what_is_in_its_way(
        self, source: Path, tmp_path: Path, refused: Refused
    ) -> None:
        (tmp_path / "out.partial").mkdir()
        (tmp_path / "out.partial" / "mine").touch()
        line = refused("prune", source, tmp_path / "out", "--hidden-size", 36, *RANDOM)
        assert line == f"{tmp_path / 'out.partial'} is in the way and not ours: move or remove it"

    @pytest.mark.parametrize("room", [0, 3, 20])
    def test_on_a_disk_that_fills_up_leaves_nothing(
        self,
        room: int,
        source: Path,
        tmp_path: Path,
        refused: Refused,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        from minitron.files import safetensors_file

        write, written = safetensors_file.write_piece, []

        def full_after(file: Any, piece: Any, *rest: Any) -> int:
            if len(written) == room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written.append(piece)
            return write(file, piece, *rest)

        monkeypatch.setattr(safetensors_file, "write_piece", full_after)
        line = refused("prune", source, tmp_path / "out", "--hidden-size", 36, *RANDOM)
        assert line == f"no space left for {tmp_path / 'out'}: free some and run again"
        assert len(written) == room


class TestTheRecipeFile:
    @pytest.mark.parametrize(
        ("content", "says"),
        [
            ("hidden_sise: 36\n", "unknown option hidden_sise in --recipe"),
            ("hidden_sise: 36\n", "recipe.yaml: did you mean hidden_size?"),
            ("hidden_size: many\n", "recipe.yaml: it must be a whole number"),
            ("hidden_size: 12.5\n", "hidden_size is 12.5 in --recipe"),
            ("- hidden_size\n", "recipe.yaml holds ['hidden_size']: write one `key: value` a line"),
            ("", "recipe.yaml holds None: write one `key: value` a line"),
            ("hidden_size: [36\n", "recipe.yaml is not YAML of plain values: line 2: expected"),
            ("hidden_size: \xff\n", "recipe.yaml is not YAML: 'utf-8' codec can't decode"),
            ("hidden_size: 43\n", "hidden_size 43 is larger than the source's 42"),
            ("importance: absent.safetensors\n", "absent.safetensors does not exist"),
        ],
    )
    def test_that_does_not_fit_is_named(
        self, content: str, says: str, source: Path, tmp_path: Path, refused: Refused
    ) -> None:
        path = tmp_path / "recipe.yaml"
        path.write_bytes(content.encode("latin-1"))
        size = () if "hidden_size" in content else ("--hidden-size", 36)
        scores = () if "importance" in content else RANDOM
        assert says in refused("prune", source, tmp_path / "out", *size, *scores, "--recipe", path)

    @pytest.mark.parametrize("form", ["--recipe absent.yaml", "--recipe=absent.yaml"])
    def test_that_is_absent_is_named(
        self, form: str, source: Path, tmp_path: Path, refused: Refused
    ) -> None:
        line = refused("prune", source, tmp_path / "out", *form.split())
        assert line.startswith("--recipe absent.yaml does not exist: name a YAML file, or one of ")
        assert "minitron-8b-prune" in line

    def test_that_has_a_name_like_a_published_one_is_compared(
        self, source: Path, tmp_path: Path, refused: Refused
    ) -> None:
        line = refused("prune", source, tmp_path / "out", "--recipe", "minitron-8b-prun")
        assert line.endswith("does not exist: did you mean minitron-8b-prune?")

    def test_that_is_a_folder_is_named(
        self, source: Path, tmp_path: Path, refused: Refused
    ) -> None:
        line = refused("prune", source, tmp_path / "out", "--recipe", tmp_path)
        assert line == f"--recipe {tmp_path} cannot be read: Is a directory"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["prun"], "unknown command prun: did you mean prune?"),
        (["shrink"], "unknown command shrink: the commands are quickstart, inspect, generate"),
        (["help"], "unknown command help: did you mean --help?"),
        (["help", "prune"], "unknown command help: `minitron prune --help` is what you mean"),
        (["inspect", "tiny", "--jsn"], "unknown option --jsn: did you mean --json?"),
        (
            ["prune", "tiny", "out", "--recipe", "tiny"],
            "init in --recipe tiny is no option of prune, but of train",
        ),
        (["--hlep"], "unknown option --hlep: did you mean --help?"),
        (["prune"], "missing SOURCE: minitron prune SOURCE OUT"),
        (["prune", "tiny"], "missing OUT: minitron prune SOURCE OUT"),
        (["train", "out"], "missing --corpus: minitron train OUT --init INIT --corpus CORPUS"),
        (["generate", "tiny", "It", "was"], "too many words, was: minitron generate SOURCE PROMPT"),
        (["generate", "tiny", "x", "--temp", "1"], "unknown option --temp: did you mean --temper"),
        (
            ["distill", "a", "b", "--corpus", "c", "--alpha", "x"],
            "a number or one of auto, dynamic",
        ),
        (["generate", "tiny", "x", "--max-new-tokens", "0"], "--max-new-tokens is 0: it must be"),
        (["generate", "tiny", "x", "--top-p", "2"], "--top-p is 2: it must be above 0"),
        (["evaluate", "tiny"], "corpus"),
        (["evaluate", "tiny", "--corpus", "absent.txt"], "absent.txt does not exist"),
        (["evaluate", "tiny", "--corpus", "a.txt", "--seq-len", "0"], "--seq-len is 0: it must be"),
        (["evaluate", "tiny", "--corpus", "a.txt", "--dtype", "int4"], "int4"),
        (["train", "out", "--init", "tiny", "--corpus", "self", "--steps", "0"], "steps is 0: it"),
        (["inspect", "tiny", "--yaml"], "--yaml"),
        (["prune", "tiny", "o", "--memory-budget", "6x"], "--memory-budget is '6x': write a size"),
        (["train", "o", "--corpus", "c", "--init", "i", "--trainer.optim"], "no value: give one"),
    ],
    ids=" ".join,
)
def test_every_command_refuses_in_one_line(
    arguments: list[str],
    says: str,
    refused: Refused,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert says in refused(*arguments)


def test_an_interrupted_run_says_so_and_leaves_nothing(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("minitron.files.safetensors_file.write_piece", interrupt)
    with pytest.raises(SystemExit) as ended:
        main(["prune", str(source), str(tmp_path / "out"), "--hidden-size", "36", *RANDOM])
    assert ended.value.code == 130
    assert capsys.readouterr().err == "minitron: interrupted\n"
    assert not list(tmp_path.iterdir())


def run_until_killed(moment: str, count: int, command: list[str]) -> None:
    """Run a command in a process that dies after so many calls of a function."""
    module, _, name = moment.rpartition(".")
    do, done = getattr(import_module(module), name), []

    def dying(*arguments: Any) -> Any:
        done.append(do(*arguments))
        if len(done) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return done[-1]

    setattr(import_module(module), name, dying)
    main(command)


@pytest.mark.parametrize(
    ("moment", "count"),
    [("minitron.files.safetensors_file.write_piece", 7), ("minitron.verbs.prune.write_card", 1)],
)
def test_a_killed_run_leaves_nothing_that_looks_complete_and_can_be_run_again(
    moment: str, count: int, source: Path, tmp_path: Path
) -> None:
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    command = ["prune", str(source), str(out), "--hidden-size", "36", *RANDOM]
    assert exit_code(run_until_killed, moment, count, command) == -signal.SIGKILL
    assert not out.exists()
    assert list(partial.glob("model*.safetensors"))
    assert (partial / "unfinished.json").exists()

    main(command)
    assert not partial.exists()
    main(["prune", str(source), str(tmp_path / "undisturbed"), *command[3:]])
    again, undisturbed = weights_of(out), weights_of(tmp_path / "undisturbed")
    assert again.keys() == undisturbed.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in undisturbed.items())
    names = {path.name for path in out.iterdir()}
    assert names == {path.name for path in (tmp_path / "undisturbed").iterdir()}
    assert "unfinished.json" not in names


def test_escape_codes_of_a_file_do_not_reach_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = "a\x1b[31m\u202e\nb"
    print_record({"writer": bad})
    print_table(["", "score"], [[bad, "1"]])
    record = logging.LogRecord("minitron", logging.INFO, "", 0, "%s", (bad,), None)
    print(cli._VisibleLines("%(message)s").format(record))
    printed = capsys.readouterr().out
    assert not {"\x1b", "\u202e"} & {*printed}
    assert printed.count(r"a\x1b[31m\u202e") == 3
    assert without_controls("x\x1b[31m\n\u3000y\t") == "x\\x1b[31m\n\u3000y\t"


class TestTheContext:
    """tiny is a model for sequences of 512 tokens."""

    @pytest.mark.parametrize(
        "arguments",
        [
            "prune tiny out --hidden-size 192 --corpus self",
            "importance tiny out --corpus random",
            "search tiny --ratio 0.5 --corpus self",
            "teacher-cache tiny out --corpus self",
            "train out --init tiny --corpus self",
            "distill tiny-half out --teacher tiny --corpus self",
        ],
    )
    def test_that_is_exceeded_is_named(
        self, arguments: str, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        line = refused(*arguments.split(), "--seq-len", 100000)
        name = "tiny-half" if arguments.startswith("distill") else "tiny"
        assert line.startswith(f"--seq-len is 100,000, and {name} is a model for sequences of 512")

    def test_that_is_exceeded_on_purpose_is_a_warning(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        text = tmp_path / "text.txt"
        text.write_text("It was the best of times, it was the worst of times. " * 50)
        minitron.evaluate("tiny", corpus=str(text), seq_len=600)
        assert (
            "tiny may predict worse beyond its context of 512 tokens: --seq-len is 600"
            in caplog.text
        )
        folder = shutil.copytree(zoo()["tiny"], tmp_path / "a")
        edit_config(folder, max_position_embeddings=8)
        minitron.generate(str(folder), "It was", max_new_tokens=10)
        assert "8 tokens: the prompt and --max-new-tokens are 1" in caplog.text


TYPED = [
    (each, field.name)
    for group in COMMANDS.values()
    for each in group
    for field in fields(each)
    if field.type not in (str, str | None, str | int | None, list[str] | None)
]


@pytest.mark.parametrize(("recipe", "name"), TYPED)
def test_a_value_of_the_wrong_type_is_named_with_what_is_expected(
    recipe: type[Recipe], name: str, refused: Refused
) -> None:
    needed = [word for word in usage_of(recipe).split()[1:] if "[" not in word]
    line = refused(*needed, f"{flag_of(name)}=wrong")
    assert re.fullmatch(
        rf"{flag_of(name)} is wrong: it must be (a whole number|a number|true or false|"
        r"one of [\w, -]+|a number or one of auto, dynamic|a name and a value, --NAME\.KEY VALUE)",
        line,
    )
