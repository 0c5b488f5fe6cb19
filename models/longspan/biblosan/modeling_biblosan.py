"""Bi-BloSAN (Shen et al. 2018): block self-attention in both directions, pooled to one vector for a text.

B batch, T tokens, E width of word vectors, D features of one direction, r tokens of a block, m = ceil(T / r) blocks.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import can_return_tuple

from longspan.base import BackboneOutput, LongspanPreTrainedModel, check_token_inputs, token_mask
from longspan.biblosan.configuration_biblosan import BiBloSanConfig
from longspan.layers.arrangement import Arrangement
from longspan.layers.block_self_attention import MaskedBlockSelfAttention
from longspan.layers.multidim_self_attention import DirectionalSelfAttention, FusionGate, MultidimSelfAttention
from longspan.layers.source2token import Source2TokenPooling
from longspan.layers.word_vectors import WordVectors

NEW_WORD_RANGE = 0.05  # new word vectors are uniform within it

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": F.elu,
    "relu": F.relu,
    "selu": F.selu,
    "linear": lambda x: x,
}


class BiBloSanLayer(GradientCheckpointingLayer):
    """Bi-BloSA, or with ``attention = "full"`` Bi-DiSA: both directions side by side.

    Args:
        config: of the model.
        in_size: width of what comes in.
        block_length: in place of the configuration's.
        residual: add what comes in, which then is 2 D wide.
    """

    def __init__(
        self, config: BiBloSanConfig, in_size: int, block_length: int | None = None, *, residual: bool = False
    ):
        super().__init__()
        self.residual = residual
        self.blocks = config.attention == "block"
        self.zero_padding = config.mask_padding_blocks
        options = {
            "activation": ACTIVATIONS[config.hidden_act],
            "scale": config.score_scale,
            "dropout": config.hidden_dropout_prob,
        }
        if self.blocks:
            block_class: type[nn.Module] = MaskedBlockSelfAttention
            options |= {
                "block_length": block_length or config.block_length,
                "variant": config.variant,
                "mask_padding": config.mask_padding_blocks,
                "share_attention": config.share_attention,
            }
        else:
            block_class = DirectionalSelfAttention
        self.forward_attention = block_class(in_size, config.hidden_size, "forward", **options)
        self.backward_attention = block_class(in_size, config.hidden_size, "backward", **options)

    def forward(
        self, hidden_states: Tensor, mask: Tensor | None, output_attentions: bool = False
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """``[B, T, in_size]`` -> ``[B, T, 2 D]``, and weights ``[B, 2 D, T, T]`` and ``[B, 2 D, m, m]``."""
        both = [
            direction(hidden_states, mask, output_attentions)
            for direction in (self.forward_attention, self.backward_attention)
        ]
        out, *weights = (None if parts[0] is None else torch.cat(parts, -1 if at == 0 else 1) for at, parts in
                         enumerate(zip(*both, strict=True)))  # fmt: skip
        assert out is not None
        out = hidden_states + out if self.residual else out
        return out, weights[0], weights[1] if self.blocks else None


class BiBloSanEmbeddings(nn.Module):
    """Word vectors, and nothing else: what stands where, attention knows by its directions."""

    def __init__(self, config: BiBloSanConfig):
        super().__init__()
        self.word_embeddings: nn.Embedding = WordVectors(
            config.vocab_size,
            config.embedding_size,
            num_fixed=config.num_fixed_embeddings,
            padding_idx=config.pad_token_id,
        )

    def forward(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        return self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds


class BiBloSanEncoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: BiBloSanConfig):
        super().__init__()
        sizes = [config.embedding_size, *[config.feature_size] * (config.num_hidden_layers - 1)]
        self.layer = nn.ModuleList(
            [BiBloSanLayer(config, size, residual=index > 0) for index, size in enumerate(sizes)]
        )

    def forward(
        self, hidden_states: Tensor, mask: Tensor | None, output_attentions: bool, output_hidden_states: bool
    ) -> BackboneOutput:
        states, weights, block_weights = [hidden_states], [], []
        for layer in self.layer:
            hidden_states, within, between = layer(hidden_states, mask, output_attentions)
            states.append(hidden_states)
            weights.append(within)
            block_weights.append(between)
        return BackboneOutput(
            last_hidden_state=hidden_states,
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(weights) if output_attentions else None,
            global_attentions=tuple(block_weights) if output_attentions and block_weights[0] is not None else None,
        )


class BiBloSanPreTrainedModel(LongspanPreTrainedModel):
    """Base of all Bi-BloSAN classes: configuration, names, new weights, word vectors from elsewhere."""

    config_class = BiBloSanConfig
    config: BiBloSanConfig
    base_model_prefix = "biblosan"
    _no_split_modules: ClassVar = ["BiBloSanLayer"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Glorot's uniform matrices and zero biases; the rows of padding and of the unknown word are zero."""
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, MultidimSelfAttention | FusionGate):
            init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.uniform_(module.weight, -NEW_WORD_RANGE, NEW_WORD_RANGE)
            if not getattr(module.weight, "_is_hf_initialized", False):
                for row in (self.config.pad_token_id, self.config.unk_token_id):
                    if row is not None and row < module.num_embeddings:
                        init.zeros_(module.weight[row])

    @torch.no_grad()
    def load_word_vectors(self, vectors: Mapping[str, Tensor], vocabulary: Mapping[str, int]) -> int:
        """Write vectors of words into the table, e.g. those of ``longspan.data.read_word_vectors``.

        Args:
            vectors: by word, each ``[E]``.
            vocabulary: ids by word: ``tokenizer.get_vocab()``.

        Returns:
            How many rows were written. Words that have no row are left out.

        Raises:
            ValueError: when a vector is not as wide as the table, or when a row below ``num_fixed_embeddings``, which
                would never be trained, gets no vector.
        """
        table = self.get_input_embeddings().weight
        assert isinstance(table, Tensor)
        missing = set(range(self.config.num_fixed_embeddings))
        missing -= {self.config.pad_token_id, self.config.unk_token_id}
        found = 0
        for word, row in vocabulary.items():
            vector = vectors.get(word)
            if vector is None:
                continue
            if vector.shape != table.shape[1:]:
                raise ValueError(
                    f"vectors[{word!r}] must be [{table.shape[1]}], as embedding_size says, got {list(vector.shape)}"
                )
            if row >= table.shape[0]:
                raise ValueError(f"vocabulary[{word!r}] = {row} is beyond the table's {table.shape[0]} rows")
            table[row] = vector.to(table)
            missing.discard(row)
            found += 1
        if missing:
            raise ValueError(
                f"{len(missing)} of the first num_fixed_embeddings = {self.config.num_fixed_embeddings} rows have no "
                f"vector and would stay random: row {min(missing)}, for one. Words with vectors come first in the "
                "vocabulary of BiBloSanTokenizer.train(texts, vectors=...)"
            )
        return found


