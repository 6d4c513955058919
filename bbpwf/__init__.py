"""Scientific pipelines on HPC clusters as a service.

Importing this package does nothing: no environment is read, no client is built, no logging is set up.
"""

__version__ = "0.1.0"
