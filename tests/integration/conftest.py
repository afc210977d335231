"""Comparisons run without the network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read by the transformers library when it is imported
