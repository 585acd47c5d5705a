"""The Flask service: recommendations, products, events, erasure; `api.factory.create_app`."""
