"""The kit: which programs a test cluster is made of, how they are built, where they are found (``README.md``)."""
