"""Language models of transformers, built from their configurations without pretrained weights, attention written out ("eager")."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, GPT2Config, PretrainedConfig, RobertaConfig, RobertaForMultipleChoice

from real.precision.models import Inputs, Model
from simcore.errors import InputError, Problem

LONGEST = 512
"""Tokens of a sample of a model that a user's configuration describes, if it takes that many."""

POSITIONS_AFTER_PADDING = ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl")
"""Types of models whose first position comes after the number of the padding token."""


class MultipleChoice(RobertaForMultipleChoice):
    """Scores (samples, choices) of tokens (samples, choices, tokens).

    The mask comes ready to be added to attention scores, because transformers leaves a mask out where no value of it is zero,
    and so would compute other operators for other values.
    """

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        encoded = self.roberta(input_ids.flatten(0, 1), attention_mask=attention_mask)
        return self.classifier(self.dropout(encoded.pooler_output)).view(input_ids.shape[:2])


def from_config(path: Path) -> Model:
    """The model that a Hugging Face `config.json` describes, of the class in its `architectures`."""
    raw = _read(path)
    named = (raw.get("architectures") or [""])[0]
    cls = MultipleChoice if named == "RobertaForMultipleChoice" else getattr(transformers, named, None)
    head = "CausalLM" if named.endswith("LMHeadModel") else named.rpartition("For")[2]
    if cls is None or head not in _HEADS or (head == "MultipleChoice" and cls is not MultipleChoice):
        allowed = "a class of transformers that ends in LMHeadModel, " + ", ".join(f"For{head}" for head in _HEADS)
        advice = "Trace other models with package.module:function."
        raise InputError("unknown head", [Problem("architectures", repr(named), allowed, advice)])
    config = transformers.AutoConfig.for_model(**raw)
    reserved = config.pad_token_id + 1 if config.model_type in POSITIONS_AFTER_PADDING else 0
    tokens = min(getattr(config, "max_position_embeddings", LONGEST + reserved) - reserved, LONGEST)
    return _model(path.parent.name or path.stem, cls, config, tokens, head)


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is not JSON", [Problem("model", str(error), "a Hugging Face config.json")]) from error
    if not isinstance(raw, dict) or raw.get("model_type") not in transformers.CONFIG_MAPPING:
        given = repr(raw.get("model_type")) if isinstance(raw, dict) else type(raw).__name__
        raise InputError(f"{path} describes no model", [Problem("model_type", given, "one that transformers knows")])
    return raw


def _bert(name: str, **sizes: int) -> Model:
    return _model(name, transformers.BertForQuestionAnswering, BertConfig(**sizes), 384, "QuestionAnswering")


def _roberta() -> Model:
    config = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5)
    return _model("roberta_base", MultipleChoice, config, 128, "MultipleChoice")


def _gpt2() -> Model:
    return _model("gpt2", transformers.GPT2LMHeadModel, GPT2Config(), 1024, "CausalLM")


def _model(name: str, cls: Any, config: PretrainedConfig, tokens: int, head: str) -> Model:
    config._attn_implementation = "eager"
    config.use_cache = False
    inputs, targets, loss, what = _HEADS[head]
    module: nn.Module = cls(config)
    vocabulary = int(config.vocab_size)

    def example(batch: int) -> tuple[Inputs, Any]:
        given = inputs(batch, tokens, vocabulary)
        return given, targets(given["input_ids"], config)

    base = cls.__mro__[1].__name__ if cls is MultipleChoice else cls.__name__
    return Model(
        name=name,
        source=f"transformers {transformers.__version__} {base}, torch {torch.__version__.partition('+')[0]}",
        sample=what.format(tokens=tokens),
        module=module,
        example=example,
        loss=loss,
    )


def _tokens(batch: int, tokens: int, vocabulary: int) -> dict[str, Tensor]:
    return {"input_ids": torch.randint(3, vocabulary, (batch, tokens))}


def _masked(batch: int, tokens: int, vocabulary: int) -> dict[str, Tensor]:
    """With a mask (samples, 1, 1, tokens) to add to attention scores; nothing is padded."""
    return _tokens(batch, tokens, vocabulary) | {"attention_mask": torch.zeros(batch, 1, 1, tokens)}


def _causal(batch: int, tokens: int, vocabulary: int) -> dict[str, Tensor]:
    """With a mask (1, 1, tokens, tokens) that hides what comes later."""
    hidden = torch.full((tokens, tokens), torch.finfo(torch.float32).min).triu(1)
    return _tokens(batch, tokens, vocabulary) | {"attention_mask": hidden[None, None]}


def _choices(batch: int, tokens: int, vocabulary: int) -> dict[str, Tensor]:
    return {
        "input_ids": torch.randint(3, vocabulary, (batch, 4, tokens)),
        "attention_mask": torch.zeros(4 * batch, 1, 1, tokens),
    }


def _next_tokens(ids: Tensor, _config: Any) -> Tensor:
    """The token after each; none after the last."""
    return torch.cat((ids[:, 1:], torch.full_like(ids[:, :1], -100)), dim=1).flatten()


def _spans(ids: Tensor, _config: Any) -> tuple[Tensor, Tensor]:
    start, end = (torch.randint(ids.shape[1], (ids.shape[0],)) for _ in range(2))
    return start, end


def _span_loss(outputs: Any, targets: tuple[Tensor, Tensor]) -> Tensor:
    start, end = targets
    return (
        functional.cross_entropy(outputs.start_logits, start) + functional.cross_entropy(outputs.end_logits, end)
    ) / 2


def _token_loss(outputs: Any, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs.logits.flatten(0, 1), targets, ignore_index=-100)


_Head = tuple[Callable[..., dict[str, Tensor]], Callable[..., Any], Callable[..., Tensor], str]
_HEADS: dict[str, _Head] = {
    "CausalLM": (_causal, _next_tokens, _token_loss, "{tokens} tokens"),
    "MaskedLM": (_masked, lambda ids, _config: ids.flatten(), _token_loss, "{tokens} tokens"),
    "QuestionAnswering": (_masked, _spans, _span_loss, "{tokens} tokens of question and text, a span as answer"),
    "MultipleChoice": (
        _choices,
        lambda ids, _config: torch.randint(ids.shape[1], (ids.shape[0],)),
        lambda scores, targets: functional.cross_entropy(scores, targets),
        "4 choices of {tokens} tokens",
    ),
    "SequenceClassification": (
        _masked,
        lambda ids, config: torch.randint(config.num_labels, (ids.shape[0],)),
        lambda outputs, targets: functional.cross_entropy(outputs.logits, targets),
        "{tokens} tokens",
    ),
}

NAMED: dict[str, Callable[[], Model]] = {
    "bert_base": lambda: _bert("bert_base"),
    "bert_large": lambda: _bert(
        "bert_large", hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    ),
    "roberta_base": _roberta,
    "gpt2": _gpt2,
}
