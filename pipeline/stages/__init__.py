"""One module per DVC stage, each a thin `main` over plain functions."""
