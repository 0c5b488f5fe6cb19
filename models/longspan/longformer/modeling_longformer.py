"""Longformer (Beltagy et al. 2020): RoBERTa's post-norm encoder with a sliding window and global tokens.

Names of modules and parameters are those of transformers, so that published checkpoints load as they are.

B batch, H heads, T tokens, D head size, E = H * D hidden size, G slots for global tokens, W columns of the band.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import can_return_tuple, logging

from longspan.base import (
    BackboneOutput,
    LongspanPreTrainedModel,
    can_inspect,
    check_range,
    check_token_inputs,
    text_token,
    token_mask,
)
from longspan.heads import (
    MaskedLMHead,
    MultipleChoiceHead,
    QuestionAnsweringHead,
    SequenceClassificationHead,
    TokenClassificationHead,
)
from longspan.layers import (
    GlobalTokens,
    PostNorm,
    SlidingWindowSelfAttention,
    TextEmbeddings,
    collect_global_tokens,
    positions_from_ids,
    positions_from_mask,
)
from longspan.layers.global_tokens import mark_after_separator, mark_before_separator, mark_first_token
from longspan.longformer.configuration_longformer import LongformerConfig
from longspan.longformer.conversion import CHECKPOINT_NAMES
from longspan.ops.transfers import bounds

logger = logging.get_logger(__name__)

FEED_FORWARD_ROWS = 1024  # tokens that the feed-forward layer takes at a time without gradients: they stay in cache


class LongformerAttention(nn.Module):
    """Self-attention and its output projection."""

    def __init__(self, config: LongformerConfig, index: int):
        super().__init__()
        self.self = SlidingWindowSelfAttention(
            config.hidden_size,
            config.num_attention_heads,
            window=config.layer_windows[index],
            dilation=config.layer_dilations[index],
            dropout=config.attention_probs_dropout_prob,
            causal=config.is_decoder,
        )
        self.output = PostNorm(
            config.hidden_size,
            config.hidden_size,
            layer_norm_eps=config.layer_norm_eps,
            dropout=config.hidden_dropout_prob,
        )

    def forward(self, hidden_states: Tensor, *args) -> tuple[Tensor, Tensor | None, Tensor | None]:
        attended, weights, global_weights = self.self(hidden_states, *args)
        return self.output(attended, hidden_states), weights, global_weights


class LongformerIntermediate(nn.Module):
    """The wide projection of the feed-forward layer; its activation is part of the output's ``PostNorm``."""

    def __init__(self, config: LongformerConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.dense(hidden_states)


class LongformerLayer(GradientCheckpointingLayer):
    """One post-norm layer: attention, then feed-forward."""

    def __init__(self, config: LongformerConfig, index: int):
        super().__init__()
        self.feed_forward_rows = config.chunk_size_feed_forward
        self.attention = LongformerAttention(config, index)
        self.intermediate = LongformerIntermediate(config)
        self.output = PostNorm(
            config.intermediate_size,
            config.hidden_size,
            layer_norm_eps=config.layer_norm_eps,
            dropout=config.hidden_dropout_prob,
            activation=ACT2FN[config.hidden_act],
        )

    def forward(
        self,
        hidden_states: Tensor,
        mask: Tensor | None,
        global_tokens: GlobalTokens | None,
        output_attentions: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """``hidden_states [B, T, E]`` -> the same shape, and the weights of ``SlidingWindowSelfAttention``."""
        attended, weights, global_weights = self.attention(hidden_states, mask, global_tokens, output_attentions)
        return self._feed_forward(attended), weights, global_weights

    def _feed_forward(self, hidden_states: Tensor) -> Tensor:
        """Position by position, so it can run over a few rows at a time and hold only their wide states."""
        rows = self.feed_forward_rows
        if not rows and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            rows = FEED_FORWARD_ROWS
        if not rows or hidden_states.shape[0] * hidden_states.shape[1] <= rows:
            return self.output(self.intermediate(hidden_states), hidden_states)
        chunks = hidden_states.flatten(0, 1).split(rows)
        return torch.cat([self.output(self.intermediate(chunk), chunk) for chunk in chunks]).view_as(hidden_states)


class LongformerEncoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: LongformerConfig):
        super().__init__()
        self.layer = nn.ModuleList([LongformerLayer(config, index) for index in range(config.num_hidden_layers)])

    def forward(
        self,
        hidden_states: Tensor,
        mask: Tensor | None,
        global_tokens: GlobalTokens | None,
        output_attentions: bool,
        output_hidden_states: bool,
    ) -> BackboneOutput:
        states, weights, global_weights = [hidden_states], [], []
        for layer in self.layer:
            hidden_states, local_part, global_part = layer(hidden_states, mask, global_tokens, output_attentions)
            if output_hidden_states:
                states.append(hidden_states)
            weights.append(local_part)
            global_weights.append(global_part)
        return BackboneOutput(
            last_hidden_state=hidden_states,
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(weights) if output_attentions else None,
            global_attentions=tuple(global_weights) if output_attentions and global_tokens is not None else None,
        )


class LongformerPooler(nn.Module):
    """tanh(dense(first token))."""

    def __init__(self, config: LongformerConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, text: Tensor) -> Tensor:
        return torch.tanh(self.dense(text))


class LongformerPreTrainedModel(LongspanPreTrainedModel):
    """Base of all Longformer classes: configuration, names, and which tokens are global by default."""

    config_class = LongformerConfig
    config: LongformerConfig
    base_model_prefix = "longformer"
    _no_split_modules: ClassVar = ["LongformerLayer"]
    _keys_to_ignore_on_load_unexpected: ClassVar = [r"embeddings\.position_ids"]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, key_mapping=None, **kwargs):
        """As in transformers; names of the original release are understood beside transformers' own."""
        names = {**CHECKPOINT_NAMES, **(key_mapping or {})}
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, key_mapping=names, **kwargs)
        if key_mapping is None:
            model: Any = loaded[0] if isinstance(loaded, tuple) else loaded
            model._weight_conversions = []  # save under our names, whatever the file's were
        return loaded

    def default_global_tokens(self, inputs: dict[str, Any], tokens: Tensor) -> Tensor | None:
        """Global tokens where the caller names none: none, unless a head says otherwise.

        Args:
            inputs: the arguments of the head's ``forward``.
            tokens: bool ``[B, T]``, False at padding.

        Returns:
            bool ``[B, T]`` or None.
        """
        return None

    def complete_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        if inputs.get("global_attention_mask") is not None:
            return inputs
        given, mask = inputs.get("input_ids"), inputs.get("attention_mask")
        given = inputs.get("inputs_embeds") if given is None else given
        if given is None or given.dim() < 2 or (mask is not None and mask.shape != given.shape[:2]):
            return inputs  # the backbone says what is wrong
        tokens = given.new_ones(given.shape[:2], dtype=torch.bool) if mask is None else mask != 0
        return inputs | {"global_attention_mask": self.default_global_tokens(inputs, tokens)}


