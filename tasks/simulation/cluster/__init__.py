"""Programs that run on a cluster, in its scientific software environment. Tasks stage them; nothing imports them."""
