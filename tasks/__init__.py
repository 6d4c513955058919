"""Pipelines that come with bbpwf, one package each."""
