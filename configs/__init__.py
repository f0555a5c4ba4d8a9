"""Settings: dataclasses, recipes and the command line made of them."""

__version__ = "0.1.0"
