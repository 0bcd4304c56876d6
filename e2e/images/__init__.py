"""Container images of this checkout as archives, for machines without an image registry or engine (``README.md``)."""
