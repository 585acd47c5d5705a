"""The application for a WSGI server: ``gunicorn -c api/gunicorn.conf.py``, or any other.

Importing it reads the environment and connects to nothing, so it may also be imported before a
fork. A wrong setting ends the start with its name; an absent database does not.
"""

from __future__ import annotations

from api.factory import create_app

app = create_app()
