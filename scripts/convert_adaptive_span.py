"""Turn a checkpoint of the released Adaptive Span code, or of fairseq's, into a folder for from_pretrained.

    python scripts/convert_adaptive_span.py enwik8.pt enwik8/ --train-file train.txt --protocol bytes

The file of weights says nothing of the vocabulary: ids are numbered as symbols first appear in the training file, which
has to be the same. Without it, the folder has no tokenizer.
"""

import argparse

from longspan import AdaptiveSpanTokenizer
from longspan.adaptive_span.conversion import load_original


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("checkpoint", help="a file of torch.save; it is read without running code it may hold")
    parser.add_argument("output", help="folder to write")
    parser.add_argument("--train-file", help="the file of symbols that the model was trained on")
    parser.add_argument("--protocol", choices=["bytes", "characters", "words"], default="bytes", help="its symbols")
    parser.add_argument("--without-line-ends", action="store_true", help="the file's ends of lines were no tokens")
    parser.add_argument("--by-frequency", action="store_true", help="ids by frequency, as with adaptive input")
    parser.add_argument("--ramp", type=int, help="of the soft mask, where it is not 32")
    options = parser.parse_args(arguments)
    try:
        convert(options)
    except (ValueError, OSError) as error:
        parser.exit(1, f"{error}\n")


def convert(options: argparse.Namespace) -> None:
    """Read, compare, write; nothing is written before all is read."""
    changes = {} if options.ramp is None else {"span_ramp": options.ramp}
    model = load_original(options.checkpoint, **changes)
    tokenizer = None
    if options.train_file:
        tokenizer = AdaptiveSpanTokenizer.from_training_file(
            options.train_file,
            options.protocol,
            line_ends=not options.without_line_ends,
            by_frequency=options.by_frequency,
        )
        if len(tokenizer) != model.config.vocab_size:
            raise ValueError(
                f"{options.train_file} has {len(tokenizer)} symbols, the model {model.config.vocab_size}: another "
                "file, or its ends of lines counted otherwise (--without-line-ends)"
            )
        tokenizer.save_pretrained(options.output)
    model.save_pretrained(options.output)
    spans = model.spans(ramp=True) if model.config.span_mode != "none" else None
    print(f"{model.num_parameters():,} parameters -> {options.output}")
    if spans is not None:
        print(f"spans with the ramp: mean {float(spans.mean()):.0f}, longest {float(spans.max()):.0f} tokens")


if __name__ == "__main__":
    main()