class LongformerModel(LongformerPreTrainedModel):
    """The encoder, with RoBERTa's pooler if wanted."""

    def __init__(self, config: LongformerConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        assert config.pad_token_id is not None
        self.embeddings = TextEmbeddings(
            config.vocab_size,
            config.hidden_size,
            max_positions=config.max_position_embeddings,
            num_token_types=config.type_vocab_size,
            padding_idx=config.pad_token_id,
            layer_norm_eps=config.layer_norm_eps,
            dropout=config.hidden_dropout_prob,
        )
        self.encoder = LongformerEncoder(config)
        self.pooler = LongformerPooler(config) if add_pooling_layer else None
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding):
        self.embeddings.word_embeddings = value

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BackboneOutput:
        """Encode a batch of texts of any length up to the position table's.

        Args:
            input_ids: ``[B, T]``.
            attention_mask: ``[B, T]``, 1 = a token, 0 = padding, which may stand anywhere and changes nothing.
            global_attention_mask: ``[B, T]``, 1 (or more) = a global token, which sees and is seen by the whole text.
            token_type_ids: ``[B, T]``, below ``type_vocab_size``; all 0 by default.
            position_ids: ``[B, T]``, rows of the position table; by default counted from ``pad_token_id`` + 1,
                without padding.
            inputs_embeds: ``[B, T, E]`` in place of ``input_ids``.
            output_attentions: also return attention weights: per layer those of ordinary tokens,
                ``attentions [B, H, T, G + W]``, first what they give to the global tokens, then the band, with the
                token itself in column ``G + left``; and those of global tokens, ``global_attentions [B, H, T, G]``.
            output_hidden_states: also return the input of the first layer and the output of each.

        Raises:
            ValueError: on inputs that do not fit, before anything runs.
        """
        config = self.config
        batch, length = check_token_inputs(
            input_ids,
            inputs_embeds,
            config.vocab_size,
            attention_mask=attention_mask,
            global_attention_mask=global_attention_mask,
            token_type_ids=token_type_ids,
        )
        if token_type_ids is not None:
            check_range("token_type_ids", token_type_ids, config.type_vocab_size, "type_vocab_size")
        if input_ids is not None:
            self.warn_if_padding_and_no_attention_mask(input_ids, attention_mask)
        mask = token_mask(attention_mask)
        if position_ids is None:
            position_ids = self._count_positions(input_ids, inputs_embeds, mask)
        elif position_ids.shape[-1] != length or position_ids.dim() > 2:
            raise ValueError(
                f"position_ids must be [batch, tokens] = [{batch}, {length}], got {list(position_ids.shape)}"
            )
        self._check_length(position_ids)

        global_tokens = None
        if global_attention_mask is not None:
            is_global = global_attention_mask > 0
            is_global = is_global if mask is None else is_global & mask
            global_tokens = collect_global_tokens(is_global, config.max_global_tokens)
        hidden_states = self.embeddings(input_ids, position_ids, token_type_ids, inputs_embeds)
        outputs = self.encoder(
            hidden_states,
            mask,
            global_tokens,
            config.output_attentions if output_attentions is None else output_attentions,
            config.output_hidden_states if output_hidden_states is None else output_hidden_states,
        )
        if self.pooler is None:
            return outputs
        pooled = self.pooler(text_token(outputs.last_hidden_state, mask, self.config.text_token))
        return BackboneOutput(**outputs | {"pooler_output": pooled})

    def _count_positions(self, input_ids: Tensor | None, inputs_embeds: Tensor | None, mask: Tensor | None) -> Tensor:
        padding = self.config.pad_token_id
        assert padding is not None
        if input_ids is not None:
            return positions_from_ids(input_ids, padding)
        assert inputs_embeds is not None
        batch, length, _ = inputs_embeds.shape
        return positions_from_mask(batch, length, mask, padding, inputs_embeds.device)

    def _check_length(self, position_ids: Tensor) -> None:
        if not can_inspect(position_ids) or position_ids.numel() == 0:
            return
        rows, limit = self.config.max_position_embeddings, self.config.max_tokens
        low, high = bounds(position_ids)
        if low < 0 or high >= rows:
            raise ValueError(
                f"position_ids reach from {low} to {high}, the position table has the rows 0 to {rows - 1}: this model "
                f"takes texts of up to {limit} tokens (max_position_embeddings = {rows}, of which {rows - limit} rows "
                "are reserved). Grow it with longspan.convert_to_long, cut the text into windows, or use the "
                "long-question-answering and long-text-classification pipelines, which do."
            )


