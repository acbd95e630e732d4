"""Where a role's model comes from: from scratch, or from a local checkpoint or GGUF file, whole or under an adapter."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.utils import logging
from xxhash import xxh3_128

from flywheel.agents.contexts.prompts import END, PAD, SPECIAL_TOKENS
from flywheel.agents.contexts.tokenization import token_id
from flywheel.agents.inference.prefix_cache import PrefixCache
from flywheel.agents.inference.token_shift import TokenShiftConfig, TokenShiftForCausalLM, register_models
from flywheel.config.student import StudentConfig
from flywheel.errors import ConfigError, PolicyError, PrerequisiteError
from flywheel.policies.tokenizer import train_tokenizer

BASE = "base"
"""The folder, beside the roles', of the model that adapters sit on."""
ADAPTER = "adapter_config.json"
Part = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def first_part(
    config: StudentConfig, texts: Iterable[str], names: list[str], seed: int, directory: Path, *, numbers: bool = False
) -> Part:
    """A role's model before any training, for a role's folder. A base of adapters is saved beside it. `names`,
    `numbers`: what a tokenizer of its own keeps together (`policies.tokenizer`).

    Raises `PolicyError` in one line if the base does not load.
    """
    if not config.base:
        trained = train_tokenizer(texts, names, config.vocabulary, numbers=numbers)
        return new_model(config, trained, seed), trained
    torch.manual_seed(seed)  # embeddings of the markers are drawn
    model, tokenizer = _load_base(Path(config.base))
    _refuse_mixing(model, config.base)
    _refuse_misreading(model, config.base)
    markers: list[int] = []
    if config.chat_template:
        tokenizer.chat_template = _read_template(Path(config.chat_template))
    if not tokenizer.chat_template:
        tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL_TOKENS)})
        model.resize_token_embeddings(len(tokenizer))
        markers = [token_id(tokenizer, marker) for marker in SPECIAL_TOKENS]
    if config.lora_rank:
        if not (directory.parent / BASE).is_dir():
            save_part(model, tokenizer, directory.parent / f"{BASE}.new")
            (directory.parent / f"{BASE}.new").rename(directory.parent / BASE)
        model = load_part(directory.parent / BASE)[0]
        _add_adapter(model, config.lora_rank, markers)
    return model, tokenizer


