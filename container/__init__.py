"""The container image of an instance, and the templates that deploy it. Not part of the installed package."""
