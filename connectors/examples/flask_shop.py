"""A small shop that sends what its visitors do; no page of it waits for Kafka.

RECOMMENDER_KAFKA_BOOTSTRAP=127.0.0.1:9092 gunicorn 'connectors.examples.flask_shop:create_app()'

Then, with a cookie jar, for it is the cookie that knows the visitor:

curl -c jar -b jar http://127.0.0.1:8000/products/B0001
curl -c jar -b jar 'http://127.0.0.1:8000/search?q=wireless+mouse'
curl -c jar -b jar -X POST http://127.0.0.1:8000/cart/B0001
curl -c jar -b jar -X POST http://127.0.0.1:8000/checkout
curl http://127.0.0.1:8000/sent
"""

from __future__ import annotations

import os
import secrets
from dataclasses import asdict

from flask import Flask, Response, jsonify, make_response, request, session

from connectors.event_client import EventClient


def create_app(client: EventClient | None = None) -> Flask:
    """Make the shop; every worker process has one client for all its threads."""
    app = Flask(__name__)
    # Of this start only: a real shop keeps its key, and its users, somewhere.
    app.secret_key = os.environ.get("SHOP_SECRET_KEY") or secrets.token_bytes(32)
    events = client or EventClient(os.environ.get("RECOMMENDER_KAFKA_BOOTSTRAP", "127.0.0.1:9092"))

    def visitor() -> str:
        session.setdefault("user", f"visitor-{secrets.token_hex(8)}")
        session.setdefault("visit", secrets.token_hex(4))
        return str(session["user"])

    @app.get("/products/<product_id>")
    def product(product_id: str) -> Response:
        events.track(visitor(), "click", product_id=product_id, session_id=session["visit"])
        return jsonify(product_id=product_id)

    @app.get("/search")
    def search() -> Response:
        query = request.args.get("q", "").strip()
        # A search for nothing is no event; `track` would count it as rejected.
        if query:
            events.track(visitor(), "search", query=query, session_id=session["visit"])
        return jsonify(query=query)

    @app.post("/cart/<product_id>")
    def add(product_id: str) -> Response:
        session["cart"] = [*session.get("cart", []), product_id]
        events.track(visitor(), "add_to_cart", product_id=product_id, session_id=session["visit"])
        return jsonify(cart=session["cart"])

    @app.post("/checkout")
    def checkout() -> Response:
        bought = session.pop("cart", [])
        for product_id in bought:
            events.track(visitor(), "purchase", product_id=product_id, session_id=session["visit"])
        return jsonify(bought=bought)

    @app.get("/sent")
    def sent() -> Response:
        """What became of the events of the process that answers: where a metric would be set."""
        return make_response(asdict(events.counts))

    return app