def _read_template(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise PolicyError(f"student.chat_template: {error}") from error


def new_model(config: StudentConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """A role's model from scratch, for its tokenizer."""
    pad, end = token_id(tokenizer, PAD), token_id(tokenizer, END)
    return untrained(config, len(tokenizer), seed, pad=pad, end=end)


def untrained(
    config: StudentConfig, vocabulary: int, seed: int, *, pad: int | None = None, end: int | None = None
) -> PreTrainedModel:
    """A Qwen3-shaped model in fp32, with or without a token shift. Weights are a function of the seed.

    Normalised queries and keys (Qwen3, arXiv 2505.09388) and an initial spread of width^-1/2 let so small a model
    learn to copy names out of its context early in training.
    """
    torch.manual_seed(seed)
    shape = (TokenShiftConfig if config.token_shift else Qwen3Config)(
        vocab_size=vocabulary,
        hidden_size=config.hidden,
        intermediate_size=3 * config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        head_dim=config.hidden // config.heads,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        initializer_range=config.hidden**-0.5,
        pad_token_id=pad,
        bos_token_id=None,
        eos_token_id=end,
    )
    return TokenShiftForCausalLM(shape) if isinstance(shape, TokenShiftConfig) else Qwen3ForCausalLM(shape)


def base_digest(config: StudentConfig) -> str:
    """What the base and its chat template hold, or an empty string: their paths say nothing of it."""
    path = Path(config.base)
    if not config.base or not path.exists():
        return ""
    checksum = xxh3_128()
    files = sorted(entry for entry in (path.rglob("*") if path.is_dir() else [path]) if entry.is_file())
    for file in [*files, *([Path(config.chat_template)] if Path(config.chat_template).is_file() else [])]:
        checksum.update(file.name.encode())
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                checksum.update(block)
    return checksum.hexdigest()


def next_part(config: StudentConfig, start: Path, directory: Path) -> Part:
    """The model that a role's training goes on from: a parent's, with its adapter to be trained further.

    Raises `PolicyError` if it is of another size than the config's.
    """
    model, tokenizer = load_part(start, trainable=True)
    if (start / ADAPTER).is_file() and not (directory.parent / BASE).is_dir():
        draft = directory.parent / f"{BASE}.new"
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(start.parent / BASE, draft)
        draft.rename(directory.parent / BASE)
    shape = model.config.get_text_config()
    if not config.base and isinstance(shape, TokenShiftConfig) != config.token_shift:
        raise PolicyError(
            f"{start.parent.name} and the config differ in student.token_shift; train from scratch (--where), or go "
            "back to that setting"
        )
    if not config.base and (shape.hidden_size, shape.num_hidden_layers) != (config.hidden, config.layers):
        raise PolicyError(
            f"{start.parent.name} has width {shape.hidden_size} and depth {shape.num_hidden_layers}, the config "
            f"{config.hidden} and {config.layers}; train from scratch (--where), or go back to those settings"
        )
    return model, tokenizer


def save_part(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """One role's model, or its adapter alone, as a Hugging Face folder."""
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def load_part(directory: Path, *, trainable: bool = False) -> Part:
    """A role's model and tokenizer. Raises `PolicyError` in one line."""
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    adapter = (directory / ADAPTER).is_file()
    register_models()
    with _loading(directory):
        model = AutoModelForCausalLM.from_pretrained(
            directory.parent / BASE if adapter else directory, dtype=torch.float32, local_files_only=True
        )
        if adapter:
            model.load_adapter(str(directory), is_trainable=trainable)
    return model, load_tokenizer(directory)


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """A role's tokenizer alone. Raises `PolicyError` in one line."""
    register_models()
    with _loading(directory):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    return tokenizer


@contextmanager
def _loading(directory: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # transformers, safetensors and json raise families of their own for a broken folder
        raise PolicyError(
            f"student {directory} does not load ({_first_line(error)}); delete its folder and distill it again"
        ) from error


def trainable(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """What an optimizer moves: all of a model, or its adapter."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _load_base(path: Path) -> Part:
    """A local checkpoint folder, or a GGUF file, whose weights become fp32."""
    where, options = (path.parent, {"gguf_file": path.name}) if path.suffix == ".gguf" else (path, {})
    if not path.exists():
        raise PolicyError(f"no model at {path}; student.base names a local checkpoint folder or a .gguf file")
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    register_models()
    try:
        model = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32, local_files_only=True, **options)
        if options:  # dequantised by now, and yet transformers 5 would refuse to save it
            model.hf_quantizer = None  # type: ignore[assignment]
            del model.config.quantization_config
        return model, AutoTokenizer.from_pretrained(where, local_files_only=True, **options)
    except ImportError as error:
        raise PrerequisiteError("GGUF files need gguf: pip install 'trajectory-flywheel[gguf]'") from error
    except Exception as error:  # as above
        raise PolicyError(
            f"{path} is no causal language model that transformers loads ({_first_line(error)}); "
            "student.base takes checkpoints of AutoModelForCausalLM"
        ) from error


@torch.inference_mode()
def _refuse_mixing(model: PreTrainedModel, base: str) -> None:
    """Raise `PolicyError` if documents of one row read each other: not every architecture goes by position ids."""
    model.train(False)
    ids = torch.arange(1, 9)[None] % model.config.get_text_config().vocab_size
    positions = torch.arange(4).repeat(2)[None]
    options = {"use_cache": False}
    try:
        together = model.base_model(input_ids=ids, position_ids=positions, **options).last_hidden_state[:, 4:]
    except TypeError:
        together = model.base_model(input_ids=ids, **options).last_hidden_state[:, 4:]
    alone = model.base_model(input_ids=ids[:, 4:], **options).last_hidden_state
    if not torch.allclose(together, alone, atol=1e-5, rtol=1e-4):
        raise PolicyError(
            f"{base} cannot learn from packed rows: its documents would read each other; "
            "take an architecture that goes by position ids, as Llama, Qwen, Mistral or Gemma"
        )


@torch.inference_mode()
def _refuse_misreading(model: PreTrainedModel, base: str) -> None:
    """Raise `PolicyError` if several contexts that are read at once do not stay apart, as they must in play."""
    contexts = [[token % model.config.get_text_config().vocab_size for token in range(1, length)] for length in (9, 6)]
    usual = model.config._attn_implementation
    try:
        together = PrefixCache(model).read([0, 1], contexts)
    except ConfigError as error:
        raise PolicyError(f"{base} cannot be a student: {error}") from error
    finally:
        model.set_attn_implementation(usual)
    alone = torch.cat([model(torch.tensor([context])).logits[:, -1] for context in contexts])
    if not torch.allclose(together, alone, atol=1e-4, rtol=1e-3):
        raise PolicyError(f"{base} cannot be a student: read at once, contexts change each other")


def _add_adapter(model: PreTrainedModel, rank: int, markers: list[int]) -> None:
    """LoRA (Hu et al. 2021, arXiv 2106.09685) on every linear layer; the embeddings of new markers are trained, too."""
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise PrerequisiteError("adapters need peft: pip install 'trajectory-flywheel[lora]'") from error
    embeddings = next(name for name, part in model.named_modules() if part is model.get_input_embeddings())
    model.add_adapter(
        LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            target_modules="all-linear",
            trainable_token_indices={embeddings.rpartition(".")[2]: markers} if markers else None,
            task_type="CAUSAL_LM",
        )
    )


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
