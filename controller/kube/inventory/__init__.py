"""From the objects of a cluster to the inventory: read and trimmed, attributed to owners, put together.

Everything but :mod:`.following` is pure.
"""
