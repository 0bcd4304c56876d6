"""A small shop of ordinary programs that know nothing of the mesh.

Each module is one program, started with ``python -m hedgerow.local.shop.NAME``. Where to listen and whom to call
comes from the environment, as in any container: ``LISTEN``, ``PORT`` and one variable for each service that is
called.
:mod:`hedgerow.local.shop.layout` says which programs make up the shop and which calls they are meant to make.
"""
