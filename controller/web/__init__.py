"""The JSON API that everything else uses, and the page served with it."""
