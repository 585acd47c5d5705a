"""The shop window: a page at ``/`` to try the recommender, and the few routes that it alone needs.

Whatever the page shows of a user, and all that it sends, goes through the routes of ``/v1`` as any
shop's would. What is here beyond is what a shop has of its own (its shelves and their search) and
what makes the recommender visible (the map, the live figures).
"""
