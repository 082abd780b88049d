"""The options of `minitron convert`."""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

from minitron.options import bounded
from minitron.recipe import DType, Recipe

Target = Literal["hub", "nemo", "nemo2", "trtllm", "onnx", "gguf"]
GgufDType = Literal["f32", "f16", "bf16", "q8_0", "q4_0"]  # as llama.cpp calls them
DistFormat = Literal["torch_dist", "zarr"]


@dataclass(frozen=True)
class ConvertRecipe(Recipe):
    r"""Convert a model to another format: .nemo, NeMo 2, Hub, TensorRT-LLM, ONNX, GGUF.

    Examples:
        minitron convert minitron-8b-base.nemo minitron-8b-base
        minitron convert nvidia/Minitron-8B-Base minitron-8b-base --dtype bfloat16
        minitron convert minitron-8b-base.nemo engine --to trtllm --tp 2 \
            --dtype bfloat16
        minitron convert tiny tiny.nemo --to nemo
    """

    FLAGS: ClassVar = ("--recipe",)

    source: str
    """The model: a .nemo file or folder, a .gguf file, a folder, a Hub id or a name of the zoo."""
    out: str
    """What to write: a folder, or with --to nemo and --to gguf a file."""
    _: KW_ONLY
    FORMAT: ClassVar = "Format"
    to: Target = "hub"
    """hub: config.json, safetensors and tokenizer; nemo: one .nemo file; nemo2: a NeMo 2 folder;
    trtllm: a TensorRT-LLM checkpoint; onnx: a graph with its KV cache; gguf: a file for
    llama.cpp."""
    dtype: DType | GgufDType | None = None
    """Precision of the weights; as they are stored unless given. f32, f16, bf16, q8_0 and q4_0 are
    those of a GGUF file, whose norms stay float32."""
    max_shard_size: str = "2GB"
    """Largest safetensors file (hub)."""
    tp: int = bounded(1, at_least=1)
    """Tensor-parallel ranks (trtllm)."""
    pp: int = bounded(1, at_least=1)
    """Pipeline-parallel ranks (trtllm)."""
    dist_format: DistFormat = "torch_dist"
    """Storage format of the weights in a .nemo; megatron-core up to 0.15 reads zarr."""
    READING: ClassVar = "Reading"
    keep_vocab_padding: bool = False
    """Keep the embedding rows of a .nemo beyond its tokenizer's size."""
    check: bool = True
    """Refuse NaN and infinity (--no-check: do not read the values)."""
    low_disk: bool = False
    """Read the weights of a Hub id over the network while they are written: none is stored on this
    machine, and of the files only the sizes are verified."""
