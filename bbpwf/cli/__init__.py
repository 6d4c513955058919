"""The `bbpwf` command: entry points that build things, wire them and pass them down."""
