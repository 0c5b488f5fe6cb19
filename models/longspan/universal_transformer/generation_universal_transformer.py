"""Universal Transformer's part in ``generate``: a cache that knows of steps, exact in every mode that has one.

B batch, T new tokens.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, GenerationMixin
from transformers.cache_utils import CacheLayerMixin
from transformers.utils import logging

from longspan.layers.step_past import StepPast
from longspan.universal_transformer.configuration_universal_transformer import UniversalTransformerConfig

logger = logging.get_logger(__name__)


class StepLayer(CacheLayerMixin):
    """A ``StepPast`` under the names that transformers' ``Cache`` calls."""

    supports_early_init = False

    def __init__(self):
        super().__init__()
        self.past = StepPast()

    @property
    def is_croppable(self) -> bool:  # type: ignore[override]
        return not self.past.reaches

    @property
    def batch_size(self) -> int:
        return self.past.batch or 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise NotImplementedError("the stack fills its cache itself, see longspan.layers.step_tokens")

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs):
        raise NotImplementedError("the stack fills its cache itself, see longspan.layers.step_tokens")

    def reset(self) -> None:
        self.past = StepPast()

    def get_seq_length(self) -> int:
        return self.past.columns

    def get_max_length(self) -> int:
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.past.columns + query_length, 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.past.select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.past.select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.past.batch is not None:
            self.past.select(torch.arange(self.past.batch).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove > 0:
            raise ValueError(f"tokens_to_remove must be 0 or the negative of how many to drop, got {tokens_to_remove}")
        self.past.crop(max(0, self.past.columns + tokens_to_remove))

    def offload(self) -> None:
        raise ValueError("this cache cannot be offloaded: give generate() no cache_implementation")


class UniversalTransformerCache(Cache):
    """What a decoder keeps of the tokens so far, by recurrent step; an encoder's keys and values once.

    Args:
        num_steps: the most steps that tokens do, the same at every call.
    """

    def __init__(self, num_steps: int):
        super().__init__(layers=[StepLayer()])  # type: ignore[list-item]
        self.num_steps = num_steps

    @property
    def past(self) -> StepPast:
        return self.layers[0].past  # type: ignore[union-attr]


def why_no_cache(config: UniversalTransformerConfig) -> str | None:
    """Why tokens of this model cannot be cached: those to come change what earlier ones compute. None: they can."""
    if config.recurrence == "act" and (config.recurrence_options or {}).get("variant") == "global":
        return 'variant "global" of act halts by the mean over a whole text, tokens to come included'
    if config.position_offset == "step":
        return 'position_offset "step" shifts positions by the length of the whole text'
    return None


def begin_cache(
    config: UniversalTransformerConfig,
    cache: Any,
    use_cache: bool | None,
    *,
    batch: int,
    num_steps: int,
    training: bool,
) -> UniversalTransformerCache | None:
    """The cache of a call: the given one, a new one with ``use_cache``, or None.

    Args:
        config: the model's.
        cache: ``past_key_values``, what an earlier call returned, or None.
        use_cache: whether to make one; None: no.
        batch: B.
        num_steps: the most steps of this call.
        training: whether the model is in training.

    Raises:
        ValueError: for a cache of another model or batch, in training, and where ``why_no_cache``.
    """
    if cache is None and not use_cache:
        return None
    if training:
        raise ValueError("a cache (past_key_values, use_cache) is for inference: call model.eval() first")
    reason = why_no_cache(config)
    if reason is not None:
        raise ValueError(f"no cache can be kept: {reason}; pass use_cache=False")
    if cache is None:
        return UniversalTransformerCache(num_steps)
    if not isinstance(cache, UniversalTransformerCache):
        raise ValueError(
            f"past_key_values must be what this model returned before, with use_cache=True; got {type(cache).__name__}"
        )
    held = cache.past.batch
    if held is not None and held != batch:
        raise ValueError(f"past_key_values holds {held} rows, got {batch} to go on with")
    if cache.num_steps != num_steps:
        if cache.past.columns:
            raise ValueError(
                f"past_key_values was made with {cache.num_steps} recurrent steps, got {num_steps} "
                "(max_recurrent_steps) to go on with: start a new cache"
            )
        cache.num_steps = num_steps
    return cache


def newest_columns(attention_mask: Tensor | None, num_tokens: int) -> Tensor | None:
    """With a cache ``attention_mask`` covers the earlier tokens, too: its last ``num_tokens`` columns."""
    if attention_mask is None or attention_mask.dim() != 2 or attention_mask.shape[1] <= num_tokens:
        return attention_mask
    return attention_mask[:, attention_mask.shape[1] - num_tokens :]


class UniversalTransformerGenerationMixin(GenerationMixin):
    """``generate``: greedy, sampling, beam search and assisted, batched, padding on either side.

    Every mode of halting continues as a pass over the whole text would. Models whose earlier tokens depend on later
    ones (``why_no_cache``) compute the whole text for each token, as tensor2tensor did for all.
    """

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # transformers' caches have one depth for all tokens

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)  # type: ignore
        if generation_config.use_cache is False or model_kwargs.get("past_key_values") is not None:
            return
        config: Any = self.config  # type: ignore[attr-defined]
        reason = why_no_cache(config)
        if reason is not None:
            logger.warning_once(f"generate computes the whole text for each token: {reason}")
            generation_config.use_cache = False  # its own copy, which it reads afterwards
            return
        steps = model_kwargs.get("max_recurrent_steps")
        model_kwargs["past_key_values"] = UniversalTransformerCache(steps or config.num_recurrent_steps)

    def _expand_inputs_for_generation(self, *args, **model_kwargs):
        """As in transformers, which would repeat rows of an encoder's losses, too: they have none."""
        encoded = model_kwargs.get("encoder_outputs")
        if encoded is not None:
            rows = {name: value for name, value in encoded.items() if getattr(value, "ndim", 1)}
            model_kwargs["encoder_outputs"] = type(encoded)(**rows)
        return super()._expand_inputs_for_generation(*args, **model_kwargs)  # type: ignore[misc]

    def _prepare_position_ids_for_generation(self, inputs_tensor, model_kwargs):
        """None: the model counts each row's tokens, and the cache those of earlier calls."""
        return None
