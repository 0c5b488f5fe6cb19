"""Pipelines over documents of any length, known to `transformers.pipeline` once this module is imported."""

from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification
from transformers.pipelines import PIPELINE_REGISTRY

from longspan.pipelines.question_answering import LongQuestionAnsweringPipeline
from longspan.pipelines.text_classification import LongTextClassificationPipeline

TASKS = {
    "long-question-answering": (LongQuestionAnsweringPipeline, AutoModelForQuestionAnswering),
    "long-text-classification": (LongTextClassificationPipeline, AutoModelForSequenceClassification),
}


def register_pipelines() -> None:
    """Make the tasks known to `transformers.pipeline`; a second call changes nothing."""
    for task, (pipeline_class, model_class) in TASKS.items():
        if PIPELINE_REGISTRY.supported_tasks.get(task, {}).get("impl") is not pipeline_class:
            PIPELINE_REGISTRY.register_pipeline(task, pipeline_class=pipeline_class, pt_model=model_class, type="text")


register_pipelines()

__all__ = [
    "TASKS",
    "LongQuestionAnsweringPipeline",
    "LongTextClassificationPipeline",
    "register_pipelines",
]
