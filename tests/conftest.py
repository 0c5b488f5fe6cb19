import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test asks a server for anything
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
