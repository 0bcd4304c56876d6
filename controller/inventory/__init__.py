"""What runs in the mesh: read from a file, checked as a whole, and then immutable."""

from __future__ import annotations

from controller.inventory.model import Inventory, Namespace
from controller.inventory.reader import MAX_INVENTORY_BYTES, inventory_of, load_inventory, read_inventory

__all__ = ["MAX_INVENTORY_BYTES", "Inventory", "Namespace", "inventory_of", "load_inventory", "read_inventory"]
