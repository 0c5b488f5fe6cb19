"""Adaptive Span's part in ``generate``: a cache that keeps of each head's past what its span reaches.

L layers, H heads.
"""

from typing import Any

from torch import Tensor
from transformers import GenerationMixin

from longspan.adaptive_span.cache_adaptive_span import SpanRings
from longspan.adaptive_span.configuration_adaptive_span import AdaptiveSpanConfig
from longspan.cache import LongspanCache
from longspan.layers.span import trimmed_rows
from longspan.layers.span_decoding import ring_widths


def new_cache(config: AdaptiveSpanConfig, spans: Tensor | None) -> LongspanCache:
    """An empty cache, of as many tokens for each head as it sees.

    Args:
        config: of the model.
        spans: ``[L, H]`` in tokens; None where heads have no spans of their own that are known beforehand.

    Raises:
        ValueError: for a bidirectional model, in which a new token changes what earlier ones compute.
    """
    if not config.is_decoder:
        raise ValueError("use_cache needs a causal model: is_decoder must be True, got False")
    longest, ramp = config.max_span, config.span_ramp
    if spans is None:
        return LongspanCache(
            [SpanRings([longest] * config.num_attention_heads) for _ in range(config.num_hidden_layers)]
        )
    layers = []
    for of_heads in spans.tolist():
        widths = ring_widths(of_heads, max_span=longest, ramp=ramp)
        if config.span_epsilon or not config.span_renormalise:  # the whole window of the layer counts
            trimmed = trimmed_rows(max(of_heads), ramp, longest, config.span_trim_multiple)
            widths = [longest - trimmed] * len(widths)
        layers.append(SpanRings(widths))
    return LongspanCache(layers)


def check_cache(cache: Any, config: AdaptiveSpanConfig, batch: int, training: bool) -> None:
    """Raise ValueError unless ``cache`` is one of this model's, for ``batch`` rows, in inference."""
    if training:
        raise ValueError("a cache (past_key_values, use_cache) is for inference: call model.eval() first")
    layers = config.num_hidden_layers
    if (
        not isinstance(cache, LongspanCache)
        or len(cache.layers) != layers
        or not all(isinstance(layer, SpanRings) for layer in cache.layers)
    ):
        size = f" of {len(cache.layers)} layers" if isinstance(cache, LongspanCache) else ""
        raise ValueError(
            f"past_key_values must be what this model of {layers} layers returned before, with use_cache=True; got "
            f"{type(cache).__name__}{size}"
        )
    if not cache.is_empty and cache.layers[0].batch_size != batch:
        raise ValueError(f"past_key_values holds {cache.layers[0].batch_size} rows, got {batch} to go on with")


class AdaptiveSpanGenerationMixin(GenerationMixin):
    """``generate`` for causal models: greedy, sampling and beam search, batched, prompts padded on the left.

    Every step gives what the full pass over the text so far would give. The model makes its own cache, see
    ``new_cache``: its memory, and the time of a step, follow the span of every head. It cannot go back, so there is no
    assisted decoding.
    """

    _is_stateful = True

    def new_cache(self) -> LongspanCache:
        """An empty cache for this model as its spans are now."""
        config: AdaptiveSpanConfig = self.config  # type: ignore[attr-defined]
        return new_cache(config, None if config.span_mode == "dynamic" else self.spans())  # type: ignore[attr-defined]

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # transformers' caches keep as much for one head as for another

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)  # type: ignore
        if generation_config.use_cache is not False and model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = self.new_cache()

    def _prepare_position_ids_for_generation(self, inputs_tensor, model_kwargs):
        """None: positions are relative."""
        return None
