#!/usr/bin/env bash
# Sends events over HTTP, from anything that has curl; the service puts them into Kafka.
#   connectors/examples/events.sh [http://127.0.0.1:8080]
# Where the service asks for a key: RECOMMENDER_API_KEY, of the scope ingest.
set -euo pipefail
url="${1:-http://127.0.0.1:8080}/v1/events"

# Prints the answer and its status; only a server that is not there ends the script.
post() {
	printf '%s\n  → ' "$1"
	# The key goes in by a file descriptor: arguments can be read by every user of the machine.
	curl --silent --show-error --max-time 5 --write-out ' (%{http_code})\n' \
		--header 'Content-Type: application/json' \
		--config <(test -z "${RECOMMENDER_API_KEY:-}" ||
			printf 'header = "Authorization: Bearer %s"\n' "$RECOMMENDER_API_KEY") \
		--data-binary "$1" "$url"
}

# One. event_id and ts are made where they are missing; a sender that may repeat itself after a
# timeout gives its own event_id, and the event counts once.
post '{"user_id":"u42","type":"click","product_id":"B0001"}'
post '{"event_id":"order-1001-1","user_id":"u42","type":"purchase","product_id":"B0001","quantity":2}'

# Many at once.
post '{"events":[{"user_id":"u42","type":"search","query":"wireless mouse"},
 {"user_id":"u42","type":"scroll","product_id":"B0002","dwell_ms":4000}]}'

# Refused: a click needs product_id. 503 with Retry-After would mean: the buffer is full, later.
post '{"user_id":"u42","type":"click"}'
