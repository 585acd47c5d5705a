"""The recommender itself: schemas, profile, nearest neighbours, and the operators around them."""
