"""A double of Nexus Delta, the platform's knowledge graph, as contracts §4 describes it.

``python -m sandbox.nexus --port N --state DIR --issuer URL --s3-endpoint URL --bucket nexus-bucket`` serves
``http://127.0.0.1:N/v1`` with one organisation and project. What was written survives a restart. There is no
search index: lists are read from the store.
"""
