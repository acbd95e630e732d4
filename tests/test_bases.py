"""Students from a local checkpoint, under adapters, and from a GGUF file; what is no language model is told."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    GPTJConfig,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    StableLmConfig,
    ViTConfig,
    ViTModel,
)

from flywheel.config.root import Config, load
from flywheel.datasets.lake.lake import Lake
from flywheel.distill.stage import distill
from flywheel.errors import ConfigError, PolicyError
from flywheel.evaluation.evaluate import evaluate
from flywheel.filters.curate import curate
from flywheel.policies.registry import policy_directory
from flywheel.trajectory import Split, Trajectory

SMOKE = Path(__file__).parents[1] / "configs" / "smoke.toml"
SHAPE = LlamaConfig(
    vocab_size=300,
    hidden_size=32,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
    max_position_embeddings=2048,
)

SMALL = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Somebody's language model over bytes."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    LlamaForCausalLM(SHAPE).save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: place for place, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def filled(smoke: Config, lake: Lake, golden: list[Trajectory]) -> Lake:
    lake.append(golden, "golden")
    curate(smoke, lake)
    return lake


def config(lake: Lake, base: Path, *sets: str) -> Config:
    return load(SMOKE, [f"data_dir={lake.root}", f"student.base={base}", *sets])


@pytest.mark.slow
def test_a_student_goes_on_from_a_local_checkpoint(filled: Lake, checkpoint: Path) -> None:
    settings = config(filled, checkpoint)
    card = distill(settings, filled, "flat", 1)
    part = policy_directory(filled, card.policy_id) / "flat"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(part), AutoTokenizer.from_pretrained(part)
    assert isinstance(model, LlamaForCausalLM)
    before = AutoModelForCausalLM.from_pretrained(checkpoint).get_input_embeddings().weight
    after = model.get_input_embeddings().weight
    assert len(after) == len(tokenizer) == 256 + 12
    assert not torch.equal(before[:256], after[:256])
    assert evaluate(settings, filled, card.policy_id, Split.DEV, 1).tasks == settings.evaluate.dev_tasks


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_planner_and_executor_can_be_adapters_of_one_base(filled: Lake, checkpoint: Path) -> None:
    settings = config(filled, checkpoint, "student.lora_rank=4", "train.finetune.algorithm=bc")
    card = distill(settings, filled, "hierarchical", 1)
    folder = policy_directory(filled, card.policy_id)
    for role in ("planner", "executor"):
        assert (folder / role / "adapter_model.safetensors").is_file()
        assert not (folder / role / "model.safetensors").exists()
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    ids = torch.tensor([[1, 2, 3]])
    plain = base(ids).logits
    base.load_adapter(str(folder / "planner"), adapter_name="planner")
    base.load_adapter(str(folder / "executor"), adapter_name="executor")
    said = []
    for role in ("planner", "executor"):
        base.set_adapter(role)
        said.append(base(ids).logits)
        assert torch.allclose(AutoModelForCausalLM.from_pretrained(folder / role)(ids).logits, said[-1], atol=1e-5)
    assert not torch.allclose(said[0], said[1])
    assert not torch.allclose(said[0], plain)
    assert evaluate(settings, filled, card.policy_id, Split.DEV, 1).tasks == settings.evaluate.dev_tasks


def test_a_gguf_file_is_a_base(filled: Lake, checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "base.gguf"
    write_gguf(checkpoint, path)
    card = distill(config(filled, path), filled, "flat", 1)
    part = policy_directory(filled, card.policy_id) / "flat"
    assert isinstance(AutoModelForCausalLM.from_pretrained(part), LlamaForCausalLM)


def test_the_contents_of_a_base_are_part_of_the_students_name(filled: Lake, checkpoint: Path) -> None:
    one = distill(config(filled, checkpoint), filled, "flat", 1)
    tensors = checkpoint / "model.safetensors"
    kept = tensors.read_bytes()
    torch.manual_seed(1)
    LlamaForCausalLM(SHAPE).save_pretrained(checkpoint)
    other = distill(config(filled, checkpoint), filled, "flat", 1)
    tensors.write_bytes(kept)
    assert one.policy_id != other.policy_id


def test_other_architectures_are_told(filled: Lake, checkpoint: Path, tmp_path: Path) -> None:
    ViTModel(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)).save_pretrained(
        tmp_path / "vision"
    )
    for base, message in (
        (tmp_path / "vision", "no causal language model that transformers loads"),
        (tmp_path / "nowhere", "no model at"),
    ):
        with pytest.raises(PolicyError, match=message) as told:
            distill(config(filled, base), filled, "flat", 1)
        assert "\n" not in str(told.value)
    with pytest.raises(ConfigError, match="lora_rank needs a base"):
        load(SMOKE, ["student.lora_rank=4"])


def test_a_base_whose_packed_documents_would_read_each_other_is_refused(
    filled: Lake, checkpoint: Path, tmp_path: Path
) -> None:
    shape = OPTConfig(
        vocab_size=300, hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=1, word_embed_proj_dim=16
    )
    OPTForCausalLM(shape).save_pretrained(tmp_path / "opt")
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(tmp_path / "opt")
    with pytest.raises(PolicyError, match="would read each other"):
        distill(config(filled, tmp_path / "opt"), filled, "flat", 1)


@pytest.mark.parametrize(
    ("shape", "why"),
    [
        (StableLmConfig(**SMALL, num_attention_heads=2, num_key_value_heads=2), "do not hand on"),
        (Gemma2Config(**SMALL, num_attention_heads=2, num_key_value_heads=2, head_dim=16), "soft cap"),
        (GPTJConfig(vocab_size=300, n_embd=32, n_layer=1, n_head=2, rotary_dim=8), "cannot be exchanged"),
    ],
    ids=["stablelm", "gemma2", "gptj"],
)
def test_a_base_that_could_not_be_played_is_refused_before_it_is_trained(
    filled: Lake, checkpoint: Path, tmp_path: Path, shape: PretrainedConfig, why: str
) -> None:
    AutoModelForCausalLM.from_config(shape).save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(tmp_path / "base")
    with pytest.raises(PolicyError, match=f"cannot be a student: .*{why}"):
        distill(config(filled, tmp_path / "base"), filled, "flat", 1)


def test_another_base_cannot_take_over_a_parent(filled: Lake, smoke: Config, checkpoint: Path) -> None:
    distill(smoke, filled, "flat", 1)
    with pytest.raises(PolicyError, match="made from another base"):
        distill(config(filled, checkpoint), filled, "flat", 2)


def test_a_parent_of_another_size_is_refused(filled: Lake, smoke: Config) -> None:
    distill(smoke, filled, "flat", 1)
    wider = load(SMOKE, [f"data_dir={filled.root}", "student.hidden=64"])
    with pytest.raises(PolicyError, match="has width 32 and depth 1, the config 64 and 1"):
        distill(wider, filled, "flat", 2)


def write_gguf(checkpoint: Path, path: Path) -> None:
    """The checkpoint as llama.cpp's tools would write it, in fp32."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    shape, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_context_length(shape.max_position_embeddings)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_hidden_layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_attention_heads)
    writer.add_head_count_kv(shape.num_key_value_heads)
    writer.add_rope_dimension_count(shape.hidden_size // shape.num_attention_heads)
    writer.add_layer_norm_rms_eps(shape.rms_norm_eps)
    writer.add_vocab_size(shape.vocab_size)
    letters = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    letters += [letters[0] + letters[1]]
    letters += [f"<unused{place}>" for place in range(shape.vocab_size - len(letters))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(letters)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(letters))
    writer.add_token_merges([f"{letters[0]} {letters[1]}"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, shape.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        writer.add_tensor(names.get_name(name, (".weight",)), tensor.numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
