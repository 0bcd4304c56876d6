"""``python -m hedgerow.local`` runs the demo."""

import sys

from hedgerow.local.command import main

if __name__ == "__main__":
    sys.exit(main())
