"""Converters from the published files of public data sets to event logs and catalogue files."""
