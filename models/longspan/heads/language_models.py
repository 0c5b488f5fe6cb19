"""Heads that score words: at masked tokens, or the next word.

B batch, T tokens, E width of the features that heads read, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.utils import can_return_tuple

from longspan.base import check_range
from longspan.heads.base import IGNORED, Head, LogitsOutput, with_auxiliary
from longspan.layers.chunked import head_cross_entropy, linear_cross_entropy
from longspan.layers.label_smoothing import smoothed_cross_entropy


@dataclass
class CausalLMOutput(LogitsOutput):
    """As ``LogitsOutput``, with the cache or the memories, where they are kept."""

    past_key_values: Any = None
    mems: tuple[Tensor, ...] | None = None


def check_words(labels: Tensor, shape: Sequence[int], vocab_size: int, name: str = "labels") -> None:
    """Raise ValueError unless ``labels``, an argument called ``name``, are words or -100, one for each token."""
    if list(labels.shape) != list(shape) or labels.is_floating_point():
        raise ValueError(
            f"{name} must be integers [batch, tokens] = {list(shape)}, got {labels.dtype} {list(labels.shape)}"
        )
    check_range(name, labels.masked_fill(labels == IGNORED, 0), vocab_size, f"vocab_size; {IGNORED}: not scored")


class LanguageModelHead(nn.Module):
    """Dense, GELU, LayerNorm, and scores of all words by weights that may be the word embeddings (RoBERTa's head)."""

    def __init__(self, hidden_size: int, vocab_size: int, layer_norm_eps: float):
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.layer_norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.decoder = nn.Linear(hidden_size, vocab_size)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``[..., E]`` -> ``[..., V]``."""
        return self.decoder(self.layer_norm(F.gelu(self.dense(hidden_states))))


class LinearLanguageModelHead(nn.Module):
    """Scores of all words by weights of their own (Reformer's head), or without ``bias`` by those of the embeddings."""

    def __init__(self, feature_size: int, vocab_size: int, bias: bool = True):
        super().__init__()
        self.decoder = nn.Linear(feature_size, vocab_size, bias=False)
        self.bias = nn.Parameter(torch.zeros(vocab_size)) if bias else None

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``[..., E]`` -> ``[..., V]``."""
        scores = self.decoder(hidden_states)
        return scores if self.bias is None else scores + self.bias.to(scores.dtype)

    def loss(self, hidden_states: Tensor, labels: Tensor, rows: int, num_items_in_batch: Tensor | int | None) -> Tensor:
        """Cross entropy of ``labels [...]``, of which ``rows`` tokens' scores exist at a time."""
        options: dict[str, Any] = dict(rows=rows, ignore_index=IGNORED, num_items_in_batch=num_items_in_batch)
        if type(self.decoder) is nn.Linear:
            return linear_cross_entropy(hidden_states, self.decoder.weight, self.bias, labels, **options)
        return head_cross_entropy(self, hidden_states, labels, **options)  # an adapter or a quantised layer


class WordHead(Head):
    """What language models share."""

    accepts_loss_kwargs = True

    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, LanguageModelHead | LinearLanguageModelHead) and module.bias is not None:
            init.zeros_(module.bias)

    def get_output_embeddings(self):
        return self.lm_head.decoder

    def set_output_embeddings(self, new_embeddings):
        """The bias of a resized vocabulary keeps its old entries; new ones are 0."""
        self.lm_head.decoder = new_embeddings
        if new_embeddings.bias is not None:
            self.lm_head.bias = new_embeddings.bias
        elif self.lm_head.bias is not None and len(self.lm_head.bias) != new_embeddings.out_features:
            more = new_embeddings.out_features - len(self.lm_head.bias)
            self.lm_head.bias = nn.Parameter(F.pad(self.lm_head.bias.detach(), (0, more)))

    def score(
        self, hidden_states: Tensor, labels: Tensor | None, num_items_in_batch: Tensor | int | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Loss and logits of ``hidden_states [B, T, E]``; ``labels [B, T]`` stand at the token that predicts them.

        With ``config.chunk_size_lm_head`` and labels, logits exist for that many tokens at a time, and a training step
        returns none.
        """
        rows = getattr(self.config, "chunk_size_lm_head", 0)
        if labels is None:
            return None, self.lm_head(hidden_states)
        check_words(labels, hidden_states.shape[:2], self.config.vocab_size)
        if rows:
            loss = self.lm_head.loss(hidden_states, labels, rows, num_items_in_batch)
            return loss, None if self.training else self.lm_head(hidden_states)
        logits = self.lm_head(hidden_states)
        smoothing = getattr(self.config, "label_smoothing", 0.0)
        if smoothing or logits.dtype == torch.float64:  # which transformers' losses would round to float32
            return smoothed_cross_entropy(logits, labels, smoothing, num_items_in_batch=num_items_in_batch), logits
        loss = self.loss_function(
            logits,
            labels,
            vocab_size=self.config.vocab_size,
            num_items_in_batch=num_items_in_batch,
            shift_labels=labels.contiguous(),  # where the loss is a causal model's: shifted already
        )
        return loss, logits


class MaskedLMHead(WordHead):
    """Scores of all words at every token."""

    def build_head(self, config) -> None:
        self.lm_head = LanguageModelHead(config.hidden_size, config.vocab_size, config.layer_norm_eps)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        num_hashes: int | None = None,
        max_recurrent_steps: int | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        num_items_in_batch: Tensor | None = None,
    ) -> LogitsOutput:
        """Score all words: ``logits [B, T, V]``.

        Args:
            input_ids: ``[B, T]``.
            attention_mask: ``[B, T]``, 1 = a token, 0 = padding.
            global_attention_mask: ``[B, T]``, 1 = a global token; for architectures that have them.
            token_type_ids: ``[B, T]``, which text a token belongs to; for architectures that have types.
            position_ids: ``[B, T]``, where the model's own count is not wanted.
            inputs_embeds: ``[B, T, E]`` in place of ``input_ids``.
            num_hashes: hash rounds of this call; for architectures that hash.
            max_recurrent_steps: steps of this call; for architectures that are recurrent in depth.
            labels: ``[B, T]``, the word at each masked token, -100 elsewhere.
            output_attentions: also return attention weights.
            output_hidden_states: also return the hidden states of all layers.
            num_items_in_batch: what the loss is divided by, where a batch is one of several of a step.

        Returns:
            Loss and logits. Training with ``config.chunk_size_lm_head`` gives no logits: they never exist all at once.
        """
        outputs = self.encode(
            input_ids=input_ids,
            attention_mask=attention_mask,
            global_attention_mask=global_attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            num_hashes=num_hashes,
            max_recurrent_steps=max_recurrent_steps,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        loss, logits = self.score(outputs.last_hidden_state, labels, num_items_in_batch)
        loss = with_auxiliary(loss, outputs, labels, num_items_in_batch)
        return self.answer(outputs, loss=loss, logits=logits)


class CausalLMHead(WordHead):
    """Scores of all words to come next, at every token."""

    output_class = CausalLMOutput

    def build_head(self, config) -> None:
        self.loss_type = "ForCausalLM"  # transformers reads it off the class's name otherwise
        self.lm_head = LinearLanguageModelHead(config.feature_size, config.vocab_size)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        num_hashes: int | None = None,
        max_recurrent_steps: int | None = None,
        mems: Any = None,
        use_mems: bool | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        next_ids: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        num_items_in_batch: Tensor | None = None,
        **aligned: Tensor,
    ) -> CausalLMOutput:
        """Score the words to come next: ``logits [B, T, V]``.

        Args:
            input_ids: ``[B, T]``.
            attention_mask: ``[B, T]``, 1 = a token, 0 = padding; with a cache its last T columns count.
            position_ids: ``[B, T]``, where the model's own count is not wanted.
            inputs_embeds: ``[B, T, E]`` in place of ``input_ids``.
            num_hashes: hash rounds of this call; for architectures that hash.
            max_recurrent_steps: steps of this call; for architectures that are recurrent in depth.
            mems: what an earlier block of the same streams returned, for architectures that carry memories.
            use_mems: return the memories of these tokens, too; by default only where some are given.
            past_key_values: the cache of earlier tokens, which takes in these.
            use_cache: keep a cache and return it; by default only where one is given.
            labels: ``[B, T]``, the words of the text itself (the model shifts them), -100: not scored.
            next_ids: ``[B, T]``, at each token the word that follows, in place of ``labels``: for a block of a stream,
                whose last token's next word stands in the next block. -100: not scored.
            logits_to_keep: score only the last so many tokens, or those of these indices; 0: all. Not with labels.
            output_attentions: also return attention weights.
            output_hidden_states: also return the hidden states of all layers.
            num_items_in_batch: what the loss is divided by, where a batch is one of several of a step.
            **aligned: ``shift_labels``, transformers' name of ``next_ids``. (Named in the signature, its Trainer would
                want it beside ``labels`` to evaluate.)

        Returns:
            Loss, logits, cache and memories. Training with ``config.chunk_size_lm_head`` gives no logits: they never
            exist all at once.
        """
        next_ids = aligned.pop("shift_labels", next_ids)
        if aligned:
            raise TypeError(f"forward() got an unexpected keyword argument {next(iter(aligned))!r}")
        outputs = self.encode(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            num_hashes=num_hashes,
            max_recurrent_steps=max_recurrent_steps,
            mems=mems,
            use_mems=use_mems,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        hidden_states = outputs.last_hidden_state
        if next_ids is not None:
            check_words(next_ids, hidden_states.shape[:2], self.config.vocab_size, "next_ids")
            labels = next_ids
        elif labels is not None:
            labels = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
        elif isinstance(logits_to_keep, Tensor) or logits_to_keep:
            keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            hidden_states = hidden_states[:, keep]
        loss, logits = self.score(hidden_states, labels, num_items_in_batch)
        loss = with_auxiliary(loss, outputs, labels, num_items_in_batch)
        return self.answer(outputs, loss=loss, logits=logits)
