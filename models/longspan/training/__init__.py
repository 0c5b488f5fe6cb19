"""What training and evaluation need beside `transformers.Trainer`: metric, evaluation over whole documents, baselines.

Needs the `train` extra (`datasets`, `evaluate`, `accelerate`).
"""

from pathlib import Path

ANSWER_METRIC = str(Path(__file__).with_name("answer_metric.py"))
"""Path for `evaluate.load`: exact match and F1 of answers, without a network."""
