"""Offline evaluation: replay a log, predict what came next, beside well-known baselines."""
