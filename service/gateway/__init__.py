"""The gateway: one door for all projects, which finds or starts the instance that a request is meant for.

Its parts run as Lambdas behind API Gateway (:mod:`service.gateway.handlers`) or in one process on one machine
(:mod:`service.gateway.app`, ``bbpwf gateway``). Both decide with the same code::

    authorizer.py   whose token is this, and for which project may it be used?   → a pass
    passes.py       short-lived signed statements of that answer
    instances.py    exactly one instance for every project that is asked for, and not too many
      roster.py       who serves whom, written by compare-and-swap
      backend.py      what starts, shows and stops instances: containers.py (Docker), ecs.py
    passing.py      which headers of a request and an answer are passed on
"""
