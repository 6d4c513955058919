"""The three pages that a person sees at the issuer."""

from __future__ import annotations

from html import escape

_FRAME = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; background: #f2f4f7; color: #1d2733; }}
main {{ max-width: 24rem; margin: 10vh auto; padding: 2rem; background: #fff; border-radius: .5rem; }}
label, input, button {{ display: block; width: 100%; box-sizing: border-box; }}
input, button {{ margin: .25rem 0 1rem; padding: .5rem; font: inherit; }}
button {{ background: #0a4a8f; color: #fff; border: 0; border-radius: .25rem; }}
.error {{ color: #a4161a; }}
</style></head>
<body><main><h1>{title}</h1>{body}</main></body>
</html>
"""
_PERSON = """<label for="username">Username</label>
<input id="username" name="username" autocomplete="username" autofocus required>
<label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" required>
"""


def message(title: str, text: str) -> str:
    """A page that only says something."""
    return _FRAME.format(title=escape(title), body=f"<p>{escape(text)}</p>")


def login(action: str, error: str = "") -> str:
    """The login form; it posts ``username`` and ``password`` to ``action``."""
    note = f'<p class="error" role="alert">{escape(error)}</p>' if error else ""
    form = f'<form id="kc-form-login" method="post" action="{escape(action)}">{_PERSON}'
    return _FRAME.format(title="Sign in to SBO", body=f'{note}{form}<button name="login">Sign in</button></form>')


def device(action: str, user_code: str = "", error: str = "") -> str:
    """The device page: code, name and password, and a yes or no."""
    note = f'<p class="error" role="alert">{escape(error)}</p>' if error else ""
    form = f"""<form method="post" action="{escape(action)}">
<label for="user_code">Code shown on your device</label>
<input id="user_code" name="user_code" value="{escape(user_code)}" required>
{_PERSON}<button name="decision" value="yes">Grant access</button>
<button name="decision" value="no">Refuse</button></form>"""
    return _FRAME.format(title="Device login", body=note + form)
