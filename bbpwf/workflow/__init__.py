"""Task authors start here: what a task needs and what it makes; nothing else. The only importer of Luigi."""