class _LongformerWithHead(LongformerPreTrainedModel):
    backbone_class = LongformerModel
    longformer: LongformerModel


class LongformerForMaskedLM(MaskedLMHead, _LongformerWithHead):
    """Longformer that fills in masked words."""

    _tied_weights_keys: ClassVar = {
        "lm_head.decoder.weight": "longformer.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    }


class LongformerForTokenClassification(TokenClassificationHead, _LongformerWithHead):
    """Longformer that labels tokens."""


class LongformerForSequenceClassification(SequenceClassificationHead, _LongformerWithHead):
    """Longformer that labels texts. The first token is global by default."""

    def default_global_tokens(self, inputs: dict[str, Any], tokens: Tensor) -> Tensor:
        return mark_first_token(tokens)


class LongformerForQuestionAnswering(QuestionAnsweringHead, _LongformerWithHead):
    """Longformer that finds answers. The question is global by default.

    Which tokens are the question is best said by ``global_attention_mask``, which longspan's tokenizers make. Without
    it: tokens of type 0 in texts that have two token types, else everything before the first separator.
    """

    def default_global_tokens(self, inputs: dict[str, Any], tokens: Tensor) -> Tensor | None:
        input_ids, token_types = inputs.get("input_ids"), inputs.get("token_type_ids")
        marked = None
        if input_ids is not None and self.config.sep_token_id is not None:
            marked = mark_before_separator(input_ids, tokens, self.config.sep_token_id)
        if token_types is not None and token_types.shape == tokens.shape:
            in_second = (token_types > 0) & tokens
            by_type = tokens & ~in_second
            otherwise = mark_first_token(tokens) if marked is None else marked
            marked = torch.where(in_second.any(1, keepdim=True), by_type, otherwise)
        if marked is None:
            logger.warning_once(
                "No token is global: neither global_attention_mask nor token types nor separators say which tokens "
                "are the question. Pass global_attention_mask."
            )
        return marked


class LongformerForMultipleChoice(MultipleChoiceHead, _LongformerWithHead):
    """Longformer that chooses among texts. The second of two texts, the choice, is global by default."""

    def default_global_tokens(self, inputs: dict[str, Any], tokens: Tensor) -> Tensor | None:
        input_ids, separator = inputs.get("input_ids"), self.config.sep_token_id
        if input_ids is None or separator is None:
            return None
        return mark_after_separator(input_ids, tokens, separator)
