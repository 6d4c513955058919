"""The HTTP service of one Virtual Lab Project."""
