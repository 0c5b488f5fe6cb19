import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test asks a server for anything
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

collect_ignore = ["packaged"]  # runs against an installed package, from scripts/check.sh
