"""Reformer's part in ``generate``: its cache, and prompts of different lengths under the original semantics.

B batch, T tokens, E hidden size.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import GenerationMixin
from transformers.utils import logging

from longspan.cache import LongspanCache, RingLayer, RowsLayer
from longspan.reformer.configuration_reformer import ReformerConfig

logger = logging.get_logger(__name__)


def new_cache(config: ReformerConfig) -> LongspanCache:
    """An empty cache: rows of a window for local layers, all rows with their buckets for LSH layers.

    Raises:
        ValueError: for a bidirectional model, in which a new token changes what earlier ones compute.
    """
    if not config.is_decoder:
        raise ValueError("use_cache needs a causal model: is_decoder must be True, got False")
    local = config.options_of("local")
    return LongspanCache(
        [
            RowsLayer() if layer == "lsh" else RingLayer(local["chunk_length"] * (1 + local["chunks_before"]))
            for layer in config.attn_layers
        ]
    )


def check_cache(cache: Any, config: ReformerConfig, batch: int, training: bool) -> None:
    """Raise ValueError unless ``cache`` is one of this model's, for ``batch`` rows, in inference."""
    if training:
        raise ValueError("a cache (past_key_values, use_cache) is for inference: call model.eval() first")
    if not isinstance(cache, LongspanCache) or len(cache.layers) != len(config.attn_layers):
        size = f" of {len(cache.layers)} layers" if isinstance(cache, LongspanCache) else ""
        raise ValueError(
            f"past_key_values must be what this model of {len(config.attn_layers)} layers returned before, with "
            f"use_cache=True; got {type(cache).__name__}{size}"
        )
    if not cache.is_empty and cache.lengths.shape[0] != batch:
        raise ValueError(f"past_key_values holds {cache.lengths.shape[0]} rows, got {batch} to go on with")


def prefill_by_length(
    run: Callable[..., Any], cache: LongspanCache, make_cache: Callable[[], LongspanCache], mask: Tensor, **inputs: Any
) -> Any:
    """Run prompts of different lengths into one cache, each as if it were alone.

    Under the original semantics padding takes part in a pass: in its length, its chunks and its numbers of buckets.
    Here rows of equal length go together, without padding, so a prompt's continuation does not depend on its company.

    Args:
        run: the backbone's forward.
        cache: an empty cache, which takes in all rows.
        make_cache: makes an empty cache.
        mask: bool ``[B, T]``, False at padding, wherever it stands.
        inputs: what else ``run`` takes; tensors ``[B, T, ...]`` are reduced to their tokens.

    Returns:
        What ``run`` returns, with zeros at padding; without buckets.
    """
    batch, length = mask.shape
    counts = mask.sum(1)
    parts, outputs = [], []
    for count in counts.unique().tolist():
        rows = (counts == count).nonzero()[:, 0]
        at = mask[rows]
        given = {
            name: value.expand(batch, *value.shape[1:])[rows][at].unflatten(0, (len(rows), count))
            if isinstance(value, Tensor)
            else value
            for name, value in inputs.items()
        }
        if count == 0:
            continue
        part = make_cache()
        outputs.append((rows, at, run(past_key_values=part, **given)))
        parts.append((rows, part))
    if not parts:
        raise ValueError("attention_mask marks no token in any row")
    cache.join(parts, batch)

    def spread(pick: Callable[[Any], Tensor], dims: int) -> Tensor:
        """One output of all rows: ``dims`` of its dimensions behind the first count tokens, 1 or, for pairs, 2."""
        sample = pick(outputs[0][2])
        if dims == 1:
            whole = sample.new_zeros(batch, length, *sample.shape[2:])
            for rows, at, output in outputs:
                whole[rows] = whole[rows].masked_scatter(at[..., None], pick(output))
            return whole
        whole = sample.new_zeros(batch, sample.shape[1], length, length)
        for rows, at, output in outputs:
            pairs = (at[:, :, None] & at[:, None, :])[:, None]
            whole[rows] = whole[rows].masked_scatter(pairs, pick(output))
        return whole

    def spread_all(name: str, dims: int) -> tuple[Tensor, ...] | None:
        first = getattr(outputs[0][2], name)
        if first is None:
            return None
        return tuple(spread(lambda output, i=i: getattr(output, name)[i], dims) for i in range(len(first)))

    return type(outputs[0][2])(
        last_hidden_state=spread(lambda output: output.last_hidden_state, 1),
        hidden_states=spread_all("hidden_states", 1),
        attentions=spread_all("attentions", 2),
        past_key_values=cache,
    )


class ReformerGenerationMixin(GenerationMixin):
    """``generate`` for causal Reformers: greedy, sampling and beam search, batched, with padding on either side.

    The model makes its own cache, see ``new_cache``. Local layers and layers with strict semantics continue exactly as
    the full pass would; original and chunked LSH layers as ``longspan.ops.lsh_decode`` says.
    """

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # transformers' caches hold keys and values alone

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)  # type: ignore
        if generation_config.use_cache is not False and model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = new_cache(self.config)  # type: ignore[attr-defined]

    def _validate_generated_length(self, generation_config, input_ids_length, has_default_max_length):
        """Stop where the positions end, and say so before anything is written; the last token needs none."""
        super()._validate_generated_length(generation_config, input_ids_length, has_default_max_length)  # type: ignore
        longest = self.config.max_tokens + 1  # type: ignore[attr-defined]
        if generation_config.max_length > longest:
            if not has_default_max_length:
                logger.warning(
                    "generate stops at %d tokens, prompt included: the position embeddings reach no further",
                    longest,
                )
            generation_config.max_length = longest

    def _prepare_position_ids_for_generation(self, inputs_tensor, model_kwargs):
        """None: the model counts each row's tokens, and the cache those of earlier steps."""
        return None

    def prepare_inputs_for_generation(
        self, input_ids, past_key_values=None, attention_mask=None, inputs_embeds=None, **kwargs
    ):
        """As in transformers; without a cache, tokens of a padded row count from its first one, as with it."""
        inputs = super().prepare_inputs_for_generation(  # type: ignore
            input_ids,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        if past_key_values is None and attention_mask is not None and inputs.get("position_ids") is None:
            inputs["position_ids"] = (attention_mask.long().cumsum(1) - 1).clamp(min=0)
        return inputs
