"""The Flask service that answers with a user's recommendations and events."""

from api.config import ApiConfig
from api.factory import create_app

__all__ = ["ApiConfig", "create_app"]
