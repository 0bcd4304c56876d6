"""The wire protocol. Only :mod:`graph.wire.codec` turns messages into the vocabulary and back."""
