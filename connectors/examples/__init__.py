"""Examples of services that send events: a Flask shop, and curl."""
