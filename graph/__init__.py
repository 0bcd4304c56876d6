"""The language that sidecar and controller share: the vocabulary, the verdict, the live service graph."""