class BiBloSanModel(BiBloSanPreTrainedModel):
    """The encoder: a vector for every token, and with the pooler one for the text."""

    def __init__(self, config: BiBloSanConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.embeddings = BiBloSanEmbeddings(config)
        self.encoder = BiBloSanEncoder(config)
        self.pooler = None
        if add_pooling_layer:
            self.pooler = Source2TokenPooling(
                config.feature_size,
                activation=ACTIVATIONS[config.hidden_act],
                dropout=config.hidden_dropout_prob,
                average_empty=not config.mask_padding_blocks,
            )
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
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BackboneOutput:
        """Encode a batch of texts of any length.

        Args:
            input_ids: ``[B, T]``.
            attention_mask: ``[B, T]``, 1 = a token, 0 = padding, which may stand anywhere and changes nothing: blocks
                are counted from a text's first token. With ``mask_padding_blocks = False`` the padded length counts.
            token_type_ids: ``[B, T]``, as tokenizers return them; a single text has one type, and the encoder no use
                for it. Heads for pairs take texts apart by them.
            inputs_embeds: ``[B, T, E]`` in place of ``input_ids``.
            output_attentions: also return attention weights, for inspection: attention itself never holds them. Every
                feature is a head, those of the forward direction first: per layer ``attentions [B, 2 D, T, T]``, zero
                between blocks, and ``global_attentions [B, 2 D, m, m]`` between blocks, in which a text's first block
                is block 0.
            output_hidden_states: also return the word vectors ``[B, T, E]`` and the output of each layer,
                ``[B, T, 2 D]``.

        Returns:
            ``last_hidden_state [B, T, 2 D]``, zero at padding, and ``pooler_output [B, 2 D]``, zero for a text of
            padding alone.

        Raises:
            ValueError: on inputs that do not fit, before anything runs.
        """
        config = self.config
        check_token_inputs(
            input_ids,
            inputs_embeds,
            config.vocab_size,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
        )
        if inputs_embeds is not None and inputs_embeds.shape[-1] != config.embedding_size:
            raise ValueError(
                f"inputs_embeds must be {config.embedding_size} wide, as embedding_size says, "
                f"got {list(inputs_embeds.shape)}"
            )
        if input_ids is not None and input_ids.numel():
            self.warn_if_padding_and_no_attention_mask(input_ids, attention_mask)
        mask = token_mask(attention_mask)
        hidden_states = self.embeddings(input_ids, inputs_embeds)
        arrangement = None
        if Arrangement.needed(mask):
            assert mask is not None
            arrangement = Arrangement(mask)
            mask, hidden_states = arrangement.inward(mask), arrangement.inward(hidden_states)
        outputs = self.encoder(
            hidden_states,
            mask,
            config.output_attentions if output_attentions is None else output_attentions,
            config.output_hidden_states if output_hidden_states is None else output_hidden_states,
        )
        pooled = None if self.pooler is None else self.pooler(outputs.last_hidden_state, mask)
        return _placed(BackboneOutput(**outputs | {"pooler_output": pooled}), arrangement)


def _placed(outputs: BackboneOutput, arrangement: Arrangement | None) -> BackboneOutput:
    """What belongs to tokens, as the caller's tokens stand."""
    if arrangement is None:
        return outputs
    outputs.last_hidden_state = arrangement.outward(outputs.last_hidden_state)
    if outputs.hidden_states is not None:
        outputs.hidden_states = tuple(arrangement.outward(state) for state in outputs.hidden_states)
    if outputs.attentions is not None:
        outputs.attentions = tuple(
            arrangement.outward(arrangement.outward(weights, 2), 3) for weights in outputs.attentions
        )
    return outputs
