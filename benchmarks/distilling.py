"""Compare training steps of `minitron distill` with those of a Trainer with a plain KL loss.

Both are transformers' Trainer with the same student, teacher, batches and optimizer. They run in
turn, from the same weights each time; the result is the median over the rounds of the ratio in a
round. Memory is the peak of resident memory above that of models and interpreter. The losses of
all steps of both trainers are compared first.

    python benchmarks/distilling.py                        # some minutes, 6 GB
    python benchmarks/distilling.py --vocabularies 4096 --threads 1
"""

import argparse
import copy
import os
import statistics
import tempfile
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from distillation_loss import Runs, measure, ratio
from transformers import PreTrainedModel, Trainer, TrainingArguments

from minitron.training.inner_states import InnerStates
from minitron.training.teacher import DistillLoss, RunningTeacher
from minitron.training.trainers import DistillTrainer
from modeling_nemotron import NemotronConfig, NemotronForCausalLM

TOLERANCE = 1e-4  # relative, of the loss of a step


class NaiveTrainer(Trainer):
    """A Trainer with the simplest loss: all logits of both models, log_softmax, kl_div."""

    def __init__(self, *, teacher: PreTrainedModel, **options: Any) -> None:
        super().__init__(**options)
        self._teacher = teacher.eval()
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **_: Any
    ) -> Any:
        ids = inputs["input_ids"]
        student = F.log_softmax(model(input_ids=ids, use_cache=False).logits[:, :-1], dim=-1)
        with torch.no_grad():
            logits = self._teacher(input_ids=ids, use_cache=False).logits[:, :-1]
            teacher = F.log_softmax(logits, dim=-1)
        return F.kl_div(
            student.flatten(0, 1), teacher.flatten(0, 1), reduction="batchmean", log_target=True
        )


def make_model(width: int, options: argparse.Namespace, *, seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = NemotronConfig(
        vocab_size=options.vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=options.layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=width // 8,
        max_position_embeddings=options.seq_len,
    )
    return NemotronForCausalLM(config)


def run_trainer(way: str, options: argparse.Namespace, data: Dataset, runs: Runs) -> list[float]:
    """Run some optimizer steps from the same weights; return the losses."""
    student = copy.deepcopy(options.models[0])
    arguments = TrainingArguments(
        output_dir=options.folder,
        max_steps=options.steps,
        per_device_train_batch_size=options.batch_size,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        remove_unused_columns=False,
    )
    common: dict[str, Any] = {"model": student, "args": arguments, "train_dataset": data}
    teacher = options.models[1]
    trainer: Trainer
    if way == "naive":
        trainer = NaiveTrainer(teacher=teacher, **common)
    else:
        trainer = DistillTrainer(
            teacher=RunningTeacher(teacher), loss=DistillLoss(), inner=InnerStates(), **common
        )
    trainer.log = lambda logs, *_, **__: trainer.state.log_history.append(logs)  # type: ignore
    measure(trainer.train, runs, 0)  # type: ignore[arg-type]
    return [record["loss"] for record in trainer.state.log_history if "loss" in record]


def compare(options: argparse.Namespace, threads: int) -> None:
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    shape = options.steps * options.batch_size, options.seq_len
    ids = torch.randint(options.vocabulary, shape, generator=generator)
    rows = {"input_ids": ids, "labels": ids, "row": torch.arange(shape[0])}
    data = Dataset.from_dict(rows).with_format("torch")
    runs = {"ours": Runs(), "naive": Runs()}
    for number in range(options.rounds + 1):  # the first one warms up
        order = list(runs) if number % 2 else list(reversed(runs))
        losses = {way: run_trainer(way, options, data, runs[way]) for way in order}
        worst = max(abs(a - b) / b for a, b in zip(losses["ours"], losses["naive"], strict=True))
        if not worst <= TOLERANCE:
            raise SystemExit(f"A step's loss differs by {worst:.1e}: nothing is compared.")
    tokens = options.steps * options.batch_size * options.seq_len
    print(f"\nvocabulary {options.vocabulary}, {threads} threads, losses alike to {worst:.0e}")
    print(f"{'':8}{'tokens/s':>10}{'per cpu s':>11}{'MB':>8}")
    for way, each in runs.items():
        wall, cpu, memory = (statistics.median(v[1:]) for v in (each.wall, each.cpu, each.memory))
        print(f"{way:8}{tokens / wall:10.0f}{tokens / cpu:11.0f}{memory / 1e6:8.0f}")
    ours, naive = runs["ours"], runs["naive"]
    print(
        f"ours/naive: tokens a second {ratio(naive.wall[1:], ours.wall[1:]):.2f}, "
        f"a CPU second {ratio(naive.cpu[1:], ours.cpu[1:]):.2f}, "
        f"memory {ratio(ours.memory[1:], naive.memory[1:]):.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[4_096, 65_536])
    parser.add_argument("--student", type=int, default=256, help="its width")
    parser.add_argument("--teacher", type=int, default=512, help="its width")
    parser.add_argument("--layers", type=int, default=4, help="of both")
    parser.add_argument("--batch-size", type=int, default=4, help="sequences")
    parser.add_argument("--seq-len", type=int, default=256, help="tokens")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps a turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for vocabulary in options.vocabularies:
        options.vocabulary = vocabulary
        options.models = [
            make_model(width, options, seed=seed)
            for seed, width in enumerate((options.student, options.teacher))
        ]
        with tempfile.TemporaryDirectory() as options.folder:
            for threads in options.threads:
                compare(options, threads)


if __name__ == "__main__":
    main()
