"""The version of Hedgerow. All its parts carry the same one, because they are released together."""

VERSION = "0.1.0"
