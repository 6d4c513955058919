"""The tables of the one database: runs and tasks (written by the service and the agent), jobs (by the agent alone).

Times are Unix seconds. JSON columns hold the pydantic models of :mod:`bbpwf.cluster.jobs` and
:mod:`bbpwf.cluster.runs`. Migrations live in ``bbpwf/cluster/migrations``; a test holds the two together.
"""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

facts = sa.Table(
    "facts",
    metadata,
    sa.Column("name", sa.String(100), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)
"""Single values: the ledger's own id, the agent's fencing epoch, the offset in each cluster's event file."""

runs = sa.Table(
    "runs",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("run_id", sa.String(64), nullable=False, unique=True),
    sa.Column("state", sa.String(20), nullable=False, index=True),
    sa.Column("reason", sa.Text, nullable=False, default=""),
    sa.Column("request", sa.JSON, nullable=False),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("idempotency_key", sa.String(255), nullable=True),
    sa.Column("sub", sa.String(255), nullable=False),
    sa.Column("username", sa.String(255), nullable=False),
    sa.Column("incarnation", sa.Integer, nullable=False, default=1),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("started_at", sa.Float),
    sa.Column("ended_at", sa.Float),
    sa.Column("outcome", sa.JSON),
    sa.UniqueConstraint("sub", "idempotency_key"),
)

consents = sa.Table(
    "consents",
    metadata,
    sa.Column("sub", sa.String(255), primary_key=True),
    sa.Column("username", sa.String(255), nullable=False),
    sa.Column("client_id", sa.String(255), nullable=False),
    sa.Column("sealed", sa.Text, nullable=False),
    sa.Column("given_at", sa.Float, nullable=False),
    sa.Column("lost_at", sa.Float),
    sa.Column("reason", sa.Text, nullable=False, default=""),
)
"""Offline tokens of people, encrypted; see :mod:`bbpwf.cluster.consents`. A lost one keeps its row and no token."""

run_tags = sa.Table(
    "run_tags",
    metadata,
    sa.Column("run_id", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(255), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)

notices = sa.Table(
    "notices",
    metadata,
    sa.Column("run_id", sa.String(64), primary_key=True),
    sa.Column("incarnation", sa.Integer, primary_key=True),
    sa.Column("target", sa.String(2100), primary_key=True),
    sa.Column("state", sa.String(20), nullable=False),
    sa.Column("tries", sa.Integer, nullable=False, default=0),
    sa.Column("due_at", sa.Float, index=True),
    sa.Column("told_at", sa.Float),
    sa.Column("reason", sa.Text, nullable=False, default=""),
)
"""Who is to hear of a run's end, and when the next try is due: see :mod:`bbpwf.cluster.notices`."""

tasks = sa.Table(
    "tasks",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("run_id", sa.String(64), nullable=False),
    sa.Column("task_id", sa.String(255), nullable=False),
    sa.Column("family", sa.String(255), nullable=False),
    sa.Column("params", sa.JSON, nullable=False),
    sa.Column("state", sa.String(20), nullable=False),
    sa.Column("started_at", sa.Float),
    sa.Column("ended_at", sa.Float),
    sa.Column("message", sa.Text, nullable=False, default=""),
    sa.UniqueConstraint("run_id", "task_id"),
)

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("key", sa.String(64), nullable=False, unique=True),
    sa.Column("run_id", sa.String(64), nullable=False),
    sa.Column("task_id", sa.String(255), nullable=False),
    sa.Column("idx", sa.Integer),
    sa.Column("label", sa.Text, nullable=False, default=""),
    sa.Column("name", sa.String(255), nullable=False, default=""),
    sa.Column("cluster", sa.String(64), nullable=False),
    sa.Column("spec", sa.JSON, nullable=False),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("incarnation", sa.Integer, nullable=False, default=1),
    sa.Column("state", sa.String(20), nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False, default=1),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("reason", sa.Text, nullable=False, default=""),
    sa.Column("scheduler_id", sa.String(64), nullable=False, default=""),
    sa.Column("batch_id", sa.String(32), nullable=False, default=""),
    sa.Column("exit", sa.JSON),
    sa.Column("submitted_at", sa.Float),
    sa.Column("started_at", sa.Float),
    sa.Column("ended_at", sa.Float),
    sa.Column("stdout", sa.Text, nullable=False, default=""),
    sa.Column("cancel", sa.Boolean, nullable=False, default=False),
    sa.Column("infrastructure_retries", sa.Integer, nullable=False, default=0),
    sa.Column("retries", sa.Integer, nullable=False, default=0),
    sa.Column("escalations", sa.Integer, nullable=False, default=0),
    sa.Column("resources", sa.JSON(none_as_null=True)),
    sa.Index("ix_jobs_run_version", "run_id", "version"),
    sa.Index("ix_jobs_cluster_state", "cluster", "state"),
    sa.Index("ix_jobs_run_task", "run_id", "task_id"),
)
"""One row a job. ``resources`` is what its present attempt asks for, where that is not what its ``spec`` says."""

batches = sa.Table(
    "batches",
    metadata,
    sa.Column("batch_id", sa.String(32), primary_key=True),
    sa.Column("cluster", sa.String(64), nullable=False, index=True),
    sa.Column("state", sa.String(20), nullable=False),
    sa.Column("scheduler_id", sa.String(64), nullable=False, default=""),
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("sent_at", sa.Float),
    sa.Column("reason", sa.Text, nullable=False, default=""),
    sa.Column("resources", sa.JSON, nullable=False),
    sa.Column("command", sa.JSON, nullable=False, default=[]),
)
"""One submission each. ``state``: PREPARED, SENT (an answer is due or was lost), ACCEPTED, REJECTED.

``resources`` is what it asks for, ``command`` the scheduler's command that it was made with.
"""

batch_jobs = sa.Table(
    "batch_jobs",
    metadata,
    sa.Column("batch_id", sa.String(32), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("job_key", sa.String(64), nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Index("ix_batch_jobs_job", "job_key", "batch_id"),
)
"""Which job, in which attempt, is element ``position`` of a submission."""

transitions = sa.Table(
    "transitions",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("job_key", sa.String(64), nullable=False, index=True),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("state", sa.String(20), nullable=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("witness", sa.String(20), nullable=False),
    sa.Column("scheduler_id", sa.String(64), nullable=False, default=""),
    sa.Column("reason", sa.Text, nullable=False, default=""),
    sa.Column("exit", sa.JSON(none_as_null=True)),
)
"""Every change of every job, with who saw it: the history that explains a failure and that a checker can read."""
