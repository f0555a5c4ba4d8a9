"""What a person runs by hand: `python -m scripts.NAME`."""
