"""The application: the only place that joins HTTP, dialects and models. `App` is all that a server needs of it."""

from .application import App
from .models import open_pool

__all__ = ["App", "open_pool"]
