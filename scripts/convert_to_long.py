"""Make a Longformer of a short encoder: BERT, RoBERTa, XLM-RoBERTa or CamemBERT, any length.

    python scripts/convert_to_long.py roberta-base runs/roberta-4096 --max-length 4096

The result holds model and tokenizer, for AutoModel and AutoTokenizer after ``import longspan``.
"""

import argparse
import logging

import longspan

HEADS = {name.removeprefix("Longformer"): name for name in longspan.__all__ if name.startswith("LongformerFor")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or name of the short model")
    parser.add_argument("output", help="folder for the long one")
    parser.add_argument("--max-length", type=int, default=4096, help="longest text in tokens (default: 4096)")
    parser.add_argument(
        "--attention-window", type=int, nargs="+", default=[512], help="both sides together; one, or one per layer"
    )
    parser.add_argument("--head", choices=["Model", *HEADS], help="another head than the short model's, newly drawn")
    options = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("longspan").setLevel(logging.INFO)
    windows = options.attention_window
    try:
        longspan.convert_to_long(
            options.model,
            options.max_length,
            windows[0] if len(windows) == 1 else windows,
            model_class=options.head and getattr(longspan, f"Longformer{options.head}"),
            save_to=options.output,
        )
    except (ValueError, OSError) as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
