"""A written checkpoint in the real Megatron-core: it loads strictly and computes the same logits.

Skipped without `pip install --no-deps megatron-core==0.12.3`; 0.16.1 does as well, and 0.8.0 with
"setuptools<80". The zarr format was given up in 0.16 and needs, all with --no-deps, "zarr<3"
numcodecs==0.15.1 asciitree fasteners deprecated wrapt tensorstore ml_dtypes. Megatron runs on the
CPU here, with its local layers instead of Transformer Engine's.
"""

import importlib.util
import os
import tarfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from minitron.conversion.distributed_writer import DistFormat
from minitron.conversion.megatron_names import megatron_tensors
from minitron.conversion.nemo_writer import write_nemo
from minitron.model.architecture import Architecture
from modeling_nemotron import NemotronForCausalLM
from tests.test_megatron_names import lazy
from tests.tiny import SIZES, tiny_folder

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("megatron") is None, reason="megatron-core is not installed"
    ),
    pytest.mark.filterwarnings("ignore"),
]
PADDED = 128


class LayerNorm1P(torch.nn.Module):
    """Megatron has this norm only in Transformer Engine and Apex, which need a GPU."""

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(hidden_size))
        self.bias = torch.nn.Parameter(torch.empty(hidden_size))
        self.eps = eps

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        shape = self.weight.shape
        return torch.nn.functional.layer_norm(hidden, shape, self.weight + 1, self.bias, self.eps)


@pytest.fixture
def _one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Megatron's groups over a single process, and no CUDA where it takes one for granted."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import CudaRNGStatesTracker

    monkeypatch.setattr(CudaRNGStatesTracker, "fork", lambda *_: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: "cpu")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    parallel_state.initialize_model_parallel()
    yield
    parallel_state.destroy_model_parallel()
    torch.distributed.destroy_process_group()


def megatron_model(architecture: Architecture, max_positions: int) -> Any:
    """Megatron's own GPT model with the settings of a Nemotron, not initialized."""
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
    from megatron.core.transformer.transformer_config import TransformerConfig

    config = TransformerConfig(
        num_layers=architecture.num_hidden_layers,
        hidden_size=architecture.hidden_size,
        ffn_hidden_size=architecture.intermediate_size,
        num_attention_heads=architecture.num_attention_heads,
        num_query_groups=architecture.num_key_value_heads,
        kv_channels=architecture.head_dim,
        activation_func=lambda values: torch.relu(values).square(),
        add_bias_linear="mlp_bias" in architecture.flags,
        layernorm_epsilon=1e-5,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        masked_softmax_fusion=False,
        bias_dropout_fusion=False,
        apply_rope_fusion=False,
        use_cpu_initialization=True,
    )
    layer = get_gpt_layer_local_spec()
    layer.submodules.input_layernorm = LayerNorm1P
    layer.submodules.pre_mlp_layernorm = LayerNorm1P
    layers = [layer] * architecture.num_hidden_layers
    return GPTModel(
        config=config,
        transformer_layer_spec=TransformerBlockSubmodules(layers, layer_norm=LayerNorm1P),
        vocab_size=PADDED,
        max_sequence_length=max_positions,
        share_embeddings_and_output_weights=architecture.tie_word_embeddings,
        position_embedding_type="rope",
        rotary_percent=0.5,
        parallel_output=False,
    ).eval()


def unpacked(tmp_path: Path, ours: NemotronForCausalLM, dist_format: DistFormat) -> Path:
    """The weights of a written archive."""
    architecture = Architecture.from_config(ours.config.to_dict())
    path = tmp_path / "tiny.nemo"
    write_nemo(
        path,
        {},
        megatron_tensors(
            lazy({name: tensor.detach() for name, tensor in ours.state_dict().items()}),
            architecture,
            padded_vocab_size=PADDED,
        ),
        tokenizer_model=None,
        dist_format=dist_format,
        progress=lambda nbytes: None,
    )
    with tarfile.open(path) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    return tmp_path / "unpacked" / "model_weights"


def logits_in_megatron(weights: Path, architecture: Architecture, ids: torch.Tensor) -> Any:
    from megatron.core import dist_checkpointing

    model = megatron_model(architecture, max_positions=64)
    state = dist_checkpointing.load(model.sharded_state_dict(prefix="model."), str(weights))
    model.load_state_dict({name.removeprefix("model."): state[name] for name in state})
    length = ids.shape[1]
    mask = torch.ones(1, 1, length, length, dtype=torch.bool).triu(1)
    with torch.no_grad():
        return model(ids, torch.arange(length).expand_as(ids), mask)


@pytest.mark.usefixtures("_one_process")
@pytest.mark.parametrize("dist_format", ["torch_dist", "zarr"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("variant", ["nemotron", "nemotron-biased", "nemotron-tied"])
def test_megatron_computes_the_same_logits(
    tmp_path: Path, variant: str, dtype: torch.dtype, dist_format: DistFormat
) -> None:
    if dist_format == "zarr":
        reads_zarr()
    folder = tiny_folder(tmp_path / "hub", variant, dtype=dtype)
    ours = NemotronForCausalLM.from_pretrained(folder, dtype=dtype)
    ids = torch.randint(SIZES["vocab_size"], (2, 17), generator=torch.Generator().manual_seed(0))
    weights = unpacked(tmp_path, ours, dist_format)
    architecture = Architecture.from_config(ours.config.to_dict())
    theirs, padding = logits_in_megatron(weights, architecture, ids).tensor_split(
        [SIZES["vocab_size"]], dim=-1
    )
    with torch.no_grad():
        expected = ours.float().eval()(ids).logits

    assert theirs.shape == expected.shape
    difference, largest = (theirs - expected).abs().max(), expected.abs().max()
    print(f"largest difference {difference:.2e} of logits up to {largest:.2f}")
    assert difference < 1e-5 * largest
    assert (padding == 0).all()


def reads_zarr() -> None:
    """Skip where Megatron has given zarr up, or its packages are missing."""
    from megatron.core.dist_checkpointing import strategies

    if not (Path(os.fspath(strategies.__path__[0])) / "zarr.py").exists():
        pytest.skip("this megatron-core no longer reads zarr")
    pytest.importorskip("zarr")
